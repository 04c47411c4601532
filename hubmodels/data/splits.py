"""Names of splits."""

from collections.abc import Sequence

_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES = frozenset({"train", "validation", "test", *_ALIASES})


class MissingSplitError(ValueError):
    """A data set has no split of the name asked for."""


def canonical_split(name: str) -> str:
    """One name for all spellings of a split ("val", "valid" and "dev" are "validation")."""
    return _ALIASES.get(name.lower(), name.lower())


def choose_split(asked: str | None, names: Sequence[str], title: str) -> str:
    """Find a split by any spelling of its name.

    Args:
        asked: The split wanted; None means "train", or the only one.
        names: The splits there are.
        title: Name of the data set, for the error.

    Returns:
        The split's name as it appears in `names`.

    Raises:
        MissingSplitError: There is no such split; lists those there are.
    """
    by_canonical = {canonical_split(name): name for name in names}
    if asked is None and len(names) == 1:
        return names[0]
    found = by_canonical.get(canonical_split(asked or "train"))
    if found is None:
        raise MissingSplitError(f"{title} has no split {asked or 'train'!r}; its splits are {', '.join(names)}")
    return found
