"""Labels that do not fit are refused by every classifier in the same words, and -100 leaves an image out."""

import pytest
import torch
from hubmodels.modeling.mae import MAEConfig, MAEForImageClassification
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification, SANMForImageClassification
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRForImageClassification
from torch.nn import functional
from transformers import ViTConfig

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 8}
VIT |= {"image_size": 16}
MODELS = {
    MAEForImageClassification: lambda **labels: MAEConfig(**VIT, **labels),
    SimCLRForImageClassification: lambda **labels: SimCLRConfig(
        image_size=16, stem_width=4, depths=[1, 1, 1, 1], **labels
    ),
    PositionalLabelForImageClassification: lambda **labels: PositionalLabelConfig(
        backbone_config=ViTConfig(**VIT), **labels
    ),
    SANMForImageClassification: lambda **labels: SANMConfig(image_size=16, widths=[4], depths=[1], **labels),
    SANMEnsembleForImageClassification: lambda **labels: SANMConfig(image_size=16, widths=[4], depths=[1], **labels),
}


def classifier(model_class, **labels):
    torch.manual_seed(0)
    return model_class(MODELS[model_class](num_labels=3, **labels)).eval()


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"labels must be in \[0, 3\) .* or -100 .*, got 3 at index 1"),
        (torch.tensor([-1, 0], dtype=torch.int32), r"labels must be in \[0, 3\) .* got -1 at index 0"),
        (torch.tensor([0]), r"labels must have shape \(2,\) or \(2, 3\), got \(1,\)"),
        (torch.tensor([[0], [1]]), r"labels must have shape \(2,\) or \(2, 3\), got \(2, 1\)"),
        (torch.rand(2, 4), r"labels must have shape \(2,\) or \(2, 3\), got \(2, 4\)"),
        (torch.rand(3, 3), r"labels must have shape \(2,\) or \(2, 3\), got \(3, 3\)"),
        (torch.zeros(2), r"labels of shape \[B\] must be integers \(classes\), got torch.float32"),
        (torch.tensor([True, False]), r"labels of shape \[B\] must be integers \(classes\), got torch.bool"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model_class, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier(model_class)(torch.rand(2, 3, 16, 16), labels=labels)


@pytest.mark.parametrize("model_class", list(MODELS))
def test_one_hot_labels_of_integers_are_distributions(model_class):
    model, pixels = classifier(model_class).eval(), torch.rand(2, 3, 16, 16)
    classes = torch.tensor([2, 0])
    expected = model(pixels, labels=classes).loss
    torch.testing.assert_close(model(pixels, labels=functional.one_hot(classes, 3)).loss, expected)


@pytest.mark.parametrize("model_class", list(MODELS)[:-1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_ignored_labels_leave_images_out(model_class, dtype):
    model, pixels = classifier(model_class), torch.rand(3, 3, 16, 16)
    outputs = model(pixels, labels=torch.tensor([1, -100, 2], dtype=dtype))
    expected = functional.cross_entropy(outputs.logits[[0, 2]], torch.tensor([1, 2]))
    if model_class is SimCLRForImageClassification:  # whose loss has the decay of the classifier
        expected = expected + 0.5 * model.config.weight_decay * model.classifier.weight.square().sum()
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("model_class", MODELS)
def test_labels_of_other_problems_have_a_shape_too(model_class):
    model = classifier(model_class, problem_type="multi_label_classification")
    assert model(torch.rand(2, 3, 16, 16), labels=torch.ones(2, 3, dtype=torch.long)).loss > 0
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\) or \(2, 3\), got \(2, 1\)"):
        model(torch.rand(2, 3, 16, 16), labels=torch.ones(2, 1))
