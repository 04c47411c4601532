"""Race of SimCLR's two-view augmentation: hubmodels' batched image processor and lightly's SimCLRTransform.

python -m benchmarks.two_view_augmentation [--rounds 15]

One thread, the same decoded images for both: hubmodels gets a uint8 batch, lightly PIL images one by one, as its users
have them. Both crop, resize, flip, jitter (strength 1), grey and blur with the published probabilities; lightly also
normalises, hubmodels' models need no normalisation. lightly's views are not even stacked to a batch. The time is the
processor time of the process, which other users of the machine disturb least. The contenders take turns round by
round: a ratio compares neighbours in time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from hubmodels.modeling.simclr import SimCLRImageProcessor
from lightly.transforms import SimCLRTransform
from PIL import Image

from benchmarks.report import machine_line, write_section

# Output size, side of the source images, images per batch.
CASES = ((32, 36, 256), (96, 112, 64), (224, 256, 16))


def make_images(count: int, side: int) -> torch.Tensor:
    """Smooth random colour images, uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    return (smooth * 230 + noise * 25).to(torch.uint8)


def processor_seconds(task: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    task()
    return time.process_time() - start


def race(size: int, side: int, batch: int, rounds: int) -> str:
    """Runs both in turn; returns the row of the table."""
    images = make_images(batch, side)
    pictures = [Image.fromarray(image) for image in np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())]
    processor, transform = SimCLRImageProcessor(size=size), SimCLRTransform(input_size=size)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def ours() -> object:
        return processor(images, mode="pretrain", generator=generator)

    def theirs() -> object:
        return [transform(picture) for picture in pictures]

    seconds = [(processor_seconds(ours), processor_seconds(theirs)) for _ in range(rounds + 2)][2:]
    ratios = sorted(their / own for own, their in seconds)
    own, their = (statistics.median(times) / batch * 1000 for times in zip(*seconds, strict=True))
    span = f"{ratios[0]:.1f} to {ratios[-1]:.1f}"
    return f"| {size} | {side} | {batch} | {own:.3f} | {their:.3f} | {statistics.median(ratios):.1f} ({span}) |"


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [race(*case, arguments.rounds) for case in CASES]
    table = [
        f"Two views of every image, one thread, {arguments.rounds} rounds in turn; milliseconds of processor time per",
        "image (both views), medians. hubmodels gets a uint8 batch, lightly PIL images one by one, as its users have",
        "them; decoding is not included, nor is lightly's collation.",
        "",
        "| size | source | batch | hubmodels | lightly | lightly / ours: median (range) |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        machine_line("torch", "torchvision", "lightly", "pillow"),
    ]
    write_section("Two-view augmentation", "python -m benchmarks.two_view_augmentation", table)


if __name__ == "__main__":
    main()
