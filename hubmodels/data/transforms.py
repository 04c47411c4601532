"""Image transforms that turn lists of uint8 images into normalised batches.

Every transform is called with a sequence of uint8 images [C, H, W] (or one tensor [B, C, H, W]) and a table of uniform
numbers [B, `draws`], and returns float32 pixel values [B, num_channels, height, width]. A transform has no random
state of its own: the same images and the same table give the same result. See He et al., "Masked Autoencoders Are
Scalable Vision Learners", appendix A, for the published settings.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing

from hubmodels.data import crops
from hubmodels.data.randomness import preserved_global_generators, seed_global_generators
from hubmodels.data.resampling import resize, resized_crop

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVALUATION_CROP_FRACTION = 224 / 256

Images = torch.Tensor | Sequence[torch.Tensor]


def _pair(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """(height, width) of an int or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(int(value) for value in size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be a positive int or a pair (height, width), got {size!r}")
    return pair


def _check_range(name: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """A (minimum, maximum) pair inside (low, high]."""
    if len(value) != 2 or not low < value[0] <= value[1] <= high:
        raise ValueError(f"{name} must be (min, max) with {low} < min <= max <= {high}, got {tuple(value)}")
    return float(value[0]), float(value[1])


def _check_probability(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return float(value)


def channel_statistics(
    num_channels: int, mean: Sequence[float] | float | None = None, std: Sequence[float] | float | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel.

    Args:
        num_channels: Channels of the model.
        mean: One value, one per channel, or None: ImageNet's (averaged over the colours unless there are 3 channels).
        std: The same.

    Returns:
        (mean, std), each with `num_channels` values, for pixels in [0, 1].

    Raises:
        ValueError: The number of values is neither 1 nor `num_channels`, or a standard deviation is not positive.
    """
    result = []
    for name, value, default in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
        if value is None:
            value = default if num_channels == 3 else sum(default) / 3
        values = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
        values = values * num_channels if len(values) == 1 else values
        if len(values) != num_channels:
            raise ValueError(f"{name} must have 1 or num_channels={num_channels} values, got {len(values)}")
        result.append(values)
    if min(result[1]) <= 0:
        raise ValueError(f"std must be positive, got {result[1]}")
    return result[0], result[1]


class ImageTransform:
    """Base of the transforms: channels, zero padding and normalisation.

    Args:
        size: Output size in pixels, an int or (height, width).
        num_channels: Channels of the model. Grey images are copied to all channels.
        mean: Mean per channel of pixels in [0, 1]; None means ImageNet's.
        std: Standard deviation per channel; None means ImageNet's.
        pad: Zero pixels added on every side first (2 turns 28x28 images into 32x32).

    Attributes:
        draws: Uniform numbers needed per image.
    """

    draws = 0

    def __init__(
        self,
        size: int | Sequence[int],
        num_channels: int = 3,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        pad: int = 0,
    ):
        if num_channels < 1:
            raise ValueError(f"num_channels must be >= 1, got {num_channels}")
        if pad < 0:
            raise ValueError(f"pad must be >= 0, got {pad}")
        self.size = _pair(size, "size")
        self.num_channels = num_channels
        self.mean, self.std = channel_statistics(num_channels, mean, std)
        self.pad = pad

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({fields})"

    def __call__(self, images: Images, uniforms: np.ndarray | None = None) -> torch.Tensor:
        """Transform a batch.

        Args:
            images: uint8 images [C, H, W] of any sizes, or a tensor [B, C, H, W]. C is 1 or `num_channels`.
            uniforms: float64 [B, draws] in [0, 1); not needed when `draws` is 0.

        Returns:
            float32 [B, num_channels, height, width], normalised.

        Raises:
            ValueError: Wrong channels, no images, images that are not uint8, or a table of the wrong shape.
        """
        images = self._check_images(images)
        table = np.empty((len(images), 0)) if uniforms is None else uniforms
        if table.shape != (len(images), self.draws):
            raise ValueError(f"uniforms must have shape {(len(images), self.draws)}, got {table.shape}")
        return self._transform(images, table)

    def _check_images(self, images: Images) -> Images:
        """Stack images of one size, pad, and check type and channels."""
        if len(images) == 0:
            raise ValueError("images is empty, expected at least one image")
        if not isinstance(images, torch.Tensor) and len({image.shape for image in images}) == 1:
            images = torch.stack(list(images))
        for image in images[:1] if isinstance(images, torch.Tensor) else images:
            if image.dtype != torch.uint8 or image.ndim != 3:
                raise ValueError(f"images must be uint8 [C, H, W], got {image.dtype} {tuple(image.shape)}")
            if image.shape[0] not in (1, self.num_channels):
                raise ValueError(f"expected {self.num_channels} channels, got {image.shape[0]}")
        return self._zero_padded(images, self.pad)

    @staticmethod
    def _zero_padded(images: Images, pad: int) -> Images:
        if pad == 0:
            return images
        if isinstance(images, torch.Tensor):
            return torch.nn.functional.pad(images, (pad,) * 4)
        return [torch.nn.functional.pad(image, (pad,) * 4) for image in images]

    @staticmethod
    def _sizes(images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Heights and widths of the images, int64 [B] each."""
        if isinstance(images, torch.Tensor):
            return np.full(len(images), images.shape[2]), np.full(len(images), images.shape[3])
        return np.array([i.shape[1] for i in images]), np.array([i.shape[2] for i in images])

    def _expand_channels(self, images: Images) -> Images:
        """Copy grey images to all channels where images with different channels are mixed in a batch."""
        if isinstance(images, torch.Tensor):
            return images
        return [image.expand(self.num_channels, -1, -1) for image in images]

    def _resized_crop(self, images: Images, boxes: np.ndarray, flip: np.ndarray | None = None) -> torch.Tensor:
        """uint8 [B, num_channels, height, width]."""
        cropped = resized_crop(self._expand_channels(images), boxes, self.size, flip)
        return cropped.expand(-1, self.num_channels, -1, -1)

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 to float32 in [0, 1], minus the mean, over the standard deviation."""
        pixels = images.to(torch.float32).div_(255)
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    def _transform(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        raise NotImplementedError


class PretrainTransform(ImageTransform):
    """Pre-training augmentation: random resized crop (bicubic), horizontal flip, normalisation (MAE, appendix A.1).

    Args:
        size: Output size in pixels, an int or (height, width).
        scale: Range of the crop's area as a fraction of the image's.
        ratio: Range of the crop's aspect ratio, width / height.
        flip: Probability of a horizontal flip.
        num_channels, mean, std, pad: See [`ImageTransform`].
    """

    draws = crops.RANDOM_CROP_DRAWS + 1

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        num_channels: int = 3,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        pad: int = 0,
    ):
        super().__init__(size, num_channels, mean, std, pad)
        self.scale = _check_range("scale", scale, 0.0, 1.0)
        self.ratio = _check_range("ratio", ratio, 0.0, math.inf)
        self.flip = _check_probability("flip", flip)

    def _boxes(self, images: Images, uniforms: np.ndarray) -> np.ndarray:
        return crops.random_crop_boxes(uniforms, *self._sizes(images), self.scale, self.ratio)

    def _crop_and_flip(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        """uint8 [B, num_channels, height, width]; the last column of `uniforms` decides about the flip."""
        return self._resized_crop(images, self._boxes(images, uniforms[:, :-1]), uniforms[:, -1] < self.flip)

    def _transform(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        return self._normalize(self._crop_and_flip(images, uniforms))


class LinearProbeTransform(PretrainTransform):
    """Training augmentation of the linear probe: crop without a rejection loop, flip (MAE, appendix A.1).

    Args:
        size, scale, ratio, flip, num_channels, mean, std, pad: See [`PretrainTransform`].
    """

    draws = crops.LOOP_FREE_CROP_DRAWS + 1

    def __init__(self, size: int | Sequence[int], scale: Sequence[float] = (0.08, 1.0), **kwargs):
        super().__init__(size, scale, **kwargs)

    def _boxes(self, images: Images, uniforms: np.ndarray) -> np.ndarray:
        return crops.loop_free_crop_boxes(uniforms, *self._sizes(images), self.scale, self.ratio)


class EvalTransform(ImageTransform):
    """Evaluation transform: resize the short side, centre crop, normalise.

    The short side becomes int(size / (224 / 256)) for sizes up to 224 and `size` above, as published for MAE.

    Args:
        size: Output size in pixels, an int or (height, width).
        crop_fraction: Size of the crop as a fraction of the resized short side; None means the rule above. 1 keeps
            the whole short side, which suits images that already have the model's size.
        num_channels, mean, std, pad: See [`ImageTransform`].
        resample: Pillow's filter that resizes, bicubic or bilinear.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        crop_fraction: float | None = None,
        num_channels: int = 3,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        pad: int = 0,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ):
        super().__init__(size, num_channels, mean, std, pad)
        if crop_fraction is None:
            crop_fraction = EVALUATION_CROP_FRACTION if min(self.size) <= 224 else 1.0
        if not 0.0 < crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction must be in (0, 1], got {crop_fraction}")
        self.crop_fraction = crop_fraction
        if resample not in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR):
            raise ValueError(f"resample must be Image.Resampling.BICUBIC or BILINEAR, got {resample!r}")
        self.resample = resample

    @property
    def short_side(self) -> int:
        """Pixels that the short side of an image is resized to, for square outputs."""
        return int(min(self.size) / self.crop_fraction)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image of the given size after resizing, in pixels.

        For square outputs the short side becomes int(size / crop_fraction) and the long side is truncated, as in
        torchvision's `Resize`; for others the smallest such size that covers the crop.
        """
        target_height, target_width = (int(side / self.crop_fraction) for side in self.size)
        if target_height * width <= target_width * height:
            return max(int(target_width * height / width), target_height), target_width
        return target_height, max(int(target_height * width / height), target_width)

    def _transform(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        if isinstance(images, torch.Tensor):
            return self._normalize(self._resize_and_crop(images).expand(-1, self.num_channels, -1, -1))
        resized = [self._resize_and_crop(image[None])[0] for image in self._expand_channels(images)]
        return self._normalize(torch.stack(resized))

    def _resize_and_crop(self, images: torch.Tensor) -> torch.Tensor:
        """Resize a batch of one size and cut out the centre, uint8 [B, C, height, width]."""
        size = self.resized_size(*images.shape[2:])
        if size != images.shape[2:]:
            images = torch.stack([resize(image, size, self.resample) for image in images])
        top, left = round((size[0] - self.size[0]) / 2), round((size[1] - self.size[1]) / 2)
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]


class FinetuneTransform(PretrainTransform):
    """Fine-tuning augmentation: crop, flip, and where asked RandAugment and random erasing (MAE, appendix A.1).

    The published recipe is `auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25`. Small images do better with
    `crop_padding=4`: crops of the output size out of the zero-padded image, instead of resized crops.

    Args:
        size: Output size in pixels, an int or (height, width).
        scale: Range of the resized crop's area as a fraction of the image's.
        auto_augment: Configuration string of timm's RandAugment, or None. Needs 3 channels.
        random_erasing: Probability that a rectangle is overwritten with pixel noise.
        crop_padding: Pixels of zero padding of a padded crop of fixed size, or None for resized crops.
        resize: Pixels that the short side is resized to before a padded crop, bicubically as for evaluation; more where
            the crop needs it. None leaves images as they are.
        ratio, flip, num_channels, mean, std, pad: See [`PretrainTransform`].

    Raises:
        ValueError: A setting is out of range, or an image is too small for the padded crop.
    """

    draws = crops.RANDOM_CROP_DRAWS + 2

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
        crop_padding: int | None = None,
        resize: int | None = None,
        **kwargs,
    ):
        super().__init__(size, scale, **kwargs)
        if auto_augment is not None and not auto_augment.startswith("rand"):
            raise ValueError(
                f"auto_augment must be a RandAugment string such as 'rand-m9-mstd0.5-inc1', got {auto_augment!r}"
            )
        if auto_augment is not None and self.num_channels != 3:
            raise ValueError(f"auto_augment needs num_channels=3, got {self.num_channels}")
        if crop_padding is not None and crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0 or None, got {crop_padding}")
        if resize is not None and crop_padding is None:
            raise ValueError(f"resize={resize} goes with crop_padding, which is None: resized crops need no other")
        if resize is not None and resize < min(self.size):
            raise ValueError(f"resize must be at least the size {self.size}, got {resize}")
        self.auto_augment = auto_augment
        self.random_erasing = _check_probability("random_erasing", random_erasing)
        self.crop_padding = crop_padding
        self.resize = resize
        self._rand_augment = rand_augment_transform(
            auto_augment or "rand-m9-mstd0.5-inc1",
            {
                "translate_const": int(min(self.size) * 0.45),
                "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
                "interpolation": Image.Resampling.BICUBIC,
            },
        )
        self._erase = RandomErasing(self.random_erasing, mode="pixel", max_count=1, device="cpu")

    def _boxes(self, images: Images, uniforms: np.ndarray) -> np.ndarray:
        if self.crop_padding is None:
            return super()._boxes(images, uniforms)
        heights, widths = self._sizes(images)
        if heights.min() < self.size[0] or widths.min() < self.size[1]:
            raise ValueError(
                f"crop_padding={self.crop_padding} needs padded images of at least {self.size[0]}x{self.size[1]}, "
                f"got {heights.min()}x{widths.min()}; give resize={min(self.size)}, or leave both out for resized crops"
            )
        return crops.padded_crop_boxes(uniforms, heights, widths, self.size)

    def _transform(self, images: Images, uniforms: np.ndarray) -> torch.Tensor:
        if self.resize is not None:
            images = self._with_short_side(images, self.resize)
        images = self._zero_padded(images, self.crop_padding or 0)
        cropped = self._crop_and_flip(images, uniforms[:, :-1])
        seeds = (uniforms[:, -1] * 2**53).astype(np.int64).tolist()
        with preserved_global_generators():
            if self.auto_augment is not None:
                cropped = torch.stack([self._rand_augmented(*pair) for pair in zip(cropped, seeds, strict=True)])
            pixels = self._normalize(cropped)
            if self.random_erasing > 0:
                for image, seed in zip(pixels, seeds, strict=True):
                    seed_global_generators(seed + 1)
                    self._erase(image)
        return pixels

    def _with_short_side(self, images: Images, pixels: int) -> Images:
        """Resize images so that the short side has `pixels` and the crop fits."""
        if not isinstance(images, torch.Tensor):
            return [self._with_short_side(image[None], pixels)[0] for image in images]
        height, width = images.shape[2:]
        scale = max(pixels / min(height, width), self.size[0] / height, self.size[1] / width)
        size = (round(height * scale), round(width * scale))
        if size == (height, width):
            return images
        return resized_crop(images, np.tile([0, 0, height, width], (len(images), 1)), size)

    def _rand_augmented(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Apply RandAugment to one uint8 image [3, H, W] with its own seed."""
        seed_global_generators(seed)
        picture = self._rand_augment(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
