"""LARS, schedules and parameter groups."""

import math
import re

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRForImageClassification
from timm.optim import list_optimizers
from timm.scheduler import CosineLRScheduler
from tiny_run import tiny_classifier, tiny_pretraining_model
from torch import nn
from transformers import Trainer, TrainingArguments

from hubmodels.training import (
    LARS,
    create_optimizer,
    fractional_epoch,
    layer_adaptation_groups,
    parameter_groups,
    scaled_learning_rate,
    simclr_learning_rate,
    simclr_scheduler,
    simclr_steps,
    timm_cosine_scheduler,
    warmup_cosine_lr,
    warmup_cosine_scheduler,
)


def names_of(model, group):
    identities = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in identities}


def test_lars_follows_the_published_rule_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([weight, bias], lr=0.5, weight_decay=0.1, trust_coefficient=0.01, momentum_style="plain")
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
    ("style", "nesterov"), [("plain", True), ("classic", False), ("classic", True), ("popular", True)]
)
def test_lars_momentum_styles_by_hand(style, nesterov):
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([weight], lr=1.0, weight_decay=0.1, momentum=0.9, momentum_style=style, nesterov=nesterov)
    expected, buffer = weight.detach().clone(), torch.zeros(1, 2, dtype=torch.float64)
    for lr, gradient in ((0.5, [[1.0, 2.0]]), (0.25, [[-0.5, 0.25]])):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        update = weight.grad + 0.1 * expected
        if style != "popular":
            update = update * 0.001 * expected.norm() / update.norm()
        if style == "classic":
            update = update * lr
        buffer = 0.9 * buffer + update
        update = 0.9 * buffer + update if nesterov else buffer
        if style == "popular":
            update = update * 0.001 * expected.norm() / update.norm()
        expected = expected - update * (1 if style == "classic" else lr)
    torch.testing.assert_close(weight.detach(), expected, atol=0, rtol=1e-12)


def test_lars_adapts_without_weight_decay_and_leaves_gradients_alone():
    weight, gradient = nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.0, 2.0]])
    weight.grad = gradient.clone()
    LARS([weight], lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0 - 0.001 * 5.0]]))
    assert torch.equal(weight.grad, gradient)


def test_lars_groups_say_what_is_adapted():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    matrix.grad, vector.grad = torch.ones(2, 2), torch.ones(2)
    groups = [{"params": [matrix], "adapt": False}, {"params": [vector], "adapt": True}]
    LARS(groups, lr=1.0, weight_decay=1.0).step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), -1.0))
    torch.testing.assert_close(vector.detach(), torch.full((2,), 1 - 0.001))


def test_lars_is_classic_by_default():
    assert LARS([nn.Parameter(torch.ones(2, 2))], lr=0.1).defaults["momentum_style"] == "classic"


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"exclude_from_weight_decay": ["bias", "^1"]}, {"0.weight": (0.5, True), "1.weight": (0.0, False)}),
        ({"exclude_from_weight_decay": ["bias"], "exclude_from_layer_adaptation": []}, {"1.weight": (0.5, True)}),
        (
            {"exclude_from_weight_decay": ["bias"], "exclude_from_layer_adaptation": ["0"]},
            {"0.weight": (0.5, False), "0.bias": (0.0, False), "1.bias": (0.0, True)},
        ),
        ({"exclude_from_layer_adaptation": ["1"]}, {"0.bias": (0.0, True), "1.weight": (0.5, False)}),
        ({"exclude_from_weight_decay": []}, {"0.bias": (0.5, True)}),
    ],
)
def test_lars_excludes_by_name(lists, expected):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = LARS(model.named_parameters(), lr=0.1, weight_decay=0.5, **lists)
    treatment = {
        name: (group["weight_decay"], group["adapt"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert len(treatment) == 4
    assert {name: treatment[name] for name in expected} == expected
    with pytest.raises(ValueError, match=r"give params as model\.named_parameters"):
        LARS(model.parameters(), lr=0.1, exclude_from_weight_decay=["bias"])


def test_lars_in_a_plain_trainer_leaves_out_the_supervised_head(tmp_path):
    model = SimCLRForImageClassification(SimCLRConfig(image_size=16, stem_width=4, depths=[1, 1], num_labels=3))
    excluded = ["normalization", "bias", "classifier"]
    kwargs = {"params": list(model.named_parameters()), "lr": 0.1, "exclude_from_weight_decay": excluded}
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    optimizer = Trainer(model, arguments, optimizer_cls_and_kwargs=(LARS, kwargs)).create_optimizer()
    adapted = {name for group in optimizer.param_groups if group["adapt"] for name in group["param_names"]}
    assert adapted and not any(re.search("|".join(excluded), name) for name in adapted)


def test_lars_buffers_of_half_precision_weights_are_float32_and_survive_a_resume():
    weight = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    optimizer = LARS([weight], lr=0.1)
    weight.grad = torch.linspace(0, 1, 12, dtype=torch.bfloat16).reshape(3, 4)
    optimizer.step()
    resumed = LARS([weight], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    buffers = [chosen.state[weight]["momentum_buffer"] for chosen in (optimizer, resumed)]
    assert buffers[1].dtype is torch.float32
    assert torch.equal(*buffers)
    assert buffers[0].data_ptr() != buffers[1].data_ptr()


def test_adaptation_groups_leave_out_vectors_and_named_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model.no_weight_decay = lambda: {"1.weight"}
    groups = layer_adaptation_groups(model, parameter_groups(model, 0.1, 0.0))
    adapted = {name for group in groups if group["adapt"] for name in names_of(model, group)}
    left_out = {name for group in groups if not group["adapt"] for name in names_of(model, group)}
    assert adapted == {"0.weight"}
    assert left_out == {"0.bias", "1.weight", "1.bias"}
    assert create_optimizer("lars", groups, 0.1, options={"momentum_style": "classic"}).param_groups[1]["adapt"] is True


def test_the_classifier_of_simclr_is_left_out_by_lars_alone():
    """Other optimisers decay all but normalisation: the biases too (official rule)."""
    sizes = {"image_size": 16, "stem_width": 4, "depths": [1, 1], "se_ratio": 0.25, "num_labels": 3}
    model = SimCLRForImageClassification(SimCLRConfig(**sizes))

    def left_out(**options):
        plain, _ = parameter_groups(model, 0.1, 0.01, **options)
        return names_of(model, plain)

    norms = {name for name, p in model.named_parameters() if ".normalization." in name and p.requires_grad}
    biases = {name for name, p in model.named_parameters() if name.endswith(".bias") and p.requires_grad} - norms
    assert {"classifier.bias", "backbone.encoder.stages.0.layers.0.se.reduce.bias"} <= biases
    assert left_out() == norms
    assert left_out(for_lars=True) == norms | biases | {"classifier.weight"}
    groups = layer_adaptation_groups(model, parameter_groups(model, 0.1, 0.01, for_lars=True))
    adapted = [group for group in groups if group["adapt"]]
    assert not any("classifier" in name for group in adapted for name in names_of(model, group))
    model.freeze_encoder()
    (group,) = parameter_groups(model, 0.1, 0.01)
    assert (names_of(model, group), group["weight_decay"]) == ({"classifier.weight", "classifier.bias"}, 0.01)


def test_simclr_schedule_counts_steps_as_the_official_code():
    assert simclr_steps(1000, 64, 2, 0.5) == (7, 32)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.6)
    scheduler = simclr_scheduler(optimizer, 0.075, 1000, 64, 2, 0.5, "sqrt")
    assert optimizer.param_groups[0]["lr"] == 0
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6)
    assert scheduler.lr_lambdas[0](32) == scheduler.lr_lambdas[0](99) == 0


def test_simclr_schedule_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"lr_scaling must be one of .*linear.*sqrt.*got 'log'"):
        scaled_learning_rate(0.1, 256, "log")
    with pytest.raises(ValueError, match=r"warmup_steps must be at least 0, got -1"):
        simclr_learning_rate(0, 1.0, -1, 5)
    with pytest.raises(ValueError, match=r"train_steps must be at least 0, got -5"):
        simclr_learning_rate(0, 1.0, 6, -5)


def test_simclr_schedule_of_a_run_that_ends_in_its_warm_up():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = simclr_scheduler(optimizer, 4.0, 1000, 64, 10, 20, train_steps=100)
    rates = [scheduler.lr_lambdas[0](step) for step in (0, 78, 156, 311, 312, 400)]
    assert rates == pytest.approx([0, 0.25, 0.5, 311 / 312, 0, 0])
    assert simclr_learning_rate(5, 1.0, 5, 5) == 1.0


def test_simclr_schedule_of_a_fraction_of_an_epoch():
    steps = simclr_steps(1000, 64, 2.5, 0.5)
    assert steps == (7, 40) and isinstance(steps[1], int)


def test_timm_schedule_is_that_of_timm():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.2, 0.05)]
    theirs = CosineLRScheduler(
        torch.optim.SGD([groups[0]["params"][0]], lr=0.2),
        t_initial=30,
        lr_min=0.01,
        warmup_t=4,
        warmup_lr_init=0.002,
        t_in_epochs=False,
    )
    optimizer = torch.optim.SGD(groups, lr=0.2)
    ours = timm_cosine_scheduler(optimizer, 0.2, 0.01, 0.002, 4, 30)
    for step in range(35):
        theirs.step_update(step)
        expected = theirs.optimizer.param_groups[0]["lr"]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, expected / 4], rel=1e-12)
        optimizer.step()
        ours.step()
    with pytest.raises(ValueError, match=r"warmup_steps must be in \[0, train_steps = 5\], got 6"):
        timm_cosine_scheduler(optimizer, 1.0, 0.0, 0.0, 6, 5)


def test_lars_names_an_unknown_momentum_style():
    with pytest.raises(ValueError, match=r"momentum_style must be one of .*classic.*got 'heavy'"):
        LARS([nn.Parameter(torch.ones(1))], lr=0.1, momentum_style="heavy")


@pytest.mark.parametrize(("name", "nesterov"), [("sgd", True), ("momentum", False)])
def test_momentum_of_the_names_is_as_documented(name, nesterov):
    groups = [{"params": [nn.Parameter(torch.ones(1))]}]
    assert create_optimizer(name, groups, 0.1, options={"momentum": 0.9}).defaults["nesterov"] == nesterov


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"betas": 3}, r"betas of optimizer 'adamw' must be 2 numbers, as \(0.9, 0.999\), got 3"),
        ("lamb", {"betas": [0.9]}, r"betas of optimizer 'lamb' must be 2 numbers, .*, got \(0.9,\)"),
        ("adamw", {"eps": "small"}, r"an option of optimizer 'adamw' has the wrong type, got \{'eps': 'small'\}"),
        ("lars", {"momentum": [0.9]}, "an option of optimizer 'lars' has the wrong type"),
    ],
)
def test_values_that_an_optimizer_does_not_take_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_optimizer(name, [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}], 0.1, options=options)


def test_vectors_are_decayed_on_request():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    (group,) = parameter_groups(model, 0.1, 0.01, decay_vectors=True)
    assert len(group["params"]) == 4
    assert group["weight_decay"] == 0.01
    with pytest.raises(ValueError, match="decay_vectors goes without layer_decay, got"):
        parameter_groups(model, 0.1, 0.01, layer_decay=0.5, decay_vectors=True)


def test_the_rate_can_stay_constant_inside_of_an_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = warmup_cosine_scheduler(optimizer, 0.3, 0.0, 0.0, epochs=4, steps_per_epoch=3, by_epoch=True)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    expected = [0.15 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)])
