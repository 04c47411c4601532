"""Runs in processes of their own: killed ones, and several that train together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import trainer_of_dtype

from hubmodels.training import read_jsonl
from tests.launching import run_python, torchrun

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "kills", [pytest.param(3, id="3 kills"), pytest.param(20, id="20 kills", marks=pytest.mark.slow)]
)
def test_killed_runs_resume_to_the_weights_of_an_uninterrupted_one(tmp_path, kills):
    output = run_python(HERE / "kill_resume.py", tmp_path, "--kills", kills)
    report = json.loads(output.splitlines()[-1])
    assert report["kills"] == kills
    assert report["different"] == []


@pytest.mark.parametrize(
    ("dtype", "skipped"),
    [
        # The true gradient of a key bias is 0, and Adam makes whole steps of its rounding noise. In float64 the noise
        # stays below Adam's epsilon, and every weight can be compared.
        pytest.param(torch.float32, "k_proj.bias", id="float32"),
        pytest.param(torch.float64, "nothing", id="float64", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path, dtype, skipped):
    steps = {"max_steps": 5, "warmup_epochs": 0.5}
    one = trainer_of_dtype(tmp_path / "one", dtype, per_device_train_batch_size=8, **steps)
    one.train()
    two = tmp_path / "two"
    overrides = json.dumps({**steps, "per_device_train_batch_size": 4})
    torchrun(HERE / "tiny_run.py", two, "--overrides", overrides, "--dtype", str(dtype).split(".")[1])
    expected = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    losses = [line["loss"] for line in read_jsonl(two / "log.jsonl") if "loss" in line]
    assert len(losses) == 5
    assert losses == pytest.approx(expected, abs=1e-5)
    weights = load_file(two / "final" / "model.safetensors")
    for name, tensor in one.model.state_dict().items():
        if not name.endswith(skipped):
            torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
