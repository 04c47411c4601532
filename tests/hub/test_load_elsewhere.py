"""Models leave through `publish`, `push_to_hub` and a local folder, and load where hubmodels cannot be imported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from PIL import Image

from hubmodels.catalog import METHODS
from hubmodels.repository import prepare_repository
from tests.modeling.tiny_mae import SIZES

CONFIG = SIZES | {"image_size": 32, "patch_size": 8}
LABELS = ["ankle boot", "bag", "coat"]

PUBLISH = """
import sys
from pathlib import Path
from hubmodels.publishing import publish
work = Path(sys.argv[1])
publish(work / "classifier", "alice/classifier")
publish(work / "pretraining", "alice/pretraining")
publish(work / "classifier", "alice/private", private=True)
"""

# Plain transformers calls, without a word of hubmodels' publishing.
PUSH = """
import sys
from pathlib import Path
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining, MAEImageProcessor
work = Path(sys.argv[1])
for name, model_class in (("classifier", MAEForImageClassification), ("pretraining", MAEForPreTraining)):
    model_class.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
    MAEImageProcessor.from_pretrained(work / name).push_to_hub(f"alice/pushed-{name}")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
pixels, noise = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "noise"))
image = Image.open(work / "image.png")
seen = {}

def loaded(auto, name, **options):
    model, info = auto.from_pretrained(name, output_loading_info=True, **trust, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model.eval(), info

@torch.no_grad()
def use_classifier(key, name, **options):
    model, info = loaded(AutoModelForImageClassification, name, **options)
    assert not any(info.values()), info
    seen[f"{key}/logits"] = model(pixels).logits
    seen[f"{key}/processed"] = AutoImageProcessor.from_pretrained(name, **trust, **options)(image, return_tensors="pt")[
        "pixel_values"]
    scores = pipeline("image-classification", model=name, **trust, **options)(image)
    seen[f"{key}/scores"] = [s["score"] for s in sorted(scores, key=lambda s: s["label"])]

@torch.no_grad()
def use_pretraining(key, name):
    model, info = loaded(AutoModelForPreTraining, name)
    assert not any(info.values()), info
    output = model(pixels, noise=noise)
    seen[f"{key}/loss"], seen[f"{key}/predicted"] = output.loss, output.logits
    seen[f"{key}/features"] = loaded(AutoModel, name)[0](pixels, mask_ratio=0).last_hidden_state
    seen[f"{key}/map"] = loaded(AutoBackbone, name)[0](pixels).feature_maps[0]
    classifier, info = loaded(AutoModelForImageClassification, name, num_labels=7)
    assert classifier.config.num_labels == 7 and not any("vit.layers" in key for key in info["missing_keys"])
    extract = pipeline("image-feature-extraction", model=name, model_kwargs={"mask_ratio": 0.0}, **trust)
    seen[f"{key}/extracted"] = extract(image)

try:
    AutoConfig.from_pretrained("alice/private", **trust)
except OSError as error:
    seen["refused"] = "private" in str(error)
use_classifier("published", "alice/classifier")
use_classifier("private", "alice/private", token=sys.argv[2])
use_classifier("folder", str(work / "repository"))
use_classifier("pushed", "alice/pushed-classifier")
use_pretraining("published", "alice/pretraining")
use_pretraining("pushed", "alice/pushed-pretraining")
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with two saved models, their inputs, and, in `stranger.npz`, what a stranger's process got from them."""
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    classifier = MAEForImageClassification(MAEConfig(**CONFIG, classifier_init_std=0.5, **labels))
    pretraining = MAEForPreTraining(MAEConfig(**CONFIG, norm_pix_loss=True))
    processor = MAEImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    for name, model in (("classifier", classifier), ("pretraining", pretraining)):
        model.save_pretrained(work / name)
        processor.save_pretrained(work / name)
    generator = np.random.default_rng(0)
    np.save(work / "pixels.npy", generator.standard_normal((2, 3, 32, 32), dtype=np.float32))
    np.save(work / "noise.npy", generator.random((2, 16), dtype=np.float32))
    Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(work / "image.png")
    prepare_repository(work / "classifier", work / "repository")
    with HubServer() as hub:
        run_client(hub, work, PUBLISH)
        run_client(hub, work, PUSH)
        stranger = WITHOUT_HUBMODELS + STRANGER
        run_client(hub, work, stranger, "hf_write_secret", token=None)
        for name in ("classifier", "pretraining"):
            write_files(work / "hub" / f"pushed-{name}", hub.files(f"alice/pushed-{name}"))
    return work


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def stranger(work):
    return np.load(work / "stranger.npz")


def inputs(work: Path) -> tuple[torch.Tensor, torch.Tensor, Image.Image]:
    pixels, noise = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "noise"))
    return pixels, noise, Image.open(work / "image.png")


def assert_equal(stranger, key: str, ours: torch.Tensor) -> None:
    np.testing.assert_allclose(stranger[key], ours.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("way", ["published", "private", "folder", "pushed"])
def test_classifier_gives_the_same_outputs_elsewhere(work, stranger, way):
    pixels, _, image = inputs(work)
    model = MAEForImageClassification.from_pretrained(work / "classifier").eval()
    processed = MAEImageProcessor.from_pretrained(work / "classifier")(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert_equal(stranger, f"{way}/logits", model(pixels).logits)
        assert_equal(stranger, f"{way}/processed", processed)
        assert_equal(stranger, f"{way}/scores", model(processed).logits.softmax(-1)[0])


@pytest.mark.parametrize("way", ["published", "pushed"])
def test_pretraining_model_gives_the_same_outputs_elsewhere(work, stranger, way):
    pixels, noise, image = inputs(work)
    folder = work / "pretraining"
    processed = MAEImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    encoder = MAEModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = MAEForPreTraining.from_pretrained(folder).eval()(pixels, noise=noise)
        assert_equal(stranger, f"{way}/loss", output.loss)
        assert_equal(stranger, f"{way}/predicted", output.logits)
        assert_equal(stranger, f"{way}/features", encoder(pixels, mask_ratio=0).last_hidden_state)
        assert_equal(stranger, f"{way}/extracted", encoder(processed, mask_ratio=0).last_hidden_state)
        assert_equal(stranger, f"{way}/map", MAEBackbone.from_pretrained(folder).eval()(pixels).feature_maps[0])


def test_private_repository_is_refused_elsewhere_without_token(stranger):
    assert stranger.get("refused")


@pytest.mark.parametrize("name", ["classifier", "pretraining"])
def test_stock_push_carries_the_code_and_the_whole_auto_map(work, name):
    mae = next(method for method in METHODS if method.name == "mae")
    pushed = work / "hub" / f"pushed-{name}"
    models = {auto for auto in mae.auto_classes if auto != "AutoImageProcessor"}
    assert set(MAEConfig.from_pretrained(pushed).auto_map) == models
    assert {"modeling_mae.py", "configuration_mae.py", "image_processing_mae.py"} <= {p.name for p in pushed.iterdir()}
