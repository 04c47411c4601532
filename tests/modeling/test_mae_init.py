"""Initialisation of MAE models (official code), from a config and for weights that a checkpoint lacks."""

import pytest
import torch
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEFeaturePyramid,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from hubmodels.modeling.mae.positions_mae import sincos_position_table
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.modeling.stock import stock_5_23
from tests.modeling.tiny_mae import SIZES, images, perturbed, tiny_config

WIDE = {"hidden_size": 64, "intermediate_size": 256, "decoder_hidden_size": 32, "decoder_intermediate_size": 128}


def assert_uniform(weight, bound):
    """Uniform in [-bound, bound]: nothing outside, the edges reached, the standard deviation right."""
    largest, deviation = weight.abs().max().item(), weight.std().item()
    assert 0.97 * bound < largest <= bound * (1 + 1e-6)
    assert deviation == pytest.approx(bound / 3**0.5, rel=0.05)


def xavier_bound(weight):
    return (6 / (weight.shape[0] + weight.shape[1])) ** 0.5


def assert_initialised(model):
    """Every parameter is drawn as in the official code."""
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            assert_uniform(module.weight, (6 / (4 * module.in_features)) ** 0.5)
        elif isinstance(module, nn.Linear) and name != "classifier":
            assert_uniform(module.weight, xavier_bound(module.weight))
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name


def assert_stem_initialised(model, config):
    embeddings = getattr(model, "vit", model).embeddings
    table = sincos_position_table(config.hidden_size, config.grid_size)
    assert torch.equal(embeddings.position_embeddings[0], table)
    assert embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    projection = embeddings.patch_embeddings.projection
    fan_in = config.num_channels * config.patch_size**2
    assert_uniform(projection.weight, (6 / (fan_in + config.hidden_size)) ** 0.5)
    assert projection.bias.abs().max() <= fan_in**-0.5
    assert projection.bias.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.3)


def assert_decoder_initialised(model, config):
    table = sincos_position_table(config.decoder_hidden_size, config.grid_size)
    assert torch.equal(model.decoder.decoder_pos_embed[0], table)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_a_model_from_a_config_is_initialised_as_in_the_official_code(model_class):
    config = tiny_config(**WIDE)
    model = model_class(config)
    assert_initialised(model)
    assert_stem_initialised(model, config)
    if model_class is MAEForPreTraining:
        assert_decoder_initialised(model, config)


def test_tables_of_non_square_images():
    config = tiny_config(image_size=(8, 24))
    model = MAEForPreTraining(config)
    table = model.vit.embeddings.position_embeddings[0]
    omega = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    row, column = 1, 5
    expected = torch.cat([(column * omega).sin(), (column * omega).cos(), (row * omega).sin(), (row * omega).cos()])
    torch.testing.assert_close(table[1 + row * 6 + column].double(), expected, atol=1e-7, rtol=0)
    assert not table[0].any()
    assert_decoder_initialised(model, config)


@stock_5_23
def test_stock_model_from_a_config_has_no_positions():
    """transformers 5.23 leaves tables and tokens at zero and draws Linear weights from a normal of deviation 0.02."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**(SIZES | WIDE)))
    assert model.vit.embeddings.position_embeddings.abs().sum() == 0
    assert model.vit.embeddings.cls_token.abs().sum() == 0
    assert model.decoder.decoder_pos_embed.abs().sum() == 0
    assert model.decoder.mask_token.abs().sum() == 0
    assert model.vit.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_classifier_head_deviation():
    """2e-5 for fine-tuning, 0.01 for the linear probe, in a truncated normal; the bias is zero."""
    for std in (2e-5, 0.01):
        model = MAEForImageClassification(tiny_config(**WIDE, num_labels=200, classifier_init_std=std))
        assert model.classifier.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not model.classifier.bias.any()


def test_initialisation_follows_the_seed():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(MAEForPreTraining(tiny_config()).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_missing_decoder_is_initialised_when_loading(tmp_path):
    """An encoder-only folder (mae_pretrain_vit_*) gives a decoder to train, and the encoder as it was."""
    config = tiny_config(**WIDE)
    encoder = perturbed(MAEModel(config))
    encoder.save_pretrained(tmp_path)
    model, loading = MAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert loading["missing_keys"] and all(key.startswith("decoder.") for key in loading["missing_keys"])
    assert not loading["unexpected_keys"]
    assert_initialised(model.decoder)
    assert_decoder_initialised(model, config)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], weight), name


def test_new_norm_and_head_of_a_classifier_on_a_pretrained_encoder(tmp_path):
    """The published fine-tuning: the pre-trained final norm is left out; fc_norm and head are new and reported."""
    perturbed(MAEForPreTraining(tiny_config(**WIDE))).save_pretrained(tmp_path)
    model, loading = MAEForImageClassification.from_pretrained(tmp_path, num_labels=200, output_loading_info=True)
    new = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert set(loading["missing_keys"]) == new
    assert not loading["unexpected_keys"]
    assert (model.fc_norm.weight == 1).all() and not model.fc_norm.bias.any()
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert not any(name.startswith("vit.layernorm") for name in model.state_dict())
    model, loading = MAEForImageClassification.from_pretrained(tmp_path, pooling="cls", output_loading_info=True)
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_missing_patch_projection_is_initialised_when_loading(tmp_path, missing):
    """Weights are loaded around uninitialised memory: nothing of it may be left."""
    config = tiny_config(**WIDE)
    MAEModel(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[f"embeddings.patch_embeddings.projection.{missing}"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = MAEModel.from_pretrained(tmp_path)
    assert_stem_initialised(model, config)


def test_other_channels_keep_the_rest_of_the_weights(tmp_path):
    config = tiny_config(**WIDE)
    before = perturbed(MAEModel(config))
    before.save_pretrained(tmp_path)
    model = MAEModel.from_pretrained(tmp_path, num_channels=5, ignore_mismatched_sizes=True)
    projection = model.embeddings.patch_embeddings.projection
    assert_uniform(projection.weight, (6 / (5 * 16 + 64)) ** 0.5)
    for name, weight in before.state_dict().items():
        if name != "embeddings.patch_embeddings.projection.weight":
            assert torch.equal(model.state_dict()[name], weight), name
    assert model(images(model.config), mask_ratio=0).last_hidden_state.isfinite().all()


def test_new_pyramid_scales_are_initialised_when_loading(tmp_path):
    MAEForPreTraining(tiny_config(num_hidden_layers=4)).save_pretrained(tmp_path)
    pyramid, loading = MAEFeaturePyramid.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith("scales.") for key in loading["missing_keys"])
    assert not loading["unexpected_keys"]
    assert pyramid.scales[0][0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not pyramid.scales[0][0].bias.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tables_are_rounded_to_the_dtype_of_the_model_once(dtype):
    config = tiny_config()
    model = MAEForPreTraining._from_config(config, dtype=dtype)
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        expected = sincos_position_table(table.shape[-1], config.grid_size, torch.float64)
        assert table.dtype == dtype
        assert torch.equal(table[0], expected.to(dtype))
