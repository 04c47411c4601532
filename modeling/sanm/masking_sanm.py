"""Adversarial noisy masking: hides the most and the least activated region of every image, and part of its label."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from .configuration_sanm import CHOICES, check_ratios
from .precision_sanm import at_least_float32

MAX_TRIES = 100  # draws of a box until it is smaller than the image
LEVELS = 255


@dataclass(frozen=True)
class MaskedViews:
    """
    What [`AdversarialNoisyMasking`] returns, for N images of C channels.

    Attributes:
        max_views (`torch.Tensor` of shape `[N, C, H, W]`): images without their most activated region.
        min_views (`torch.Tensor` of shape `[N, C, H, W]`): images without their least activated region.
        targets (`torch.Tensor` of shape `[N, K]`): masked labels of the first view.
        min_targets (`torch.Tensor` of shape `[N, K]`): those of the second; others only with `separate_areas`.
        boxes (`torch.LongTensor` of shape `[N, 2, 4]`): top, left, height and width in pixels of both boxes.
        activation (`torch.Tensor` of shape `[N, H, W]`): the maps, uint8.
        ratios (`torch.Tensor` of shape `[N, 2]`): share of the label that was moved, in either view.
    """

    max_views: torch.Tensor
    min_views: torch.Tensor
    targets: torch.Tensor
    min_targets: torch.Tensor
    boxes: torch.Tensor
    activation: torch.Tensor
    ratios: torch.Tensor


class AdversarialNoisyMasking:
    """
    Masks images where the network looks, and as much of their labels (section 3.2 of the paper; official CIFAR code).

    The masked share of an image is drawn from `area_range` and grows by `quality_slope * (1 - clean_prob)`. All images
    are handled at once, on their device, without waiting for it.

    Args:
        area_range (pair of `float`): range of the masked share of an image with a right label.
        min_aspect (`float`): the aspect, height over width, is drawn from `[min_aspect, 1 / min_aspect]`.
        quality_slope (`float`): what is added to the share for a wrong label.
        area_factor (`float`): share of the picture that is masked over share of the label that is moved.
        position (`str`): `"corner"`: the box begins at the extreme activation (official); `"center"`: it is centred on
            it.
        mask (`str`): `"activation"`; `"random"` puts boxes of the same sizes anywhere; `"none"` hides nothing of the
            pictures.
        mask_labels (`bool`): whether labels are masked.
        clip_labels (`bool`): whether masked labels are kept from becoming negative.
        separate_areas (`bool`): draw size and aspect for both views, of which each has its own masked label.

    Raises:
        ValueError: for a setting out of range.

    Example:

    ```python
    >>> masking = AdversarialNoisyMasking()
    >>> draws = masking.draw(len(images), images.shape[1], generator=torch.Generator().manual_seed(0))
    >>> views = masking(images, outputs.last_hidden_state, clean_prob, targets, draws)
    >>> views.max_views.shape == images.shape
    True
    ```
    """

    def __init__(
        self,
        area_range: tuple[float, float] = (0.02, 0.07),
        min_aspect: float = 0.8,
        quality_slope: float = 0.03,
        area_factor: float = 0.5,
        position: str = "corner",
        mask: str = "activation",
        mask_labels: bool = True,
        clip_labels: bool = False,
        separate_areas: bool = False,
    ):
        check_ratios(area_range, min_aspect, quality_slope, area_factor)
        for name, value, key in (("position", position, "mask_position"), ("mask", mask, "mask")):
            if value not in CHOICES[key]:
                raise ValueError(f"{name} must be one of {CHOICES[key]}, got {value!r}")
        self.area_range = (float(area_range[0]), float(area_range[1]))
        self.min_aspect = min_aspect
        self.quality_slope = quality_slope
        self.area_factor = area_factor
        self.position = position
        self.mask = mask
        self.mask_labels = mask_labels
        self.clip_labels = clip_labels
        self.separate_areas = separate_areas

    @classmethod
    def from_config(cls, config) -> "AdversarialNoisyMasking":
        """
        The masking of a model.

        Args:
            config (`SANMConfig`): its configuration.
        """
        return cls(
            area_range=tuple(config.area_range),
            min_aspect=config.min_aspect,
            quality_slope=config.quality_slope,
            area_factor=config.area_factor,
            position=config.mask_position,
            mask=config.mask,
            mask_labels=config.mask_labels,
            clip_labels=config.clip_labels,
            separate_areas=config.separate_areas,
        )

    def num_draws(self, num_channels: int) -> int:
        """
        Random numbers per image.

        Args:
            num_channels (`int`): C. The numbers are: share ~ U(`area_range`), aspect ~ U(`min_aspect`, `1 /
                min_aspect`), C values ~ U(0, 1) that fill the box of the first view, C for the second; with
                `separate_areas` then share and aspect of the second view; with `mask="random"` then row and column of
                both boxes, each ~ U(0, 1).
        """
        return 2 + 2 * num_channels + 2 * self.separate_areas + 4 * (self.mask == "random")

    def draw(
        self,
        count: int,
        num_channels: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """
        Draws the random numbers of a batch.

        Args:
            count (`int`): images.
            num_channels (`int`): their channels.
            device: where the numbers are needed.
            generator (`torch.Generator`, *optional*): draws them on its own device; torch's global one by default.

        Returns:
            `[count, num_draws(num_channels)]`, float64.
        """
        device = torch.device(device)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        where = device if generator is None else generator.device
        draws = torch.rand(count, self.num_draws(num_channels), dtype=dtype, device=where, generator=generator)
        second = 2 + 2 * num_channels
        for column in (0, second) if self.separate_areas else (0,):
            low, high = self.area_range
            draws[:, column] = low + (high - low) * draws[:, column]
            draws[:, column + 1] = self.min_aspect + (1 / self.min_aspect - self.min_aspect) * draws[:, column + 1]
        return draws.to(device, non_blocking=True)

    def __call__(
        self,
        images: torch.Tensor,
        feature_maps: torch.Tensor,
        clean_prob: torch.Tensor,
        targets: torch.Tensor,
        draws: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskedViews:
        """
        Args:
            images (`torch.Tensor` of shape `[N, C, H, W]`): normalised images.
            feature_maps (`torch.Tensor` of shape `[N, D, h, w]`): last feature maps of these images.
            clean_prob (`torch.Tensor` of shape `[N]` or `[N, 1]`): probability that each label is right.
            targets (`torch.Tensor` of shape `[N, K]`): soft labels; they are not changed.
            draws (`torch.Tensor` of shape `[N, num_draws(C)]`, *optional*): the random numbers, see `num_draws`.
            generator (`torch.Generator`, *optional*): draws them; torch's global generator by default.

        Returns:
            [`MaskedViews`].

        Raises:
            ValueError: for shapes that do not fit, images or targets of an integer type, probabilities outside [0, 1]
                (checked on the CPU), and boxes that are not smaller than the image after 100 draws.
        """
        _check_inputs(images, feature_maps, clean_prob, targets)
        size, channels, is_drawn = images.shape[-2:], images.shape[1], draws is None
        clean_prob = clean_prob.detach().reshape(-1)
        if draws is None:
            draws = self.draw(len(images), channels, images.device, generator)
            draws = self._until_boxes_fit(draws, clean_prob, size, generator, channels)
        elif draws.shape != (len(images), self.num_draws(channels)):
            expected = (len(images), self.num_draws(channels))
            raise ValueError(f"draws must have shape {expected}, got {tuple(draws.shape)}")
        else:
            draws = draws.to(images.device, non_blocking=True)
            self._check_fitting(draws, clean_prob, size, channels)
        ratios, sizes = self._sizes(draws, clean_prob, size, channels)
        activation = activation_maps(feature_maps.detach(), size)
        boxes = self._boxes(activation, sizes, draws)
        ratios = ratios.to(targets.dtype)
        max_targets = min_targets = targets.clone()
        if self.mask_labels:
            max_targets = min_targets = mask_labels(targets, ratios[:, 0], self.clip_labels)
            if self.separate_areas:
                min_targets = mask_labels(targets, ratios[:, 1], self.clip_labels)
        fills = draws[:, 2 : 2 + 2 * channels].to(images.dtype).reshape(-1, 2, channels)
        if self.mask == "none":
            max_views, min_views = images.clone(), images.clone()
        else:
            largest = self._largest_sides(sizes, size, is_drawn)
            max_views, min_views = (fill_boxes(images, boxes[:, view], fills[:, view], largest) for view in range(2))
        return MaskedViews(max_views, min_views, max_targets, min_targets, boxes, activation, ratios)

    def _sizes(self, draws, clean_prob, size, channels):
        """Shares `[N, 2]`, and heights and widths `[N, 2, 2]` of both boxes in pixels, rounded half to even."""
        first = draws[:, :2]
        second = draws[:, 2 + 2 * channels : 4 + 2 * channels] if self.separate_areas else first
        drawn = torch.stack([first, second], dim=1)
        ratios = drawn[..., 0] + self.quality_slope * (1 - clean_prob.to(draws.dtype))[:, None]
        area, aspect = self.area_factor * ratios * (size[0] * size[1]), drawn[..., 1]
        sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=-1)
        return ratios, sides.round().to(torch.int64)

    def _always_fits(self, size) -> bool:
        """Whether no draw can make a box as large as the image, known without looking at the draws."""
        area = self.area_factor * (self.area_range[1] + self.quality_slope) * size[0] * size[1]
        return round((area / self.min_aspect) ** 0.5) < min(size)

    def _largest_sides(self, sizes, size, is_drawn) -> tuple[int, int]:
        """Height and width that no box exceeds; on an accelerator without looking at the boxes."""
        if not sizes.numel():
            return 0, 0
        if sizes.device.type == "cpu":
            height, width = sizes.flatten(0, 1).amax(dim=0).tolist()
            return height, width
        if not is_drawn:
            return size[0], size[1]
        area = self.area_factor * (self.area_range[1] + self.quality_slope) * size[0] * size[1]
        side = round((area / self.min_aspect) ** 0.5) + 1
        return min(side, size[0]), min(side, size[1])

    def _fitting(self, draws, clean_prob, size, channels):
        _, sizes = self._sizes(draws, clean_prob, size, channels)
        return ((sizes[..., 0] < size[0]) & (sizes[..., 1] < size[1])).all(dim=1)

    def _check_fitting(self, draws, clean_prob, size, channels):
        if draws.device.type != "cpu":  # looking would wait for the device
            return
        if not self._fitting(draws, clean_prob, size, channels).all():
            raise ValueError(f"draws make a box that is not smaller than the image of {tuple(size)} pixels")

    def _until_boxes_fit(self, draws, clean_prob, size, generator, channels):
        """Draws again where a box is as high or as wide as the image (only very long images need it)."""
        if self._always_fits(size):
            return draws
        for _ in range(MAX_TRIES):
            fits = self._fitting(draws, clean_prob, size, channels)
            if fits.all():
                return draws
            again = self.draw(len(draws), channels, draws.device, generator)
            draws = torch.where(fits[:, None], draws, again)
        raise ValueError(
            f"the boxes are not smaller than the images of {tuple(size)} pixels after {MAX_TRIES} draws; "
            f"reduce area_range = {self.area_range}, quality_slope or area_factor"
        )

    def _boxes(self, activation, sizes, draws):
        """Top, left, height and width `[N, 2, 4]`, shifted into the image."""
        height, width = activation.shape[-2:]
        limits = torch.stack([height - sizes[..., 0], width - sizes[..., 1]], dim=-1)
        if self.mask == "random":
            corners = (draws[:, -4:].reshape(-1, 2, 2) * (limits + 1)).to(torch.int64)
        else:
            extremes = extreme_positions(activation)
            corners = extremes - sizes // 2 if self.position == "center" else extremes
        corners = torch.minimum(corners.clamp(min=0), limits)  # a box that sticks out is shifted in
        return torch.cat([corners, sizes], dim=-1)


def activation_maps(feature_maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Where a network looks: the sum of squares over channels, resized to the image and scaled to 0..255.

    Args:
        feature_maps (`torch.Tensor` of shape `[N, D, h, w]`): last feature maps.
        size (`tuple[int, int]`): height and width of the images in pixels.

    Returns:
        uint8 `[N, H, W]`, rounded down; a constant map gives zeros.
    """
    energy = at_least_float32(feature_maps).square().sum(dim=1)
    energy = functional.normalize(energy.flatten(1), dim=1, eps=1e-12).view_as(energy)
    columns = _resized(energy, size[1], dim=2)
    resized = _resized(columns, size[0], dim=1)
    low = resized.amin(dim=(1, 2), keepdim=True)
    high = resized.amax(dim=(1, 2), keepdim=True)
    return resized.sub_(low).mul_(LEVELS).div_(high - low + 1e-12).to(torch.uint8)


def _resized(values: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """
    Linear resizing of an axis of `[N, h, w]` with half-pixel centres and weights cut off at the edges: bit for bit what
    OpenCV computes, `a + (b - a) * weight` with one rounding after the product.

    `functional.interpolate` differs by rounding, and so finds other maxima where a map has a plateau.
    """
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    old, last = values.shape[dim], values.narrow(dim, values.shape[dim] - 1, 1)
    slopes = torch.cat([values, last], dim).diff(dim=dim)
    steps = torch.arange(length, dtype=exact, device=values.device)
    position = (steps + 0.5) * (old / length) - 0.5
    start = position.floor()
    weight = (position - start).to(values.dtype)
    weight = torch.where((start < 0) | (start >= old - 1), 0.0, weight).to(exact)
    # As a product of matrices, of which a row has a 1 and a weight: the product of two float32 is exact in float64, so
    # that the only rounding is that of the sum.
    begins = functional.one_hot(start.clamp(0, old - 1).to(torch.int64), old).to(exact)
    matrix = torch.cat([begins, begins * weight[:, None]], dim=1)
    table = torch.cat([values, slopes], dim).to(exact)
    return (matrix @ table if dim == 1 else table @ matrix.T).to(values.dtype)


def extreme_positions(activation: torch.Tensor) -> torch.Tensor:
    """
    Row and column of the first maximum and of the first minimum of maps, in reading order.

    Args:
        activation (`torch.Tensor` of shape `[N, H, W]`): maps.

    Returns:
        int64 `[N, 2, 2]`.
    """
    # First the row, then the column: the extremes of rows are found much faster than places in a whole map.
    rows = torch.stack([activation.amax(dim=2).argmax(dim=1), activation.amin(dim=2).argmin(dim=1)], dim=1)
    lines = activation.gather(1, rows[:, :, None].expand(-1, -1, activation.shape[2]))
    columns = torch.stack([lines[:, 0].argmax(dim=1), lines[:, 1].argmin(dim=1)], dim=1)
    return torch.stack([rows, columns], dim=-1)


def fill_boxes(
    images: torch.Tensor, boxes: torch.Tensor, fills: torch.Tensor, largest: tuple[int, int]
) -> torch.Tensor:
    """
    Overwrites one box of every image by a colour.

    Args:
        images (`torch.Tensor` of shape `[N, C, H, W]`): images; they are not changed.
        boxes (`torch.LongTensor` of shape `[N, 4]`): top, left, height and width in pixels.
        fills (`torch.Tensor` of shape `[N, C]`): colours. A box without height or width fills nothing.
        largest (`tuple[int, int]`): a height and a width that no box exceeds.

    Returns:
        `[N, C, H, W]`.
    """
    top, left, height, width = boxes[:, :, None].unbind(dim=1)
    # As many places for every image: a smaller box has its last row and column written again, an empty one the first
    # pixel as it is.
    empty = (height == 0) | (width == 0)
    rows = top + torch.minimum(torch.arange(largest[0], device=boxes.device), height - 1)
    columns = left + torch.minimum(torch.arange(largest[1], device=boxes.device), width - 1)
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1).masked_fill(empty, 0)
    fills = torch.where(empty, images[:, :, 0, 0], fills)
    places = places[:, None].expand(-1, images.shape[1], -1)
    masked = images.clone(memory_format=torch.contiguous_format)
    masked.flatten(2).scatter_(2, places, fills[:, :, None].expand_as(places))
    return masked


def mask_labels(targets: torch.Tensor, ratios: torch.Tensor, clip: bool = False) -> torch.Tensor:
    """
    Moves a share of every soft label from its largest class to all others in equal parts.

    Args:
        targets (`torch.Tensor` of shape `[N, K]`): soft labels; they are not changed.
        ratios (`torch.Tensor` of shape `[N]`): share of each.
        clip (`bool`): move at most what the largest class has; without it that can become negative, as officially.

    Returns:
        `[N, K]`, with the same sums.

    Raises:
        ValueError: for other shapes, or a single class.
    """
    if targets.ndim != 2 or targets.shape[1] < 2 or ratios.shape != targets.shape[:1]:
        raise ValueError(
            f"targets must have shape [N, K] with at least 2 classes and ratios [N], got {tuple(targets.shape)} and "
            f"{tuple(ratios.shape)}"
        )
    largest, top = targets.max(dim=1).values, targets.argmax(dim=1, keepdim=True)
    moved = (torch.minimum(ratios, largest) if clip else ratios).to(targets.dtype)[:, None]
    shift = (moved / (targets.shape[1] - 1)).expand_as(targets).scatter(1, top, -moved)
    return targets + shift


def _check_inputs(images, feature_maps, clean_prob, targets):
    if images.ndim != 4 or feature_maps.ndim != 4:
        raise ValueError(
            "images and feature_maps must be 4-D, [N, C, H, W] and [N, D, h, w], got shapes "
            f"{tuple(images.shape)} and {tuple(feature_maps.shape)}"
        )
    if clean_prob.ndim not in (1, 2) or clean_prob.numel() != len(clean_prob) or targets.ndim != 2:
        raise ValueError(
            "clean_prob must have shape [N] or [N, 1] and targets [N, K], got shapes "
            f"{tuple(clean_prob.shape)} and {tuple(targets.shape)}"
        )
    for name, tensor in (("images", images), ("targets", targets)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floats, got {tensor.dtype}")
    counts = {"images": images, "feature_maps": feature_maps, "clean_prob": clean_prob, "targets": targets}
    counts = {name: len(tensor) for name, tensor in counts.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"all inputs must be of the same N images, got {listed}")
    check_probabilities(clean_prob)


def check_probabilities(clean_prob: torch.Tensor) -> None:
    """
    Refuses values outside [0, 1]. Tensors on an accelerator are not looked at, which would wait for it.

    Raises:
        ValueError: for such a value.
    """
    if clean_prob.device.type != "cpu" or torch.compiler.is_compiling() or not clean_prob.numel():
        return
    low, high = (bound.item() for bound in clean_prob.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"clean_prob must be in [0, 1], got values from {low:.4g} to {high:.4g}")


__all__ = ["AdversarialNoisyMasking", "MaskedViews", "activation_maps", "extreme_positions", "mask_labels"]
