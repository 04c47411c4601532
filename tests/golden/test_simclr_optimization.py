"""SimCLR's LARS and learning-rate schedule against tensors of the official code."""

import re

import pytest
import torch
from torch import nn

from hubmodels.training import LARS, scaled_learning_rate, simclr_learning_rate, simclr_scheduler, simclr_steps
from tests.golden.harness import load_case


def tolerance(case):
    limits = {"atol": 0.0} | {
        name: float(value) for name, value in re.findall(r"(\w+) ([\d.e-]+)", case.manifest["tolerance"])
    }
    return {"atol": limits["atol"], "rtol": limits["rtol"]}


@pytest.mark.parametrize("configuration", range(3))
def test_lars_updates(configuration):
    case = load_case("simclr", "lars_updates")
    recipe = case.manifest["config"][configuration]
    style = "classic" if recipe.get("classic_momentum", True) else "popular"
    names = [name.removeprefix("param/") for name in case.inputs if name.startswith("param/")]
    parameters = {name: nn.Parameter(case.inputs[f"param/{name}"].clone()) for name in names}
    adapted = [n for n in names if not any(part in n for part in recipe["exclude_from_weight_decay"])]
    assert 0 < len(adapted) < len(names)
    optimizer = LARS(
        [
            {"params": [parameters[n] for n in adapted], "adapt": True},
            {"params": [parameters[n] for n in names if n not in adapted], "adapt": False, "weight_decay": 0.0},
        ],
        lr=1.0,
        weight_decay=recipe["weight_decay"],
        momentum=recipe["momentum"],
        momentum_style=style,
        nesterov=recipe.get("use_nesterov", False),
    )
    for update, lr in enumerate(case.inputs["lr"].tolist()):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in parameters.items():
            parameter.grad = case.inputs[f"grad{update}/{name}"]
        optimizer.step()
    for name, parameter in parameters.items():
        expected = case.group(f"cfg{configuration}/param")[name], case.group(f"cfg{configuration}/momentum")[name]
        actual = parameter.detach(), optimizer.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(actual, expected, **tolerance(case))


@pytest.mark.parametrize("configuration", range(3))
def test_learning_rates(configuration):
    case = load_case("simclr", "lr_schedule")
    recipe = case.manifest["config"][configuration]
    sizes = recipe["num_examples"], recipe["train_batch_size"], recipe["train_epochs"], recipe["warmup_epochs"]
    assert simclr_steps(*sizes) == (recipe["warmup_steps"], recipe["train_steps"])
    peak = scaled_learning_rate(recipe["learning_rate"], recipe["train_batch_size"], recipe["learning_rate_scaling"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = simclr_scheduler(optimizer, recipe["learning_rate"], *sizes, recipe["learning_rate_scaling"])
    for step, expected in zip(case.inputs[f"steps{configuration}"], case.outputs[f"lr{configuration}"], strict=True):
        rate = simclr_learning_rate(int(step), peak, recipe["warmup_steps"], recipe["train_steps"])
        torch.testing.assert_close(torch.tensor(rate), expected, **tolerance(case))
        assert peak * scheduler.lr_lambdas[0](int(step)) == pytest.approx(rate)
