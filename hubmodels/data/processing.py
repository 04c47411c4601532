"""Image processors of transformers as transforms."""

import inspect
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image

from hubmodels.data.transforms import Images

STATISTICS_SIZE = 64  # pixels


def processor_statistics(processor: Any, num_channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that an image processor normalises with, measured on a black and a white picture.

    Args:
        processor: An image processor of transformers.
        num_channels: Channels of the model.

    Returns:
        (mean, std) per channel, of pixels in [0, 1]; zeros and ones where it does not normalise.
    """
    black = torch.zeros(num_channels, STATISTICS_SIZE, STATISTICS_SIZE, dtype=torch.uint8)
    values = _processed(processor, [black, torch.full_like(black, 255)])
    at_black, at_white = values.double().mean(dim=(2, 3))
    std = 1 / (at_white - at_black)
    mean, std = ([round(value, 5) + 0.0 for value in values.tolist()] for values in (-at_black * std, std))  # no -0.0
    return mean, std


class ProcessorTransform:
    """The preprocessing that a published model's users get: its image processor, for use in an [`ImageCollator`].

    Args:
        processor: An image processor of transformers.
        num_channels: Channels of the model; grey images are copied to all of them.
        draws: Uniform numbers per image that the processor takes as its argument `uniforms`; 0 for one without draws.
        settings: Further arguments of its calls.
    """

    def __init__(self, processor: Any, num_channels: int = 3, draws: int = 0, **settings: Any):
        self.processor = processor
        self.num_channels = num_channels
        self.draws = draws
        self.settings = settings

    def __call__(self, images: Images, uniforms: np.ndarray | None = None) -> torch.Tensor:
        """Process a batch.

        Args:
            images: uint8 images [C, H, W], C is 1 or `num_channels`.
            uniforms: float64 [B, draws] in [0, 1); not needed when `draws` is 0.

        Returns:
            float32 [B, num_channels, height, width].

        Raises:
            ValueError: Wrong channels.
        """
        for image in images:
            if image.shape[0] not in (1, self.num_channels):
                raise ValueError(f"expected {self.num_channels} channels, got {image.shape[0]}")
        expanded = [image.expand(self.num_channels, -1, -1) for image in images]
        settings = self.settings | ({"uniforms": uniforms} if self.draws else {})
        return _processed(self.processor, expanded, **settings)


def _processed(processor: Any, images: Images, **settings: Any) -> torch.Tensor:
    """Pixels of uint8 images [C, H, W]."""
    parameters = inspect.signature(processor.preprocess).parameters.values()
    names = {parameter.name for parameter in parameters}
    if "input_data_format" in names or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        settings["input_data_format"] = "channels_first"
    else:  # timm's transforms are made for pictures of PIL
        images = [to_pil_image(image) for image in images]
    return processor(images=images, return_tensors="pt", **settings)["pixel_values"]
