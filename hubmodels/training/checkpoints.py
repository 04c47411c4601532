"""Checkpoints that are complete or absent.

A checkpoint is written into a hidden sibling folder, every file is flushed to disk, a manifest with the size and the
SHA-256 of every file is added, and only then is the folder renamed to `checkpoint-STEP`. A process killed at any moment
leaves either the whole checkpoint or a hidden leftover that `clean_leftovers` removes.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

MANIFEST_NAME = "checkpoint_manifest.json"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_LEFTOVER = re.compile(r"^\.(checkpoint-\d+)\.(partial|replaced|removed)$")


def staging_folder(checkpoint: Path) -> Path:
    """Hidden sibling into which a checkpoint is written before it gets its name.

    Args:
        checkpoint: Final path, named `checkpoint-STEP`.

    Returns:
        Path of the staging folder (not created).
    """
    return _hidden(checkpoint, "partial")


def commit_checkpoint(checkpoint: Path) -> None:
    """Turn the staging folder of a checkpoint into the checkpoint, all at once.

    Args:
        checkpoint: Final path; its `staging_folder` must hold every file. A checkpoint already of that name is
            replaced, and stays in place until the new one is whole.

    Raises:
        FileNotFoundError: If there is no staging folder.
    """
    staging = staging_folder(checkpoint)
    _write_manifest(staging)
    for folder, _, files in os.walk(staging):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    replaced = _hidden(checkpoint, "replaced")
    if checkpoint.exists():
        os.rename(checkpoint, replaced)
    os.rename(staging, checkpoint)
    _sync(checkpoint.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def checkpoint_defect(checkpoint: Path, verify_contents: bool = True) -> str | None:
    """Say why a folder is not a complete checkpoint.

    Args:
        checkpoint: Folder to check.
        verify_contents: Also compare the SHA-256 of every file (reads the whole checkpoint); else only the sizes.

    Returns:
        The reason, or None for a complete checkpoint.
    """
    manifest = Path(checkpoint, MANIFEST_NAME)
    if not manifest.is_file():
        return f"it has no {MANIFEST_NAME}: the writing was cut short, or another program wrote it"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST_NAME} is damaged"
    for name, expected in files.items():
        path = Path(checkpoint, name)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if verify_contents and _sha256(path) != expected["sha256"]:
            return f"the content of {name} has changed"
    return None


def complete_checkpoints(run_folder: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest step first; files are checked by name and size.

    Args:
        run_folder: Folder with `checkpoint-STEP` folders; it may be missing.

    Returns:
        Their paths.
    """
    return [path for path in _numbered(run_folder) if checkpoint_defect(path, verify_contents=False) is None]


def last_complete_checkpoint(run_folder: str | Path) -> Path | None:
    """The checkpoint to resume from: the newest whose every file is as it was written.

    `transformers.trainer_utils.get_last_checkpoint` takes the highest number whatever the folder holds.

    Args:
        run_folder: Folder with `checkpoint-STEP` folders; it may be missing.

    Returns:
        The path, or None if there is no complete checkpoint.
    """
    for checkpoint in reversed(_numbered(run_folder)):
        if checkpoint_defect(checkpoint) is None:
            return checkpoint
    return None


def defective_checkpoints(run_folder: str | Path) -> dict[Path, str]:
    """Torn or damaged checkpoints of a run with the reason.

    Args:
        run_folder: Folder with `checkpoint-STEP` folders; it may be missing.

    Returns:
        Reason by path, oldest step first.
    """
    defects = {path: checkpoint_defect(path) for path in _numbered(run_folder)}
    return {path: defect for path, defect in defects.items() if defect is not None}


def rotate_checkpoints(run_folder: str | Path, limit: int | None, keep: str | Path | None = None) -> None:
    """Remove the oldest complete checkpoints beyond a limit.

    Torn checkpoints neither count nor are touched, so the last complete one always stays. A checkpoint is renamed
    before its files are removed: a kill in the middle leaves no half checkpoint.

    Args:
        run_folder: Folder with `checkpoint-STEP` folders.
        limit: Number to keep; None, 0 and below keep all, as in transformers.
        keep: A checkpoint to keep besides, such as the best one.
    """
    if limit is None or limit <= 0:
        return
    kept = Path(keep).name if keep is not None else None
    for checkpoint in complete_checkpoints(run_folder)[:-limit]:
        if checkpoint.name != kept:
            removed = _hidden(checkpoint, "removed")
            os.rename(checkpoint, removed)
            shutil.rmtree(removed)


def clean_leftovers(run_folder: str | Path) -> list[Path]:
    """Remove what killed runs left behind: half-written, replaced and half-removed checkpoints.

    A replaced checkpoint whose successor never got its name is put back.

    Args:
        run_folder: Folder with `checkpoint-STEP` folders; it may be missing.

    Returns:
        The folders found, by their names before.
    """
    found = []
    for folder in sorted(Path(run_folder).glob(".checkpoint-*.*")):
        match = _LEFTOVER.match(folder.name)
        if match is None or not folder.is_dir():
            continue
        found.append(folder)
        checkpoint = folder.with_name(match[1])
        if match[2] == "replaced" and not checkpoint.exists():
            os.rename(folder, checkpoint)
        else:
            shutil.rmtree(folder)
    return found


def _numbered(run_folder: str | Path) -> list[Path]:
    """Folders named `checkpoint-STEP`, lowest step first."""
    folder = Path(run_folder)
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = {int(match[1]): path for path in paths if (match := _CHECKPOINT.match(path.name))}
    return [steps[step] for step in sorted(steps)]


def _hidden(checkpoint: Path, state: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{state}")


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }
    Path(folder, MANIFEST_NAME).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
