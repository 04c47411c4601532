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
    mean_factor: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    gray_mean: bool = False,
) -> torch.Tensor:
    """
    Brightness and contrast: `images * factor + mean * mean_factor + offset`.

    Args:
        images: [N, 3, H, W].
        factor: [N]; 1 leaves an image as it is.
        mean_factor: `1 - factor` for contrast, which scales the distance to the mean, 0 for brightness [N]; default: 0.
        offset: additive brightness [N]; default: 0.
        gray_mean: take the mean of the grey image (torchvision) instead of each channel's own (TensorFlow).
    """
    shift = None if offset is None else _per_image(offset)
    if mean_factor is not None:
        mean = (luminance(images) if gray_mean else images).mean(dim=(2, 3), keepdim=True)
        mean.mul_(_per_image(mean_factor))
        shift = mean if shift is None else mean + shift
    images.mul_(_per_image(factor))
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


def hue_shifts(delta: torch.Tensor) -> torch.Tensor:
    """
    What `hue_` adds to a hue for its distances from red, green and blue, in sixths of a turn.

    Args:
        delta: by how much the hue is turned, in turns [N].

    Returns:
        [N, 3] in [-3, 3].
    """
    shift = 6 * delta[:, None] + torch.tensor([0.0, -2.0, 2.0], dtype=delta.dtype, device=delta.device)
    return shift - 6 * torch.floor(shift / 6 + 0.5)


def hue_(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """
    Turns the hue of HSV at constant saturation and value.

    In sixths of a turn, the distance of a hue from red is H = (G + B - R + max - 2 min) / C, with the sign of G - B. A
    channel whose own hue is q (red 0, green 2, blue -2) is min + C * clamp(||h - q| - 3| - 1, 0, 1) at the new hue h,
    as long as |h - q| <= 7.

    Args:
        images: [N, 3, H, W].
        shifts: from `hue_shifts` [N, 3].
    """
    red, green, blue = images.split(1, dim=1)
    value, smallest = _extremes(images)
    chroma = value - smallest
    hue = torch.add(green, blue).sub_(red).add_(value).sub_(smallest, alpha=2)
    side = torch.sub(green, blue, out=value)
    hue.div_(torch.clamp(chroma, min=_TINY)).copysign_(side)
    torch.add(hue, shifts.view(-1, 3, 1, 1), out=images)
    images.abs_().sub_(3).abs_().clamp_(1, 2)
    return images.mul_(chroma).add_(smallest.sub_(chroma))
