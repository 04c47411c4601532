"""Image processor of SimCLR: two augmented views for pre-training, crop and flip for fine-tuning, central crop."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, Unpack

from .augmentation_simclr import DRAWS, PARAMETERS, SHARED_DRAWS, AugmentationSettings, augment, draw_parameters
from .crops_simclr import central_crop_box

MODES = ("pretrain", "finetune", "eval")
Images = torch.Tensor | list[torch.Tensor]


class SimCLRImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of [`SimCLRImageProcessor`], which documents them."""

    mode: str
    crop_proportion: float | None
    strength: float | int
    do_random_crop: bool
    flip_probability: float | int
    jitter_probability: float | int
    grayscale_probability: float | int
    blur_probability: float | int
    area_range: list[float | int] | tuple[float | int, ...]
    aspect_range: list[float | int] | tuple[float | int, ...]
    min_covered: float | int
    resample: str
    jitter: str
    brightness_mode: str
    do_blur: bool
    blur_sigma: str
    blur_kernel_size: int | None
    sigma_range: list[float | int] | tuple[float | int, ...]


class SimCLRImageProcessor(TorchvisionBackend):
    """
    SimCLR's transforms (2002.05709, appendix A) as batched tensor operations on the device of the images.

    - "pretrain": `views` augmented views of every image: TensorFlow's random crop with bicubic resizing, flip, colour
      jitter in random order, grey, blur. `pixel_values` [B, views, 3, height, width].
    - "finetune": random crop and flip only, `pixel_values` [B, 3, height, width].
    - "eval": central crop and bicubic resizing, `pixel_values` [B, 3, height, width].

    `pixel_values` are in [0, 1], without normalisation by a mean. All random numbers of a view come from `draws`
    uniform numbers, which can be given, so that they depend on nothing but the sample; the drawn parameters can be
    returned and replayed.

    Args:
        size: of the result in pixels, {"height", "width"} or an int.
        mode: "pretrain", "finetune" or "eval", of calls that do not say it. A call with an argument that only concerns
            pre-training (see `preprocess`) means "pretrain".
        crop_proportion: of the image that the central crop keeps; 1 keeps all. By default 0.875, but sizes up to 32
            (the longer side) are taken as they are and must fit, as in the official code.
        strength: of the colour jitter, s in the paper: 1 for ImageNet, 0.5 for CIFAR. At most 1.25; 0 leaves out jitter
            and grey, as in the official TF2 code.
        do_random_crop: without it the whole image is resized.
        flip_probability, jitter_probability, grayscale_probability, blur_probability: of the operations per view.
        area_range, aspect_range, min_covered: of the random crop: area as a fraction of the image, width / height (for
            square outputs), and the fraction that it covers at least.
        resample: "tf2" (released code, default), "tf1" (which trained the released weights) or "torch": bicubic
            interpolation as these libraries define it, without antialiasing.
        jitter: "tensorflow" (default) or "torchvision", whose contrast and saturation are defined differently.
        brightness_mode: "multiplicative" (SimCLR v2, default) or "additive" (v1).
        do_blur: whether there is a blur at all; the CIFAR recipe has none.
        blur_sigma: "per_batch" (default, official): one sigma for a view of the whole batch, or "per_image".
        blur_kernel_size: kernel argument k in pixels, a tenth of the height by default, for 2 * (k // 2) + 1 taps.
        sigma_range: of the blur in pixels.

    Raises:
        ValueError: A setting is unknown or out of range.

    Example:

    ```python
    >>> import torch
    >>> from hubmodels import SimCLRImageProcessor

    >>> processor = SimCLRImageProcessor(size=32, strength=0.5, do_blur=False)
    >>> images = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8)
    >>> processor(images, mode="pretrain", generator=torch.Generator().manual_seed(0))["pixel_values"].shape
    torch.Size([8, 2, 3, 32, 32])
    ```
    """

    valid_kwargs = SimCLRImageProcessorKwargs
    model_input_names = ["pixel_values"]

    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    mode = "eval"
    crop_proportion = None
    strength = 1.0
    do_random_crop = True
    flip_probability = 0.5
    jitter_probability = 0.8
    grayscale_probability = 0.2
    blur_probability = 0.5
    area_range = [0.08, 1.0]
    aspect_range = [3 / 4, 4 / 3]
    min_covered = 0.1
    resample = "tf2"
    jitter = "tensorflow"
    brightness_mode = "multiplicative"
    do_blur = True
    blur_sigma = "per_batch"
    blur_kernel_size = None
    sigma_range = [0.1, 2.0]

    def __init__(self, **kwargs: Unpack[SimCLRImageProcessorKwargs]):
        super().__init__(**kwargs)
        for name in ("area_range", "aspect_range", "sigma_range"):
            setattr(self, name, list(getattr(self, name)))  # as JSON brings them back
        _settings({name: getattr(self, name) for name in self._valid_kwargs_names})
        _check_mode(self.mode)
        _check_proportion(self.crop_proportion)

    @property
    def draws(self) -> int:
        """Uniform numbers per view."""
        return DRAWS

    @property
    def shared_draws(self) -> list[int]:
        """Columns of the uniform numbers that all samples of a batch take from the first one."""
        return list(SHARED_DRAWS) if self.do_blur and self.blur_sigma == "per_batch" else []

    def preprocess(
        self,
        images: Any,
        *args: Any,
        mode: str | None = None,
        views: int | None = None,
        params: Mapping[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        uniforms: np.ndarray | torch.Tensor | None = None,
        return_params: bool = False,
        dtype: torch.dtype = torch.float32,
        **kwargs: Unpack[SimCLRImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Processes an image or a batch.

        Args:
            images: PIL images, arrays or tensors, uint8 or floating in [0, 1], of any sizes. A batch [B, 3, H, W]
                on the device where the model is goes the shortest way.
            mode: "pretrain", "finetune" or "eval". By default the processor's, but "pretrain" if any of the following
                arguments is given.
            views: per image, 2 by default, or as many as `params` or `uniforms` have ("pretrain" only).
            params: drawn parameters to replay, as `return_params` gives them: tensors [B, views], "crop" and "order"
                [B, views, 4]; of a single image or view also without that axis. "sigma" may be one per view or one
                for all.
            generator: draws the numbers; torch's global generator by default.
            uniforms: float64 in [0, 1), [B, views, draws]: the numbers themselves, a row per view. Equal rows give
                equal pixels in whatever batch, but for the shared sigma of `blur_sigma="per_batch"`, which comes from
                the first sample.
            return_params: whether to add "params" to the result.
            dtype: of the computation and the result, float32 or float64.
            kwargs: settings for this call instead of the processor's, and transformers' `return_tensors`, `device`,
                `input_data_format`, `do_convert_rgb`.

        Returns:
            "pixel_values", and "params" if asked for: a dictionary of tensors on the CPU.

        Raises:
            ValueError: An argument is out of range or does not fit the images or the mode.
        """
        drawn = {"views": views, "params": params, "generator": generator, "uniforms": uniforms}
        given = [name for name, value in drawn.items() if value is not None] + ["return_params"] * return_params
        mode = mode or ("pretrain" if given else self.mode)
        _check_mode(mode)
        if mode == "eval" and given:
            raise ValueError(f"mode 'eval' draws nothing, got {', '.join(given)}")
        if mode == "finetune" and views not in (None, 1):
            raise ValueError(f"mode 'finetune' makes one view, got views={views}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        call = {"mode": mode, "dtype": dtype, "return_params": return_params, "draw": drawn}
        return super().preprocess(images, *args, image_like_kwargs={"call": call}, **kwargs)

    def _preprocess_image_like_inputs(
        self, images: Any, *args: Any, call: dict[str, Any], **kwargs: Any
    ) -> BatchFeature:
        if args:
            raise ValueError(f"preprocess takes one positional argument, images; got {len(args)} more")
        prepared = self._prepare_batch(images, **kwargs)
        settings = _settings(kwargs)
        return_tensors = kwargs.get("return_tensors")
        with torch.no_grad():
            if call["mode"] == "eval":
                params = _central_params(prepared, settings.size, kwargs["crop_proportion"])
                settings = _without_colors(settings)
            else:
                settings = _without_colors(settings) if call["mode"] == "finetune" else settings
                params = _random_params(prepared, settings, call["mode"] == "finetune", **call["draw"])
            pixels = augment(prepared, params, settings, call["dtype"])
        if call["mode"] != "pretrain":
            pixels = pixels.flatten(0, 1)
        result = BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
        if call["return_params"]:
            result["params"] = params
        return result

    def _prepare_batch(self, images: Any, **kwargs: Any) -> Images:
        """A batch [B, C, H, W] as it is, or a list of images [C, H, W]; of one size stacked."""
        device = kwargs.get("device")
        is_batch = isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[1] == 3
        if is_batch and kwargs.get("input_data_format") in (None, "channels_first"):
            prepared = images if device is None else images.to(device)
        else:
            prepared = self._prepare_image_like_inputs(images, **kwargs)
            if len(prepared) > 1 and len({(image.shape, image.dtype, image.device) for image in prepared}) == 1:
                prepared = torch.stack(prepared)
        if len(prepared) == 0:
            raise ValueError("images is empty, expected at least one image")
        for image in [prepared] if isinstance(prepared, torch.Tensor) else prepared:
            _check_pixels(image)
        return prepared


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")


def _check_proportion(proportion: float | None) -> None:
    if proportion is not None and not 0 < proportion <= 1:
        raise ValueError(f"crop_proportion must be in (0, 1], got {proportion}")


def _check_pixels(image: torch.Tensor) -> None:
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise ValueError(f"images must be uint8, or floating in [0, 1], got {image.dtype}")
    low, high = (value.item() for value in torch.aminmax(image))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"floating images must lie in [0, 1], got values from {low:g} to {high:g}; give 0..255 as uint8"
        )


def _settings(kwargs: Mapping[str, Any]) -> AugmentationSettings:
    """The settings of the augmentation among the processor's."""
    values = {field.name: kwargs[field.name] for field in fields(AugmentationSettings)}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    size = values["size"]
    if not (size.height and size.width):
        raise ValueError(f"size must give height and width in pixels, got {dict(size)}")
    return AugmentationSettings(**values | {"size": (size.height, size.width)})


def _without_colors(settings: AugmentationSettings) -> AugmentationSettings:
    return replace(settings, strength=0.0, do_blur=False)


def _heights_and_widths(images: Images) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(images, torch.Tensor):
        return np.full(len(images), images.shape[2]), np.full(len(images), images.shape[3])
    return np.array([image.shape[1] for image in images]), np.array([image.shape[2] for image in images])


def _central_params(images: Images, size: tuple[int, int], proportion: float | None) -> dict[str, torch.Tensor]:
    """The crops of the evaluation."""
    _check_proportion(proportion)
    boxes = []
    for height, width in zip(*(sides.tolist() for sides in _heights_and_widths(images)), strict=True):
        if proportion is not None or max(size) > 32:  # the model's rule for its stem
            boxes.append(central_crop_box(height, width, size, proportion or 0.875))
        elif (height, width) != size:
            raise ValueError(
                f"up to size 32 images are evaluated as they are and must be {size[0]}x{size[1]}, "
                f"got {height}x{width}; set crop_proportion to crop and resize"
            )
        else:
            boxes.append((0, 0, height, width))
    return {"crop": torch.tensor(boxes)[:, None], "flip": torch.zeros(len(boxes), 1, dtype=torch.bool)}


def _random_params(
    images: Images,
    settings: AugmentationSettings,
    is_single: bool,
    views: int | None,
    params: Mapping[str, torch.Tensor] | None,
    generator: torch.Generator | None,
    uniforms: np.ndarray | torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Given parameters, or new ones from given or new uniform numbers."""
    channels = {image.shape[0] for image in images}
    if not is_single and channels != {3}:
        raise ValueError(f"mode 'pretrain' needs images of 3 channels, got {sorted(channels)}")
    if sum(value is not None for value in (params, generator, uniforms)) > 1:
        raise ValueError("params, generator and uniforms exclude each other, got more than one")
    if params is not None:
        return _given_params(params, len(images), 1 if is_single else views, settings, _heights_and_widths(images))
    if views is None:
        views = 1 if is_single else 2 if uniforms is None or uniforms.ndim != 3 else uniforms.shape[1]
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    shape = (len(images), views, DRAWS)
    if uniforms is None:
        device = "cpu" if generator is None else generator.device
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
    table = uniforms.cpu().numpy() if isinstance(uniforms, torch.Tensor) else uniforms
    table = table.astype(np.float64, copy=False)
    if views == 1 and table.shape == (len(images), DRAWS):
        table = table[:, None]
    if table.shape != shape:
        raise ValueError(f"uniforms must have shape {shape} (images, views, draws), got {table.shape}")
    if table.min() < 0 or table.max() >= 1:
        raise ValueError(f"uniforms must lie in [0, 1), got values from {table.min()} to {table.max()}")
    return draw_parameters(table, *_heights_and_widths(images), settings)


def _given_params(
    params: Mapping[str, torch.Tensor],
    batch: int,
    views: int | None,
    settings: AugmentationSettings,
    sizes: tuple[np.ndarray, np.ndarray],
) -> dict[str, torch.Tensor]:
    """Parameters to replay, checked and brought to [B, views, ...]."""
    missing = [name for name in settings.parameters if name not in params]
    if missing:
        raise ValueError(f"params lacks {missing}, needed are {list(settings.parameters)}")
    values = {name: torch.as_tensor(params[name]).cpu() for name in settings.parameters}
    count = views or max(values["crop"].numel() // (4 * batch), 1)
    result = {}
    for name, value in values.items():
        shape = (batch, count, *PARAMETERS[name])
        if name == "sigma" and value.numel() in (1, count):
            value = value.reshape(1, -1).expand(shape)
        if value.numel() != batch * count * max(len(PARAMETERS[name]) * 4, 1):
            raise ValueError(f"params[{name!r}] must have shape {shape}, got {tuple(value.shape)}")
        result[name] = value.reshape(shape)
    _check_boxes(result["crop"], *sizes)
    if "order" in result and not torch.equal(result["order"].sort(dim=-1)[0], torch.arange(4).expand(batch, count, 4)):
        raise ValueError("params['order'] must list the operations 0, 1, 2, 3, each once")
    return result


def _check_boxes(boxes: torch.Tensor, heights: np.ndarray, widths: np.ndarray) -> None:
    top, left, height, width = boxes.unbind(-1)
    inside = (top >= 0) & (left >= 0) & (height > 0) & (width > 0)
    inside &= top + height <= torch.from_numpy(heights)[:, None]
    inside &= left + width <= torch.from_numpy(widths)[:, None]
    if not inside.all():
        image, view = torch.nonzero(~inside)[0].tolist()
        raise ValueError(
            f"params['crop'] (top, left, height, width) must lie in the image, got {boxes[image, view].tolist()} for "
            f"image {image} of {heights[image]}x{widths[image]}"
        )


__all__ = ["SimCLRImageProcessor"]

SimCLRImageProcessor.register_for_auto_class()
