"""Where images come from: arrays, files, and columns of `datasets`; and the memory cache of decoded images."""

import io
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
CACHE_BYTES = 1 << 30


def pixels_of(image: Image.Image) -> np.ndarray:
    """Decode a Pillow image, turned upright by its EXIF orientation, into uint8 pixels.

    Args:
        image: Any Pillow image. Grey modes give one channel, all others are converted to RGB; 16-bit grey keeps its
            upper 8 bits; transparency is dropped.

    Returns:
        uint8 array [C, H, W] with C 1 or 3.

    Raises:
        ValueError: Floating-point pixels, whose range is unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F) have no known range, expected 8-bit or 16-bit images")
    if image.mode.startswith("I"):
        return np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)[None]
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


class ImageSource:
    """Random access to encoded images.

    Args:
        decode_size: Decode JPEG files at a reduced resolution whose sides are not below this many pixels (several
            times faster for large photographs; pixels differ slightly from a full decode). None decodes in full.
    """

    def __init__(self, decode_size: int | None = None):
        self.decode_size = decode_size

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What to call an image in an error."""
        raise NotImplementedError

    def open(self, index: int) -> Image.Image:
        """Open an image without decoding its pixels."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels as stored, read from the header."""
        try:
            with self.open(index) as image:
                return image.height, image.width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read image {self.name(index)}: {error}") from error

    def decode(self, index: int) -> np.ndarray:
        """Decode an image.

        Args:
            index: Position in the source.

        Returns:
            uint8 array [C, H, W].

        Raises:
            ValueError: The image cannot be read; names it.
        """
        try:
            with self.open(index) as image:
                if self.decode_size is not None:
                    image.draft(None, (self.decode_size, self.decode_size))
                return pixels_of(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read image {self.name(index)}: {error}") from error


class ArraySource(ImageSource):
    """Images that are in memory already.

    Args:
        images: uint8 array [N, C, H, W].
    """

    def __init__(self, images: np.ndarray):
        super().__init__()
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"number {index}"

    def size(self, index: int) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def decode(self, index: int) -> np.ndarray:
        return self.images[index]


class FileSource(ImageSource):
    """Image files.

    Args:
        paths: One path per image.
        decode_size: See [`ImageSource`].
    """

    def __init__(self, paths: Sequence[Path], decode_size: int | None = None):
        super().__init__(decode_size)
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


def open_value(value: Any) -> Image.Image:
    """Open a value of an image column of `datasets`.

    Args:
        value: A Pillow image, encoded bytes, or a dictionary with "bytes" or "path".

    Returns:
        The Pillow image.

    Raises:
        ValueError: The value is none of these.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, str):
        return Image.open(value)
    raise ValueError(f"expected an image, encoded bytes or a path, got {type(value).__name__}")


class ColumnSource(ImageSource):
    """An image column of a `datasets.Dataset` (whose `Image` feature is cast to `decode=False`).

    Args:
        table: The data set.
        column: Name of the column.
        title: Name of the data set, for errors.
        decode_size: See [`ImageSource`].
    """

    def __init__(self, table: Any, column: str, title: str, decode_size: int | None = None):
        super().__init__(decode_size)
        # Rows of one column are read ten times faster than items of `table[column]`.
        self.table = table.select_columns([column])
        self.column = column
        self.title = title

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"number {index} of {self.title}"

    def open(self, index: int) -> Image.Image:
        return open_value(self.table[index][self.column])


class ImageCache:
    """Memory for decoded images of one shape, filled on first use and shared with forked workers.

    It lies in an anonymous shared mapping: pages are taken only when written, and no size limit of /dev/shm applies.
    A copy made by pickling starts empty.

    Args:
        length: Number of images.
        shape: (C, H, W) of the images that are kept; others are not.
    """

    def __init__(self, length: int, shape: tuple[int, int, int]):
        self._arguments = (length, shape)
        nbytes = int(np.prod(shape))
        memory = np.frombuffer(mmap.mmap(-1, length * (nbytes + 1)), dtype=np.uint8)
        self._images = memory[: length * nbytes].reshape(length, *shape)
        self._filled = memory[length * nbytes :]

    def __reduce__(self):
        return ImageCache, self._arguments

    def get(self, index: int) -> np.ndarray | None:
        """The image, or None when it has not been kept."""
        return self._images[index] if self._filled[index] else None

    def put(self, index: int, image: np.ndarray) -> None:
        """Keep an image if it has the cache's shape."""
        if image.shape == self._images.shape[1:]:
            self._images[index] = image
            self._filled[index] = 1
