"""Folders that MAE models read and write: ours, the old one of the Hub, and the one transformers 5 writes."""

import json
import re

import pytest
import torch
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from tests.modeling.stock import stock_5_23
from tests.modeling.tiny_mae import SIZES, images, noise_for, perturbed, tiny_config

LAYER = (
    *(f"attention.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")),
    *(f"{norm}.{kind}" for norm in ("layernorm_before", "layernorm_after") for kind in ("weight", "bias")),
    *(f"mlp.{part}.{kind}" for part in ("fc1", "fc2") for kind in ("weight", "bias")),
)
NATURAL_NAMES = {
    "vit.embeddings.cls_token",
    "vit.embeddings.position_embeddings",
    "vit.embeddings.patch_embeddings.projection.weight",
    "vit.embeddings.patch_embeddings.projection.bias",
    "vit.layernorm.weight",
    "vit.layernorm.bias",
    "decoder.mask_token",
    "decoder.decoder_pos_embed",
    *(f"vit.layers.{index}.{part}" for index in range(2) for part in LAYER),
    *(f"decoder.decoder_layers.{index}.{part}" for index in range(2) for part in LAYER),
    *(f"decoder.decoder_{part}.{kind}" for part in ("embed", "norm", "pred") for kind in ("weight", "bias")),
}

HUB_RENAMES = [
    (r"vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def hub_name(name):
    """The name of a weight in facebook/vit-mae-base."""
    for pattern, replacement in HUB_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture
def model():
    return perturbed(MAEForPreTraining(tiny_config())).eval()


def save_natural(model, folder):
    model.save_pretrained(folder)


def save_as_on_the_hub(model, folder):
    """The layout and the config of the facebook/vit-mae-* repositories."""
    folder.mkdir()
    weights = {hub_name(name): tensor for name, tensor in model.state_dict().items()}
    assert "vit.encoder.layer.1.attention.attention.query.weight" in weights
    assert "decoder.decoder_layers.1.attention.output.dense.bias" in weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = SIZES | {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))


def save_with_stock(model, folder):
    """The folder that transformers itself writes for the same weights."""
    stock = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, layer_norm_eps=1e-6))
    stock.load_state_dict(model.state_dict())
    stock.save_pretrained(folder)


LAYOUTS = [save_natural, save_as_on_the_hub, save_with_stock]


@pytest.fixture(params=LAYOUTS, ids=lambda save: save.__name__)
def folder(request, model, tmp_path):
    folder = tmp_path / "model"
    request.param(model, folder)
    return folder


def load_silently(model_class, folder, messages, **options):
    """Loads a model, and fails on missing and unexpected weights and on any notice of transformers."""
    model, loading = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    assert not messages.text
    return model.eval()


def test_saved_names_are_the_natural_ones(model, tmp_path):
    save_natural(model, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == NATURAL_NAMES == set(model.state_dict())


@stock_5_23
def test_stock_saves_decoder_layers_under_another_name(model, tmp_path):
    """transformers 5.23 writes `decoder.decoder_encoder.layer.N`, the reverse of an unanchored renaming."""
    save_with_stock(model, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any(name.startswith("decoder.decoder_encoder.layer.") for name in names)
    assert not any(name.startswith("decoder.decoder_layers.") for name in names)


def test_every_layout_loads_complete_silent_and_equal(model, folder, messages):
    loaded = load_silently(MAEForPreTraining, folder, messages)
    assert isinstance(loaded.config, MAEConfig) and loaded.config.model_type == "mae"
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    pixels, noise = images(model.config), noise_for(model.config)
    assert torch.equal(loaded(pixels, noise=noise).logits, model(pixels, noise=noise).logits)


def test_every_layout_is_saved_in_the_one_natural_layout(folder, tmp_path):
    MAEForPreTraining.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == NATURAL_NAMES
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "mae"


@pytest.mark.parametrize(
    "model_class, new",
    [
        (MAEModel, set()),
        (MAEForImageClassification, {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}),
        (MAEBackbone, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_layout_loads_into_every_model(model, folder, model_class, new):
    loaded, loading = model_class.from_pretrained(folder, output_loading_info=True)
    # a model of its own may leave the decoder out, everything else must find its place
    unexpected = {key for key in loading["unexpected_keys"] if not key.startswith("decoder.")}
    assert not unexpected
    assert set(loading["missing_keys"]) == new
    encoder = getattr(loaded, "vit", loaded)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], weight), name


def test_stock_class_reads_our_folder(model, tmp_path):
    save_natural(model, tmp_path)
    stock, loading = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    pixels, noise = images(model.config), noise_for(model.config)
    with torch.no_grad():
        expected = stock.eval()(pixels, noise=noise)
        output = model(pixels, noise=noise)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_stock_class_reads_what_we_made_of_its_folder(model, tmp_path):
    save_with_stock(model, tmp_path / "stock")
    MAEForPreTraining.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    stock, loading = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    assert all(torch.equal(stock.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_registering_our_layouts_leaves_stock_models_alone(model, tmp_path):
    save_with_stock(model, tmp_path)
    stock, loading = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ViTMAEForPreTraining
    assert all(torch.equal(stock.state_dict()[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classifier_round_trip(pooling, tmp_path, messages):
    config = tiny_config(pooling=pooling, probe_batch_norm=pooling == "cls", num_labels=3)
    model = perturbed(MAEForImageClassification(config))
    model.train()(images(config, batch=8))  # moves the BatchNorm statistics
    model.eval().save_pretrained(tmp_path)
    loaded = load_silently(MAEForImageClassification, tmp_path, messages)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    assert torch.equal(loaded(images(config)).logits, model(images(config)).logits)


@pytest.mark.parametrize("folder", LAYOUTS, ids=lambda save: save.__name__, indirect=True)
def test_fixed_tables_stay_fixed_after_loading(folder):
    """Loading in transformers 5.23 makes them trainable; pre-training would then change them and decay them."""
    model = MAEForPreTraining.from_pretrained(folder)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"} & trainable
    assert trainable == NATURAL_NAMES - {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert not MAEModel.from_pretrained(folder).embeddings.position_embeddings.requires_grad
    classifier = MAEForImageClassification.from_pretrained(folder)
    assert all(parameter.requires_grad for parameter in classifier.parameters()), "fine-tuning trains its table"
    assert MAEForImageClassification(tiny_config()).vit.embeddings.position_embeddings.requires_grad


@stock_5_23
def test_stock_loading_makes_fixed_tables_trainable(model, tmp_path):
    """In transformers 5.23 a model from a config has fixed tables, the same model loaded has trainable ones."""
    assert not ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).decoder.decoder_pos_embed.requires_grad
    save_with_stock(model, tmp_path)
    stock = ViTMAEForPreTraining.from_pretrained(tmp_path)
    assert stock.decoder.decoder_pos_embed.requires_grad
    assert stock.vit.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folders_load_in_their_type(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    loaded = MAEForPreTraining.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert MAEForPreTraining.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_a_decoder_that_was_not_loaded_does_not_draw(tmp_path):
    model = perturbed(MAEForPreTraining(tiny_config()))
    pixels = images(model.config)
    model.save_pretrained(tmp_path / "whole")
    model.vit.save_pretrained(tmp_path / "encoder")
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"decoder\.\w+.* were not among the loaded weights"):
        loaded.reconstruct(pixels)
    assert loaded(pixels).loss.isfinite()
    deeper = {"decoder_num_hidden_layers": 3, "ignore_mismatched_sizes": True}
    with pytest.raises(ValueError, match=r"decoder\.decoder_layers\.2.* were not among the loaded weights"):
        MAEForPreTraining.from_pretrained(tmp_path / "whole", **deeper).reconstruct(pixels)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()(pixels).loss.backward()
    optimizer.step()
    for drawing in (loaded, MAEForPreTraining.from_pretrained(tmp_path / "whole"), MAEForPreTraining(model.config)):
        assert drawing.reconstruct(pixels).pasted.isfinite().all()
