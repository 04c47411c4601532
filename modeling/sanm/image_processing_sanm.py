"""Image processor of SANM: the official evaluation transforms."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import ImageInput, PILImageResampling

from .center_crop_sanm import CenterCropBackend

# Statistics of the training images, as the official scripts have them.
CIFAR10_MEAN, CIFAR10_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
CIFAR100_MEAN, CIFAR100_STD = [0.507, 0.487, 0.441], [0.267, 0.256, 0.276]
CLOTHING1M_MEAN, CLOTHING1M_STD = [0.6959, 0.6537, 0.6371], [0.3113, 0.3192, 0.3214]


class SANMImageProcessor(CenterCropBackend):
    """
    Brings images to 32 x 32 pixels (CIFAR images stay as they are) and normalises with the statistics of CIFAR-10.

    For Clothing1M: `SANMImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224},
    do_center_crop=True, image_mean=CLOTHING1M_MEAN, image_std=CLOTHING1M_STD)`. With the statistics of one channel
    (`image_mean=[0.286], image_std=[0.353]`) images become grey ones of one channel.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = CIFAR10_MEAN
    image_std = CIFAR10_STD
    size = {"height": 32, "width": 32}
    crop_size = {"height": 32, "width": 32}
    default_to_square = False
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def process_image(self, image: ImageInput, *args, **kwargs) -> torch.Tensor:
        """As in transformers, which knows colour images only; `[1, H, W]` if there is one mean."""
        image = super().process_image(image, *args, **kwargs)
        one_channel = isinstance(self.image_mean, (list, tuple)) and len(self.image_mean) == 1
        if image.shape[0] != 3 or not one_channel:
            return image
        gray = tvF.rgb_to_grayscale(image.float())
        # Its weights sum to 0.9999: rounding leaves grey pictures as they are.
        return (gray if image.is_floating_point() else gray.round()).to(image.dtype)


__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "CLOTHING1M_MEAN",
    "CLOTHING1M_STD",
    "SANMImageProcessor",
]

SANMImageProcessor.register_for_auto_class()
