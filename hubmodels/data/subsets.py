"""Parts of a data set for training with few labels: as many images of every class, or the images of a list."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubmodels.data.images import ImageDataset
from hubmodels.data.randomness import random_permutation


def subset_indices(labels: Sequence[int] | np.ndarray | torch.Tensor, fraction: float, seed: int = 0) -> np.ndarray:
    """A random part of labelled samples that holds equally many of every class, as far as a class has them.

    The classes differ by one sample at most, and each has one at least. For one seed, smaller parts are contained in
    larger ones.

    Args:
        labels: Class of every sample [N].
        fraction: Share of all samples, in (0, 1].
        seed: Seed of the choice.

    Returns:
        Positions of the chosen samples, int64, ascending.

    Raises:
        ValueError: If there are no labels, or `fraction` is out of range.

    Example:

        >>> from hubmodels.data import subset_indices
        >>> subset_indices([0, 0, 0, 1, 1, 1], 0.34).shape
        (2,)
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or not len(classes):
        raise ValueError(f"labels must be class numbers [N] of at least one sample, got shape {classes.shape}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    order = random_permutation(len(classes), seed)
    rounds = np.empty(len(classes), dtype=np.int64)  # the how-manieth of its class a sample is
    names = np.unique(classes)
    for name in names:
        members = np.flatnonzero(classes[order] == name)
        rounds[members] = np.arange(len(members))
    count = max(round(fraction * len(classes)), len(names))
    return np.sort(order[np.argsort(rounds, kind="stable")[:count]])


def listed_indices(images: ImageDataset, path: str | Path) -> np.ndarray:
    """Positions of the images that a text file names, such as the lists of the official SimCLR code.

    Args:
        images: A data set of image files.
        path: The list, one file name a line; folders in front of the name do not count.

    Returns:
        Positions in `images`, int64, ascending.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it names no images, or images that are not there or have the same name.
    """
    names = [_base(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} lists no images")
    positions: dict[str, list[int]] = {}
    for position in range(len(images)):
        positions.setdefault(_base(images.name(position)), []).append(position)
    missing: list[Any] = [name for name in names if name not in positions]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} images that {path} names are not among the {len(images)} image files, "
            f"such as {missing[0]!r}; there is {_base(images.name(0))!r}"
        )
    twice = [name for name in names if len(positions[name]) > 1]
    if twice:
        raise ValueError(f"{path} names {twice[0]!r}, which {len(positions[twice[0]])} image files are called")
    return np.array(sorted({positions[name][0] for name in names}), dtype=np.int64)


def _base(name: str) -> str:
    return Path(name.strip()).name
