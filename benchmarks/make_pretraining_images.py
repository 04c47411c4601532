"""Merges several image sets into one unlabelled Parquet file of equal small images, for pre-training.

python benchmarks/make_pretraining_images.py OUT.parquet --size 32 [--enlarge] SOURCE[:SPLIT] ...

A source is anything that `hubmodels.load_image_dataset` reads, or a Fashion-MNIST `images-idx3-ubyte.gz` file. Images
become RGB; smaller ones are padded with zeros (with --enlarge: resized too), larger ones resized (short side, bicubic)
and cropped at the centre.
"""

import argparse
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tqdm import tqdm

from hubmodels.data import load_image_dataset
from hubmodels.data.make_fashion_mnist_small import read_idx


def images_of(source: str):
    """Yields the images of one source as PIL images."""
    if source.endswith(".gz"):
        for pixels in read_idx(Path(source)):
            yield Image.fromarray(pixels)
        return
    name, _, split = source.partition(":")
    dataset = load_image_dataset(name, split=split or None)
    for position in range(len(dataset)):
        pixels = dataset[position]["image"].numpy()
        yield Image.fromarray(np.moveaxis(pixels, 0, -1).squeeze())


def fitted(image: Image.Image, size: int, enlarge: bool = False) -> bytes:
    """A lossless RGB square of `size` pixels."""
    image = image.convert("RGB")
    if max(image.size) <= size and not enlarge:
        image = (
            ImageOps.pad(image, (size, size))
            if max(image.size) == size
            else ImageOps.expand(image, border=((size - image.width) // 2, (size - image.height) // 2))
        )
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--enlarge", action="store_true", help="resize smaller images instead of padding them")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists")
    rows = []
    for source in arguments.sources:
        found = [
            {"bytes": fitted(image, arguments.size, arguments.enlarge), "path": None}
            for image in tqdm(images_of(source), desc=source)
        ]
        print(f"{source}: {len(found)} images")
        rows += found
    features = b'{"info": {"features": {"image": {"_type": "Image"}}}}'
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, struct)}).replace_schema_metadata({b"huggingface": features})
    partial = arguments.out.with_name(f"{arguments.out.name}.partial")
    pq.write_table(table, partial)
    os.replace(partial, arguments.out)


if __name__ == "__main__":
    main()
