"""Race of SimCLR's two-view augmentation: hubmodels' batched image processor and lightly's SimCLRTransform.

python -m benchmarks.two_view_augmentation [--rounds 15]

One thread, the same decoded images for both: hubmodels gets a uint8 batch, lightly PIL images one by one, as its users
have them. Both crop, resize, flip, jitter (strength 1), grey and blur with the published probabilities; lightly also
normalises, hubmodels' models need no normalisation. lightly's views are not even stacked to a batch. The time is the
processor time of the process, which other users of the machine disturb least. The contenders take turns round by
round: a ratio compares neighbours in time.
"""

import torch
from hubmodels.modeling.simclr import SimCLRImageProcessor
from lightly.transforms import SimCLRTransform

from benchmarks.view_race import Task, pil_images, run_race

# Output size, side of the source images, images per batch.
CASES = ((32, 36, 256), (96, 112, 64), (224, 256, 16))


def contenders(size: int, images: torch.Tensor) -> tuple[Task, Task]:
    """hubmodels and lightly."""
    pictures = pil_images(images)
    processor, transform = SimCLRImageProcessor(size=size), SimCLRTransform(input_size=size)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    return (
        lambda: processor(images, mode="pretrain", generator=generator),
        lambda: [transform(picture) for picture in pictures],
    )


if __name__ == "__main__":
    run_race("Two-view augmentation", CASES, contenders, ("lightly",), __doc__)
