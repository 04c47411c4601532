"""Lists of image files with labels, as Clothing1M and WebVision publish them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubmodels.data.splits import MissingSplitError, canonical_split


def read_image_list(
    path: str | Path, labels: str | Path | None = None, root: str | Path | None = None, split: str | None = None
) -> tuple[list[Path], np.ndarray | None]:
    """Read a text file with one image a line: its path, and after a space its class number if it has one.

    Args:
        path: The list, such as `noisy_train_key_list.txt` of Clothing1M or `train_filelist_google.txt` of WebVision.
        labels: A list of the same form with the class numbers, joined by path (`noisy_label_kv.txt`); it may hold more
            images, in any order. A relative path that is no file is looked for beside the list.
        root: Folder that the paths are relative to; by default that of the list.
        split: Name of the split that is asked for; a list is all of its data, so only "train" or None.

    Returns:
        (paths, labels int64 [N] or None).

    Raises:
        MissingSplitError: Another split.
        ValueError: No images, some with and some without a number, a number that is none, no file of labels, or an
            image without a label.
        FileNotFoundError: The first image does not exist.
    """
    path = Path(path)
    if split is not None and canonical_split(split) != "train":
        raise MissingSplitError(f"{path} is a list of images and has no split {split!r}")
    names, numbers = _read(path)
    if labels is not None:
        of_names = dict(zip(*_labelled(_label_file(Path(labels), path)), strict=True))
        missing = [name for name in names if name not in of_names]
        if missing:
            raise ValueError(f"{labels} has no label of {len(missing)} images of {path}, such as {missing[0]}")
        numbers = [of_names[name] for name in names]
    folder = path.parent if root is None else Path(root)
    paths = [folder / name for name in names]
    if not paths[0].is_file():
        raise FileNotFoundError(f"the first image of {path} is not there: {paths[0]}")
    return paths, None if numbers is None else np.array(numbers, dtype=np.int64)


def _label_file(labels: Path, path: Path) -> Path:
    """The list of labels: as it is given, or beside the list of images."""
    beside = path.parent / labels
    if not labels.is_file() and not beside.is_file():
        raise ValueError(
            f"label_column of a list of images must be a second list, there is no {labels} and no {beside}"
        )
    return labels if labels.is_file() else beside


def _labelled(path: Path) -> tuple[list[str], Sequence[int]]:
    names, numbers = _read(path)
    if numbers is None:
        raise ValueError(f"{path} must have lines of the form PATH NUMBER, it has paths only")
    return names, numbers


def _read(path: Path) -> tuple[list[str], list[int] | None]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} lists no images")
    parts = [line.rsplit(maxsplit=1) for line in lines]
    numbered = [len(part) == 2 and part[1].isdigit() for part in parts]
    if all(numbered):
        return [part[0] for part in parts], [int(part[1]) for part in parts]
    if any(numbered):
        line = numbered.index(False)
        raise ValueError(f"{path} has images with and without a class number; line {line + 1} is {lines[line]!r}")
    return lines, None
