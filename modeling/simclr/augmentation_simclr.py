"""SimCLR's augmentation (2002.05709, appendix A) of a batch with stored random numbers, as batched tensor operations.

All random numbers of a view come from one row of uniform numbers (`draw_parameters`); `augment` applies the drawn
parameters. Views are processed in chunks that fit into the processor's cache, sorted by the order of their colour
operations, so that one operation runs on many of them at once.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from .colors_simclr import affine_, blend_with_gray_, grayscale_, hue_, hue_shifts, saturation_
from .crops_simclr import CROP_DRAWS, sample_crop_boxes
from .resampling_simclr import RESAMPLES, bicubic_taps, blur_transposed, combine_rows, gaussian_kernels, transposed

JITTERS = ("tensorflow", "torchvision")
BRIGHTNESS_MODES = ("multiplicative", "additive")
BLUR_SIGMAS = ("per_batch", "per_image")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(itertools.permutations(range(4))))
# Columns of the table of uniform numbers after those of the crop.
_COLUMNS = ("flip", "apply_jitter", "order", "brightness", "contrast", "saturation", "hue", "gray", "blur", "sigma")
DRAWS = CROP_DRAWS + len(_COLUMNS)
# Columns that a batch takes from its first sample with `blur_sigma="per_batch"`.
SHARED_DRAWS = (CROP_DRAWS + _COLUMNS.index("sigma"),)
# Axes of each parameter after [B, views].
PARAMETERS = {"crop": (4,), "flip": (), "apply_jitter": (), "order": (4,), "brightness": (), "contrast": ()}
PARAMETERS |= {"saturation": (), "hue": (), "gray": (), "blur": (), "sigma": ()}

# Numbers per chunk of views: with the temporaries of the colour operations it stays in the second-level cache.
_CHUNK_NUMBERS = {"cpu": 200_000, "other": 20_000_000}


@dataclass(frozen=True)
class AugmentationSettings:
    """
    What is drawn and how it is applied; the arguments of [`SimCLRImageProcessor`] under the same names.

    Raises:
        ValueError: A setting is unknown or out of its range.
    """

    size: tuple[int, int]
    strength: float = 1.0
    do_random_crop: bool = True
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    area_range: tuple[float, float] = (0.08, 1.0)
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3)
    min_covered: float = 0.1
    resample: str = "tf2"
    jitter: str = "tensorflow"
    brightness_mode: str = "multiplicative"
    do_blur: bool = True
    blur_sigma: str = "per_batch"
    blur_kernel_size: int | None = None
    sigma_range: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        for name, allowed in (
            ("resample", RESAMPLES),
            ("jitter", JITTERS),
            ("brightness_mode", BRIGHTNESS_MODES),
            ("blur_sigma", BLUR_SIGMAS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("flip_probability", "jitter_probability", "grayscale_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.strength <= 1.25:
            raise ValueError(f"strength must be in [0, 1.25] (factors of contrast stay >= 0), got {self.strength}")
        for name in ("area_range", "aspect_range", "sigma_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {(low, high)}")
        if self.area_range[1] > 1 or not 0 <= self.min_covered <= self.area_range[1]:
            raise ValueError(
                "area_range must end at most at 1 and min_covered lie in [0, that end], "
                f"got {self.area_range} and {self.min_covered}"
            )
        if min(self.size) < 1 or (self.blur_kernel_size is not None and self.blur_kernel_size < 0):
            raise ValueError(f"sizes must be positive, got size {self.size}, blur_kernel_size {self.blur_kernel_size}")

    @property
    def blur_radius(self) -> int:
        """Half of the kernel argument, which is a tenth of the height; the kernel has 2 * radius + 1 taps."""
        argument = self.size[0] // 10 if self.blur_kernel_size is None else self.blur_kernel_size
        return argument // 2

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that these settings use."""
        names = ["crop", "flip"]
        if self.strength > 0 and self.jitter_probability > 0:
            names += ["apply_jitter", "order", "brightness", "contrast", "saturation", "hue"]
        if self.strength > 0 and self.grayscale_probability > 0:
            names += ["gray"]
        if self.do_blur:
            names += ["blur", "sigma"]
        return tuple(names)


def draw_parameters(
    uniforms: np.ndarray, heights: np.ndarray, widths: np.ndarray, settings: AugmentationSettings
) -> dict[str, torch.Tensor]:
    """
    The parameters of all views from a table of uniform numbers.

    Args:
        uniforms: float64 in [0, 1), [B, views, DRAWS]. A row decides alone about its view, but for "sigma" with
            `blur_sigma="per_batch"`, which all samples take from the first one, view by view.
        heights: of the images in pixels [B].
        widths: of the images in pixels [B].
        settings: what to draw.

    Returns:
        Tensors on the CPU, [B, views], and [B, views, 4] for "crop" (top, left, height, width) and "order", which lists
        the colour operations: 0 brightness, 1 contrast, 2 saturation, 3 hue. "hue" is in turns, "sigma" in pixels.
    """
    batch = len(uniforms)
    draw = {name: uniforms[..., CROP_DRAWS + column] for column, name in enumerate(_COLUMNS)}

    def between(name: str, low: float, high: float) -> np.ndarray:
        return (low + draw[name] * (high - low)).astype(np.float32)

    spread = 0.8 * settings.strength
    additive = settings.brightness_mode == "additive"
    sigma = between("sigma", *settings.sigma_range)
    drawn = {
        "crop": _draw_crops(uniforms[..., :CROP_DRAWS], heights, widths, settings),
        "flip": draw["flip"] < settings.flip_probability,
        "apply_jitter": draw["apply_jitter"] < settings.jitter_probability,
        "order": ORDERS[(draw["order"] * len(ORDERS)).astype(np.int64)],
        "brightness": between("brightness", -spread if additive else max(0.0, 1 - spread), spread + (not additive)),
        "contrast": between("contrast", 1 - spread, 1 + spread),
        "saturation": between("saturation", 1 - spread, 1 + spread),
        "hue": between("hue", -0.2 * settings.strength, 0.2 * settings.strength),
        "gray": draw["gray"] < settings.grayscale_probability,
        "blur": draw["blur"] < settings.blur_probability,
        "sigma": np.repeat(sigma[:1], batch, axis=0) if settings.blur_sigma == "per_batch" else sigma,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(drawn[name])) for name in settings.parameters}


def _draw_crops(
    uniforms: np.ndarray, heights: np.ndarray, widths: np.ndarray, settings: AugmentationSettings
) -> np.ndarray:
    """Boxes [B, views, 4]; whole images without `do_random_crop`."""
    batch, views = uniforms.shape[:2]
    if not settings.do_random_crop:
        boxes = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights, widths], axis=1)
        return np.repeat(boxes[:, None].astype(np.int64), views, axis=1)
    ratio = settings.size[1] / settings.size[0]
    aspect_range = (settings.aspect_range[0] * ratio, settings.aspect_range[1] * ratio)
    rows = uniforms.reshape(batch * views, CROP_DRAWS)
    sizes = np.repeat(heights, views), np.repeat(widths, views)
    boxes = sample_crop_boxes(rows, *sizes, settings.area_range, aspect_range, settings.min_covered)
    return boxes.reshape(batch, views, 4)


def augment(
    images: torch.Tensor | list[torch.Tensor],
    parameters: dict[str, torch.Tensor],
    settings: AugmentationSettings,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """
    Crops, resizes, flips, jitters, greys and blurs all views of all images with given parameters.

    Args:
        images: [B, 3, H, W], or B images [3, H, W] of any sizes; uint8, or floating in [0, 1]. Without colour
            operations the number of channels is free.
        parameters: as from `draw_parameters`.
        settings: how they are applied.
        dtype: of the computation and the result.

    Returns:
        [B, views, channels, height, width] in [0, 1], on the device of the images.
    """
    views = parameters["crop"].shape[1]
    plan = _Plan(parameters, settings, images[0].device, dtype)
    count, channels, (height, width) = len(plan.rows), images[0].shape[0], settings.size
    result = torch.empty(count, channels, height, width, dtype=dtype, device=plan.device)
    numbers = _CHUNK_NUMBERS["cpu" if plan.device.type == "cpu" else "other"]
    step = max(1, numbers // (channels * height * width))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        chunk = plan.crop(images, part)
        plan.jitter_(chunk, part)
        plan.grayscale_(chunk, part)
        plan.blur_and_store(chunk, part, result)
    return result.view(-1, views, channels, height, width)


class _Plan:
    """
    The parameters of all views, sorted by the pattern of their colour operations.

    Brightness and contrast are one operation here, so there are twelve patterns: the places of saturation and hue.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        settings: AugmentationSettings,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.settings, self.device, self.dtype = settings, device, dtype
        views = parameters["crop"].shape[1]
        flat = {name: parameters[name].flatten(0, 1).cpu() for name in settings.parameters}
        pattern = _patterns(flat)
        order = torch.from_numpy(np.argsort(pattern, kind="stable"))
        flat = {name: value[order] for name, value in flat.items()}
        self.rows, self.image_rows = order.to(device), (order // views).to(device)
        self.groups = _runs(pattern[order.numpy()])
        self._prepare_crop(flat)
        if self.groups:
            self._prepare_jitter(flat)
        off = torch.zeros(len(order), dtype=torch.bool)
        self.gray, self.blur = (flat.get(name, off).bool().numpy() for name in ("gray", "blur"))
        if "sigma" in flat:
            self.kernels = gaussian_kernels(flat["sigma"].to(device, dtype), settings.blur_radius)

    def _prepare_crop(self, flat: dict[str, torch.Tensor]) -> None:
        self.boxes = flat["crop"].numpy()
        top, left, height, width = flat["crop"].to(self.device).unbind(1)
        kind, (out_height, out_width) = self.settings.resample, self.settings.size
        self.vertical = bicubic_taps(top, height, out_height, kind, dtype=self.dtype)
        flip = flat["flip"].to(self.device).bool()
        self.horizontal = bicubic_taps(left, width, out_width, kind, flip, dtype=self.dtype)
        self.vertical_of_bytes = self.vertical[1] / 255

    def _prepare_jitter(self, flat: dict[str, torch.Tensor]) -> None:
        """Factors of all operations [N], those of brightness and contrast for each of the four places."""
        values = {name: flat[name].to(self.dtype)[:, None] for name in ("brightness", "contrast")}
        is_contrast, is_brightness = flat["order"] == CONTRAST, flat["order"] == BRIGHTNESS
        additive = self.settings.brightness_mode == "additive"
        factor = torch.where(is_contrast, values["contrast"], 1.0 if additive else values["brightness"]).to(self.dtype)
        self.is_contrast = is_contrast.numpy()
        self.factor = factor.t().to(self.device).unbind()
        self.mean_factor = ((1 - factor) * is_contrast).t().to(self.device).unbind()
        offset = (values["brightness"] * is_brightness).t().to(self.device).unbind()
        self.offset = offset if additive else None
        self.saturation = flat["saturation"].to(self.device, self.dtype)
        self.hue_shifts = hue_shifts(flat["hue"].to(self.device, self.dtype))

    def crop(self, images: torch.Tensor | list[torch.Tensor], part: slice) -> torch.Tensor:
        """Cropped, resized and flipped views of a chunk, transposed: [n, channels, width, height]."""
        image_rows = self.image_rows[part]
        if isinstance(images, torch.Tensor) and len(image_rows) > 1:
            return self._crop(images.index_select(0, image_rows), part)
        crops = [
            self._crop_alone(images[row], slice(part.start + i, part.start + i + 1))
            for i, row in enumerate(image_rows.tolist())
        ]
        return crops[0] if len(crops) == 1 else torch.cat(crops)

    def _crop_alone(self, image: torch.Tensor, part: slice) -> torch.Tensor:
        """As `_crop` for one image of any size, of which only the box is read."""
        top, left, height, width = self.boxes[part.start].tolist()
        return self._crop(image[None, :, top : top + height, left : left + width], part, top, left)

    def _crop(self, source: torch.Tensor, part: slice, top: int = 0, left: int = 0) -> torch.Tensor:
        """Resamples images [n, channels, H, W] whose first row and column are `top` and `left`."""
        vertical, horizontal = self.vertical[0][part], self.horizontal[0][part]
        if top or left:
            vertical, horizontal = vertical - top, horizontal - left
        vertical_weight = self.vertical_of_bytes if source.dtype == torch.uint8 else self.vertical[1]
        pixels = source.to(self.dtype).contiguous()
        rows = combine_rows(pixels, vertical, vertical_weight[part])
        return combine_rows(transposed(rows), horizontal, self.horizontal[1][part])

    def jitter_(self, chunk: torch.Tensor, part: slice) -> None:
        """Colour jitter of the views that have it, in place."""
        for pattern, start, stop in self.groups:
            start, stop = max(start, part.start), min(stop, part.stop)
            if start < stop:
                self._jitter_group_(chunk[start - part.start : stop - part.start], slice(start, stop), pattern)

    def _jitter_group_(self, images: torch.Tensor, part: slice, pattern: int) -> None:
        """All views of one pattern. They are clipped where an operation can leave [0, 1]."""
        saturation_place, hue_place = divmod(pattern, 4)
        torchvision = self.settings.jitter == "torchvision"
        for place in range(4):
            keeps_range = place > 0
            if place == saturation_place:
                (blend_with_gray_ if torchvision else saturation_)(images, self.saturation[part])
                keeps_range &= not torchvision
            elif place == hue_place:
                hue_(images, self.hue_shifts[part])
            else:
                mean_factor = self.mean_factor[place][part] if self.is_contrast[part, place].any() else None
                offset = self.offset[place][part] if self.offset else None
                affine_(images, self.factor[place][part], mean_factor, offset, gray_mean=torchvision)
                keeps_range = False
            if not keeps_range:
                images.clamp_(0, 1)

    def grayscale_(self, chunk: torch.Tensor, part: slice) -> None:
        """Greys the views that were drawn for it and clips all, in place."""
        rows = np.flatnonzero(self.gray[part])
        if len(rows) == len(chunk):
            grayscale_(chunk)
        elif len(rows):
            index = torch.from_numpy(rows).to(self.device)
            chunk.index_copy_(0, index, grayscale_(chunk.index_select(0, index)))
        chunk.clamp_(0, 1)

    def blur_and_store(self, chunk: torch.Tensor, part: slice, result: torch.Tensor) -> None:
        """Writes the chunk to its rows of the result, upright again, after the blur of those that were drawn for it."""
        targets, blurred = self.rows[part], self.blur[part]
        for rows, is_blurred in ((np.flatnonzero(blurred), True), (np.flatnonzero(~blurred), False)):
            if len(rows):
                kernels = self.kernels[part] if is_blurred else None
                if len(rows) < len(chunk):
                    index = torch.from_numpy(rows).to(self.device)
                    images, places = chunk.index_select(0, index), targets[index]
                    kernels = kernels[index] if is_blurred else None
                else:
                    images, places = chunk, targets
                upright = blur_transposed(images, kernels).clamp_(0, 1) if is_blurred else images.transpose(2, 3)
                result.index_copy_(0, places, upright)


def _patterns(flat: dict[str, torch.Tensor]) -> np.ndarray:
    """4 * (place of saturation) + (place of hue), or -1 without jitter, [N]."""
    if "order" not in flat:
        return np.full(len(flat["crop"]), -1)
    order = flat["order"].numpy()
    code = 4 * np.argmax(order == SATURATION, axis=1) + np.argmax(order == HUE, axis=1)
    return np.where(flat["apply_jitter"].bool().numpy(), code, -1)


def _runs(pattern: np.ndarray) -> list[tuple[int, int, int]]:
    """(pattern, start, stop) of every pattern of a sorted array but -1."""
    codes, starts = np.unique(pattern, return_index=True)
    stops = [*starts[1:].tolist(), len(pattern)]
    return [run for run in zip(codes.tolist(), starts.tolist(), stops, strict=True) if run[0] >= 0]
