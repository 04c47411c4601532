"""DenseCL models load where hubmodels is not installed: published, pushed by plain transformers, from a folder."""

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.densecl import (
    DenseCLBackbone,
    DenseCLConfig,
    DenseCLForPreTraining,
    DenseCLImageProcessor,
    DenseCLModel,
)
from safetensors.torch import load
from transformers import Dinov2Config

from hubmodels.repository import prepare_repository

RESNET = {"embedding_size": 4, "depths": [1, 1, 1, 1], "strides": [1, 2, 2, 1]}
CONTRAST = {"projection_hidden_size": 8, "projection_size": 6, "queue_length": 12}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WAYS = ("published", "pushed", "folder")
NAMES = ("resnet", "vit")

PUBLISH = """
import sys
from pathlib import Path
from hubmodels.modeling.densecl import DenseCLForPreTraining, DenseCLImageProcessor
from hubmodels.publishing import publish
work = Path(sys.argv[1])
for name in ("resnet", "vit"):
    publish(work / name, f"alice/{name}")
    DenseCLForPreTraining.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
    DenseCLImageProcessor.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
model = DenseCLForPreTraining.from_pretrained(work / "resnet")
model.push_to_hub("alice/encoder", include_training_state=False, commit_message="Encoder")
model.push_to_hub("alice/everything")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForPreTraining
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
images, views = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("images", "views"))
seen = {}

def loaded(auto, name):
    model, info = auto.from_pretrained(name, output_loading_info=True, **trust)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not any(info.values()), info
    return model

for way, pattern in {"published": "alice/{}", "pushed": "alice/pushed-{}", "folder": str(work / "{}-folder")}.items():
    for name in ("resnet", "vit"):
        source = pattern.format(name)
        model = loaded(AutoModelForPreTraining, source).eval()
        with torch.no_grad():
            seen[f"{way}/{name}/loss"] = model(views).loss
            seen[f"{way}/{name}/trained loss"] = model.train()(views).loss
            seen[f"{way}/{name}/queue"] = model.queue2
            seen[f"{way}/{name}/embedding"] = loaded(AutoModel, source)(images).dense_embedding
            if way != "folder":  # AutoBackbone takes local folders for names of timm
                seen[f"{way}/{name}/map"] = loaded(AutoBackbone, source)(images).feature_maps[-1]
        processor = AutoImageProcessor.from_pretrained(source, **trust)
        assert type(processor).__module__.startswith("transformers_modules."), type(processor)
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with two saved models, their inputs, and, in `stranger.npz`, what a stranger's process got from them."""
    work = tmp_path_factory.mktemp("densecl")
    torch.manual_seed(0)
    for name, backbone in (("resnet", RESNET), ("vit", {"backbone_config": Dinov2Config(**VIT)})):
        DenseCLForPreTraining(DenseCLConfig(**backbone, **CONTRAST)).save_pretrained(work / name)
        DenseCLImageProcessor(size={"height": 32, "width": 32}).save_pretrained(work / name)
        prepare_repository(work / name, work / f"{name}-folder")
    generator = np.random.default_rng(0)
    np.save(work / "images.npy", generator.random((2, 3, 32, 32), dtype=np.float32))
    np.save(work / "views.npy", generator.random((4, 2, 3, 32, 32), dtype=np.float32))
    with HubServer() as hub:
        run_client(hub, work, PUBLISH)
        run_client(hub, work, WITHOUT_HUBMODELS + STRANGER, token="hf_read_secret")
        for name in ("encoder", "everything"):
            (work / f"{name}.safetensors").write_bytes(hub.files(f"alice/{name}")["model.safetensors"])
    return work


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_models_give_the_same_outputs_elsewhere(work, way, name):
    stranger = np.load(work / "stranger.npz")
    images, views = (torch.from_numpy(np.load(work / f"{part}.npy")) for part in ("images", "views"))
    model = DenseCLForPreTraining.from_pretrained(work / name)
    with torch.no_grad():
        expected = {
            "loss": model(views).loss,
            "trained loss": model.train()(views).loss,
            "queue": model.queue2,
            "embedding": DenseCLModel.from_pretrained(work / name)(images).dense_embedding,
        }
        if way != "folder":
            expected["map"] = DenseCLBackbone.from_pretrained(work / name)(images).feature_maps[-1]
    for key, tensor in expected.items():
        np.testing.assert_allclose(
            stranger[f"{way}/{name}/{key}"], tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=f"{way}/{name}/{key}"
        )


def test_the_training_state_can_be_left_out_of_a_push(work):
    expected = DenseCLForPreTraining.from_pretrained(work / "resnet").state_dict()
    encoder = {name: tensor for name, tensor in expected.items() if name.startswith("encoder.")}
    for name, state in {"encoder": encoder, "everything": expected}.items():
        pushed = load((work / f"{name}.safetensors").read_bytes())
        assert pushed.keys() == state.keys()
        assert all(torch.equal(pushed[key], tensor) for key, tensor in state.items())
