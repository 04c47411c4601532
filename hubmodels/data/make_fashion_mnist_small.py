"""Make the packaged "fashion-mnist-small": `python -m hubmodels.data.make_fashion_mnist_small SOURCE_DIR OUT.npz`.

SOURCE_DIR holds the four idx.gz files of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), for example
/usr/share/datasets/fashion-mnist of the Debian package dataset-fashion-mnist.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np

from hubmodels.data.randomness import random_permutation
from hubmodels.files import replacing

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SEED = 0


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    Args:
        path: The file.

    Returns:
        uint8 array of the shape that the file's header gives.

    Raises:
        ValueError: Not an idx file of unsigned bytes.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def balanced_subset(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the same number of images of every class, in a seeded random order.

    Args:
        images: [N, H, W].
        labels: [N].
        per_class: Images per class.

    Returns:
        (images, labels) with `per_class` times the number of classes entries.
    """
    order = random_permutation(len(labels), SEED)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[rank[order] < per_class]
    return images[chosen], labels[chosen]


def main() -> None:
    """Read the four files and write the subset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, default=200, help="images per class and split")
    arguments = parser.parse_args()
    arrays: dict[str, Any] = {"class_names": np.array(CLASS_NAMES)}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(arguments.source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(arguments.source / f"{prefix}-labels-idx1-ubyte.gz")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = balanced_subset(images, labels, arguments.per_class)
    with replacing(arguments.out) as written:
        np.savez_compressed(written, **arrays)
    print(f"{arguments.out}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")


if __name__ == "__main__":
    main()
