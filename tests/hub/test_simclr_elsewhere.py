"""SimCLR models load where hubmodels cannot be imported: published, pushed by plain transformers, and from a folder."""

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from PIL import Image
from transformers import Dinov2Config

from hubmodels.repository import prepare_repository

CONFIG = {"image_size": 32, "stem_width": 4, "depths": [1, 1, 1, 1], "proj_out_dim": 8, "num_proj_layers": 2}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LABELS = ["cat", "dog", "horse"]
WAYS = ("published", "pushed", "folder")

PUBLISH = """
import sys
from pathlib import Path
from hubmodels.modeling.simclr import SimCLRForImageClassification, SimCLRForPreTraining, SimCLRImageProcessor
from hubmodels.publishing import publish
work = Path(sys.argv[1])
classes = {"classifier": SimCLRForImageClassification, "pretraining": SimCLRForPreTraining, "vit": SimCLRForPreTraining}
for name, model_class in classes.items():
    publish(work / name, f"alice/{name}")
    model_class.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
    SimCLRImageProcessor.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import (AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
pixels, views = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "views"))
image = Image.open(work / "image.png")
seen = {}

def loaded(auto, name):
    model, info = auto.from_pretrained(name, output_loading_info=True, **trust)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model.eval(), info

@torch.no_grad()
def use_classifier(way, name):
    model, info = loaded(AutoModelForImageClassification, name)
    assert not any(info.values()), info
    seen[f"{way}/logits"] = model(pixels).logits
    processor = AutoImageProcessor.from_pretrained(name, **trust)
    seen[f"{way}/processed"] = processor(image, return_tensors="pt")["pixel_values"]
    scores = pipeline("image-classification", model=name, **trust)(image)
    seen[f"{way}/scores"] = [s["score"] for s in sorted(scores, key=lambda s: s["label"])]

@torch.no_grad()
def use_pretraining(way, name, kind):
    model, info = loaded(AutoModelForPreTraining, name)
    assert not any(info.values()), info
    output = model(views)
    seen[f"{way}/{kind}/loss"], seen[f"{way}/{kind}/projections"] = output.loss, output.projections
    seen[f"{way}/{kind}/features"] = loaded(AutoModel, name)[0](pixels).pooler_output
    if way != "folder":  # AutoBackbone of transformers asks the Hub for every name
        seen[f"{way}/{kind}/map"] = loaded(AutoBackbone, name)[0](pixels).feature_maps[0]

for way, name in {"published": "alice/{}", "pushed": "alice/pushed-{}", "folder": str(work / "repository-{}")}.items():
    use_classifier(way, name.format("classifier"))
    use_pretraining(way, name.format("pretraining"), "resnet")
    use_pretraining(way, name.format("vit"), "vit")
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with three saved models, their inputs, and, in `stranger.npz`, what a stranger's process got from them."""
    work = tmp_path_factory.mktemp("simclr")
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    vit = SimCLRConfig(backbone_config=Dinov2Config(**VIT), image_size=32, pooling="cls", proj_out_dim=8)
    models = {
        "classifier": SimCLRForImageClassification(SimCLRConfig(**CONFIG, ft_proj_selector=1, **labels)),
        "pretraining": SimCLRForPreTraining(SimCLRConfig(**CONFIG, sk_ratio=0.0625)),
        "vit": SimCLRForPreTraining(vit),
    }
    for name, model in models.items():
        model.save_pretrained(work / name)
        SimCLRImageProcessor(size={"height": 32, "width": 32}, crop_proportion=0.875).save_pretrained(work / name)
        prepare_repository(work / name, work / f"repository-{name}")
    generator = np.random.default_rng(0)
    np.save(work / "pixels.npy", generator.random((2, 3, 32, 32), dtype=np.float32))
    np.save(work / "views.npy", generator.random((3, 2, 3, 32, 32), dtype=np.float32))
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


@pytest.mark.parametrize("way", WAYS)
def test_classifier_gives_the_same_outputs_elsewhere(work, stranger, way):
    model = SimCLRForImageClassification.from_pretrained(work / "classifier").eval()
    processor = SimCLRImageProcessor.from_pretrained(work / "classifier")
    processed = processor(Image.open(work / "image.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert_equal(stranger, f"{way}/logits", model(torch.from_numpy(np.load(work / "pixels.npy"))).logits)
        assert_equal(stranger, f"{way}/processed", processed)
        assert_equal(stranger, f"{way}/scores", model(processed).logits.softmax(-1)[0])


@pytest.mark.parametrize("name, kind", [("pretraining", "resnet"), ("vit", "vit")])
@pytest.mark.parametrize("way", WAYS)
def test_pre_training_model_gives_the_same_outputs_elsewhere(work, stranger, way, name, kind):
    pixels, views = (torch.from_numpy(np.load(work / f"{part}.npy")) for part in ("pixels", "views"))
    folder = work / name
    with torch.no_grad():
        output = SimCLRForPreTraining.from_pretrained(folder).eval()(views)
        assert_equal(stranger, f"{way}/{kind}/loss", output.loss)
        assert_equal(stranger, f"{way}/{kind}/projections", output.projections)
        features = SimCLRModel.from_pretrained(folder).eval()(pixels).pooler_output
        assert_equal(stranger, f"{way}/{kind}/features", features)
        if way != "folder":
            feature_map = SimCLRBackbone.from_pretrained(folder).eval()(pixels).feature_maps[0]
            assert_equal(stranger, f"{way}/{kind}/map", feature_map)
