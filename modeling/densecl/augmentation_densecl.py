"""The augmentation of DenseCL on tensors, many views at once (DenseCL paper, section 4.1, after MoCo-v2).

Order: resized crop, colour jitter, grayscale, Gaussian blur, flip, normalisation. Views are worked on in place, in
chunks that fit into the cache of a CPU core, in planes `[3, n, H, W]`, so that each colour is one piece of memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .colors_densecl import COLOR_OPERATIONS, gaussian_blur_, to_gray_
from .views_densecl import ViewParameters

# Images and views up to this side are cropped by matrix products, which beats one call per view below it.
_MAX_MATRIX_SIDE = 48
# Values per chunk: its three planes and the temporary ones stay in a second-level cache.
_CHUNK_VALUES = 1 << 17
_BYTE = 255.0
# Values that change nothing, of brightness, contrast, saturation, hue.
_NEUTRAL = (1, 1, 1, 0)


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
    drawn = parameters.flat()
    device = images[0].device
    views = torch.empty(batch * number, 3, *size, device=device)
    scale = 1 / torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1, 1) * scale
    planes = _small_planes(images, size)
    limit = max(1, _CHUNK_VALUES // (3 * size[0] * size[1])) if device.type == "cpu" else batch * number
    for chunk in _chunks(drawn, limit):
        part = drawn[chunk]
        if planes is None:
            x = _crop_each([images[view // number] for view in chunk.tolist()], part, size)
        else:
            x = _crop_by_matrices(planes, torch.from_numpy(chunk // number), part, size)
        _recolor_(x, part)
        x.mul_(scale).sub_(shift)
        views[torch.from_numpy(chunk)] = x.transpose(0, 1)
    return views.view(batch, number, 3, *size)


def _chunks(drawn: ViewParameters, limit: int) -> list[np.ndarray]:
    """Groups of at most `limit` views with colour operations in the same order (or with none)."""
    code = np.where(drawn.jitter, drawn.order @ np.array([64, 16, 4, 1]), -1)
    by_code = np.argsort(code, kind="stable")
    ends = np.flatnonzero(np.diff(code[by_code])) + 1
    return [group[start : start + limit] for group in np.split(by_code, ends) for start in range(0, len(group), limit)]


def _recolor_(x: torch.Tensor, drawn: ViewParameters) -> None:
    """Jitter, grayscale and blur planes `[3, n, H, W]` with colours in [0, 1] in place. All have one order of the jitter."""
    if drawn.jitter[0]:
        factors = (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue)
        for number in drawn.order[0]:
            if (factors[number] != _NEUTRAL[number]).any():
                COLOR_OPERATIONS[number](x, _column(factors[number], x))
    if drawn.gray.any():
        chosen = _which(drawn.gray)
        part = x[:, chosen]
        to_gray_(part)
        x[:, chosen] = part
    if drawn.blur.any():
        chosen = _which(drawn.blur)
        part = x[:, chosen]
        gaussian_blur_(part, torch.from_numpy(drawn.sigma[drawn.blur]).to(x))
        x[:, chosen] = part


def _which(mask: np.ndarray) -> slice | torch.Tensor:
    """The chosen views: all of them without copying, some of them by their numbers."""
    return slice(None) if mask.all() else torch.from_numpy(np.flatnonzero(mask))


def _column(values: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """A number per view `[n, 1, 1]`."""
    return torch.from_numpy(values).to(x).view(-1, 1, 1)


def _small_planes(images: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor | None:
    """Small images of one size as planes `[3, B, H, W]` with colours in [0, 1]; None if they are large or differ."""
    shape = images[0].shape
    if max(*shape[1:], *size) > _MAX_MATRIX_SIDE or any(image.shape != shape for image in images):
        return None
    return _to_unit(torch.stack(list(images), dim=1))


def _to_unit(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32) if x.is_floating_point() else x.to(torch.float32).mul_(1 / _BYTE)


def _crop_by_matrices(
    planes: torch.Tensor, index: torch.Tensor, drawn: ViewParameters, size: tuple[int, int]
) -> torch.Tensor:
    """Resized crops `[3, n, height, width]` of the images `index` by two products with one matrix per view and axis."""
    top, left, height, width = torch.from_numpy(drawn.crop).to(planes).unbind(1)
    flip = torch.from_numpy(drawn.flip).to(planes.device)
    rows = _resampling(top, height, torch.zeros_like(flip), planes.shape[2], size[0])
    columns = _resampling(left, width, flip, planes.shape[3], size[1]).transpose(1, 2)
    return torch.stack([torch.bmm(rows, torch.bmm(plane[index], columns)) for plane in planes]).clamp_(0, 1)


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


def _crop_each(images: Sequence[torch.Tensor], drawn: ViewParameters, size: tuple[int, int]) -> torch.Tensor:
    """Resized crops `[3, n, height, width]` of one image each."""
    x = torch.empty(3, len(images), *size, device=images[0].device)
    for view, (image, box, flip) in enumerate(zip(images, drawn.crop.tolist(), drawn.flip.tolist(), strict=True)):
        crop = _resized(_interleaved(image, *box), size)
        x[:, view] = torch.flip(crop, (-1,)) if flip else crop
    return x if images[0].is_floating_point() else x.mul_(1 / _BYTE)


def _interleaved(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A crop `[1, 3, height, width]` that has, if it is of bytes on the CPU, the colours of a pixel side by side.

    torch has a fast kernel for such images; numpy interleaves colours several times faster than torch does.
    """
    crop = image[:, top : top + height, left : left + width]
    if image.device.type != "cpu" or image.dtype != torch.uint8:
        return crop[None].to(torch.float32)
    if image.stride(0) != 1:
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for channel, plane in enumerate(crop.numpy()):
            pixels[..., channel] = plane
        crop = torch.from_numpy(pixels).permute(2, 0, 1)
    return crop[None].contiguous(memory_format=torch.channels_last)


def _resized(crop: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(crop, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


__all__ = ["augment"]
