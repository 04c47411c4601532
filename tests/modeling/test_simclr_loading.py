"""Files that do not hold what a SimCLR model needs are refused, so that nothing of it is silently random."""

import pytest
import torch
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRModel,
)
from safetensors.torch import load_file, save_file

from tests.modeling.tiny_simclr import tiny_config

FIRST = "backbone.encoder.stages.0.layers.0.layer.0.convolution.weight"
CLASSES = [SimCLRModel, SimCLRForPreTraining, SimCLRForImageClassification, SimCLRBackbone]


@pytest.fixture
def folder(tmp_path):
    """A tiny pre-trained model."""
    SimCLRForPreTraining(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, keep):
    """Keeps only some tensors of a saved model."""
    path = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if keep(n)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize(
    "keep, changes, message",
    [
        (lambda name: name != FIRST, {}, rf"lacks encoder weights .*: {FIRST} \(1 in all\)"),
        (lambda name: "projection" in name, {}, r"lacks encoder weights .*embedder.*hubmodels convert simclr"),
        (lambda name: True, {"depths": [2, 1, 1, 1]}, r"lacks encoder weights .*depths \[2, 1, 1, 1\]"),
        (lambda name: True, {"depths": [1, 1, 1]}, r"has too many encoder weights .*backbone\.encoder\.stages\.3"),
        (lambda name: True, {"stem_width": 8}, r"does not fit the configuration: backbone\..* is \[4, "),
    ],
)  # fmt: skip
def test_encoders_that_do_not_fit_are_refused(folder, model_class, keep, changes, message):
    rewrite(folder, keep)
    for ignore in (False, True):
        with pytest.raises(ValueError, match=message):
            model_class.from_pretrained(folder, ignore_mismatched_sizes=ignore, **changes)


def test_heads_may_be_new(folder):
    """The classifier, a projection head that nothing reads yet, and heads of another shape where that is asked for."""
    rewrite(folder, lambda name: name.startswith("backbone."))
    assert SimCLRForImageClassification.from_pretrained(folder, num_labels=5).classifier.out_features == 5
    SimCLRForPreTraining.from_pretrained(folder)
    SimCLRForImageClassification(tiny_config(num_labels=5)).save_pretrained(folder)
    with pytest.raises(RuntimeError, match=r"classifier\.bias is \[5\], not \[3\].*ignore_mismatched_sizes=True"):
        SimCLRForImageClassification.from_pretrained(folder, num_labels=3)
    model = SimCLRForImageClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 3 and torch.isfinite(model.classifier.weight).all()


def test_layers_in_front_of_the_classifier_come_from_the_file(folder):
    SimCLRForImageClassification.from_pretrained(folder, ft_proj_selector=1)
    rewrite(folder, lambda name: name.startswith(("backbone.", "projection_head.layers.0.")))
    SimCLRForImageClassification.from_pretrained(folder, ft_proj_selector=1)
    for arguments in ({"ft_proj_selector": 2}, {"from_head": True}):
        with pytest.raises(ValueError, match=r"2 of its layers are needed: .*head\.layers\.1\..*from_head=False"):
            SimCLRForImageClassification.from_pretrained(folder, **arguments)
    SimCLRForImageClassification.from_pretrained(folder, ft_proj_selector=2, from_head=False)
    SimCLRForPreTraining.from_pretrained(folder)
    with pytest.raises(ValueError, match="2 of its layers are needed"):
        SimCLRForPreTraining.from_pretrained(folder, from_head=True)


def test_from_head_needs_a_head(folder):
    with pytest.raises(ValueError, match="from_head must be False or None for a SimCLRModel"):
        SimCLRModel.from_pretrained(folder, from_head=True)
    with pytest.raises(ValueError, match="from_head=True needs a projection head, got proj_head_mode 'none'"):
        SimCLRForPreTraining.from_pretrained(folder, from_head=True, proj_head_mode="none")


def test_pre_training_without_a_head_is_announced(folder, monkeypatch):
    messages = []
    monkeypatch.setattr("hubmodels.modeling.simclr.modeling_simclr.logger.warning", messages.append)
    SimCLRForPreTraining.from_pretrained(folder)
    SimCLRForPreTraining.from_pretrained(folder, proj_head_mode="none")  # asked for
    SimCLRForImageClassification(tiny_config(proj_head_mode="none")).save_pretrained(folder)
    SimCLRModel.from_pretrained(folder)
    assert not messages
    SimCLRForPreTraining.from_pretrained(folder)
    (message,) = messages
    assert 'give from_pretrained proj_head_mode="nonlinear", num_proj_layers=2' in message
    model = SimCLRForPreTraining.from_pretrained(folder, proj_head_mode="nonlinear", num_proj_layers=2)
    assert len(model.projection_head.layers) == 2
