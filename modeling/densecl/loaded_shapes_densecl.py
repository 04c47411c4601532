"""What is said of loaded files whose weights do not have the shapes of the model."""

from collections.abc import Collection
from os import PathLike
from typing import Any

SHOWN = 3


def listed(names: Collection[str]) -> str:
    """The first names, and how many there are."""
    return f"{', '.join(sorted(names)[:SHOWN])} ({len(names)} in all)"


def shapes_of(mismatched: Collection[tuple[str, Any, Any]]) -> str:
    """
    Args:
        mismatched: names of weights with their shapes in the file and in the model, where these differ.

    Returns:
        The first of them in words.
    """
    shown = sorted(mismatched)[:SHOWN]
    shapes = "; ".join(f"{name} is {list(in_file)}, not {list(in_model)}" for name, in_file, in_model in shown)
    return f"{shapes} ({len(mismatched)} in all)"


def check_shapes(mismatched: Collection[tuple[str, Any, Any]], source: str | PathLike | None) -> None:
    """
    Args:
        mismatched: as for [`shapes_of`].
        source (`str`): where the weights come from.

    Raises:
        RuntimeError: if there are any, as in transformers.
    """
    if mismatched:
        raise RuntimeError(
            f"{source} does not fit the configuration: {shapes_of(mismatched)}; ignore_mismatched_sizes=True starts "
            "these anew"
        )
