"""Outputs that are complete or absent: written beside their place, then moved into it."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder that appears at `out` only when it is complete.

    Args:
        out: folder to create; it may exist if it is empty. Missing parents are created.

    Yields:
        A temporary folder beside `out` to write into. It takes the place of `out` at the end of the block, or is
        removed if the block raises.

    Raises:
        FileExistsError: `out` exists and is not an empty folder, before or after the block.
    """
    target = Path(out).absolute()
    check_new_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _flush(path)
        check_new_folder(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(out: str | os.PathLike[str]) -> Iterator[Path]:
    """The same as `new_folder` for one file, which must not exist.

    Raises:
        FileExistsError: `out` exists, before or after the block.
    """
    target = Path(out).absolute()
    check_new_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target)
    try:
        yield temporary
        _flush(temporary)
        check_new_file(target)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_folder(out: str | os.PathLike[str]) -> None:
    """Raise FileExistsError if `out` exists and is not an empty folder."""
    if os.path.lexists(out) and not (os.path.isdir(out) and not os.path.islink(out) and not os.listdir(out)):
        raise FileExistsError(f"output {os.fspath(out)!r} already exists; choose a new folder or remove it first")


def check_new_file(out: str | os.PathLike[str]) -> None:
    """Raise FileExistsError if `out` exists."""
    if os.path.lexists(out):
        raise FileExistsError(f"output {os.fspath(out)!r} already exists; choose a new file name or remove it first")


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.incomplete")


def _flush(path: Path) -> None:
    """Wait until a file is on disk, so that a crash after the move cannot leave it empty."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
