"""Image processor of MAE: the published evaluation transform."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import SizeDict
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class MAEImageProcessor(TorchvisionBackend):
    """
    Resizes the short side bicubically to 256, crops the centre to 224 and normalises with the ImageNet statistics, as
    the official evaluation does; for size S the short side is `int(S / (224 / 256))`, and S itself above 224.

    The resizing is torchvision's antialiased bicubic on tensors, which differs from PIL's by at most 2/255 per pixel.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """
        Crops the centre of `[..., H, W]` as torchvision does; transformers' own is a pixel off where half a margin is
        rounded up.

        Raises:
            ValueError: if `size` lacks the height or the width.
        """
        if not (size.height and size.width):
            raise ValueError(f"crop_size must have 'height' and 'width', got {dict(size)}")
        return tvF.center_crop(image, [size.height, size.width])


__all__ = ["MAEImageProcessor"]

MAEImageProcessor.register_for_auto_class()
