"""Checkpoints are complete or absent."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers.trainer_utils import get_last_checkpoint
from transformers.trainer_utils import rotate_checkpoints as stock_rotate_checkpoints

from hubmodels.training import (
    checkpoint_defect,
    clean_leftovers,
    complete_checkpoints,
    last_complete_checkpoint,
    rotate_checkpoints,
)
from hubmodels.training import checkpoints as checkpoints_module
from hubmodels.training.checkpoints import MANIFEST_NAME, commit_checkpoint, staging_folder


def write_checkpoint(run: Path, step: int, content: str = "weights") -> Path:
    checkpoint = run / f"checkpoint-{step}"
    staging = staging_folder(checkpoint)
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_text(f"{content} {step}")
    (staging / "nested").mkdir()
    (staging / "nested" / "optimizer.pt").write_text("state")
    commit_checkpoint(checkpoint)
    return checkpoint


def test_a_committed_checkpoint_is_complete_and_leaves_nothing_beside(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    assert checkpoint_defect(checkpoint) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert set(json.loads((checkpoint / MANIFEST_NAME).read_text())["files"]) == {
        "model.safetensors",
        "nested/optimizer.pt",
    }


def test_every_file_and_folder_is_flushed_before_the_name_is_given(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(checkpoints_module, "_sync", lambda path: events.append(path.name))
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    write_checkpoint(tmp_path, 1)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert sorted(before) == sorted(
        [".checkpoint-1.partial", "model.safetensors", MANIFEST_NAME, "nested", "optimizer.pt"]
    )
    assert after == [tmp_path.name]


def tear_missing(checkpoint):
    (checkpoint / "nested" / "optimizer.pt").unlink()


def tear_short(checkpoint):
    (checkpoint / "model.safetensors").write_text("w")


def tear_zeros(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)


def tear_manifest(checkpoint):
    (checkpoint / MANIFEST_NAME).write_text('{"files": {')


def tear_no_manifest(checkpoint):
    (checkpoint / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (tear_missing, "nested/optimizer.pt is missing"),
        (tear_short, "model.safetensors has 1 bytes instead of 10"),
        (tear_zeros, "the content of model.safetensors has changed"),
        (tear_manifest, "is damaged"),
        (tear_no_manifest, f"has no {MANIFEST_NAME}"),
    ],
)
def test_torn_checkpoints_are_taken_by_stock_and_refused_here(tmp_path, tear, reason):
    good = write_checkpoint(tmp_path, 10)
    torn = write_checkpoint(tmp_path, 20)
    tear(torn)
    assert get_last_checkpoint(str(tmp_path)) == str(torn)  # stock transformers resumes from the torn one
    assert last_complete_checkpoint(tmp_path) == good
    assert reason in checkpoint_defect(torn)


def test_the_newest_step_wins_whatever_the_file_times(tmp_path):
    for step in (100, 20, 3):
        write_checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_no_checkpoint_at_all(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "missing") is None
    assert clean_leftovers(tmp_path / "missing") == []


def test_rotation_keeps_the_last_complete_one_where_stock_keeps_a_torn_one(tmp_path):
    good = write_checkpoint(tmp_path, 10)
    torn = write_checkpoint(tmp_path, 20)
    tear_no_manifest(torn)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "checkpoint-10", copy / "checkpoint-10")
    shutil.copytree(tmp_path / "checkpoint-20", copy / "checkpoint-20")
    stock_rotate_checkpoints(str(copy), save_total_limit=1)
    assert last_complete_checkpoint(copy) is None  # stock deleted the only usable checkpoint
    rotate_checkpoints(tmp_path, limit=1)
    assert last_complete_checkpoint(tmp_path) == good
    assert torn.exists()


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        write_checkpoint(tmp_path, step)
    rotate_checkpoints(tmp_path, limit=2, keep=tmp_path / "checkpoint-1")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    for keeps_all in (None, 0, -1):
        rotate_checkpoints(tmp_path, limit=keeps_all)
        assert len(complete_checkpoints(tmp_path)) == 3


def test_a_kill_during_rotation_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1)
    last = write_checkpoint(tmp_path, 2)

    def killed(path):
        (Path(path) / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        rotate_checkpoints(tmp_path, limit=1)
    monkeypatch.undo()
    assert complete_checkpoints(tmp_path) == [last]
    assert [path.name for path in clean_leftovers(tmp_path)] == [".checkpoint-1.removed"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_leftovers_of_killed_runs_are_cleaned_and_nothing_else(tmp_path):
    good = write_checkpoint(tmp_path, 10)
    staging_folder(tmp_path / "checkpoint-20").mkdir()
    (tmp_path / ".checkpoint-notes.txt").write_text("mine")
    (tmp_path / ".checkpoint-x.partial").mkdir()
    assert [path.name for path in clean_leftovers(tmp_path)] == [".checkpoint-20.partial"]
    assert {path.name for path in tmp_path.iterdir()} == {good.name, ".checkpoint-notes.txt", ".checkpoint-x.partial"}


def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path, 10, "old")
    rename = os.rename

    def killed_before_the_second_rename(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed_before_the_second_rename)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 10, "new")
    monkeypatch.undo()
    clean_leftovers(tmp_path)
    assert (checkpoint / "model.safetensors").read_text() == "old 10"
    assert last_complete_checkpoint(tmp_path) == checkpoint
    write_checkpoint(tmp_path, 10, "new")
    assert (checkpoint / "model.safetensors").read_text() == "new 10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
