"""Columns of tables of images: which holds the images, what the labels are; tables of image files as CSV."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hubmodels.data.image_folder import split_folders
from hubmodels.data.splits import SPLIT_NAMES

FILE_COLUMN = "file_name"  # as in the image folders of `datasets`
FILE_COLUMNS = (FILE_COLUMN, "filename", "file", "path", "filepath", "image", "img", "picture")
SPLIT_COLUMN = "split"
METADATA_FILE = "metadata.csv"
DELIMITERS = ",;\t"
MOST_CLASSES = 100_000  # of numbers, each of which counts as a class from 0 on
_NUMBER = re.compile(r"-?(0|[1-9]\d*)")


class ColumnLabels(NamedTuple):
    """Labels int64 [N] and names of the classes; None, and the reason, where images have no labels."""

    labels: np.ndarray | None
    class_names: list[str] | None
    unlabelled_reason: str = ""


def find_column(
    asked: str | None, names: Sequence[str], features: Any, kind: type, usual: Sequence[str], title: str
) -> str | None:
    """Find a column of a table.

    Args:
        asked: The column wanted, or None.
        names: The columns there are.
        features: Their `datasets` features.
        kind: Feature that tells the column.
        usual: Names that tell it.
        title: Name of the data set, for the error.

    Returns:
        The column asked for, else the first with a usual name, else the first of that kind; None if there is none.

    Raises:
        ValueError: There is no column of the name asked for.
    """
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{title} has no column {asked!r}; its columns are {', '.join(names)}")
        return asked
    typed = [name for name in names if isinstance(features.get(name), kind)]
    return next((name for name in (*usual, *typed) if name in names), None)


def column_labels(table: Any, column: str | None, other_splits: Sequence[Any] = ()) -> ColumnLabels:
    """Read a column of integers or names as labels.

    Args:
        table: A `datasets.Dataset`.
        column: Its column of labels; None where it has none.
        other_splits: The other splits of the data set. The classes are those of all splits together, as far as they are
            loaded, so that labels agree.

    Returns:
        The labels. Images count as unlabelled where some labels are missing (None, an empty name, or a number below 0,
        as of withheld test labels).

    Raises:
        ValueError: A column of another type.
    """
    if column is None:
        return ColumnLabels(None, None)
    values = _values(table, column)
    missing = [i for i, value in enumerate(values) if _is_missing(value)]
    if missing:
        reason = (
            f"{len(missing):,} of the {len(values):,} labels in its column {column!r} are missing, the first of image "
            f"{missing[0]}; fill them, or leave these images out"
        )
        return ColumnLabels(None, None, reason)
    names = getattr(table.features[column], "names", None)
    if names is not None:
        return ColumnLabels(np.asarray(values), list(names))
    if not any(all(type(value) is kind for value in values) for kind in (int, str)):
        raise ValueError(f"label column {column!r} must hold integers or strings, got {type(values[0]).__name__}")
    others = [value for split in other_splits if column in split.column_names for value in _values(split, column)]
    known = {value for value in (*values, *others) if type(value) is type(values[0]) and not _is_missing(value)}
    if isinstance(values[0], int):
        if max(known) >= MOST_CLASSES:
            raise ValueError(
                f"label column {column!r} must number its classes from 0 on, at most {MOST_CLASSES:,} of them, got "
                f"{max(known)}; give names in their place"
            )
        return ColumnLabels(np.asarray(values), [str(label) for label in range(max(known) + 1)])
    class_names = sorted(known)
    numbers = {name: label for label, name in enumerate(class_names)}
    return ColumnLabels(np.array([numbers[value] for value in values]), class_names)


def _values(table: Any, column: str) -> list[Any]:
    return np.asarray(table[column][:]).tolist()


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (type(value) is int and value < 0)


def is_file_column(table: Any, column: str) -> bool:
    """Whether a column of a `datasets.Dataset` holds names of files.

    Args:
        table: The table.
        column: Its column.
    """
    return getattr(table.features[column], "dtype", None) in ("string", "large_string")


def read_image_table(path: Path, image_column: str | None = None) -> tuple[Any, str]:
    """Read a CSV file (separated by commas, semicolons or tabs) with one image a line.

    Args:
        path: The file; its first line names the columns.
        image_column: Column of the image files; by default the first that is called `file_name`, `path`, `image` ...

    Returns:
        (the table, in which image files have whole paths and columns of whole numbers are numbers; by split where it
        has a column `split`; the name of the image column).

    Raises:
        ValueError: No lines, no column of images, or an unknown split.
        FileNotFoundError: Images that do not exist.
    """
    import datasets

    texts = read_csv_columns(path)
    names = list(texts)
    if image_column is None:
        image_column = next((name for name in FILE_COLUMNS if name in names), FILE_COLUMN)
    if image_column not in names:
        raise ValueError(
            f"{path} has no column {image_column!r} of image files; its columns are {', '.join(names)}"
            f" (found by name: {', '.join(FILE_COLUMNS)})"
        )
    columns = {name: numbers_if_all(values) for name, values in texts.items()}
    files = columns[image_column] = [str(path.parent / str(file)) for file in texts[image_column]]
    lacking = [file for file in files if not os.path.isfile(file)]
    if lacking:
        raise FileNotFoundError(f"{len(lacking)} of the {len(files)} images of {path} are not there: {lacking[0]} ...")
    table = datasets.Dataset.from_dict(columns)
    if SPLIT_COLUMN not in names:
        return table, image_column
    places: dict[str, list[int]] = {}
    for place, split in enumerate(texts[SPLIT_COLUMN]):
        places.setdefault(str(split or "").strip(), []).append(place)
    unknown = sorted(split for split in places if split.lower() not in SPLIT_NAMES)
    if unknown:
        raise ValueError(f"{path}: splits must be among {', '.join(sorted(SPLIT_NAMES))}, got {unknown[0]!r}")
    return datasets.DatasetDict({split: table.select(chosen) for split, chosen in places.items()}), image_column


def read_csv_columns(path: Path) -> dict[str, list[str | None]]:
    """Read a CSV file, separated by commas, semicolons or tabs.

    Args:
        path: The file; its first line names the columns.

    Returns:
        The text of each column that has a name, None where a line is too short.

    Raises:
        ValueError: No lines, or bytes that are no UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error}") from error
    header = lines[0] if lines else ""
    rows = list(csv.DictReader(lines, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True))
    if not rows:
        raise ValueError(f"{path} lists no images")
    return {name: [row[name] for row in rows] for name in rows[0] if name}


def numbers_if_all(values: list[str | None]) -> list[Any]:
    """Whole numbers, None for missing ones; or the words as they are, also numbers with zeros in front.

    Args:
        values: The text of a column.
    """
    if any(values) and all(not value or _NUMBER.fullmatch(value) for value in values):
        return [int(value) if value else None for value in values]
    return values


def folder_table(folder: Path) -> Any:
    """Open `metadata.csv` of a folder of images, or those of its split folders.

    Args:
        folder: The folder.

    Returns:
        The table, by split where the folder is divided; None if there is none.

    Raises:
        ValueError, FileNotFoundError: As [`read_image_table`].
    """
    if (folder / METADATA_FILE).is_file():
        return read_image_table(folder / METADATA_FILE, FILE_COLUMN)[0]
    inside = {name: split / METADATA_FILE for name, split in split_folders(folder).items()}
    tables = {name: read_image_table(file, FILE_COLUMN)[0] for name, file in inside.items() if file.is_file()}
    if not tables:
        return None
    import datasets

    return datasets.DatasetDict(tables)
