"""LARS, schedules and parameter groups."""

import pytest
import torch
from timm.optim import list_optimizers
from tiny_run import tiny_classifier, tiny_pretraining_model
from torch import nn

from hubmodels.training import (
    LARS,
    create_optimizer,
    fractional_epoch,
    parameter_groups,
    warmup_cosine_lr,
    warmup_cosine_scheduler,
)


def names_of(model, group):
    identities = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in identities}


def test_lars_follows_the_published_rule_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([weight, bias], lr=0.5, weight_decay=0.1, momentum=0.9, trust_coefficient=0.01)
    expected_weight, expected_bias = weight.detach().clone(), bias.detach().clone()
    weight_buffer, bias_buffer = torch.zeros(1, 2), torch.zeros(1)
    for gradient in (torch.tensor([[1.0, 2.0]]), torch.tensor([[-0.5, 0.25]])):
        weight.grad, bias.grad = gradient, gradient[0, :1]
        optimizer.step()
        update = gradient + 0.1 * expected_weight
        update = update * 0.01 * expected_weight.norm() / update.norm()
        weight_buffer = 0.9 * weight_buffer + update
        bias_buffer = 0.9 * bias_buffer + gradient[0, :1]
        expected_weight = expected_weight - 0.5 * weight_buffer
        expected_bias = expected_bias - 0.5 * bias_buffer
    torch.testing.assert_close(weight.detach(), expected_weight)
    torch.testing.assert_close(bias.detach(), expected_bias)


@pytest.mark.parametrize(("parameter", "gradient"), [([[0.0, 0.0]], [[1.0, 2.0]]), ([[1.0, 2.0]], [[0.0, 0.0]])])
def test_lars_leaves_the_update_alone_when_a_norm_is_zero(parameter, gradient):
    weight = nn.Parameter(torch.tensor(parameter))
    weight.grad = torch.tensor(gradient)
    LARS([weight], lr=1.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor(parameter) - torch.tensor(gradient))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("lr", -1.0), ("weight_decay", -0.1), ("momentum", 1.0), ("trust_coefficient", 0.0)],
)
def test_lars_names_the_argument_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .* got {value}"):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1, argument: value})


def test_schedule_starts_at_zero_peaks_after_the_warmup_and_ends_at_min_lr():
    assert warmup_cosine_lr(0, 1.0, 0.1, 5, 100) == 0.0
    assert warmup_cosine_lr(5, 1.0, 0.1, 5, 100) == 1.0
    assert warmup_cosine_lr(100, 1.0, 0.1, 5, 100) == pytest.approx(0.1)
    assert warmup_cosine_lr(52.5, 1.0, 0.1, 5, 100) == pytest.approx(0.55)


def test_schedule_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match=r"warmup_epochs must be in \[0, epochs = 10\], got 11"):
        warmup_cosine_lr(0, 1.0, 0.0, 11, 10)


def test_schedule_counts_micro_batches():
    # 7 micro-batches an epoch, 2 a step: the fourth step of an epoch holds a single one.
    epochs = [fractional_epoch(step, 4, 7, 2) for step in range(6)]
    assert epochs == [0, 2 / 7, 4 / 7, 6 / 7, 1, 1 + 2 / 7]


def test_scheduler_keeps_the_factor_of_each_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.2, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    scheduler = warmup_cosine_scheduler(optimizer, 0.2, 0.0, 1, 4, steps_per_epoch=2)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen[0] == [0, 0]
    assert seen[2] == pytest.approx([0.2, 0.1])
    assert all(first == pytest.approx(2 * second) for first, second in seen)


def test_pretraining_groups_decay_the_tokens_but_no_bias_or_norm():
    model = tiny_pretraining_model()
    groups = parameter_groups(model, 1e-3, 0.05)
    decayed = names_of(model, next(group for group in groups if group["weight_decay"] == 0.05))
    plain = names_of(model, next(group for group in groups if group["weight_decay"] == 0))
    assert {"vit.embeddings.cls_token", "decoder.mask_token"} <= decayed
    assert all(name.endswith(".weight") or name.endswith("_token") for name in decayed)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == decayed | plain
    assert not any("position" in name or "pos_embed" in name for name in decayed | plain)


def test_frozen_parameters_are_in_no_group():
    model = tiny_classifier()
    model.freeze_encoder()
    groups = parameter_groups(model, 0.1, 0.0)
    assert set().union(*(names_of(model, group) for group in groups)) == {"classifier.weight", "classifier.bias"}


def test_layer_decay_scales_the_learning_rates():
    model = tiny_classifier()
    rates = {name: group["lr"] for group in parameter_groups(model, 1.0, 0.05, 0.5) for name in names_of(model, group)}
    assert rates["vit.embeddings.cls_token"] == rates["vit.embeddings.patch_embeddings.projection.bias"] == 0.125
    assert rates["vit.layers.0.mlp.fc1.weight"] == 0.25
    assert rates["vit.layers.1.mlp.fc1.weight"] == 0.5
    assert rates["fc_norm.weight"] == rates["classifier.weight"] == 1.0


def test_groups_refuse_what_they_cannot_do():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(frozen, 0.1, 0.0)
    with pytest.raises(ValueError, match="group_matcher"):
        parameter_groups(nn.Linear(2, 2), 0.1, 0.0, 0.5)
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\], got 2"):
        parameter_groups(nn.Linear(2, 2), 0.1, 0.0, 2)


@pytest.mark.parametrize("name", ["adamw", "lars", "lamb", "sgd", "lion"])
def test_optimizers_are_built_by_name_and_lower_a_loss(name):
    assert name == "lars" or name in list_optimizers()
    torch.manual_seed(0)
    layer = nn.Linear(8, 1)
    optimizer = create_optimizer(name, parameter_groups(layer, 0.01, 0.0), 0.01)
    inputs, targets = torch.randn(64, 8), torch.randn(64, 1)
    losses = []
    for _ in range(50):
        loss = nn.functional.mse_loss(layer(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_optimizer_options_reach_the_optimizer_and_unknown_ones_are_named():
    groups = parameter_groups(nn.Linear(2, 2), 0.1, 0.0)
    assert create_optimizer("adamw", groups, 0.1, options={"betas": [0.9, 0.95]}).defaults["betas"] == (0.9, 0.95)
    with pytest.raises(ValueError, match=r"optimizer 'lars' does not take \['betas'\]; it takes .*trust_coefficient"):
        create_optimizer("lars", groups, 0.1, options={"betas": [0.9, 0.95]})
    with pytest.raises(ValueError, match="unknown optimizer 'adamm'"):
        create_optimizer("adamm", groups, 0.1)
