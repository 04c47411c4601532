"""SANM models load where hubmodels is not installed: published, pushed by plain transformers, from a folder."""

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
)
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig

from hubmodels.repository import prepare_repository

LABELS = {0: "cat", 1: "dog", 2: "horse"}
NETWORK = {"widths": [4, 8], "depths": [1, 1], "image_size": 32, "id2label": LABELS}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MODELS = {
    "single": (SANMForImageClassification, {**NETWORK, "framework": "ce"}),
    "pair": (SANMEnsembleForImageClassification, NETWORK),
    "vit": (SANMForImageClassification, {"backbone_config": ViTConfig(**VIT), "image_size": 32, "id2label": LABELS}),
}
WAYS = ("published", "pushed", "folder")

PUBLISH = """
import sys
from pathlib import Path
from transformers import AutoModelForImageClassification
from hubmodels.modeling.sanm import SANMImageProcessor
from hubmodels.publishing import publish
work = Path(sys.argv[1])
for name in ("single", "pair", "vit"):
    publish(work / name, f"alice/{name}")
    AutoModelForImageClassification.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
    SANMImageProcessor.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
pixels = torch.from_numpy(np.load(work / "pixels.npy"))
seen = {}
for way, pattern in {"published": "alice/{}", "pushed": "alice/pushed-{}", "folder": str(work / "{}-folder")}.items():
    for name in ("single", "pair", "vit"):
        source = pattern.format(name)
        model, info = AutoModelForImageClassification.from_pretrained(source, output_loading_info=True, **trust)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert not any(info.values()), info
        with torch.no_grad():
            seen[f"{way}/{name}/logits"] = model.eval()(pixels).logits
        processor = AutoImageProcessor.from_pretrained(source, **trust)
        assert type(processor).__module__.startswith("transformers_modules."), type(processor)
        found = pipeline("image-classification", model=source, **trust)(Image.open(work / "image.png"))
        seen[f"{way}/{name}/scores"] = [e["score"] for e in sorted(found, key=lambda e: e["label"])]
        labels = torch.tensor([0, 1, 2, 0])
        loss = model.train()(pixels, labels=labels).loss
        loss.backward()
        assert torch.isfinite(loss)
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with saved models, their inputs, and, in `stranger.npz`, what a stranger's process got from them."""
    work = tmp_path_factory.mktemp("sanm")
    torch.manual_seed(0)
    for name, (model_class, fields) in MODELS.items():
        model_class(SANMConfig(**fields)).save_pretrained(work / name)
        SANMImageProcessor().save_pretrained(work / name)
        prepare_repository(work / name, work / f"{name}-folder")
    generator = np.random.default_rng(0)
    np.save(work / "pixels.npy", generator.random((4, 3, 32, 32), dtype=np.float32))
    Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(work / "image.png")
    with HubServer() as hub:
        run_client(hub, work, PUBLISH)
        run_client(hub, work, WITHOUT_HUBMODELS + STRANGER, token="hf_read_secret")
    return work


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_models_give_the_same_outputs_elsewhere(work, way, name):
    stranger = np.load(work / "stranger.npz")
    model = AutoModelForImageClassification.from_pretrained(work / name)
    assert type(model) is MODELS[name][0]
    with torch.no_grad():
        logits = model(torch.from_numpy(np.load(work / "pixels.npy"))).logits
    np.testing.assert_allclose(stranger[f"{way}/{name}/logits"], logits.numpy(), rtol=1e-5, atol=1e-5)
    assert stranger[f"{way}/{name}/scores"].shape == (3,)
    assert stranger[f"{way}/{name}/scores"].sum() == pytest.approx(1, abs=1e-5)
