"""DenseCL's training steps and schedule against tensors of the official code, in one process and in two."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hubmodels.training import warmup_cosine_lr, warmup_cosine_scheduler
from tests.golden.densecl_steps import load_model, train
from tests.golden.harness import load_case
from tests.launching import torchrun

ONE_PROCESS = ["train_3steps_1rank", "basic_block_default_strides"]
TWO_PROCESSES = "train_2ranks_shuffle_bn"


def assert_steps_match(case, actual):
    """Every tensor of the steps, at the tolerances of the manifest."""
    for name, tensor in actual.items():
        expected, message = case.outputs[name], lambda text, name=name: f"{name}: {text}"
        tensor = tensor.to(expected.dtype)
        if not expected.is_floating_point():
            assert torch.equal(tensor, expected), name
        elif name.startswith("grad"):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-3 * float(expected.abs().max()), msg=message)
        elif ".loss" in name:
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7, msg=message)
        else:
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4, msg=message)


def is_statistic(name):
    """Whether a name of rank 0's state is that of a running statistic."""
    return name.startswith("after_") and "running" in name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ONE_PROCESS)
def test_steps_of_one_process(name, dtype, tmp_path):
    case = load_case("densecl", name)
    actual = train(case, load_model(case, tmp_path / "converted").to(dtype))
    # What the model does not return: similarities before the temperature, and the unused pooled query.
    absent = {n.rpartition(".")[2] for n in set(case.outputs) - set(actual)}
    assert absent == {"q2_unnormalised", "similarity", "pos_global", "pos_dense", "neg_global", "neg_dense"}
    assert actual["rank0.step1.loss"].dtype == dtype
    assert_steps_match(case, actual)


def test_activation_checkpointing_changes_neither_gradients_nor_statistics(tmp_path):
    case = load_case("densecl", ONE_PROCESS[0])
    plain, checkpointed = (load_model(case, tmp_path / name) for name in ("plain", "checkpointed"))
    checkpointed.gradient_checkpointing_enable()
    expected, actual = train(case, plain), train(case, checkpointed)
    assert_steps_match(case, actual)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    for (name, ours), (_, theirs) in zip(checkpointed.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Tensors of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("-m", "tests.golden.densecl_steps", TWO_PROCESSES, folder)
    return [
        (load_file(folder / f"rank{rank}.safetensors"), json.loads((folder / f"rank{rank}.json").read_text()))
        for rank in range(2)
    ]


def test_steps_of_two_processes_with_shuffled_normalisation(ranks):
    """Permutation, statistics per process, rank order of the queues, averaged gradients, pointers that wrap."""
    case = load_case("densecl", TWO_PROCESSES)
    tensors = [tensors for tensors, _ in ranks]
    for rank, actual in enumerate(tensors):
        assert f"rank{rank}.step2.loss" in actual
        # Without a rank in the name, tensors are those of rank 0; statistics are another process' own.
        assert_steps_match(case, {n: t for n, t in actual.items() if rank == 0 or not is_statistic(n)})
    states = [name for name in tensors[0] if name.startswith("after_")]
    differing = [name for name in states if not torch.equal(tensors[0][name], tensors[1][name])]
    assert differing
    assert all(is_statistic(name) for name in differing)


def test_processes_refuse_bad_batches_together(ranks):
    messages = ranks[0][1]
    assert messages == ranks[1][1]
    assert "every process needs a batch of the same size, got [3, 2] by rank" in messages["unequal batches"]
    for name in ("short permutation", "repeated row"):
        assert "shuffle_index must be a permutation of the 6 images of all processes" in messages[name]
    assert "queue_length 12 is not divisible by the global batch 10" in messages["queue"]


def test_learning_rate_is_constant_inside_of_an_epoch():
    case = load_case("densecl", "lr_cosine_by_epoch")
    for number, config in enumerate(case.manifest["config"]):
        rates = [
            warmup_cosine_lr(int(epoch), config["base_lr"], config["min_lr"], 0, config["total_epochs"])
            for epoch in case.inputs[f"epoch{number}"]
        ]
        expected = case.outputs[f"lr{number}"]
        torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected, rtol=1e-12, atol=0)
    assert warmup_cosine_lr(799, 0.3, 0.0, 0, 800) == pytest.approx(1.157e-6, rel=1e-3)


def test_schedule_by_epoch_and_by_step():
    weight = nn.Parameter(torch.zeros(1))
    for by_epoch in (True, False):
        optimizer = torch.optim.SGD([weight], lr=0.3)
        schedule = warmup_cosine_scheduler(optimizer, 0.3, 0.0, 0, 4, steps_per_epoch=5, by_epoch=by_epoch)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        epochs = [step // 5 if by_epoch else step / 5 for step in range(20)]
        assert rates == pytest.approx([warmup_cosine_lr(epoch, 0.3, 0.0, 0, 4) for epoch in epochs])
