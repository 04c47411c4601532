"""What the augmentation of DenseCL draws for a view: crop, colours, blur, flip (DenseCL paper, section 4.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
import torch

# Colour operations, as `order` numbers them.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_CROP_ATTEMPTS = 10  # of the rejection loop, as torchvision's `RandomResizedCrop`
_ORDERS = np.array(list(permutations(range(4))))
# One uniform number each: two per attempt of the crop, its place, and nine for the rest.
DRAWS_PER_VIEW = 2 * _CROP_ATTEMPTS + 2 + 10


@dataclass(frozen=True)
class ViewSettings:
    """Ranges and probabilities that views are drawn with; the defaults are the published ones.

    Args:
        crop_scale: area of the crop as a share of the image's.
        crop_ratio: width / height of the crop, log-uniform.
        jitter_probability: of the four colour operations, all or none.
        brightness, contrast, saturation: factors are uniform in `[max(0, 1 - value), 1 + value]`.
        hue: shifts are uniform in `[-hue, hue]`, in turns of the colour circle.
        gray_probability: of losing the colours.
        blur_probability: of the Gaussian blur.
        blur_sigma: its standard deviation in pixels, uniform.
        flip_probability: of the mirror image.

    Raises:
        ValueError: a value out of range.
    """

    crop_scale: Sequence[float] = (0.2, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: Sequence[float] = (0.1, 2.0)
    flip_probability: float = 0.5

    def __post_init__(self):
        for name, highest in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= highest:
                raise ValueError(f"{name} must be (min, max) with 0 < min <= max <= {highest}, got {value}")
        for name in ("jitter_probability", "gray_probability", "blur_probability", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name, highest in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"{name} must be in [0, {highest}], got {getattr(self, name)}")


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for a batch of views: B images, V views of each.

    Args:
        crop: boxes in pixels of the image, (top, left, height, width), integers `[B, V, 4]`.
        jitter: whether the colour operations are applied `[B, V]`.
        order: their order `[B, V, 4]`: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        brightness, contrast, saturation: factors `[B, V]`.
        hue: shifts `[B, V]` in turns.
        gray: whether the colours are lost `[B, V]`.
        blur: whether the view is blurred `[B, V]`.
        sigma: deviation of the blur in pixels `[B, V]`.
        flip: whether the view is mirrored `[B, V]`.
    """

    crop: np.ndarray
    jitter: np.ndarray
    order: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    gray: np.ndarray
    blur: np.ndarray
    sigma: np.ndarray
    flip: np.ndarray

    @classmethod
    def draw(
        cls, uniforms: np.ndarray, heights: np.ndarray, widths: np.ndarray, settings: ViewSettings
    ) -> "ViewParameters":
        """Turn uniform numbers into views.

        Args:
            uniforms: float64 `[B, V, DRAWS_PER_VIEW]` in [0, 1).
            heights, widths: of the images in pixels `[B]`.
            settings: ranges and probabilities.
        """
        place = 2 * _CROP_ATTEMPTS
        jitter, order, brightness, contrast, saturation, hue, gray, blur, sigma, flip = np.moveaxis(
            uniforms[..., place + 2 :], -1, 0
        )
        return cls(
            crop=_draw_boxes(uniforms[..., : place + 2], heights[:, None], widths[:, None], settings),
            jitter=jitter < settings.jitter_probability,
            order=_ORDERS[(order * len(_ORDERS)).astype(np.int64)],
            brightness=_factors(brightness, settings.brightness),
            contrast=_factors(contrast, settings.contrast),
            saturation=_factors(saturation, settings.saturation),
            hue=(2 * hue - 1) * settings.hue,
            gray=gray < settings.gray_probability,
            blur=blur < settings.blur_probability,
            sigma=settings.blur_sigma[0] + sigma * (settings.blur_sigma[1] - settings.blur_sigma[0]),
            flip=flip < settings.flip_probability,
        )

    @classmethod
    def from_dict(
        cls, params: Mapping[str, Any], heights: np.ndarray, widths: np.ndarray, views: int
    ) -> "ViewParameters":
        """Check parameters that were stored earlier, to be applied again.

        Args:
            params: arrays or tensors by the names of the fields.
            heights, widths: of the images in pixels `[B]`.
            views: number of views per image, V.

        Raises:
            ValueError: a field is missing or unknown or has the wrong shape; a box does not lie in its image; an order
                is no permutation; a factor or deviation is negative.
        """
        names = [field.name for field in fields(cls)]
        if set(params) != set(names):
            raise ValueError(f"params must have exactly the keys {', '.join(names)}; got {', '.join(sorted(params))}")
        arrays = {name: np.asarray(params[name]) for name in names}
        for name, array in arrays.items():
            shape = (len(heights), views) + ((4,) if name in ("crop", "order") else ())
            if array.shape != shape:
                raise ValueError(f"params[{name!r}] must have shape {shape} (images, views, ...), got {array.shape}")
        for name in ("jitter", "gray", "blur", "flip"):
            arrays[name] = arrays[name].astype(bool)
        top, left, height, width = np.moveaxis(arrays["crop"], -1, 0)
        inside = (top >= 0) & (left >= 0) & (height > 0) & (width > 0)
        inside &= (top + height <= heights[:, None]) & (left + width <= widths[:, None])
        if not inside.all():
            raise ValueError(f"params['crop'] holds boxes outside of their images: {arrays['crop'][~inside].tolist()}")
        if not (np.sort(arrays["order"], axis=-1) == np.arange(4)).all():
            raise ValueError("params['order'] must hold permutations of 0, 1, 2, 3")
        for name in ("brightness", "contrast", "saturation", "sigma"):
            if not (arrays[name] >= 0).all():
                raise ValueError(f"params[{name!r}] must not be negative, got {arrays[name].min()}")
        if not (np.abs(arrays["hue"]) <= 0.5).all():
            raise ValueError("params['hue'] must be in [-0.5, 0.5]")
        return cls(**arrays)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """The fields as tensors, as `from_dict` takes them."""
        return {field.name: torch.from_numpy(np.ascontiguousarray(getattr(self, field.name))) for field in fields(self)}

    def flat(self) -> "ViewParameters":
        """The same with images and views in one axis `[B * V]`, image by image."""
        return ViewParameters(
            **{f.name: getattr(self, f.name).reshape(-1, *getattr(self, f.name).shape[2:]) for f in fields(self)}
        )

    def __getitem__(self, index: Any) -> "ViewParameters":
        """Some of the views."""
        return ViewParameters(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def _factors(uniforms: np.ndarray, strength: float) -> np.ndarray:
    low = max(0.0, 1.0 - strength)
    return low + uniforms * (1.0 + strength - low)


def _draw_boxes(uniforms: np.ndarray, heights: np.ndarray, widths: np.ndarray, settings: ViewSettings) -> np.ndarray:
    """Boxes `[B, V, 4]` of torchvision's `RandomResizedCrop`: of ten tries the first that fits, else the central box.

    Args:
        uniforms: `[B, V, 22]`: ten pairs (area, log ratio), then top and left.
        heights, widths: `[B, 1]`.
        settings: scale and ratio of the boxes.
    """
    tries = uniforms[..., : 2 * _CROP_ATTEMPTS]
    low, high = settings.crop_scale
    area = (heights * widths)[..., None] * (low + tries[..., 0::2] * (high - low))
    log_low, log_high = np.log(settings.crop_ratio[0]), np.log(settings.crop_ratio[1])
    ratio = np.exp(log_low + tries[..., 1::2] * (log_high - log_low))
    box_heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    box_widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    fits = (box_heights > 0) & (box_heights <= heights[..., None])
    fits &= (box_widths > 0) & (box_widths <= widths[..., None])
    first = fits.argmax(axis=-1)[..., None]
    box_heights, box_widths = (np.take_along_axis(a, first, axis=-1)[..., 0] for a in (box_heights, box_widths))
    top = (uniforms[..., -2] * (heights - box_heights + 1)).astype(np.int64)
    left = (uniforms[..., -1] * (widths - box_widths + 1)).astype(np.int64)
    boxes = np.stack([top, left, box_heights, box_widths], axis=-1)
    central = np.broadcast_to(_central_boxes(heights, widths, settings.crop_ratio), boxes.shape)
    return np.where(fits.any(axis=-1)[..., None], boxes, central)


def _central_boxes(heights: np.ndarray, widths: np.ndarray, ratio: Sequence[float]) -> np.ndarray:
    """The largest central boxes whose aspect ratio lies in `ratio`."""
    image_ratio = widths / heights
    box_heights = np.where(image_ratio < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    box_widths = np.where(image_ratio > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    box_heights, box_widths = np.clip(box_heights, 1, heights), np.clip(box_widths, 1, widths)
    return np.stack([(heights - box_heights) // 2, (widths - box_widths) // 2, box_heights, box_widths], axis=-1)


__all__ = ["DRAWS_PER_VIEW", "ViewParameters", "ViewSettings"]
