"""Image data sets: folders, Parquet files, `datasets` on disk or on the Hub, and the packaged labelled set."""

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hubmodels.data.image_folder import find_images
from hubmodels.data.image_list import read_image_list
from hubmodels.data.randomness import random_permutation
from hubmodels.data.sources import (
    CACHE_BYTES,
    ArraySource,
    ColumnSource,
    FileSource,
    ImageCache,
    ImageSource,
    open_value,
    pixels_of,
)
from hubmodels.data.splits import MissingSplitError, canonical_split, choose_split

PACKAGED_DATASETS = ("fashion-mnist-small",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class ImageDataset(Dataset):
    """Images with optional labels; an item is {"image": uint8 [C, H, W], "label": int (if any), "index": int}.

    The index is the image's position in the whole split, also in a subset: augmentations that depend on it stay the
    same. Images of one shape that take less than 1 GB together are kept in memory once decoded.

    Args:
        source: The images.
        labels: int64 [N], or None.
        class_names: Name of each class, in label order; None or empty for unlabelled data.
        indices: Positions of a subset in the source, or None for all.

    Raises:
        ValueError: No images, or labels that do not fit.
    """

    def __init__(
        self,
        source: ImageSource,
        labels: np.ndarray | torch.Tensor | None = None,
        class_names: Sequence[str] | None = None,
        indices: np.ndarray | None = None,
        cache: ImageCache | None = None,
    ):
        if len(source) == 0:
            raise ValueError("the data set holds no images")
        self.class_names = [str(name) for name in class_names or ()]
        if (labels is None) != (not self.class_names):
            raise ValueError("labels and class_names must be given together")
        if labels is not None and len(labels) != len(source):
            raise ValueError(f"expected {len(source)} labels, one per image, got {len(labels)}")
        self._source = source
        self._all_labels = None if labels is None else self._checked_labels(labels)
        self._all_clean_labels: torch.Tensor | None = None
        self._indices = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        self._cache = self._new_cache() if cache is None else cache

    def _checked_labels(self, labels: np.ndarray | torch.Tensor) -> torch.Tensor:
        labels = torch.as_tensor(labels, dtype=torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels must be in [0, {self.num_classes}), got {low} to {high}")
        return labels

    def _new_cache(self) -> ImageCache | None:
        """A cache if all images would fit, judged by the first; None for images in memory or too many of them."""
        if isinstance(self._source, ArraySource):
            return None
        first = self._source.decode(int(self._indices[0]))
        if first.nbytes * len(self._source) > CACHE_BYTES:
            return None
        return ImageCache(len(self._source), first.shape)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self._indices[position])
        image = None if self._cache is None else self._cache.get(index)
        if image is None:
            image = self._source.decode(index)
            if self._cache is not None:
                self._cache.put(index, image)
        item: dict[str, Any] = {"image": torch.tensor(image), "index": index}  # a copy: the cache stays as it is
        if self._all_labels is not None:
            item["label"] = int(self._all_labels[index])
        return item

    def __repr__(self) -> str:
        classes = f"{self.num_classes} classes" if self.class_names else "unlabelled"
        return f"{type(self).__name__}({len(self)} images, {classes})"

    @property
    def labels(self) -> Any:
        """Tensor int64 [N], or None for unlabelled data."""
        return None if self._all_labels is None else self._all_labels[torch.from_numpy(self._indices)]

    @property
    def clean_labels(self) -> Any:
        """True labels int64 [N] where `labels` are known to be partly wrong (see [`with_noisy_labels`]), else None."""
        clean = self._all_clean_labels
        return None if clean is None else clean[torch.from_numpy(self._indices)]

    @property
    def indices(self) -> np.ndarray:
        """Position of each image in the whole split, int64 [N]: the "index" of its items."""
        return self._indices.copy()

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for unlabelled data."""
        return len(self.class_names)

    def name(self, position: int) -> str:
        """What to call an image: its file, or its number in the data set.

        Args:
            position: Position in this data set.

        Returns:
            The name.
        """
        return self._source.name(int(self._indices[position]))

    def typical_size(self, samples: int = 32) -> tuple[int, int]:
        """Median (height, width) in pixels of evenly spaced images, read from their headers.

        Args:
            samples: How many images to look at.

        Returns:
            (height, width).
        """
        positions = np.unique(np.linspace(0, len(self) - 1, min(samples, len(self))).astype(np.int64))
        sizes = [self._source.size(int(index)) for index in self._indices[positions]]
        height, width = np.median(np.array(sizes), axis=0)
        return int(height), int(width)

    def subset(self, size: float | int, seed: int = 0, stratified: bool = True) -> "ImageDataset":
        """A random subset; for one seed, smaller subsets are contained in larger ones.

        Args:
            size: A fraction (float in (0, 1]) or a number of images (int).
            seed: Seed of the choice.
            stratified: Keep the class proportions (with at least one image per class where `size` allows); needs no
                labels when the data has none.

        Returns:
            The subset, in the order of the data set.

        Raises:
            ValueError: `size` is out of range.
        """
        chosen, _ = self._partition(size, seed, stratified)
        return chosen

    def split(self, size: float | int, seed: int = 0, stratified: bool = True) -> tuple["ImageDataset", "ImageDataset"]:
        """Split in two disjoint parts: a random subset of `size`, and the rest. Arguments as [`subset`]."""
        chosen, rest = self._partition(size, seed, stratified)
        if len(rest) == 0:
            raise ValueError(f"size={size} leaves nothing of {len(self)} images for the second part")
        return chosen, rest

    def select(self, positions: np.ndarray | Sequence[int]) -> "ImageDataset":
        """The images at some positions, in the order of the data set.

        Args:
            positions: Positions in this data set.

        Returns:
            The subset.

        Raises:
            ValueError: No positions, or some that are out of range.
        """
        chosen = np.asarray(positions, dtype=np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(self):
            raise ValueError(f"positions must be in [0, {len(self)}), at least one of them, got {chosen.tolist()[:5]}")
        return self._view(chosen)

    def _partition(self, size: float | int, seed: int, stratified: bool) -> tuple["ImageDataset", "ImageDataset"]:
        if isinstance(size, float):
            if not 0.0 < size <= 1.0:
                raise ValueError(f"size must be a fraction in (0, 1] or a number of images, got {size}")
            count = max(1, round(size * len(self)))
        else:
            count = size
        if not 1 <= count <= len(self):
            raise ValueError(f"size must be at most the {len(self)} images there are and at least 1, got {count}")
        order = random_permutation(len(self), seed)
        labels = self.labels
        if stratified and labels is not None:
            order = _stratified_order(order, labels.numpy())
        return self._view(order[:count]), self._view(order[count:])

    def relabelled(self, new_labels: Sequence[int], class_names: Sequence[str]) -> "ImageDataset":
        """The same images with other class numbers.

        Args:
            new_labels: New number of each class.
            class_names: Names in the new order.

        Returns:
            The relabelled data set.

        Raises:
            ValueError: Unlabelled data.
        """
        if self._all_labels is None:
            raise ValueError("an unlabelled data set cannot be relabelled")
        numbers = torch.as_tensor(new_labels, dtype=torch.int64)
        dataset = ImageDataset(self._source, numbers[self._all_labels], class_names, self._indices, self._cache)
        dataset._all_clean_labels = None if self._all_clean_labels is None else numbers[self._all_clean_labels]
        return dataset

    def with_noisy_labels(self, labels: np.ndarray | torch.Tensor) -> "ImageDataset":
        """The same images with labels that are partly wrong; the present ones become `clean_labels`.

        Args:
            labels: One label per image of this data set [N].

        Returns:
            The noisy data set.

        Raises:
            ValueError: Unlabelled data, or labels that do not fit.
        """
        if self._all_labels is None:
            raise ValueError("an unlabelled data set has no labels to replace")
        if len(labels) != len(self):
            raise ValueError(f"expected {len(self)} labels, one per image, got {len(labels)}")
        noisy = self._view(np.arange(len(self)))
        noisy._all_clean_labels, noisy._all_labels = self._all_labels, self._all_labels.clone()
        noisy._all_labels[torch.from_numpy(self._indices)] = self._checked_labels(labels)
        return noisy

    def _view(self, positions: np.ndarray) -> "ImageDataset":
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._indices = self._indices[np.sort(positions)]
        return view


def _stratified_order(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder a permutation so that every prefix holds the classes in nearly equal proportion to the whole.

    The k-th of n images of a class gets the rank (k + 1/2) / n, its first one rank 0, and the ranks are sorted.
    """
    ranks = np.empty(len(order))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
        ranks[members[0]] = 0.0
    return order[np.argsort(ranks, kind="stable")]


class StreamingImageDataset(IterableDataset):
    """Images read one after the other from a stream; items as in [`ImageDataset`].

    The index is the position in the stream. Worker k of n yields the positions k, k + n, k + 2n, ...

    Args:
        stream: A `datasets.IterableDataset`.
        image_column: Its image column.
        label_column: Its label column, or None.
        class_names: Name of each class, in label order; None or empty when unknown.
        title: Name of the data set, for errors.
    """

    def __init__(
        self,
        stream: Any,
        image_column: str,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
        title: str = "the stream",
    ):
        self._stream = stream
        self._image_column = image_column
        self._label_column = label_column
        self._title = title
        self.class_names = list(class_names or ())

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unknown."""
        return len(self.class_names)

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "StreamingImageDataset":
        """Shuffle inside a moving buffer; `set_epoch` changes the order.

        Args:
            seed: Seed of the order.
            buffer_size: Images held in the buffer.

        Returns:
            The shuffled stream.
        """
        stream = self._stream.shuffle(seed=seed, buffer_size=buffer_size)
        return StreamingImageDataset(stream, self._image_column, self._label_column, self.class_names, self._title)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the shuffled order depends on."""
        self._stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # `iter(batch_size)` reads the whole stream in every worker, where `__iter__` would hand out whole shards:
        # positions stay the same for any number of workers, and only this worker's images are decoded.
        for index, batch in enumerate(self._stream.iter(batch_size=1)):
            if index % num_workers == worker_id:
                yield self._item(index, batch)

    def _item(self, index: int, batch: dict[str, list]) -> dict[str, Any]:
        try:
            image = pixels_of(open_value(batch[self._image_column][0]))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"cannot read image number {index} of {self._title}: {error}") from error
        item: dict[str, Any] = {"image": torch.from_numpy(image), "index": index}
        if self._label_column is not None:
            item["label"] = int(batch[self._label_column][0])
        return item


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
            - a folder of images: flat (unlabelled), or one folder per class, or either inside train/, val/, test/;
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
        label_column: Column of the labels; found by its type or name otherwise. Of a text file: a second one that has
            the class numbers.
        decode_size: Decode JPEG files at a reduced resolution with sides of at least this many pixels.
        config: Configuration of a Hub data set that has several.

    Returns:
        An [`ImageDataset`], or a [`StreamingImageDataset`] with `streaming=True`.

    Raises:
        FileNotFoundError: `source` is nowhere.
        ValueError: A missing split or column, an empty class folder, no images, an unreadable first image.
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
        paths, labels, class_names = find_images(path, split)
        return ImageDataset(FileSource(paths, decode_size), labels, class_names)
    if path.suffix == ".txt" and path.is_file() and not streaming:
        paths, labels = read_image_list(path, label_column, split=split)
        names = None if labels is None else [str(number) for number in range(int(labels.max()) + 1)]
        return ImageDataset(FileSource(paths, decode_size), labels, names)
    if path.exists():
        table = _open_local(path, streaming)
    else:
        table, split = _open_hub(str(source), split, streaming, config), None
    return _load_columns(table, str(source), split, image_column, label_column, decode_size)


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
        raise ValueError(f"{path} is not a folder of images or a Parquet file")
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

    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        table = table[choose_split(split, list(table), title)]
    elif split is not None and isinstance(table, datasets.Dataset | datasets.IterableDataset):
        own = canonical_split(str(table.split or "train"))
        if canonical_split(split) != own:
            raise MissingSplitError(f"{title} has no split {split!r}: it is a single table, which counts as {own!r}")
    if not isinstance(table, datasets.Dataset | datasets.IterableDataset):
        raise ValueError(f"source must be a path, a name or a datasets object, got {type(table).__name__}")
    features = table.features or datasets.Features.from_dict({})
    names = table.column_names or list(next(iter(table)))
    image_column = _find_column(image_column, names, features, datasets.Image, ("image", "img", "picture"), title)
    if image_column is None:
        raise ValueError(f"{title} has no image column; its columns are {', '.join(names)}")
    if isinstance(features.get(image_column), datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    label_column = _find_column(label_column, names, features, datasets.ClassLabel, ("label", "labels"), title)
    if isinstance(table, datasets.IterableDataset):
        class_names = getattr(features.get(label_column), "names", None)
        return StreamingImageDataset(table, image_column, label_column, class_names, title)
    if len(table) == 0:
        raise ValueError(f"{title} holds no images")
    labels, class_names = _column_labels(table, features, label_column)
    return ImageDataset(ColumnSource(table, image_column, title, decode_size), labels, class_names)


def _find_column(
    asked: str | None, names: Sequence[str], features: Any, kind: type, usual: Sequence[str], title: str
) -> str | None:
    """The column asked for, else the first with a usual name, else the first of a type; None if there is none."""
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{title} has no column {asked!r}; its columns are {', '.join(names)}")
        return asked
    typed = [name for name in names if isinstance(features.get(name), kind)]
    return next((name for name in (*usual, *typed) if name in names), None)


def _column_labels(table: Any, features: Any, column: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels [N] and class names of a column of integers or strings; none where test labels are withheld (-1)."""
    if column is None:
        return None, None
    values = np.asarray(table[column][:])
    if values.dtype.kind in "US":
        class_names, labels = np.unique(values, return_inverse=True)
        return labels, class_names.tolist()
    if values.dtype.kind not in "iu":
        raise ValueError(f"label column {column!r} must hold integers or strings, got {values.dtype}")
    if values.min() < 0:
        return None, None
    names = getattr(features[column], "names", None)
    return values, names or [str(label) for label in range(int(values.max()) + 1)]
