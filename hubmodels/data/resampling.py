"""Crop and resize of uint8 images by Pillow, as torchvision does with the PIL images of the published pipelines."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def resize(image: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """Resize an image with a filter of Pillow.

    Args:
        image: uint8 [C, H, W].
        size: (height, width) of the result in pixels.
        resample: The filter.

    Returns:
        uint8 [C, height, width].
    """
    if len(image) == 3:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(np.array(picture.resize(size[::-1], resample))).permute(2, 0, 1)
    planes = [Image.fromarray(plane.contiguous().numpy()).resize(size[::-1], resample) for plane in image]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))


def resized_crop(
    images: torch.Tensor | Sequence[torch.Tensor],
    boxes: np.ndarray,
    size: tuple[int, int],
    flip: np.ndarray | None = None,
) -> torch.Tensor:
    """Crop every image to its box, resize bicubically with antialiasing, then flip horizontally where asked.

    Args:
        images: uint8 tensor [B, C, H, W], or a sequence of B uint8 tensors [C, H, W] of any sizes.
        boxes: integers [B, 4], (top, left, height, width) in pixels, inside the image.
        size: (height, width) of the result in pixels.
        flip: booleans [B], or None for no flip.

    Returns:
        uint8 tensor [B, C, height, width].
    """
    boxes = np.asarray(boxes, dtype=np.int64)
    flips = np.zeros(len(boxes), dtype=bool) if flip is None else np.asarray(flip, dtype=bool)
    if isinstance(images, torch.Tensor) and np.array_equal(boxes[:, 2:], np.tile(size, (len(boxes), 1))):
        return _batched_crop(images, boxes, flips)
    crops = []
    for image, (top, left, height, width), flipped in zip(images, boxes.tolist(), flips, strict=True):
        crop = image[:, top : top + height, left : left + width]
        if (height, width) != tuple(size):
            crop = resize(crop, size, Image.Resampling.BICUBIC)
        crops.append(crop.flip(2) if flipped else crop)
    return torch.stack(crops)


def _batched_crop(images: torch.Tensor, boxes: np.ndarray, flips: np.ndarray) -> torch.Tensor:
    """Crop and flip a batch of which nothing is to be resized."""
    height, width = boxes[0, 2:]
    rows = boxes[:, :1] + np.arange(height)
    columns = boxes[:, 1:2] + np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    number, channel = np.arange(len(boxes))[:, None, None, None], np.arange(images.shape[1])[:, None, None]
    return torch.from_numpy(images.numpy()[number, channel, rows[:, None, :, None], columns[:, None, None, :]])
