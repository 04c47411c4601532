"""Race of DenseCL's two views: hubmodels' image processor, lightly's DenseCLTransform and torchvision on PIL images.

python -m benchmarks.densecl_views [--rounds 15]

One thread and the same decoded images for all: hubmodels gets a uint8 batch, the others PIL
images one by one, as their users have them. All crop, jitter, grey, blur, flip and normalise with the published
probabilities; the results of the others are not even stacked. The time is the processor time of the process, which
other users of the machine disturb least. The contenders take turns round by round: a ratio compares neighbours in time.
"""

import random
from collections.abc import Callable

import torch
from hubmodels.modeling.densecl import DenseCLImageProcessor
from lightly.transforms import DenseCLTransform
from PIL import Image, ImageFilter
from torchvision import transforms

from benchmarks.view_race import Task, pil_images, run_race

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


def contenders(size: int, images: torch.Tensor) -> tuple[Task, Task, Task]:
    """hubmodels, lightly and torchvision."""
    pictures = pil_images(images)
    processor = DenseCLImageProcessor(size={"height": size, "width": size})
    lightly, torchvision = DenseCLTransform(input_size=size), published_pipeline(size)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    random.seed(0)
    return (
        lambda: processor(images, mode="pretrain", generator=generator),
        lambda: [lightly(picture) for picture in pictures],
        lambda: [(torchvision(picture), torchvision(picture)) for picture in pictures],
    )


if __name__ == "__main__":
    run_race("Two views of DenseCL", CASES, contenders, ("lightly", "torchvision"), __doc__)
