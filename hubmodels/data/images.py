"""Image data sets that are read by index, with subsets and wrong labels, and streams of images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hubmodels.data.randomness import random_permutation
from hubmodels.data.sources import CACHE_BYTES, ArraySource, ImageCache, ImageSource, open_value, pixels_of


class ImageDataset(Dataset):
    """Images with optional labels; an item is {"image": uint8 [C, H, W], "label": int (if any), "index": int}.

    The index is the image's position in the whole split, also in a subset: augmentations that depend on it stay the
    same. Images of one shape that take less than 1 GB together are kept in memory once decoded.

    Args:
        source: The images.
        labels: int64 [N], or None.
        class_names: Name of each class, in label order; None or empty for unlabelled data.
        indices: Positions of a subset in the source, or None for all.
        unlabelled_reason: Why there are no labels where some could be expected, for errors.

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
        unlabelled_reason: str = "",
    ):
        if len(source) == 0:
            raise ValueError("the data set holds no images")
        self.class_names = [str(name) for name in class_names or ()]
        if (labels is None) != (not self.class_names):
            raise ValueError("labels and class_names must be given together")
        if labels is not None and len(labels) != len(source):
            raise ValueError(f"expected {len(source)} labels, one per image, got {len(labels)}")
        self.unlabelled_reason = unlabelled_reason
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

    def with_true_labels(self) -> "ImageDataset":
        """The same images with their true labels, where `clean_labels` knows them; else as it is."""
        if self._all_clean_labels is None:
            return self
        true = self._view(np.arange(len(self)))
        true._all_labels, true._all_clean_labels = self._all_clean_labels, None
        return true

    def is_part_of(self, other: "ImageDataset") -> bool:
        """Whether both are parts of one data set.

        Args:
            other: Another data set.
        """
        return self._source is other._source

    def together_with(self, other: "ImageDataset") -> "ImageDataset":
        """The images of this part of a data set and of another part of it, with the labels of this one.

        Args:
            other: A part of the same data set.

        Returns:
            Both parts, in the order of the data set.

        Raises:
            ValueError: A part of another data set.
        """
        if not other.is_part_of(self):
            raise ValueError("other must be a part of the same data set, got one with other images")
        both = self._view(np.arange(len(self)))
        both._indices = np.union1d(self._indices, other._indices)
        return both

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
