"""Saved image processors that make views load where hubmodels cannot be imported, and give the same views."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS
from hubmodels.modeling.densecl import DenseCLImageProcessor
from hubmodels.modeling.simclr import SimCLRImageProcessor

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoImageProcessor
work = Path(sys.argv[1])
processor = AutoImageProcessor.from_pretrained(work / "saved", trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
images, uniforms = (np.load(work / f"{name}.npy") for name in ("images", "uniforms"))
views = processor(torch.from_numpy(images), mode="pretrain", uniforms=uniforms)
np.save(work / "views.npy", views["pixel_values"].numpy())
"""
PROCESSORS = {
    "densecl tensor": DenseCLImageProcessor(size={"height": 24, "width": 28}, hue=0.2),
    "densecl pil": DenseCLImageProcessor(size={"height": 24, "width": 28}, hue=0.2, engine="pil"),
    "simclr": SimCLRImageProcessor(size=24, strength=0.5, blur_sigma="per_image"),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS.keys())
def test_views_of_a_stranger(tmp_path, processor):
    processor.save_pretrained(tmp_path / "saved")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 3, 30, 28), dtype=np.uint8)
    uniforms = generator.random((6, 2, processor.draws))
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "uniforms.npy", uniforms)
    command = [sys.executable, "-c", WITHOUT_HUBMODELS + STRANGER, str(tmp_path)]
    home = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr
    expected = processor(torch.from_numpy(images), mode="pretrain", uniforms=uniforms)
    np.testing.assert_array_equal(np.load(tmp_path / "views.npy"), expected["pixel_values"].numpy())
