"""Race of DenseCL's two views: hubmodels' image processor, lightly's DenseCLTransform and torchvision on PIL images.

python -m benchmarks.densecl_views [--rounds 15]

One thread and the same decoded images for all: hubmodels gets uint8 tensors, as its data sets give them, the others PIL
images one by one, as their users have them. All crop, jitter, grey, blur, flip and normalise with the published
probabilities; the results of the others are not even stacked. The time is the processor time of the process, which
other users of the machine disturb least. The contenders take turns round by round: a ratio compares neighbours in time.
"""

import argparse
import random
import statistics
from collections.abc import Callable

import numpy as np
import torch
from hubmodels.modeling.densecl import DenseCLImageProcessor
from lightly.transforms import DenseCLTransform
from PIL import Image, ImageFilter
from torchvision import transforms

from benchmarks.report import machine_line, write_section
from benchmarks.two_view_augmentation import make_images, processor_seconds

# Output size, side of the source images, images per batch.
CASES = ((32, 32, 256), (64, 72, 64), (224, 300, 16))


def blur(picture: Image.Image) -> Image.Image:
    """The published blur, which is Pillow's."""
    return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def published_pipeline(size: int) -> Callable[[Image.Image], torch.Tensor]:
    """The published augmentation of one view, from torchvision's parts."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.Lambda(blur)], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def race(size: int, side: int, batch: int, rounds: int) -> str:
    """Runs all in turn; returns the row of the table."""
    images = list(make_images(batch, side))
    pictures = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    processor = DenseCLImageProcessor(size={"height": size, "width": size})
    lightly, torchvision = DenseCLTransform(input_size=size), published_pipeline(size)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    random.seed(0)
    tasks = (
        lambda: processor(images, mode="pretrain", generator=generator),
        lambda: [lightly(picture) for picture in pictures],
        lambda: [(torchvision(picture), torchvision(picture)) for picture in pictures],
    )
    seconds = [[processor_seconds(task) for task in tasks] for _ in range(rounds + 2)][2:]
    own, *others = (f"{statistics.median(times) / batch * 1000:.3f}" for times in zip(*seconds, strict=True))
    cells = [own]
    for number, other in enumerate(others, 1):
        ratios = sorted(times[number] / times[0] for times in seconds)
        cells += [other, f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"]
    return f"| {size} | {side} | {batch} | {' | '.join(cells)} |"


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [race(*case, arguments.rounds) for case in CASES]
    table = [
        f"Two views of every image, one thread, {arguments.rounds} rounds in turn; milliseconds of processor time per",
        "image (both views), medians; ratios are theirs / ours, median (range). hubmodels gets uint8 tensors, the",
        "others PIL images one by one, as their users have them; decoding is not included, nor is their collation.",
        "",
        "| size | source | batch | hubmodels | lightly | ratio | torchvision | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        machine_line("torch", "torchvision", "lightly", "pillow"),
    ]
    write_section("Two views of DenseCL", "python -m benchmarks.densecl_views", table)


if __name__ == "__main__":
    main()
