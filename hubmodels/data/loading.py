"""Image data sets from folders, lists, CSV, Parquet, `datasets` on disk or on the Hub, and the packaged one."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from hubmodels.catalog import PACKAGED_DATASETS
from hubmodels.data.columns import (
    FILE_COLUMN,
    column_labels,
    find_column,
    folder_table,
    is_file_column,
    read_image_table,
)
from hubmodels.data.image_folder import find_images
from hubmodels.data.image_list import read_image_list
from hubmodels.data.images import ImageDataset, StreamingImageDataset
from hubmodels.data.sources import ArraySource, ColumnSource, FileSource
from hubmodels.data.splits import MissingSplitError, canonical_split, choose_split

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@overload
def load_image_dataset(
    source: Any,
    split: str | None = None,
    streaming: Literal[False] = False,
    image_column: str | None = None,
    label_column: str | None = None,
    decode_size: int | None = None,
    config: str | None = None,
) -> ImageDataset: ...


@overload
def load_image_dataset(
    source: Any,
    split: str | None = None,
    *,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    decode_size: int | None = None,
    config: str | None = None,
) -> ImageDataset | StreamingImageDataset: ...


def load_image_dataset(
    source: Any,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    decode_size: int | None = None,
    config: str | None = None,
) -> ImageDataset | StreamingImageDataset:
    """Load images from wherever they are.

    Args:
        source: One of
            - a folder of images: flat, or one folder per class, or either inside train/, val/, test/; labels of a flat
              one, and further labels of any, are read from a `metadata.csv` in it (columns `file_name`, `label` ...);
            - a CSV file with a column of image files, relative to it, columns of labels, and maybe one named `split`;
            - a Parquet file, or a folder of Parquet files;
            - a text file (`.txt`) with one image a line, its path and its class number (see `read_image_list`);
            - a folder written by `datasets`' `save_to_disk`;
            - a `datasets` object;
            - the packaged "fashion-mnist-small" (2,000 + 2,000 images 28x28, 10 classes);
            - the id of a data set on the Hub.
        split: Name of the split ("val" and "validation" are the same). None means "train", or the only one. A source
            without splits counts as "train".
        streaming: Read one image after the other (Parquet files and the Hub).
        image_column: Column of the images; found by its type or name otherwise.
        label_column: Column of the labels, integers or names; found by its type or name otherwise. Of a text file: a
            second one, in the current folder or beside it, that has the class numbers.
        decode_size: Decode JPEG files at a reduced resolution with sides of at least this many pixels.
        config: Configuration of a Hub data set that has several.

    Returns:
        An [`ImageDataset`], or a [`StreamingImageDataset`] with `streaming=True`.

    Raises:
        FileNotFoundError: `source` is nowhere.
        ValueError: A missing split or column, a column of a folder without `metadata.csv`, an empty class folder, no
            images, an unreadable first image.
    """
    if isinstance(source, str) and source in PACKAGED_DATASETS:
        return _load_packaged(source, split)
    if not isinstance(source, str | Path):
        return _load_columns(source, str(type(source).__name__), split, image_column, label_column, decode_size)
    path = Path(source).expanduser()
    if path.is_dir() and not _holds_tables(path):
        if streaming:
            raise ValueError(
                f"streaming=True applies to Parquet files and the Hub; {path} is a folder of images, "
                "which is read lazily anyway"
            )
        return _load_folder(path, split, label_column, decode_size)
    if path.suffix == ".txt" and path.is_file() and not streaming:
        paths, labels = read_image_list(path, label_column, split=split)
        names = None if labels is None else [str(number) for number in range(int(labels.max()) + 1)]
        return ImageDataset(FileSource(paths, decode_size), labels, names)
    if path.suffix.lower() == ".csv" and path.is_file() and not streaming:
        table, image_column = read_image_table(path, image_column)
    elif path.exists():
        table = _open_local(path, streaming)
    else:
        table, split = _open_hub(str(source), split, streaming, config), None
    return _load_columns(table, str(source), split, image_column, label_column, decode_size)


def _load_folder(folder: Path, split: str | None, label_column: str | None, decode_size: int | None) -> ImageDataset:
    """Images with the labels of their class folders, or those of `metadata.csv`."""
    images = find_images(folder, split)
    table = folder_table(folder)
    if label_column is not None and table is None:
        raise ValueError(
            f"{folder} is a folder of images without the column {label_column!r}: its labels are its class folders; "
            "other labels are given by a file metadata.csv in it, with a column file_name and columns of labels"
        )
    if table is not None and (label_column is not None or images.labels is None):
        labelled: Any = _load_columns(table, str(folder), split, FILE_COLUMN, label_column, decode_size)
        return labelled
    return ImageDataset(
        FileSource(images.paths, decode_size),
        images.labels,
        images.class_names,
        unlabelled_reason=images.unlabelled_reason,
    )


def _load_packaged(name: str, split: str | None) -> ImageDataset:
    """A data set that is part of this package."""
    folder = name.replace("-", "_")
    file = resources.files("hubmodels.data") / folder / f"{folder}.npz"
    with resources.as_file(file) as path, np.load(path, allow_pickle=False) as arrays:
        split = choose_split(split, ["train", "test"], name)
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        return ImageDataset(ArraySource(images[:, None]), labels, arrays["class_names"].tolist())


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds Parquet files or a saved `datasets` object rather than image files."""
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or next(folder.rglob("*.parquet"), None) is not None


def _open_local(path: Path, streaming: bool) -> Any:
    """Open a Parquet file, a folder of them, or a saved `datasets` object."""
    import datasets

    if path.is_dir() and not any(path.rglob("*.parquet")):
        if streaming:
            raise ValueError(f"streaming=True applies to Parquet files and the Hub; {path} was saved by save_to_disk")
        return datasets.load_from_disk(str(path))
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{path} is not a folder of images, a Parquet file or a table of images (.csv, .txt)")
    where = {"data_dir": str(path)} if path.is_dir() else {"data_files": str(path)}
    return datasets.load_dataset("parquet", streaming=streaming, **where)


def _open_hub(source: str, split: str | None, streaming: bool, config: str | None) -> Any:
    """Open one split of a data set on the Hub."""
    import datasets

    missing = f"{source!r} is not a folder or file, not a packaged data set ({', '.join(PACKAGED_DATASETS)})"
    if not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(missing)
    try:
        names = datasets.get_dataset_split_names(source, config_name=config)
    except Exception as error:
        raise FileNotFoundError(f"{missing}, and no data set of that id could be opened on the Hub: {error}") from error
    return datasets.load_dataset(source, config, split=choose_split(split, names, source), streaming=streaming)


def _load_columns(
    table: Any,
    title: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    decode_size: int | None,
) -> ImageDataset | StreamingImageDataset:
    """Wrap a `datasets` object."""
    import datasets

    others: list[Any] = []
    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        chosen = choose_split(split, list(table), title)
        others = [other for name, other in table.items() if name != chosen]
        table = table[chosen]
    elif split is not None and isinstance(table, datasets.Dataset | datasets.IterableDataset):
        own = canonical_split(str(table.split or "train"))
        if canonical_split(split) != own:
            raise MissingSplitError(f"{title} has no split {split!r}: it is a single table, which counts as {own!r}")
    if not isinstance(table, datasets.Dataset | datasets.IterableDataset):
        raise ValueError(f"source must be a path, a name or a datasets object, got {type(table).__name__}")
    features = table.features or datasets.Features.from_dict({})
    names = table.column_names or list(next(iter(table)))
    image_column = find_column(image_column, names, features, datasets.Image, ("image", "img", "picture"), title)
    if image_column is None:
        raise ValueError(f"{title} has no image column; its columns are {', '.join(names)}")
    if isinstance(features.get(image_column), datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    label_column = find_column(label_column, names, features, datasets.ClassLabel, ("label", "labels"), title)
    if isinstance(table, datasets.IterableDataset):
        class_names = getattr(features.get(label_column), "names", None)
        return StreamingImageDataset(table, image_column, label_column, class_names, title)
    if len(table) == 0:
        raise ValueError(f"{title} holds no images")
    labels = column_labels(table, label_column, others)
    images = (
        FileSource([Path(name) for name in table[image_column][:]], decode_size)
        if is_file_column(table, image_column)
        else ColumnSource(table, image_column, title, decode_size)
    )
    return ImageDataset(images, labels.labels, labels.class_names, unlabelled_reason=labels.unlabelled_reason)
