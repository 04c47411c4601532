"""DenseCL under the stock Trainer and under ours: several processes, gradient accumulation, exact resume."""

import json
from pathlib import Path

import pytest
import torch
from densecl_run import BATCH, trainer
from safetensors.torch import load_file

from tests.launching import torchrun

HERE = Path(__file__).parent


def run_two_processes(output, kind, **overrides):
    """States of both processes, and the log of the first."""
    output.mkdir()
    torchrun(HERE / "densecl_run.py", output, "--trainer", kind, "--overrides", json.dumps(overrides))
    # A process that ends inside of its group aborts now and then.
    left = [rank for rank in range(2) if (output / f"rank{rank}.left").exists()]
    assert left == [0, 1], f"only processes {left} had left their group when they ended: see leave_process_group"
    states = [load_file(output / f"rank{rank}.safetensors") for rank in range(2)]
    return states, json.loads((output / "rank0.json").read_text())


@pytest.mark.parametrize(("kind", "accumulation"), [("stock", 1), ("hub", 2)])
def test_two_processes_keep_their_statistics_and_share_the_queues(kind, accumulation, tmp_path):
    """DDP is told nothing about buffers, and would broadcast them by default."""
    states, log = run_two_processes(tmp_path / "two", kind, gradient_accumulation_steps=accumulation)
    differing = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    statistics = {name for name in states[0] if "running_" in name}
    assert differing == statistics
    assert int(states[0]["steps"]) == 3
    keys = 3 * accumulation * 2 * BATCH
    assert int(states[0]["queue_ptr"]) == int(states[0]["queue2_ptr"]) == keys % 24
    torch.testing.assert_close(states[0]["queue"].norm(dim=0), torch.ones(24))
    assert len([entry for entry in log if "loss" in entry]) == 3


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["stock", "hub"])
def test_momentum_moves_once_per_step_of_the_trainer(kind, accumulation, tmp_path):
    run = trainer(kind, tmp_path, gradient_accumulation_steps=accumulation)
    run.train()
    assert int(run.model.steps) == 3
    assert int(run.model.queue_ptr) == 3 * accumulation * BATCH % 24


def test_losses_accuracies_and_matches_are_logged(tmp_path):
    run = trainer("hub", tmp_path, gradient_accumulation_steps=2)
    seen = []
    run.model.register_forward_hook(lambda model, inputs, output: seen.append(output))
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["accuracy_global"] for entry in log] == [
        pytest.approx(float(first.accuracy_global + second.accuracy_global) / 2)
        for first, second in zip(seen[::2], seen[1::2], strict=True)
    ]
    # In the first step the dense branch is measured only.
    assert all(1 <= entry["match_targets"] <= 16 and entry["loss_dense"] > 0 for entry in log)
    assert seen[0].contra_dense == 0 and not seen[0].loss_dense.requires_grad


@pytest.mark.parametrize("kind", ["stock", "hub"])
def test_evaluation_reports_a_loss_and_changes_nothing(kind, tmp_path):
    run = trainer(kind, tmp_path, per_device_eval_batch_size=5)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert run.evaluate(run.train_dataset)["eval_loss"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert run.model(run.train_dataset[0]["pixel_values"][None], return_loss=False).loss is None


@pytest.mark.parametrize("kind", ["stock", "hub"])
def test_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(kind, tmp_path):
    whole = trainer(kind, tmp_path / "whole", max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = trainer(kind, tmp_path / "resumed", max_steps=4)
    with torch.no_grad():
        for tensor in resumed.model.state_dict().values():
            tensor.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert int(whole.model.queue_ptr) == 4 * BATCH % 24
