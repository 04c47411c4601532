"""Image processor of DenseCL: pairs of augmented views for pre-training, plain crops for everything else."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import SizeDict
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .augmentation_densecl import augment
from .center_crop_densecl import CenterCropBackend
from .pil_augmentation_densecl import augment_exactly
from .views_densecl import DRAWS_PER_VIEW, ViewParameters, ViewSettings


class DenseCLImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Arguments of [`DenseCLImageProcessor`] besides the common ones.

    Args:
        mode (`str`): `"eval"`, `"pretrain"` or `"finetune"`.
        engine (`str`): `"tensor"` or `"pil"`.
        views (`int`): views per image in pre-training.
        crop_pct (`float`): side of the evaluation crop as a share of the resized short side.
        crop_scale, crop_ratio, jitter_probability, brightness, contrast, saturation, hue, gray_probability,
            blur_probability, blur_sigma, flip_probability: see [`ViewSettings`].
    """

    mode: Literal["eval", "pretrain", "finetune"]
    engine: Literal["tensor", "pil"]
    views: int
    crop_pct: float
    crop_scale: list[float] | tuple[float, float]
    crop_ratio: list[float] | tuple[float, float]
    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray_probability: float
    blur_probability: float
    blur_sigma: list[float] | tuple[float, float]
    flip_probability: float


class DenseCLImageProcessor(CenterCropBackend):
    """
    Makes the inputs of DenseCL (arXiv 2011.09157, section 4.1; the augmentation is MoCo-v2's).

    `mode="eval"`: resizes the short side bilinearly to `size / crop_pct`, crops the centre and normalises with the
    ImageNet statistics; `pixel_values` is `[B, 3, height, width]`.

    `mode="pretrain"`: two views of each image, independently drawn: random resized crop, colour jitter in random order,
    grayscale, Gaussian blur, flip, normalisation. `pixel_values` is `[B, 2, 3, height, width]`; `crop_boxes`
    `[B, 2, 4]` holds (top, left, height, width) of the crops in pixels of the image, and `flips` `[B, 2]` which views
    are mirrored: with them cells of one view are found in the other.

    `mode="finetune"`: one view with crop and flip only, `[B, 3, height, width]`.

    `engine="tensor"` works on all views at once in floating point; `engine="pil"` equals the published Pillow pipeline,
    which rounds after every operation, bit for bit. They differ by less than 2/255 on average.

    Attributes:
        draws (`int`): uniform random numbers that a view takes.

    Example:

    ```python
    >>> import torch
    >>> from hubmodels.modeling.densecl import DenseCLImageProcessor

    >>> processor = DenseCLImageProcessor(size={"height": 64, "width": 64})
    >>> images = [torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)]
    >>> views = processor(images, mode="pretrain", generator=torch.Generator().manual_seed(0))
    >>> views.pixel_values.shape, views.crop_boxes.shape, views.flips.shape
    (torch.Size([1, 2, 3, 64, 64]), torch.Size([1, 2, 4]), torch.Size([1, 2]))
    ```
    """

    valid_kwargs = DenseCLImageProcessorKwargs
    draws = DRAWS_PER_VIEW

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    mode = "eval"
    engine = "tensor"
    views = 2
    crop_pct = 224 / 256
    crop_scale = ViewSettings.crop_scale
    crop_ratio = ViewSettings.crop_ratio
    jitter_probability = ViewSettings.jitter_probability
    brightness = ViewSettings.brightness
    contrast = ViewSettings.contrast
    saturation = ViewSettings.saturation
    hue = ViewSettings.hue
    gray_probability = ViewSettings.gray_probability
    blur_probability = ViewSettings.blur_probability
    blur_sigma = ViewSettings.blur_sigma
    flip_probability = ViewSettings.flip_probability

    def __init__(self, **kwargs: Unpack[DenseCLImageProcessorKwargs]):
        super().__init__(**kwargs)
        _check_settings(self.mode, self.engine, self.views, self.crop_pct)
        ViewSettings(**{name: getattr(self, name) for name in ViewSettings.__dataclass_fields__})

    def preprocess(
        self,
        images: ImageInput,
        *args,
        uniforms: np.ndarray | torch.Tensor | None = None,
        params: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        return_params: bool = False,
        **kwargs: Unpack[DenseCLImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Make the inputs of the model.

        Args:
            images (`ImageInput`): PIL images, arrays or tensors of any sizes, gray or coloured; uint8 values, or
                floats in [0, 1].
            uniforms (`torch.Tensor` or `np.ndarray`, *optional*): float64 `[B, views, draws]` in [0, 1): all random
                numbers of the views.
            params (`dict`, *optional*): what an earlier call gave with `return_params`: the same views again.
            generator (`torch.Generator`, *optional*): source of `uniforms` where neither is given.
            return_params (`bool`): whether to return what was drawn, as `params`.
            kwargs: every attribute, for this call. Where `mode` is left out, an argument above makes it `"pretrain"`;
                where `views` is left out, `uniforms` and `params` tell.

        Returns:
            `BatchFeature`: `pixel_values` float32, and for views `crop_boxes`, `flips` and where asked `params`.

        Raises:
            ValueError: a setting or an image is out of range; `uniforms` or `params` do not fit the images; they are
                both given, or in evaluation, where nothing is random.
        """
        random = {"uniforms": uniforms, "params": params, "generator": generator, "return_params": return_params}
        if any(value is not None and value is not False for value in random.values()):
            kwargs.setdefault("mode", "pretrain")
        drawn = uniforms if uniforms is not None else (params or {}).get("flip")
        if np.ndim(drawn) > 1:
            kwargs.setdefault("views", np.shape(drawn)[1])
        return super().preprocess(images, *args, image_like_kwargs=random, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        return kwargs | {name: tuple(kwargs[name]) for name in ("crop_scale", "crop_ratio", "blur_sigma")}

    def _validate_preprocess_kwargs(self, mode: str = "eval", engine: str = "tensor", views: int = 2, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        _check_settings(mode, engine, views, kwargs["crop_pct"])

    def _preprocess_image_like_inputs(self, images: ImageInput, *args, mode: str, **kwargs) -> BatchFeature:
        if mode == "eval":
            for name in ("uniforms", "params", "generator"):
                if kwargs[name] is not None:
                    raise ValueError(f"{name} was given, but nothing is random with mode='eval'")
            return super()._preprocess_image_like_inputs(images, *args, **kwargs)
        if mode == "finetune":
            off = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0, "views": 1}
            kwargs |= off
        outputs = self._views(images, **kwargs)
        if mode == "finetune":
            outputs["pixel_values"] = outputs["pixel_values"].squeeze(1)
        return BatchFeature(outputs, tensor_type=kwargs["return_tensors"])

    def process_image(
        self, image: ImageInput, do_rescale: bool | None = None, rescale_factor: float | None = None, **kwargs
    ) -> torch.Tensor:
        """As in transformers; floats are in [0, 1], and brought into the range that `do_rescale` expects."""
        image = super().process_image(image, **kwargs)
        if not image.is_floating_point():
            return image
        low, high = (value.item() for value in image.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"floating images must be in [0, 1], got values from {low:g} to {high:g}; give 0 to 255 as uint8"
            )
        return image / rescale_factor if do_rescale else image

    def _preprocess(self, images, do_resize: bool, size: SizeDict, crop_pct: float, **kwargs) -> BatchFeature:
        """Resize the short side, crop the centre, normalise."""
        if size.shortest_edge:
            return super()._preprocess(images, do_resize=do_resize, size=size, **kwargs)
        kwargs |= {"do_center_crop": do_resize, "crop_size": size}
        short = SizeDict(shortest_edge=int(min(size.height, size.width) / crop_pct))
        return super()._preprocess(images, do_resize=do_resize, size=short, **kwargs)

    def _views(
        self,
        images: ImageInput,
        *,
        uniforms: np.ndarray | torch.Tensor | None,
        params: Mapping[str, Any] | None,
        generator: torch.Generator | None,
        return_params: bool,
        engine: str,
        views: int,
        size: SizeDict,
        **kwargs,
    ) -> dict[str, Any]:
        """Draw and make the views of all images."""
        settings = ViewSettings(**{name: kwargs[name] for name in ViewSettings.__dataclass_fields__})
        prepared = self._prepare(images, engine, **kwargs)
        heights, widths = (np.array([image.shape[axis] for image in prepared]) for axis in (1, 2))
        if params is None:
            table = self._uniforms(uniforms, generator, (len(prepared), views, self.draws))
            drawn = ViewParameters.draw(table, heights, widths, settings)
        elif uniforms is not None:
            raise ValueError("give params or uniforms, not both")
        else:
            drawn = ViewParameters.from_dict(params, heights, widths, views)
        make = self._pil_views if engine == "pil" else self._tensor_views
        outputs: dict[str, Any] = {
            "pixel_values": make(prepared, drawn, _height_and_width(size), **kwargs),
            "crop_boxes": torch.from_numpy(np.ascontiguousarray(drawn.crop)),
            "flips": torch.from_numpy(np.ascontiguousarray(drawn.flip)),
        }
        if return_params:
            outputs["params"] = drawn.to_dict()
        return outputs

    @staticmethod
    def _uniforms(given: np.ndarray | torch.Tensor | None, generator: torch.Generator | None, shape: tuple[int, ...]):
        """The table of random numbers `[B, views, draws]`, checked or drawn."""
        if given is None:
            return torch.rand(shape, dtype=torch.float64, generator=generator).numpy()
        table = np.asarray(given, dtype=np.float64)
        if table.shape != shape:
            raise ValueError(f"uniforms must have shape {shape} (images, views, draws), got {table.shape}")
        if table.size and not (table.min() >= 0 and table.max() < 1):
            raise ValueError(f"uniforms must be in [0, 1), got values from {table.min()} to {table.max()}")
        return table

    def _prepare(self, images: ImageInput, engine: str, **kwargs) -> list[torch.Tensor]:
        """The images as tensors `[3, H, W]`, uint8 or floats in [0, 1]; those of Pillow keep their memory layout."""
        prepared = []
        for image in self._prepare_images_structure(images):
            if hasattr(image, "convert"):
                image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            else:
                image = self.process_image(
                    image,
                    do_convert_rgb=kwargs["do_convert_rgb"],
                    input_data_format=kwargs["input_data_format"],
                    device=kwargs["device"],
                )
            if image.shape[0] != 3:
                raise ValueError(f"views are made of images with 3 channels, got {image.shape[0]}")
            if image.dtype != torch.uint8 and not image.is_floating_point():
                raise ValueError(f"images must be uint8, or floats in [0, 1], got {image.dtype}")
            prepared.append(image)
        if not prepared:
            raise ValueError("images is empty, expected at least one image")
        return prepared

    @staticmethod
    def _tensor_views(images, drawn, size, *, do_normalize, image_mean, image_std, **kwargs) -> torch.Tensor:
        statistics = (image_mean, image_std) if do_normalize else ()
        return augment(images, drawn, size, *statistics)

    def _pil_views(
        self, images, drawn, size, *, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **kwargs
    ) -> torch.Tensor:
        views = augment_exactly(images, drawn, size).flatten(0, 1)
        views = self.rescale_and_normalize(views, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        return views.view(*drawn.flip.shape, 3, *size)


def _check_settings(mode: str, engine: str, views: int, crop_pct: float) -> None:
    for name, value, accepted in (
        ("mode", mode, ("eval", "pretrain", "finetune")),
        ("engine", engine, ("tensor", "pil")),
    ):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}")


def _height_and_width(size: SizeDict) -> tuple[int, int]:
    """The size of a view; a `shortest_edge` stands for a square."""
    if size.shortest_edge:
        return size.shortest_edge, size.shortest_edge
    return size.height, size.width


__all__ = ["DenseCLImageProcessor"]

DenseCLImageProcessor.register_for_auto_class()
