"""Initialisation of SimCLR models (official code), from a config and for weights that a checkpoint lacks."""

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRBackbone, SimCLRForImageClassification, SimCLRForPreTraining, SimCLRModel
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification

from tests.modeling.tiny_simclr import images, perturbed, tiny_config

WIDE = {"stem_width": 16, "sk_ratio": 0.0625, "se_ratio": 0.5, "image_size": 40, "num_labels": 50}


def assert_initialised(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            deviation = module.weight[0].numel() ** -0.5
            limit = 2 * deviation / 0.87962566
            assert module.weight.abs().max() <= limit * (1 + 1e-6), name
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(deviation, rel=0.07), name
                assert module.weight.abs().max() > 0.9 * limit, name
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05), name
        elif isinstance(module, SimCLRBatchNorm):
            last = name.endswith("layer.2.normalization")
            assert (module.weight == (0 if last else 1)).all(), name
            assert not module.running_mean.any() and (module.running_var == 1).all(), name
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any(), name


@pytest.mark.parametrize(
    "model_class", [SimCLRModel, SimCLRForPreTraining, SimCLRForImageClassification, SimCLRBackbone]
)
def test_a_model_from_a_config_is_initialised_as_in_the_official_code(model_class):
    assert_initialised(model_class(tiny_config(**WIDE)))


def test_layers_start_as_their_shortcuts():
    """The last gain of every layer is 0, so that a block without projection passes on what it gets."""
    model = SimCLRModel(tiny_config(depths=[3, 1, 1, 1])).eval()
    maps = images(2)[:, :1].expand(-1, 16, -1, -1)
    block = model.backbone.encoder.stages[0].layers[2]
    assert torch.equal(block(maps), maps)


def test_basic_layers_too():
    model = SimCLRModel(tiny_config(layer_type="basic", depths=[2, 1, 1, 1]))
    for stage in model.backbone.encoder.stages:
        assert not stage.layers[0].layer[1].normalization.weight.any()


def test_zeroed_classifier():
    """`zero_init_logits_layer` of the published evaluations."""
    model = SimCLRForImageClassification(tiny_config(zero_init_logits_layer=True))
    assert not model.classifier.weight.any() and not model.classifier.bias.any()
    assert not model.eval()(images(2)).logits.any()


@pytest.mark.parametrize("auto", [False, True])
def test_a_loaded_classifier_is_zeroed_when_asked(auto, tmp_path):
    """Fine-tuning starts anew; a finished model, whose configuration says how it began, loads as it is."""
    model = perturbed(SimCLRForImageClassification(tiny_config()))
    load = (AutoModelForImageClassification if auto else SimCLRForImageClassification).from_pretrained
    for _ in range(2):
        model.save_pretrained(tmp_path)
        zeroed = load(tmp_path, zero_init_logits_layer=True)
        assert not zeroed.classifier.weight.any() and not zeroed.classifier.bias.any()
        assert zeroed.config.zero_init_logits_layer
        assert torch.equal(zeroed.backbone.embedder.convolution.weight, model.backbone.embedder.convolution.weight)
        model = perturbed(zeroed)
    for loaded in (load(tmp_path), load(tmp_path, zero_init_logits_layer=False)):
        assert loaded.classifier.weight.any()
    pretraining = SimCLRForPreTraining(tiny_config(zero_init_logits_layer=True))
    pretraining.save_pretrained(tmp_path)
    assert not load(tmp_path).classifier.weight.any(), "a new one follows the configuration"
    assert load(tmp_path, zero_init_logits_layer=False).classifier.weight.any()
    assert AutoModel.from_pretrained(tmp_path, zero_init_logits_layer=True).config.zero_init_logits_layer


def test_missing_heads_are_initialised_when_loading(tmp_path):
    """The encoder stays as it was (v1 files have no projection head)."""
    encoder = perturbed(SimCLRModel(tiny_config(**WIDE)))
    encoder.save_pretrained(tmp_path)
    for model_class in (SimCLRForPreTraining, SimCLRForImageClassification):
        model, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"] and not any(name.startswith("backbone.") for name in report["missing_keys"])
        weights = model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())
        for head in (model.projection_head, getattr(model, "classifier", nn.Identity())):
            assert_initialised(head)


def test_initialisation_follows_the_seed():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(SimCLRForPreTraining(tiny_config()).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
