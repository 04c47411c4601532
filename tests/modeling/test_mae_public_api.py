"""MAE where users meet it: names of the package, Auto classes in any order of imports, pipelines."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    pipeline,
)

import hubmodels
from hubmodels import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from tests.modeling.tiny_mae import SIZES, perturbed, tiny_config


@pytest.fixture
def folder(tmp_path):
    """A tiny pre-trained model with its processor."""
    perturbed(MAEForPreTraining(tiny_config())).save_pretrained(tmp_path / "pretrained")
    MAEImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "pretrained"
    )
    return tmp_path / "pretrained"


@pytest.fixture
def picture():
    return Image.effect_noise((40, 30), 60).convert("RGB")


def test_every_name_of_the_package_resolves():
    for name in hubmodels.__all__:
        assert getattr(hubmodels, name) is not None
    assert hubmodels.MAEForPreTraining is MAEForPreTraining
    with pytest.raises(AttributeError, match="has no attribute 'MAEForEverything'"):
        hubmodels.MAEForEverything  # noqa: B018


@pytest.mark.parametrize(
    "auto_class, model_class",
    [
        (AutoModel, MAEModel),
        (AutoModelForPreTraining, MAEForPreTraining),
        (AutoModelForImageClassification, MAEForImageClassification),
    ],
    ids=lambda value: value.__name__,
)
def test_auto_classes_make_our_models(folder, auto_class, model_class):
    assert type(auto_class.from_pretrained(folder)) is model_class
    assert type(auto_class.from_config(tiny_config())) is model_class
    assert type(AutoConfig.from_pretrained(folder)) is MAEConfig
    assert type(AutoConfig.for_model("mae")) is MAEConfig
    assert type(AutoImageProcessor.from_pretrained(folder)) is MAEImageProcessor


def test_auto_backbone_makes_ours():
    """From a config: `AutoBackbone.from_pretrained` of transformers asks the Hub for every name, also for a folder."""
    assert type(AutoBackbone.from_config(tiny_config(out_features=["stage1"]))) is MAEBackbone


def test_stock_configs_stay_stock(tmp_path):
    """Registering our method changes nothing for `vit_mae`."""
    stock = ViTMAEConfig(**SIZES)
    assert type(AutoModel.from_config(stock)) is ViTMAEModel
    assert type(AutoModelForPreTraining.from_config(stock)) is ViTMAEForPreTraining
    ViTMAEForPreTraining(stock).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ViTMAEConfig
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ViTMAEForPreTraining
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit_mae"


ENTRY_ORDERS = {
    "hubmodels_first": "import hubmodels; from transformers import AutoModel, AutoModelForPreTraining",
    "transformers_first": "from transformers import AutoModel, AutoModelForPreTraining; "
    "AutoModel._model_mapping.keys(); import transformers.models.vit_mae.modeling_vit_mae; import hubmodels",
    "method_first": "from hubmodels.modeling.mae import MAEForPreTraining; "
    "from transformers import AutoModel, AutoModelForPreTraining; import hubmodels.training",
}
LOAD = """
import sys
model = AutoModelForPreTraining.from_pretrained(sys.argv[1])
features = AutoModel.from_pretrained(sys.argv[1])
from hubmodels import MAEForPreTraining, MAEModel
from transformers import AutoConfig, AutoImageProcessor, ViTMAEConfig
assert type(model) is MAEForPreTraining and type(features) is MAEModel
assert type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__ == "MAEImageProcessor"
assert type(AutoModel.from_config(ViTMAEConfig(num_hidden_layers=1))).__name__ == "ViTMAEModel"
print("resolved")
"""


@pytest.mark.parametrize("order", ENTRY_ORDERS)
def test_auto_classes_resolve_in_any_order_of_imports(folder, order):
    command = [sys.executable, "-c", ENTRY_ORDERS[order] + LOAD, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.stdout.strip() == "resolved", done.stderr


def test_image_classification_pipeline(folder, picture, tmp_path):
    classes = {0: "cat", 1: "dog", 2: "bird"}
    model = MAEForImageClassification.from_pretrained(
        folder, id2label=classes, label2id={v: k for k, v in classes.items()}
    )
    perturbed(model).save_pretrained(tmp_path / "classifier")
    processor = MAEImageProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "classifier")
    results = pipeline("image-classification", model=str(tmp_path / "classifier"))(picture, top_k=3)
    assert {result["label"] for result in results} == set(classes.values())
    with torch.no_grad():
        logits = model.eval()(**processor(picture, return_tensors="pt")).logits[0]
    expected = dict(zip(classes.values(), logits.softmax(dim=0).tolist(), strict=True))
    for result in results:
        assert result["score"] == pytest.approx(expected[result["label"]], abs=1e-5)


def test_image_feature_extraction_pipeline(folder, picture):
    """Without masking the features are those of all patches in natural order, the same at every call."""
    extract = pipeline("image-feature-extraction", model=str(folder), model_kwargs={"mask_ratio": 0.0})
    features = torch.tensor(extract(picture))
    assert features.shape == (1, 17, 16)
    assert torch.equal(features, torch.tensor(extract(picture)))
    pixels = MAEImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = MAEModel.from_pretrained(folder).eval()(pixels, mask_ratio=0).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
