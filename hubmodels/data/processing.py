"""Image processors of transformers as transforms."""

from typing import Any

import numpy as np
import torch

from hubmodels.data.transforms import Images


class ProcessorTransform:
    """The preprocessing that a published model's users get: its image processor, for use in an [`ImageCollator`].

    Args:
        processor: An image processor of transformers.
        num_channels: Channels of the model; grey images are copied to all of them.
    """

    draws = 0

    def __init__(self, processor: Any, num_channels: int = 3):
        self.processor = processor
        self.num_channels = num_channels

    def __call__(self, images: Images, uniforms: np.ndarray | None = None) -> torch.Tensor:
        """Process a batch.

        Args:
            images: uint8 images [C, H, W], C is 1 or `num_channels`.
            uniforms: Ignored.

        Returns:
            float32 [B, num_channels, height, width].

        Raises:
            ValueError: Wrong channels.
        """
        for image in images:
            if image.shape[0] not in (1, self.num_channels):
                raise ValueError(f"expected {self.num_channels} channels, got {image.shape[0]}")
        expanded = [image.expand(self.num_channels, -1, -1) for image in images]
        return self.processor(images=expanded, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
