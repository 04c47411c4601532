"""`hubmodels train` in two processes: stopped runs continue to the same bits."""

import shutil

import pytest
from stopping import assert_same_bits, weights

from tests.launching import train_in_two_processes

COMMON = [
    "schedule.epochs=6",
    "schedule.batch_size=8",
    "schedule.warmup_epochs=0",
    "run.tensorboard=false",
    "run.checkpoints=6",
    "run.keep_checkpoints=9",
]
RUNS = {
    "densecl/small_pretrain": ["model.embedding_size=2", "model.queue_length=16", "transform.size=32"],
    "simclr/small_pretrain": ["model.stem_width=2", "model.image_size=18"],
    "sanm/small_cotrain": ["model.widths=[4,4,4,8]", "noisy_labels.warm_up_epochs=3", "noisy_labels.decay_epochs=[4]"],
    "sanm/small_light": ["model.widths=[4,4,4,8]", "noisy_labels.warm_up_epochs=1"],
    "positional_label/small_finetune": ["regularization.ema_decay=0.9", "model.num_anchors=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_continues_from_its_checkpoint_to_the_same_weights(recipe, pictures, tmp_path):
    """As if it had been killed after the second epoch: queues, losses, averages and random numbers are restored."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = [*COMMON, *RUNS[recipe]]
    train_in_two_processes(recipe, pictures, run, overrides)
    shutil.copytree(run, whole)
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert len(checkpoints) > 3
    for path in (run / "config.json", run / "model.safetensors", *checkpoints[2:]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train_in_two_processes(recipe, pictures, run, overrides)
    assert_same_bits(weights(whole), weights(run))
