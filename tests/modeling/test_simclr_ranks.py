"""Processes that share a batch do what one process does with all of it: losses, gradients, moving statistics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modeling.simclr_ranks import CASES, step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What each of two or three gloo processes under DistributedDataParallel got."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.modeling.simclr_ranks", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen([*command, str(rank), str(request.param)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for rank in range(request.param)
    ]
    try:
        errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_processes_equals_that_of_one(ranks, name):
    expected = step(name, 0, 1)
    for state in ranks:
        weights = {key: tensor for key, tensor in state[name].items() if key != "loss"}
        torch.testing.assert_close(weights, {key: expected[key] for key in weights}, rtol=1e-7, atol=1e-9)
    losses = torch.stack([state[name]["loss"] for state in ranks])
    torch.testing.assert_close(losses.mean(), expected["loss"])
