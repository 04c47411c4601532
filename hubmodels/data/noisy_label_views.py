"""The augmented views of training with wrong labels (DivideMix, C2D, SANM), drawn from tables of uniform numbers.

Weak views: crop, flip and AutoAugment. Strong views: crop, flip, two operations of FixMatch's RandAugment and a grey
    square.
Warm-up views: colours, crop, flip and an affine map. Photographs are resized first where they are larger than the crop.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms import v2

from hubmodels.data.randomness import preserved_global_generators, seed_global_generators
from hubmodels.data.resampling import resize
from hubmodels.data.transforms import FinetuneTransform, Images

FILL = 128  # grey of AutoAugment's empty pixels
CUTOUT_FILL = 127
CUTOUT_SHARE = 0.5  # side of the grey square as a share of the image's
NUM_OPERATIONS = 2
OPERATION_PROBABILITY = 0.5
LEVELS = 10  # magnitudes are 1..9 of 10


class _PillowView(FinetuneTransform):
    """Crop and flip, then work on Pillow images; the last uniform number is the seed of what draws for itself.

    Args:
        size: Output size in pixels, an int or (height, width).
        resize: Pixels that the short side is resized to first; None leaves images as they are.
        crop_padding: Pixels of zero padding of the crop.
        flip, num_channels, mean, std: See [`FinetuneTransform`].
    """

    def __init__(self, size: int | Sequence[int], crop_padding: int = 4, **kwargs):
        super().__init__(size, crop_padding=crop_padding, **kwargs)
        if self.num_channels not in (1, 3):
            raise ValueError(
                f"these views are made of images with 1 or 3 channels, got num_channels={self.num_channels}"
            )

    def _transform(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        if self.resize is not None:
            images = [_resized(image, self.resize) for image in images]
        images = self._before_crop(images, uniforms)
        images = self._zero_padded(images, self.crop_padding or 0)
        cropped = self._crop_and_flip(images, uniforms[:, : FinetuneTransform.draws - 1])
        pictures = [_picture(image) for image in cropped]
        return self._normalize(torch.stack([_pixels(picture) for picture in self._changed(pictures, uniforms)]))

    def _before_crop(self, images: Images, uniforms: np.ndarray) -> Images:
        return images

    def _changed(self, pictures: list[Image.Image], uniforms: np.ndarray) -> list[Image.Image]:
        return pictures

    def _each(
        self, change: Callable[[Image.Image], Image.Image], pictures: Sequence[Image.Image], uniforms: np.ndarray
    ) -> list[Image.Image]:
        """Applies a transform of torchvision, which draws from the global generator, with a seed per picture."""
        changed = []
        with preserved_global_generators():
            for picture, seed in zip(pictures, (uniforms[:, -1] * 2**53).astype(np.int64).tolist(), strict=True):
                seed_global_generators(seed)
                changed.append(change(picture))
        return changed


class PlainView(_PillowView):
    """Crop and flip (the views of the Clothing1M script); arguments as [`WeakView`]."""


class WeakView(_PillowView):
    """Crop, flip and AutoAugment with the policy of CIFAR-10.

    Args:
        size, resize, crop_padding, flip, num_channels, mean, std: As [`FinetuneTransform`]; `resize` is the length
            that the short side gets first, None for images of the right size.
    """

    def __init__(self, size: int | Sequence[int], **kwargs):
        super().__init__(size, **kwargs)
        self._auto_augment = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=FILL)

    def _changed(self, pictures, uniforms):
        return self._each(self._auto_augment, pictures, uniforms)


class StrongView(_PillowView):
    """Crop, flip, two random operations, and a grey square with half the side of the image (FixMatch).

    Each operation has a magnitude of 1 to 9 tenths and is applied with probability 0.5. Arguments as [`WeakView`].
    """

    draws = FinetuneTransform.draws + 4 * NUM_OPERATIONS + 2

    def _changed(self, pictures, uniforms):
        table = uniforms[:, FinetuneTransform.draws - 1 : -1]
        return [_strongly_augmented(picture, row) for picture, row in zip(pictures, table, strict=True)]


class WarmUpView(_PillowView):
    """Colour jitter (0.4 each), crop, flip, affine map (15 degrees, 0.1, 2/3 to 3/2). Arguments as [`WeakView`]."""

    draws = FinetuneTransform.draws + 1

    def __init__(self, size: int | Sequence[int], **kwargs):
        super().__init__(size, **kwargs)
        self._jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.4)
        self._affine = v2.RandomAffine(15, translate=(0.1, 0.1), scale=(2 / 3, 3 / 2), shear=(-0.1, 0.1, -0.1, 0.1))

    def _before_crop(self, images, uniforms):
        jittered = self._each(self._jitter, [_picture(image) for image in images], uniforms)
        return [_pixels(picture) for picture in jittered]

    def _changed(self, pictures, uniforms):
        return self._each(self._affine, pictures, uniforms[:, :-1])


def _picture(image: torch.Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _pixels(picture: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _resized(image: torch.Tensor, short_side: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    if min(height, width) == short_side:
        return image
    scale = short_side / min(height, width)
    size = max(short_side, int(height * scale)), max(short_side, int(width * scale))
    return resize(image, size, Image.Resampling.BILINEAR)


def _strongly_augmented(picture: Image.Image, draws: np.ndarray) -> Image.Image:
    """`draws`: operation, magnitude, whether, sign, for each operation; then the centre of the square."""
    for operation, magnitude, whether, sign in draws[:-2].reshape(NUM_OPERATIONS, 4):
        if whether < OPERATION_PROBABILITY:
            level = 1 + int(magnitude * (LEVELS - 1))
            picture = OPERATIONS[int(operation * len(OPERATIONS))](picture, level / LEVELS, 1 if sign < 0.5 else -1)
    return _cut_out(picture, draws[-2], draws[-1])


def _cut_out(picture: Image.Image, across: float, down: float) -> Image.Image:
    width, height = picture.size
    side = int(CUTOUT_SHARE * min(width, height))
    left, top = (int(max(0, draw * length - side / 2)) for draw, length in ((across, width), (down, height)))
    box = (left, top, min(width, left + side), min(height, top + side))
    picture = picture.copy()
    fill = CUTOUT_FILL if picture.mode == "L" else (CUTOUT_FILL,) * 3
    ImageDraw.Draw(picture).rectangle(box, fill)
    return picture


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[..., Image.Image]:
    return lambda picture, level, sign: kind(picture).enhance(0.05 + 0.9 * level)


def _mapped(coefficients: Callable[[float, tuple[int, int]], tuple[float, ...]]) -> Callable[..., Image.Image]:
    def change(picture: Image.Image, level: float, sign: int) -> Image.Image:
        data = coefficients(sign * level, picture.size)
        return picture.transform(picture.size, Image.Transform.AFFINE, data)

    return change


# FixMatch's 14 operations of (picture, level in (0, 1), sign); largest values: 0.95 for enhancements, 30 degrees, 0.3
# for shears and shifts (of whole pixels, towards 0), all 256 levels for solarising, and 4 to 8 bits for posterising.
OPERATIONS: tuple[Callable[..., Image.Image], ...] = (
    lambda picture, level, sign: ImageOps.autocontrast(picture),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    lambda picture, level, sign: ImageOps.equalize(picture),
    lambda picture, level, sign: picture,
    lambda picture, level, sign: ImageOps.posterize(picture, 4 + int(4 * level)),
    lambda picture, level, sign: picture.rotate(sign * math.floor(30 * level)),
    _enhanced(ImageEnhance.Sharpness),
    _mapped(lambda value, size: (1, 0.3 * value, 0, 0, 1, 0)),
    _mapped(lambda value, size: (1, 0, 0, 0.3 * value, 1, 0)),
    lambda picture, level, sign: ImageOps.solarize(picture, 256 - math.floor(256 * level)),
    _mapped(lambda value, size: (1, 0, int(0.3 * value * size[0]), 0, 1, 0)),
    _mapped(lambda value, size: (1, 0, 0, 0, 1, int(0.3 * value * size[1]))),
)
