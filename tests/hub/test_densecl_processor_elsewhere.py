"""A saved DenseCL image processor loads where hubmodels cannot be imported, and gives the same views."""

import os
import subprocess
import sys

import numpy as np
import torch
from client_code import WITHOUT_HUBMODELS
from hubmodels.modeling.densecl import DenseCLImageProcessor

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
for engine in ("tensor", "pil"):
    views = processor(torch.from_numpy(images), mode="pretrain", uniforms=uniforms, engine=engine)
    np.save(work / f"{engine}.npy", views["pixel_values"].numpy())
"""


def test_views_of_a_stranger(tmp_path):
    processor = DenseCLImageProcessor(size={"height": 24, "width": 28}, hue=0.2)
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
    for engine in ("tensor", "pil"):
        expected = processor(torch.from_numpy(images), mode="pretrain", uniforms=uniforms, engine=engine)
        np.testing.assert_array_equal(np.load(tmp_path / f"{engine}.npy"), expected["pixel_values"].numpy())
