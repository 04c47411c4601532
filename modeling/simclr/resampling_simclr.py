"""Separable resampling of image batches: crop, bicubic resize and flip, and Gaussian blur.

Every operation here makes each output row a weighted sum of a few input rows. Images are therefore filtered along the
vertical axis only; a transposition in between serves the other axis. Results of the first passes are transposed images.
"""

import functools

import torch
import torch.nn.functional as F

RESAMPLES = ("tf2", "tf1", "torch")
# Devices on which an embedding bag beats a matrix product.
_FAST_ROW_SUMS = ("cpu",)
_FEW_PLANES = 6  # are transposed one by one
_FRACTIONS = 1024  # TensorFlow's kernels round the position between two pixels to a table of this size


def _keys_cubic(fraction: torch.Tensor, a: float) -> torch.Tensor:
    """Weights [..., 4] of the pixels at -1, 0, 1, 2 for a position `fraction` after pixel 0 (Keys 1981)."""
    distance = torch.stack([1 + fraction, fraction, 1 - fraction, 2 - fraction], dim=-1)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.stack([far[..., 0], near[..., 1], near[..., 2], far[..., 3]], dim=-1)


def bicubic_taps(
    starts: torch.Tensor,
    lengths: torch.Tensor,
    out_size: int,
    resample: str = "tf2",
    flip: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The four pixels, with their weights, of which each pixel of a cropped and resized axis is made. No antialiasing.

    - "tf2": `tf.image.resize(method="bicubic")`: half-pixel centres, a = -0.5, fractions rounded to 1/1024, pixels
      outside of the crop are left out and the other weights renormalised.
    - "tf1": `tf.image.resize_bicubic`, also `tf.compat.v1.image.resize`: corner-aligned coordinates, a = -0.75, the
      same rounding, the border pixel is repeated.
    - "torch": `torch.nn.functional.interpolate(mode="bicubic")`: half-pixel centres, a = -0.75, border repeated.

    Args:
        starts: first pixel of each crop, int64 [N].
        lengths: length of each crop in pixels, int64 [N].
        out_size: length after resizing in pixels.
        resample: "tf2", "tf1" or "torch".
        flip: whether the result is mirrored, bool [N].
        dtype: of the weights. TensorFlow's coordinates are float32 always, which decides about the rounded fraction.

    Returns:
        Indices int32 and weights, [N, out_size, 4] each.
    """
    device = starts.device
    place = torch.arange(out_size, device=device).expand(len(starts), out_size)
    if flip is not None:
        place = torch.where(flip[:, None], out_size - 1 - place, place)
    coordinate_dtype = dtype if resample == "torch" else torch.float32
    place = place.to(coordinate_dtype)
    scale = (lengths.to(coordinate_dtype) / out_size)[:, None]
    position = place * scale if resample == "tf1" else (place + 0.5) * scale - 0.5
    pixel = position.floor()
    fraction = position - pixel
    if resample != "torch":
        fraction = (fraction * _FRACTIONS).round_() / _FRACTIONS
    weight = _keys_cubic(fraction.to(dtype), -0.5 if resample == "tf2" else -0.75)
    index = pixel.to(torch.int32)[..., None] + torch.arange(-1, 3, dtype=torch.int32, device=device)
    last = (lengths.to(torch.int32) - 1)[:, None, None]
    inside = index.clamp(min=0).minimum(last)
    if resample == "tf2":
        weight *= inside == index
        weight /= weight.sum(dim=-1, keepdim=True)
    return inside + starts.to(torch.int32)[:, None, None], weight


def gaussian_kernels(sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """
    Kernels of a Gaussian blur.

    Args:
        sigma: standard deviations in pixels [N].
        radius: of the kernel in pixels.

    Returns:
        [N, 2 * radius + 1], normalised to sum 1.
    """
    distance = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    kernel = torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2))
    return kernel / kernel.sum(dim=-1, keepdim=True)


def blur_transposed(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """
    Blurs both axes, with zeros outside of the image (borders darken).

    Args:
        images: [N, C, W, H].
        kernels: of odd length, one per image [N, K].

    Returns:
        The transposed images [N, C, H, W].
    """
    return _blur_rows(transposed(_blur_rows(images, kernels)), kernels)


def _blur_rows(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    index, inside = _neighbours(kernels.shape[1] // 2, images.shape[2], images.device)
    return combine_rows(images, index.expand(len(images), -1, -1), kernels[:, None] * inside)


@functools.lru_cache(maxsize=8)
def _neighbours(radius: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels within `radius` of each pixel, clamped, int32 [size, taps], and which of them exist."""
    index = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    clamped = index.clamp(0, size - 1)
    return clamped.to(device, torch.int32), (clamped == index).to(device)


def combine_rows(images: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """
    Weighted sums of rows.

    On the CPU an embedding bag does it, about ten times faster than a matrix product (most weights would be zeros);
    elsewhere it is a batched matrix product.

    Args:
        images: [N, C, H, W].
        index: rows of an image, int32 [N, S, K].
        weight: their weights [N, S, K].

    Returns:
        [N, C, S, W].
    """
    batch, channels, height, width = images.shape
    out_size, taps = index.shape[1:]
    if images.device.type not in _FAST_ROW_SUMS:
        matrix = torch.zeros(batch, out_size, height, dtype=images.dtype, device=images.device)
        matrix.scatter_add_(2, index.long(), weight)
        return torch.matmul(matrix[:, None], images)
    planes = torch.arange(0, batch * channels * height, height, dtype=torch.int32).view(batch, channels, 1, 1)
    rows = (index[:, None] + planes).view(-1, taps)
    weights = weight[:, None].expand(batch, channels, out_size, taps).reshape(-1, taps)
    combined = F.embedding_bag(rows, images.view(-1, width), mode="sum", per_sample_weights=weights)
    return combined.view(batch, channels, out_size, width)


def transposed(images: torch.Tensor) -> torch.Tensor:
    """Images [N, C, H, W] as contiguous [N, C, W, H]."""
    batch, channels, height, width = images.shape
    if batch * channels > _FEW_PLANES or images.device.type != "cpu":
        return images.transpose(2, 3).contiguous()
    # Matrix by matrix the copy goes tile by tile, which is faster for large ones.
    result = images.new_empty(batch, channels, width, height)
    for target, source in zip(result.flatten(0, 1), images.flatten(0, 1), strict=True):
        target.copy_(source.t())
    return result
