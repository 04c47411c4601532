"""Processes that share a batch do what one process does with all of it: losses, gradients, moving statistics."""

import pytest
import torch

from tests.launching import torchrun
from tests.modeling.simclr_ranks import CASES, step


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What each of two or three gloo processes under DistributedDataParallel got."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("-m", "tests.modeling.simclr_ranks", folder, processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_processes_equals_that_of_one(ranks, name):
    expected = step(name, 0, 1)
    for state in ranks:
        weights = {key: tensor for key, tensor in state[name].items() if key != "loss"}
        torch.testing.assert_close(weights, {key: expected[key] for key in weights}, rtol=1e-7, atol=1e-9)
    losses = torch.stack([state[name]["loss"] for state in ranks])
    torch.testing.assert_close(losses.mean(), expected["loss"])
