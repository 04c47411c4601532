"""The augmentation of DenseCL on tensors, many views at once (DenseCL paper, section 4.1, after MoCo-v2).

Order: resized crop, colour jitter, grayscale, Gaussian blur, flip, normalisation. Views are worked on in place, in
chunks that fit into the cache of a CPU core, in planes `[3, n, H, W]`, so that each colour is one piece of memory.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from .colors_densecl import COLOR_OPERATIONS, gaussian_blur_, to_gray_
from .views_densecl import ViewParameters

# Images and views up to this side are cropped by matrix products, which beats one call per view below it.
_MAX_MATRIX_SIDE = 48
# Values per chunk: its three planes and the temporary ones stay in a second-level cache.
_CHUNK_VALUES = 1 << 18
_BYTE = 255.0
_NO_JITTER = -1
_NEUTRAL = (1, 1, 1, 0)  # what changes nothing as brightness, contrast, saturation, hue

# From the numbers of the images `[n]`, boxes `[n, 4]` and flips `[n]` to planes `[3, n, H, W]` with colours in [0, 1].
Crop = Callable[[np.ndarray, np.ndarray, np.ndarray], torch.Tensor]


def augment(
    images: Sequence[torch.Tensor],
    parameters: ViewParameters,
    size: tuple[int, int],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    """Make the views that `parameters` describe.

    Args:
        images: `[3, H, W]` of any sizes, all on one device: uint8, or floating-point colours in [0, 1].
        parameters: what was drawn for V views of each of them.
        size: height and width of the views in pixels.
        mean, std: normalisation per channel of colours in [0, 1].

    Returns:
        Normalised views `[B, V, 3, height, width]`, float32.
    """
    batch, number = parameters.flip.shape
    device = images[0].device
    drawn = parameters.flat()
    code = np.where(drawn.jitter, drawn.order @ np.array([64, 16, 4, 1]), _NO_JITTER)
    by_code = np.argsort(code, kind="stable")
    drawn, code, owner = drawn[by_code], code[by_code], by_code // number
    factors = np.stack([drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue, drawn.sigma])
    factors = torch.from_numpy(factors).to(device, torch.float32)
    scale, shift = (torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (std, mean))
    scale, shift = 1 / scale[:, None], shift / scale

    views = torch.empty(batch * number, 3, *size, device=device)
    crop = _by_matrices(images, size) if _are_small(images, size) else _one_by_one(images, size)
    for chunk in _chunks(len(code), size, device):
        x = crop(owner[chunk], drawn.crop[chunk], drawn.flip[chunk])
        for run in _runs(code[chunk]):
            _jitter_(x[:, run], factors[:4, chunk][:, run], drawn.order[chunk][run.start])
        _apply_(x, drawn.gray[chunk], to_gray_)
        _apply_(x, drawn.blur[chunk], gaussian_blur_, factors[4, chunk])
        x.mul_(scale)
        for position, view in enumerate(by_code[chunk].tolist()):
            torch.sub(x[:, position], shift, out=views[view])
    return views.view(batch, number, 3, *size)


def _chunks(number: int, size: tuple[int, int], device: torch.device) -> list[slice]:
    """Ranges of views whose planes stay in the cache; on an accelerator all at once."""
    limit = max(1, _CHUNK_VALUES // (3 * size[0] * size[1])) if device.type == "cpu" else number
    return [slice(start, min(start + limit, number)) for start in range(0, number, limit)]


def _runs(code: np.ndarray) -> list[slice]:
    """Ranges of views with one order of colour operations, without those that have none."""
    bounds = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
    return [slice(*bound) for bound in pairwise(bounds) if code[bound[0]] != _NO_JITTER]


def _jitter_(x: torch.Tensor, factors: torch.Tensor, order: np.ndarray) -> None:
    """Apply the colour operations in one order to planes `[3, n, H, W]`, with `factors` `[4, n]`, in place."""
    for number in order.tolist():
        if (factors[number] != _NEUTRAL[number]).any():
            COLOR_OPERATIONS[number](x, factors[number].view(-1, 1, 1))


def _apply_(x: torch.Tensor, mask: np.ndarray, operation: Callable[..., None], *values: torch.Tensor) -> None:
    """Apply an operation to some of the views of planes `[3, n, H, W]`, with some of the `values` `[n]`, in place."""
    if mask.all():
        operation(x, *values)
    elif mask.any():
        chosen = torch.from_numpy(np.flatnonzero(mask)).to(x.device)
        part = x[:, chosen]
        operation(part, *(value[chosen] for value in values))
        x[:, chosen] = part


def _are_small(images: Sequence[torch.Tensor], size: tuple[int, int]) -> bool:
    """Whether all images have one size, and that and the size of the views are small."""
    shape = images[0].shape
    return max(*shape[1:], *size) <= _MAX_MATRIX_SIDE and all(image.shape == shape for image in images)


def _by_matrices(images: Sequence[torch.Tensor], size: tuple[int, int]) -> Crop:
    """A function that makes resized crops of small images by two products with one matrix per view and axis."""
    planes = torch.stack(list(images), dim=1)
    planes = planes if planes.is_floating_point() else planes.to(torch.float32).mul_(1 / _BYTE)

    def crop(owner: np.ndarray, boxes: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        top, left, height, width = torch.from_numpy(boxes).to(planes).unbind(1)
        flip = torch.from_numpy(flips).to(planes.device)
        index = torch.from_numpy(owner).to(planes.device)
        rows = _resampling(top, height, torch.zeros_like(flip), planes.shape[2], size[0])
        columns = _resampling(left, width, flip, planes.shape[3], size[1]).transpose(1, 2)
        x = torch.empty(3, len(owner), *size, device=planes.device)
        for plane, result in zip(planes, x, strict=True):
            torch.bmm(rows, torch.bmm(plane[index], columns), out=result)
        return x.clamp_(0, 1)

    return crop


def _resampling(start: torch.Tensor, length: torch.Tensor, flip: torch.Tensor, size: int, to: int) -> torch.Tensor:
    """Matrices `[n, to, size]` that cut a piece out of an axis and resample it with an antialiased triangle filter.

    Args:
        start, length: of the pieces in pixels `[n]`.
        flip: whether the result is mirrored `[n]`.
        size: pixels of the axis.
        to: pixels of the result.
    """
    step = (length / to)[:, None]
    target = torch.arange(to, device=start.device) + 0.5
    target = torch.where(flip[:, None], to - target, target)
    pixel = torch.arange(size, device=start.device) + 0.5
    weights = (pixel - (start[:, None] + target * step)[..., None]).abs_()
    weights.div_(step.clamp(min=1)[..., None]).neg_().add_(1).clamp_(min=0)
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _one_by_one(images: Sequence[torch.Tensor], size: tuple[int, int]) -> Crop:
    """A function that makes resized crops of images of any sizes."""
    sources = [_interleaved(image) for image in images]
    factor = 1.0 if images[0].is_floating_point() else 1 / _BYTE

    def crop(owner: np.ndarray, boxes: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        x = torch.empty(3, len(owner), *size, device=images[0].device)
        drawn = zip(owner.tolist(), boxes.tolist(), flips.tolist(), strict=True)
        for view, (index, (top, left, height, width), flip) in enumerate(drawn):
            piece = sources[index][None, :, top : top + height, left : left + width]
            if piece.dtype == torch.uint8:
                piece = piece.contiguous(memory_format=torch.channels_last)
            piece = F.interpolate(piece, size=size, mode="bilinear", antialias=True)[0]
            x[:, view] = torch.flip(piece, (-1,)) if flip else piece
        return x.mul_(factor)

    return crop


def _interleaved(image: torch.Tensor) -> torch.Tensor:
    """An image `[3, H, W]` of bytes with the colours of a pixel side by side, for which torch has a fast kernel.

    That is on the CPU; elsewhere bytes cannot be resized. numpy interleaves several times faster than torch.
    """
    if image.device.type != "cpu" or image.is_floating_point():
        return image.to(torch.float32)
    if image.stride(0) == 1:
        return image
    pixels = np.empty((*image.shape[1:], 3), dtype=np.uint8)
    for channel, plane in enumerate(image.numpy()):
        pixels[..., channel] = plane
    return torch.from_numpy(pixels).permute(2, 0, 1)


__all__ = ["augment"]
