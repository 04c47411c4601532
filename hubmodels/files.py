"""Files that are complete or absent, and text that any file and terminal takes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"  # begins the names of folders of files that are being written


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file beside its place and move it there when the `with` block ends.

    If the block fails, nothing is left of what it wrote, and a file that was there stays as it was.

    Args:
        path: The file; replaced if there is one. Folders are created.

    Yields:
        The path to write to, of the same name in a folder of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        written = Path(folder) / path.name
        yield written
        os.replace(written, path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in UTF-8, completely or not at all.

    Args:
        path: The file; replaced if there is one. Folders are created.
        text: What to write.

    Returns:
        The path.
    """
    with replacing(path) as written:
        written.write_text(text, encoding="utf-8")
    return Path(path)


def printable(text: str) -> str:
    r"""Text that UTF-8 can hold, of a file name that may have other bytes.

    Python reads such a byte as half of a surrogate pair (`"caf\udce9"`), which neither files nor terminals take.

    Args:
        text: Any text.

    Returns:
        The text with the escape of Python in place of every such character.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
