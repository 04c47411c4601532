"""The centre crop of the image processors: torchvision's."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import SizeDict


class CenterCropBackend(TorchvisionBackend):
    """transformers' image operations with torchvision's centre crop."""

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
