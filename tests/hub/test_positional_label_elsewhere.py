"""Positional Label models load where hubmodels cannot be imported: around stock backbones, around MAE, without head."""

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.mae import MAEConfig, MAEImageProcessor
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionalLabelForPreTraining,
)
from PIL import Image
from transformers import BitImageProcessor, SwinConfig, ViTConfig, ViTMAEConfig

from hubmodels.repository import prepare_repository

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
LABELS = ["cat", "dog", "horse"]
WAYS = ("published", "pushed", "folder")

PUBLISH = """
import sys
from pathlib import Path
from transformers import BitImageProcessor
from hubmodels.modeling.positional_label import PositionalLabelForImageClassification
from hubmodels.publishing import publish
work = Path(sys.argv[1])
for name in ("vit", "swin", "mae", "vit_mae"):
    publish(work / name, f"alice/{name}")
for name in ("vit", "swin"):
    PositionalLabelForImageClassification.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
    BitImageProcessor.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import (AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining,
                          pipeline)
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
pixels, noise = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "noise"))
image = Image.open(work / "image.png")
seen = {}

def loaded(auto, name):
    model, info = auto.from_pretrained(name, output_loading_info=True, **trust)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model.eval()

@torch.no_grad()
def use_classifier(way, kind, name):
    model = loaded(AutoModelForImageClassification, name)
    output = model(pixels, return_position=True)
    seen[f"{way}/{kind}/logits"], seen[f"{way}/{kind}/position_loss"] = output.logits, output.position_loss
    seen[f"{way}/{kind}/plain"] = model.to_backbone_classifier()(pixels).logits
    scores = pipeline("image-classification", model=name, **trust)(image)
    seen[f"{way}/{kind}/scores"] = [s["score"] for s in sorted(scores, key=lambda s: s["label"])]

@torch.no_grad()
def use_autoencoder(way, kind, name):
    output = loaded(AutoModelForPreTraining, name)(pixels, noise=noise)
    seen[f"{way}/{kind}/loss"], seen[f"{way}/{kind}/position_loss"] = output.loss, output.position_loss
    encoder = AutoModel.from_pretrained(name, **trust).eval()
    classifier = AutoModelForImageClassification.from_pretrained(name, num_labels=3, **trust).eval()
    assert classifier(pixels).logits.shape == (2, 3)
    seen[f"{way}/{kind}/tokens"] = encoder(pixels).last_hidden_state
    seen[f"{way}/{kind}/tokens of the classifier"] = classifier.encode(pixels).last_hidden_state
    seen[f"{way}/{kind}/positions of the classifier"] = classifier(pixels, return_position=True).position_loss

for way, name in {"published": "alice/{}", "pushed": "alice/pushed-{}", "folder": str(work / "repository-{}")}.items():
    for kind in ("vit", "swin"):
        use_classifier(way, kind, name.format(kind))
    if way != "pushed":  # the bare push_to_hub of a model knows the files of its own method only
        for kind in ("mae", "vit_mae"):
            use_autoencoder(way, kind, name.format(kind))
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with four saved models, their inputs, and, in `stranger.npz`, what a stranger's process got from them."""
    work = tmp_path_factory.mktemp("positional_label")
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    vit = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), position_label="both", pooling="cls", **labels)
    swin = PositionalLabelConfig(
        backbone_config=SwinConfig(**SWIN, drop_path_rate=0.0), backbone_variant="authors", **labels
    )
    autoencoders = {"mae": MAEConfig(**VIT, **DECODER), "vit_mae": ViTMAEConfig(**VIT, **DECODER)}
    models = {
        "vit": PositionalLabelForImageClassification(vit),
        "swin": PositionalLabelForImageClassification(swin),
    }
    for name, inner in autoencoders.items():
        config = PositionalLabelConfig(backbone_config=inner, position_label="relative")
        models[name] = PositionalLabelForPreTraining(config)
    for name, model in models.items():
        model.save_pretrained(work / name)
        processor = MAEImageProcessor if name in autoencoders else BitImageProcessor
        processor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(work / name)
        prepare_repository(work / name, work / f"repository-{name}")
    generator = np.random.default_rng(0)
    np.save(work / "pixels.npy", generator.random((2, 3, 32, 32), dtype=np.float32))
    np.save(work / "noise.npy", generator.random((2, 16), dtype=np.float32))
    Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(work / "image.png")
    with HubServer() as hub:
        run_client(hub, work, PUBLISH)
        run_client(hub, work, WITHOUT_HUBMODELS + STRANGER, token="hf_read_secret")
    return work


@pytest.fixture(scope="module")
def stranger(work):
    return np.load(work / "stranger.npz")


def assert_equal(stranger, key: str, ours: torch.Tensor) -> None:
    np.testing.assert_allclose(stranger[key], ours.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("way", WAYS)
def test_classifier_gives_the_same_outputs_elsewhere(work, stranger, way, kind):
    model = PositionalLabelForImageClassification.from_pretrained(work / kind).eval()
    processor = BitImageProcessor.from_pretrained(work / kind)
    processed = processor(Image.open(work / "image.png").convert("RGB"), return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.load(work / "pixels.npy"))
    with torch.no_grad():
        output = model(pixels, return_position=True)
        assert_equal(stranger, f"{way}/{kind}/logits", output.logits)
        assert_equal(stranger, f"{way}/{kind}/plain", output.logits)
        assert_equal(stranger, f"{way}/{kind}/position_loss", output.position_loss)
        assert_equal(stranger, f"{way}/{kind}/scores", model(processed).logits.softmax(-1)[0])


@pytest.mark.parametrize("kind", ["mae", "vit_mae"])
@pytest.mark.parametrize("way", ["published", "folder"])
def test_autoencoder_gives_the_same_outputs_elsewhere_with_every_auto_class(work, stranger, way, kind):
    pixels, noise = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "noise"))
    model = PositionalLabelForPreTraining.from_pretrained(work / kind).eval()
    classifier = PositionalLabelForImageClassification.from_pretrained(work / kind, num_labels=3).eval()
    with torch.no_grad():
        output, tokens = model(pixels, noise=noise), classifier.encode(pixels).last_hidden_state
        positions = classifier(pixels, return_position=True).position_loss
    assert_equal(stranger, f"{way}/{kind}/loss", output.loss)
    assert_equal(stranger, f"{way}/{kind}/position_loss", output.position_loss)
    assert_equal(stranger, f"{way}/{kind}/tokens", tokens)
    assert_equal(stranger, f"{way}/{kind}/tokens of the classifier", tokens)
    assert_equal(stranger, f"{way}/{kind}/positions of the classifier", positions)
