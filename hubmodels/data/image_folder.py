"""Find the images, classes and splits of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hubmodels.data.sources import IMAGE_SUFFIXES
from hubmodels.data.splits import SPLIT_NAMES, MissingSplitError, canonical_split, choose_split

_IGNORED_FOLDERS = frozenset({"__MACOSX"})


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _subfolders(folder: Path) -> list[Path]:
    """Visible folders inside a folder, sorted by name."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _IGNORED_FOLDERS
    )


def _images_below(folder: Path) -> list[Path]:
    """All images in a folder and below, sorted by path; also in linked folders, each once."""
    return sorted(
        Path(parent, name)
        for parent, _, names in _walk(folder, set())
        if not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
        for name in names
        if _is_image(name)
    )


def _walk(folder: Path, seen: set[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links too, without going around in circles."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        yield parent, folders, names


def split_folders(root: Path) -> dict[str, Path]:
    """Find the split folders of a folder.

    Args:
        root: The folder.

    Returns:
        The folders by name; empty when the folder is not divided into splits.
    """
    folders = _subfolders(root)
    splits = {folder.name: folder for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if len(splits) == len(folders):
        return splits
    if not any(canonical_split(name) == "train" for name in splits):
        return {}
    others = [folder for folder in folders if folder.name not in splits]
    (only, *more) = splits.values()
    if not more and not _subfolders(only) and any(_images_below(other) for other in others):
        return {}  # a class may be called train
    return splits


def _class_folders(folder: Path) -> list[Path]:
    """The class folders; none when images lie directly in the folder, which is then unlabelled."""
    if any(_is_image(entry.name) for entry in folder.iterdir() if entry.is_file()):
        return []
    return _subfolders(folder)


class FolderImages(NamedTuple):
    """Images of a folder; labels int64 [N] and names of classes, or None and the reason where there are none."""

    paths: list[Path]
    labels: np.ndarray | None
    class_names: list[str] | None
    unlabelled_reason: str = ""


def find_images(root: Path, split: str | None) -> FolderImages:
    """Find the images of a folder.

    A folder is divided into splits when it holds train/ or nothing but split folders. Inside (a split of) it, one
    folder per class gives labels; images directly in the folder mean unlabelled data. The classes are those of all
    splits together, in the order of their names, so that labels agree between splits.

    Args:
        root: The folder.
        split: Name of the split, or None: "train", or the only one.

    Returns:
        The images, and their labels where there are some.

    Raises:
        MissingSplitError: No such split.
        ValueError: No images, or a class folder without images.
    """
    splits = split_folders(root)
    if splits:
        folder = splits[choose_split(split, list(splits), str(root))]
    elif split is None or canonical_split(split) == "train":
        folder = root
    else:
        raise MissingSplitError(f"{root} has no split {split!r}: it holds no split folders (train/, val/, test/)")
    classes = _class_folders(folder)
    if not classes:
        paths = _images_below(folder)
        if not paths:
            raise ValueError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        beside = next((path for path in paths if path.parent == folder), None)
        others = _subfolders(folder)
        reason = f"{beside} and others lie beside the folders, such as {others[0].name}" if beside and others else ""
        return FolderImages(paths, None, None, reason)
    return _labelled_images(classes, [_class_folders(other) for other in splits.values()])


def _labelled_images(classes: list[Path], all_classes: list[list[Path]]) -> FolderImages:
    """Images of class folders with labels that number the classes of all splits."""
    class_names = sorted({entry.name for entries in (classes, *all_classes) for entry in entries})
    images = {entry.name: _images_below(entry) for entry in classes}
    empty = [str(entry) for entry in classes if not images[entry.name]]
    if empty:
        raise ValueError(f"class folders without images: {', '.join(empty)}")
    labels = np.repeat([class_names.index(name) for name in images], [len(paths) for paths in images.values()])
    return FolderImages([path for paths in images.values() for path in paths], labels, class_names)
