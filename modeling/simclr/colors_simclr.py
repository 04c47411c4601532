"""Colour operations of SimCLR's jitter on batches of images [N, 3, H, W], in place, without branches per pixel.

Factors are tensors [N], one per image. TensorFlow's definitions: contrast around the mean of each channel, saturation
and hue in HSV. torchvision's `ColorJitter` differs in contrast (one grey mean) and saturation (a blend with grey).
"""

import torch

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)
# Chroma of grey pixels, to divide by; any chroma of a float32 image that is not zero is far above.
_TINY = 1e-20


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Grey values [N, 1, H, W], weights 0.2989, 0.5870, 0.1140."""
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY_WEIGHTS[0]).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])


def grayscale_(images: torch.Tensor) -> torch.Tensor:
    """Replaces all channels by the grey value."""
    return images.copy_(luminance(images).expand_as(images))


def affine_(
    images: torch.Tensor,
    factor: torch.Tensor,
    anchored: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    gray_mean: bool = False,
) -> torch.Tensor:
    """
    Brightness and contrast: `images * factor + anchored * mean * (1 - factor) + offset`.

    Args:
        images: [N, 3, H, W].
        factor: [N]; 1 leaves an image as it is.
        anchored: 1 for contrast, which scales the distance to the mean, 0 for brightness [N]; default: all 0.
        offset: additive brightness [N]; default: none.
        gray_mean: take the mean of the grey image (torchvision) instead of each channel's own (TensorFlow).
    """
    factor = _per_image(factor)
    shift = None if offset is None else _per_image(offset)
    if anchored is not None:
        mean = (luminance(images) if gray_mean else images).mean(dim=(2, 3), keepdim=True)
        kept = mean * (_per_image(anchored) * (1 - factor))
        shift = kept if shift is None else kept + shift
    images.mul_(factor)
    return images if shift is None else images.add_(shift)


def _extremes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest and smallest channel of every pixel, [N, 1, H, W] each."""
    red, green, blue = images.split(1, dim=1)
    largest, smallest = torch.maximum(red, green), torch.minimum(red, green)
    return torch.maximum(largest, blue, out=largest), torch.minimum(smallest, blue, out=smallest)


def saturation_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """
    Scales the saturation S of HSV, clipped to 1, at constant hue and value.

    With V the largest channel and C the chroma, S = C / V, and each channel x becomes V - (V - x) * S' / S, where
    S' / S = min(factor, V / C).

    Args:
        images: [N, 3, H, W].
        factor: [N], >= 0.
    """
    value, smallest = _extremes(images)
    ratio = torch.sub(value, smallest, out=smallest).clamp_(min=_TINY)
    ratio = torch.div(value, ratio, out=ratio)
    torch.minimum(ratio, _per_image(factor), out=ratio)
    return torch.lerp(value, images, ratio, out=images)


def blend_with_gray_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """torchvision's saturation: `grey + (images - grey) * factor`, factor [N]."""
    return torch.lerp(luminance(images), images, _per_image(factor), out=images)


def hue_(images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """
    Turns the hue of HSV at constant saturation and value.

    In sixths of a turn, the distance of a hue from red is H = (G + B - R + max - 2 min) / C, with the sign of G - B. A
    channel whose own hue is q (red 0, green 2, blue -2) is min + C * clamp(||h - q| - 3| - 1, 0, 1) at the new hue h.

    Args:
        images: [N, 3, H, W].
        delta: in turns [N].
    """
    red, green, blue = images.split(1, dim=1)
    value, smallest = _extremes(images)
    chroma = value - smallest
    hue = torch.add(green, blue).sub_(red).add_(value).sub_(smallest, alpha=2)
    side = torch.sub(green, blue, out=value)
    hue.div_(torch.clamp(chroma, min=_TINY)).copysign_(side)
    # h - q, with the constant part brought to [-3, 3): then |h - q| <= 6, where the formula holds.
    shift = 6 * delta[:, None] + torch.tensor([0.0, -2.0, 2.0], dtype=images.dtype, device=images.device)
    shift -= 6 * torch.floor(shift / 6 + 0.5)
    torch.add(hue, shift.view(-1, 3, 1, 1), out=images)
    images.abs_().sub_(3).abs_().clamp_(1, 2)
    return images.mul_(chroma).add_(smallest.sub_(chroma))
