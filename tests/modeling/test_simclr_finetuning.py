"""SimCLR classifiers: what is frozen and how, the head selector, labels, linear evaluation."""

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRForImageClassification, SimCLRForPreTraining
from torch.nn.functional import cross_entropy, one_hot
from transformers import Dinov2Config

from tests.modeling.tiny_simclr import gradients, images, perturbed, tiny_config, trainable

BLOCKS = ["backbone.embedder.", *(f"backbone.encoder.stages.{i}." for i in range(4))]
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def classifier(**fields):
    torch.manual_seed(0)
    return perturbed(SimCLRForImageClassification(tiny_config(num_labels=3, **fields)))


def step(model):
    """Moving statistics that a training step moved, by block of the network or part of the head."""
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.train()(images(4), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    return {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}


def blocks_of(names):
    return {number for number, block in enumerate(BLOCKS) if any(name.startswith(block) for name in names)}


@pytest.mark.parametrize("after", range(-1, 5))
@pytest.mark.parametrize("frozen_bn", ["batch", "inference"])
def test_frozen_blocks(after, frozen_bn):
    """Gradients, trainable parameters and statistics for every `fine_tune_after_block` in both official codes."""
    model = classifier(fine_tune_after_block=after, frozen_bn=frozen_bn)
    moved = step(model)
    assert blocks_of(trainable(model)) == set(range(after + 1, 5))
    assert set(gradients(model)) == trainable(model) and trainable(model) >= CLASSIFIER
    inference = set() if after < 0 else set(range(5)) if after == 4 else set(range(after + 1))
    if frozen_bn == "batch" and after < 4:
        inference = set()
    assert blocks_of(moved) == set(range(5)) - inference
    assert {name.split(".")[2] for name in moved if name.startswith("projection_head.")} == {"0", "1"}


def test_frozen_blocks_follow_the_mode_of_the_model():
    model = classifier(fine_tune_after_block=1, frozen_bn="inference")
    assert not model.backbone.embedder.training and model.backbone.encoder.stages[1].training
    assert not any(module.training for module in model.eval().modules())
    assert not model.train().backbone.embedder.training


@pytest.mark.parametrize("selector, layers", [(0, set()), (1, {"0"}), (2, {"0", "1"}), (-1, {"0", "1"})])
def test_head_selector(selector, layers):
    """Layers in front of the classifier learn, those behind it have no gradient but move their statistics."""
    model = classifier(ft_proj_selector=selector)
    moved = step(model)
    head = {name.split(".")[2] for name in trainable(model) if name.startswith("projection_head.")}
    assert head == layers
    assert set(gradients(model)) == trainable(model)
    assert {name.split(".")[2] for name in moved if name.startswith("projection_head.")} == {"0", "1"}
    model.eval()
    with torch.no_grad():
        h = model.encode(images(4)).pooler_output
        states = model.projection_head(h)
        expected = model.classifier(states[selector])
        torch.testing.assert_close(model(images(4)).logits, expected)


def test_projection_layers_can_stay_as_they_are():
    """As in the TF1 code, which leaves them out of its lists of trained variables."""
    model = classifier(ft_proj_selector=1, train_projection_in_finetune=False)
    step(model)
    assert not any(name.startswith("projection_head.") for name in trainable(model))
    assert set(gradients(model)) == trainable(model)
    assert blocks_of(gradients(model)) == set(range(5)), "gradients pass through the layer"


@pytest.mark.parametrize("selector", [0, 1])
def test_freeze_encoder_is_linear_evaluation(selector):
    model = classifier(ft_proj_selector=selector).train()
    model.freeze_encoder()
    reference = classifier(ft_proj_selector=selector, fine_tune_after_block=4).train()
    assert trainable(model) == trainable(reference) == CLASSIFIER
    assert [m.training for m in model.modules()] == [m.training for m in reference.modules()]
    assert not any(m.training for m in model.backbone.modules())
    outputs = model(images(4), labels=torch.tensor([0, 1, 2, 0]), output_hidden_states=True)
    assert not any(maps.requires_grad for maps in outputs.hidden_states), "the encoder builds no graph"
    assert model.config.fine_tune_after_block == 4


def test_freezing_survives_saving(tmp_path):
    model = classifier(ft_proj_selector=1).train()
    model.freeze_encoder()
    model.save_pretrained(tmp_path)
    loaded = SimCLRForImageClassification.from_pretrained(tmp_path).train()
    assert trainable(loaded) == CLASSIFIER
    assert not any(m.training for m in loaded.backbone.modules())
    partly = SimCLRForImageClassification.from_pretrained(tmp_path, fine_tune_after_block=2)
    assert blocks_of(trainable(partly)) == {3, 4}


def test_pre_trained_folder_to_classifier_and_back(tmp_path):
    """Every class loads the folders of the others; heads that do not exist are new."""
    pretrained = perturbed(SimCLRForPreTraining(tiny_config()))
    pretrained.save_pretrained(tmp_path / "pretrained")
    model, report = SimCLRForImageClassification.from_pretrained(
        tmp_path / "pretrained", num_labels=5, output_loading_info=True
    )
    assert set(report["missing_keys"]) == CLASSIFIER and not report["unexpected_keys"]
    model.save_pretrained(tmp_path / "classifier")
    again, report = SimCLRForPreTraining.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(report.values())
    for name, tensor in pretrained.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_labels_as_distributions():
    model = classifier().eval()
    labels = torch.tensor([2, 0])
    hard = model(images(2), labels=labels)
    torch.testing.assert_close(hard.loss, cross_entropy(hard.logits, labels))
    torch.testing.assert_close(model(images(2), labels=one_hot(labels, 3)).loss, hard.loss)
    first, second = one_hot(labels, 3).float(), one_hot(torch.tensor([1, 1]), 3).float()
    mixed = model(images(2), labels=0.3 * first + 0.7 * second).loss
    other = model(images(2), labels=second).loss
    torch.testing.assert_close(mixed, 0.3 * hard.loss + 0.7 * other)


def test_decay_of_the_classifier_is_in_the_loss():
    labels = torch.tensor([2, 0])
    plain, decayed = classifier().eval(), classifier(weight_decay=0.1).eval()
    difference = decayed(images(2), labels=labels).loss - plain(images(2), labels=labels).loss
    torch.testing.assert_close(difference, 0.05 * plain.classifier.weight.square().sum())
    assert decayed.no_layer_adaptation() == {"classifier.weight"}


def test_loss_is_float32_in_half_precision():
    model = classifier().to(torch.bfloat16).eval()
    output = model(images(2, dtype=torch.bfloat16), labels=torch.tensor([2, 0]))
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32


def test_linear_evaluation_of_another_backbone():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    model = classifier(backbone_config=Dinov2Config(**sizes, hidden_dropout_prob=0.5))
    model.train().freeze_encoder()
    assert trainable(model) == CLASSIFIER
    features = [model.features(images(2))[0] for _ in range(2)]
    assert torch.equal(*features), "no dropout in a frozen encoder"
