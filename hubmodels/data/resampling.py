"""Crop and bicubic resize of uint8 images, equal to Pillow's two passes to the last bit.

Pillow resizes in two passes with an antialiased bicubic filter (a = -0.5) whose weights are rounded to 22 fractional
bits, and rounds to uint8 after each pass. Pillow up to 12 always filters along the rows first; later versions change
the order for some sizes (and with it a few pixels), so the two passes are made here one by one, rows first always.

A pass is linear, so a batch of small images is cropped and resized by two batched matrix products with one small
weight matrix per image and axis; float64 holds the integer sums exactly. The matrices of all segments of an axis are
made once. Larger images, whose matrices would be mostly zeros, go through Pillow itself, one by one.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

_PRECISION_BITS = 22  # Pillow, Resample.c: 32 bits - 8 bits of a pixel - 2 bits of head room
# Up to this side length (pixels) the matrix products beat Pillow calls (1.3 to 1.9 times); tables stay under 5 MB.
MAX_BATCHED_SIDE = 32


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' bicubic kernel with a = -0.5, evaluated as Pillow does."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def bicubic_weights(starts: np.ndarray, lengths: np.ndarray, in_size: int, out_size: int) -> np.ndarray:
    """Weights that crop a segment out of an axis and resize it to `out_size`, one matrix per sample.

    Pixels outside of the segment do not contribute (the image is cropped first, as torchvision's `resized_crop` does).

    Args:
        starts: First pixel of each segment, integers [B].
        lengths: Length of each segment in pixels, integers [B], >= 1.
        in_size: Length of the axis in pixels.
        out_size: Length after resizing in pixels.

    Returns:
        float64 array [B, out_size, in_size] of integers, the weights times 2**22.
    """
    starts = np.asarray(starts, dtype=np.float64)[:, None, None]
    lengths = np.asarray(lengths, dtype=np.float64)[:, None, None]
    scale = lengths / out_size
    center = (np.arange(out_size)[None, :, None] + 0.5) * scale
    pixel = np.arange(in_size)[None, None, :] - starts
    weights = _bicubic((pixel - center + 0.5) * (1.0 / np.maximum(scale, 1.0)))
    weights *= (pixel >= 0) & (pixel < lengths)
    weights *= 1.0 / weights.sum(axis=2, keepdims=True)
    return np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights))


@functools.lru_cache(maxsize=8)
def _weight_table(in_size: int, out_size: int) -> torch.Tensor:
    """Weights of all segments of an axis, ordered by (length, start), [in_size * (in_size + 1) / 2, out, in]."""
    lengths = np.repeat(np.arange(1, in_size + 1), np.arange(in_size, 0, -1))
    starts = np.concatenate([np.arange(in_size - length + 1) for length in range(1, in_size + 1)])
    return torch.from_numpy(bicubic_weights(starts, lengths, in_size, out_size))


def _segment_weights(starts: np.ndarray, lengths: np.ndarray, in_size: int, out_size: int) -> torch.Tensor:
    """Rows of the weight table, float64 [B, out_size, in_size]."""
    index = (lengths - 1) * (in_size + 1) - lengths * (lengths - 1) // 2 + starts
    return _weight_table(in_size, out_size)[torch.from_numpy(index)]


def _round_to_uint8_values(sums: torch.Tensor) -> torch.Tensor:
    """Round fixed-point sums half up to pixel values 0..255, in place."""
    return sums.add_(1 << (_PRECISION_BITS - 1)).mul_(2.0**-_PRECISION_BITS).floor_().clamp_(0, 255)


def _resized_crop_batched(
    images: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], flip: np.ndarray | None
) -> torch.Tensor:
    """Crop, resize and flip a batch [B, C, H, W] with two batched matrix products."""
    batch, channels, height, width = images.shape
    out_height, out_width = size
    top, left, box_height, box_width = boxes.T
    columns = _segment_weights(left, box_width, width, out_width)
    if flip is not None:
        columns = torch.where(torch.from_numpy(flip)[:, None, None], columns.flip(1), columns)
    rows = _segment_weights(top, box_height, height, out_height)
    pixels = images.to(torch.float64).reshape(batch, channels * height, width)
    pixels = _round_to_uint8_values(torch.bmm(pixels, columns.transpose(1, 2)))
    pixels = pixels.view(batch, channels, height, out_width).transpose(1, 2).reshape(batch, height, -1)
    pixels = _round_to_uint8_values(torch.bmm(rows, pixels)).to(torch.uint8)
    return pixels.view(batch, out_height, channels, out_width).transpose(1, 2).contiguous()


def _resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an array [H, W] or [H, W, 3] with Pillow, along the rows, then along the columns."""
    image = Image.fromarray(plane).resize((size[1], plane.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _resized_crop_pillow(image: torch.Tensor, box: np.ndarray, size: tuple[int, int], flip: bool) -> torch.Tensor:
    """Crop, resize and flip one image [C, H, W] with Pillow."""
    top, left, height, width = (int(value) for value in box)
    crop = image[:, top : top + height, left : left + width]
    if crop.shape[0] == 3:
        resized = _resize_plane(crop.permute(1, 2, 0).contiguous().numpy(), size).transpose(2, 0, 1)
    else:
        resized = np.stack([_resize_plane(plane.contiguous().numpy(), size) for plane in crop])
    return torch.from_numpy(np.ascontiguousarray(resized[:, :, ::-1] if flip else resized))


def resized_bilinearly(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image with Pillow's bilinear filter.

    Args:
        image: uint8 [C, H, W].
        size: (height, width) of the result in pixels.

    Returns:
        uint8 [C, height, width].
    """
    planes = image.permute(1, 2, 0).contiguous().numpy()
    pictures = [planes] if planes.shape[2] == 3 else list(planes.transpose(2, 0, 1))
    resized = [Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR) for picture in pictures]
    if len(resized) == 1 and resized[0].mode == "RGB":
        return torch.from_numpy(np.array(resized[0])).permute(2, 0, 1)
    return torch.from_numpy(np.stack([np.array(picture) for picture in resized]))


def _plain_crop(images: torch.Tensor | Sequence[torch.Tensor], boxes: np.ndarray, flips: np.ndarray) -> torch.Tensor:
    """Crop and flip where nothing is to be resized."""
    height, width = (int(side) for side in boxes[0, 2:])
    if not isinstance(images, torch.Tensor):
        crops = [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(images, boxes[:, :2].tolist(), strict=True)
        ]
        return torch.stack([crop.flip(2) if flip else crop for crop, flip in zip(crops, flips, strict=True)])
    rows = boxes[:, :1] + np.arange(height)
    columns = boxes[:, 1:2] + np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    number, channel = np.arange(len(boxes))[:, None, None, None], np.arange(images.shape[1])[:, None, None]
    return torch.from_numpy(images.numpy()[number, channel, rows[:, None, :, None], columns[:, None, None, :]])


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
    if not isinstance(images, torch.Tensor) and len({image.shape for image in images}) == 1:
        images = torch.stack(list(images))
    flips = np.zeros(len(boxes), dtype=bool) if flip is None else np.asarray(flip, dtype=bool)
    if np.array_equal(boxes[:, 2:], np.tile(size, (len(boxes), 1))):
        return _plain_crop(images, boxes, flips)
    if isinstance(images, torch.Tensor) and max(*images.shape[2:], *size) <= MAX_BATCHED_SIDE:
        return _resized_crop_batched(images, boxes, size, flip)
    return torch.stack(
        [_resized_crop_pillow(image, box, size, bool(f)) for image, box, f in zip(images, boxes, flips, strict=True)]
    )
