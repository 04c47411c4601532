"""Colour operations and blur on planes `[3, n, H, W]` of n views, colours in [0, 1], in place."""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2
_SECTORS = 6.0  # of the colour circle: hue runs through red, yellow, green, cyan, blue, magenta
# Pixels of a piece of a long axis that one matrix blurs.
_PIECE = 32
_MIN_SPREAD = 1e-8
# Pillow cuts the fractions off after a blend of bytes; this is what that takes away on average.
_CUT = 0.5 / 255
_PASSES = 3  # of the box filter


def _luma(x: torch.Tensor) -> torch.Tensor:
    """Gray values `[n, H, W]`."""
    return (x[0] * _LUMA[0]).add_(x[1], alpha=_LUMA[1]).add_(x[2], alpha=_LUMA[2])


def to_gray_(x: torch.Tensor) -> None:
    """Put the gray values in all three planes.

    Args:
        x: planes `[3, n, H, W]`.
    """
    x.copy_(_luma(x))


def adjust_brightness_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Scale the colours and clip them.

    Args:
        x: planes `[3, n, H, W]`.
        factor: `[n, 1, 1]`.
    """
    x.mul_(factor).sub_(_CUT).clamp_(0, 1)


def adjust_contrast_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Blend each view with its mean gray value and clip.

    Args:
        x: planes `[3, n, H, W]`.
        factor: `[n, 1, 1]`, weight of the view.
    """
    mean = _luma(x.mean(dim=(2, 3), keepdim=True))
    x.mul_(factor).add_(mean.mul_(1 - factor).sub_(_CUT)).clamp_(0, 1)


def adjust_saturation_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Blend each view with its gray values and clip.

    Args:
        x: planes `[3, n, H, W]`.
        factor: `[n, 1, 1]`, weight of the view.
    """
    gray = _luma(x).mul_(1 - factor).sub_(_CUT)
    x.mul_(factor).add_(gray).clamp_(0, 1)


def adjust_hue_(x: torch.Tensor, shift: torch.Tensor) -> None:
    """Turn the hue, keeping saturation and value of the HSV model.

    With `low` and `spread` the smallest colour and the distance to the largest, the hue in sixths of the circle, from
    -3 to 3 with 0 at red, is `sign(G - B) (1 + (G + B - R - low) / spread)`; turned back into colours, each is
    `low + spread * clamp(2 - d, 0, 1)`, where d is the distance on the circle to red (0), green (2) or blue (-2). That
    needs no case distinction, which would cost more than the arithmetic.

    Args:
        x: planes `[3, n, H, W]`.
        shift: `[n, 1, 1]` in turns, in [-0.5, 0.5].
    """
    red, green, blue = x
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    spread = torch.maximum(red, green)
    torch.maximum(spread, blue, out=spread).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(spread.clamp(min=_MIN_SPREAD)).add_(1)
    hue.copysign_(green - blue)
    # From each colour to the turned hue, less than 6 away: folded at the opposite colour this is 3 minus the distance.
    turn = _SECTORS * shift - torch.tensor([0.0, 2.0, -2.0], device=x.device, dtype=x.dtype).view(3, 1, 1, 1)
    turn -= _SECTORS * (turn / _SECTORS).round()
    torch.add(hue, turn, out=x).abs_().sub_(_SECTORS / 2).abs_().clamp_(1, 2)
    x.mul_(spread).add_(low.sub_(spread))


# In the order of `views_densecl`: brightness, contrast, saturation, hue.
COLOR_OPERATIONS: tuple[Callable[[torch.Tensor, torch.Tensor], None], ...] = (
    adjust_brightness_,
    adjust_contrast_,
    adjust_saturation_,
    adjust_hue_,
)


def gaussian_blur_(x: torch.Tensor, sigma: torch.Tensor) -> None:
    """Blur each view as Pillow does: three box filters of together the Gaussian's variance, edges continued.

    Args:
        x: planes `[3, n, H, W]`.
        sigma: deviations in pixels `[n]`.
    """
    boxes = _boxes(sigma)
    pictures = x.view(-1, *x.shape[2:])
    down = _blur_matrices(boxes, x.shape[2])
    across = down if x.shape[2] == x.shape[3] else _blur_matrices(boxes, x.shape[3])
    blurred = torch.cat([torch.bmm(matrix, pictures[:, used]) for _, used, matrix in down], dim=1)
    for made, used, matrix in across:
        pictures[:, :, made] = torch.bmm(blurred[:, :, used], matrix.transpose(1, 2))


def _boxes(sigma: torch.Tensor) -> torch.Tensor:
    """Box filters of a third of the Gaussian's variance each.

    A box whose radius is no integer weighs its two outermost pixels less (Gwosdek and others, "Theoretical foundations
    of Gaussian convolution by extended box filtering", 2011, equations 8 and 9).

    Args:
        sigma: deviations of the Gaussian in pixels `[n]`.

    Returns:
        Weights `[n, radius + 1]` of the pixels at distance 0, 1, ... to either side; both sides sum to 1.
    """
    variance = sigma**2
    inner = (((4 * variance + 1).sqrt() - 1) / 2).floor()
    outer = (2 * inner + 1) * (inner * (inner + 1) - variance) / (2 * variance - 6 * (inner + 1) ** 2)
    distance = torch.arange(int(inner.max()) + 2, device=sigma.device)
    weights = (distance <= inner[:, None]) + (distance == inner[:, None] + 1) * outer[:, None]
    return weights / (2 * (inner + outer) + 1)[:, None]


def _blur_matrices(boxes: torch.Tensor, size: int) -> list[tuple[slice, slice, torch.Tensor]]:
    """Matrices that filter an axis three times.

    Those of a long axis are narrow bands, zero elsewhere. They are made from those of a short axis (at its ends the
    rows are the same, in between they are its middle row, shifted), only where they are not zero, piece by piece.

    Args:
        boxes: weights `[n, radius + 1]`.
        size: pixels of the axis.

    Returns:
        For each piece of the axis what it is, what it is made from, and the matrices `[3 n, made, used]`.
    """
    reach = _PASSES * (boxes.shape[1] - 1)
    short = 4 * reach + 1
    if size <= short:
        everything = slice(0, size)
        return [(everything, everything, _short_blur_matrices(boxes, size).repeat(3, 1, 1))]
    values = F.pad(_short_blur_matrices(boxes, short), (0, 1)).flatten(1)
    return [(made, used, values[:, index].repeat(3, 1, 1)) for made, used, index in _band_pieces(size, reach)]


def _short_blur_matrices(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Matrices `[n, size, size]` that filter an axis three times, each time with its outermost pixels continued."""
    weights = F.pad(boxes, (0, size))
    position = torch.arange(size, device=boxes.device)
    once = weights[:, (position[:, None] - position).abs_()]
    beyond = weights.flip(1).cumsum(dim=1).flip(1)[:, 1 : size + 1]  # weight of what lies further away than that
    once[:, :, 0] += beyond
    once[:, :, -1] += beyond.flip(1)
    return torch.bmm(once, torch.bmm(once, once))


@functools.lru_cache(maxsize=32)
def _band_pieces(size: int, reach: int) -> list[tuple[slice, slice, torch.Tensor]]:
    """Pieces of an axis, what pixels each is made from, and where its matrix `[made, used]` is found.

    That is the position among the values of the matrix of a short axis of `4 reach + 1` pixels, which have a zero added
    at the end of each row.
    """
    short = 4 * reach + 1
    length = size if size <= 2 * _PIECE else _PIECE
    pieces = []
    for start in range(0, size, length):
        made = slice(start, min(start + length, size))
        used = slice(max(start - reach, 0), min(made.stop + reach, size))
        to, of = torch.arange(size)[made, None], torch.arange(size)[used]
        row = to.clamp(max=2 * reach) + (to - (size - 1 - 2 * reach)).clamp(min=0)
        column = row + of - to
        column[(column < 0) | (column > short)] = short
        pieces.append((made, used, row * (short + 1) + column))
    return pieces


__all__ = ["COLOR_OPERATIONS", "gaussian_blur_", "to_gray_"]
