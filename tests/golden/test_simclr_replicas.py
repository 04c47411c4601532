"""SimCLR's loss and statistics over processes: against the official code's replicas, and against one process."""

import json

import pytest
import torch
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from safetensors.torch import load_file

from tests.golden.harness import load_case
from tests.golden.simclr_replicas import BN_ROWS, TinySimCLR, tiny_rows, tiny_views
from tests.launching import torchrun

WORLDS = {"two": 2, "three": 3}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Tensors of every process; three run once for the whole file."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("-m", "tests.golden.simclr_replicas", folder, processes=3)
    return [
        (load_file(f"{folder}/rank{r}.safetensors"), json.loads((folder / f"rank{r}.json").read_text()))
        for r in range(3)
    ]


def part(ranks, name, world_size):
    """`{tensor name: [its value in every process]}` of one computation."""
    names = [key for key in ranks[0][0] if key.startswith(f"{name}/")]
    return {key.removeprefix(f"{name}/"): [ranks[r][0][key] for r in range(world_size)] for key in names}


def test_loss_and_gradient_equal_the_official_replicas(ranks):
    outputs = load_case("simclr", "ntxent_global_2replicas").outputs
    ours = part(ranks, "golden/loss", 2)
    torch.testing.assert_close(torch.stack(ours["loss"]), outputs["loss_per_replica"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack(ours["logits_ab"]), outputs["logits_ab"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(ours["grad_hidden"]), outputs["grad_hidden"], rtol=0, atol=1e-6)
    assert torch.equal(torch.stack(ours["labels"]), outputs["labels"].argmax(-1))


def test_normalisation_equals_the_official_replicas(ranks):
    outputs = load_case("simclr", "global_bn_2replicas").outputs
    ours = part(ranks, "golden/norm", 2)
    for name in ("y", "grad_x"):
        torch.testing.assert_close(torch.stack(ours[name]), outputs[name], rtol=0, atol=1e-5)
    for name in ("new_moving_mean", "new_moving_variance"):
        for value in ours[name]:
            torch.testing.assert_close(value, outputs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_training_step_of_processes_equals_one_process(ranks, world):
    model = TinySimCLR()
    loss, accuracy, entropy = model(tiny_views())
    loss.backward()
    ours = part(ranks, f"{world}/step", WORLDS[world])
    for name, expected in {"loss": loss, "accuracy": accuracy, "entropy": entropy}.items():
        torch.testing.assert_close(torch.stack(ours.pop(name)).mean(), expected.detach(), rtol=0, atol=1e-12)
    expected = {f"grad/{name}": parameter.grad for name, parameter in model.named_parameters()}
    expected |= dict(model.named_buffers())
    assert ours.keys() == expected.keys()
    for name, values in ours.items():
        for value in values:
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("world", WORLDS)
def test_normalisation_of_unequal_shares_equals_one_process(ranks, world):
    counts = BN_ROWS[WORLDS[world]]
    x, upstream = tiny_rows(sum(counts))
    norm = SimCLRBatchNorm(4, running_var="unbiased", affine=world == "three").double()
    y = norm(x.requires_grad_())
    (y * upstream).sum().backward()
    ours = part(ranks, f"{world}/norm", WORLDS[world])
    torch.testing.assert_close(torch.cat(ours["y"]), y.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.cat(ours["grad_x"]), x.grad, rtol=0, atol=1e-11)
    for value in ours["running_var"]:
        torch.testing.assert_close(value, norm.running_var, rtol=1e-12, atol=0)
    for name, parameter in norm.named_parameters():
        # what each process contributes; DistributedDataParallel adds them up
        torch.testing.assert_close(sum(ours[f"grad_{name}"]), parameter.grad, rtol=1e-11, atol=1e-11)


def test_normalisation_of_bfloat16_uses_float32_statistics(ranks):
    x, upstream = tiny_rows(sum(BN_ROWS[3])).bfloat16().double()
    norm = SimCLRBatchNorm(4).double()
    y = norm(x.requires_grad_())
    (y * upstream).sum().backward()
    ours = part(ranks, "three/bfloat16", 3)
    assert ours["y"][0].dtype == ours["grad_x"][0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(ours["y"]).double(), y.detach(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(torch.cat(ours["grad_x"]).double(), x.grad, rtol=1e-2, atol=1e-4)
    for value in ours["running_var"]:
        torch.testing.assert_close(value.double(), norm.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(sum(ours["grad_bias"]).double(), norm.bias.grad, rtol=1e-5, atol=1e-5)


def test_unequal_numbers_of_images_are_refused_by_every_process(ranks):
    for _, messages in ranks:
        assert "[2, 3, 4]" in messages["unequal"]
