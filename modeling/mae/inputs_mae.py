"""What the models take: images, as floats."""

import torch
from transformers import PreTrainedConfig


def check_images(pixel_values: torch.Tensor | None, num_channels: int | None = None, views: int | None = None) -> None:
    """
    Args:
        pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images.
        num_channels (`int`, *optional*): channels that they must have.
        views (`int`, *optional*): for views `[B, views, C, H, W]` of every image.

    Raises:
        ValueError: if there are none, for images of another shape or number of channels, and for an integer type.
    """
    if pixel_values is None:
        raise ValueError("pixel_values is required")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be floats, as the image processor makes them, got {pixel_values.dtype}")
    shape = tuple(pixel_values.shape)
    expected, between, words = "[B, C, H, W]", (), "batch"
    if views is not None:
        expected, between, words = f"[B, {views}, C, H, W]", (views,), f"batch, {views} views"
    if len(shape) != 4 + len(between) or shape[1:-3] != between:
        raise ValueError(
            f"pixel_values must have shape {expected}: expected {4 + len(between)} dimensions ({words}, channels, "
            f"height, width), got {shape}"
        )
    if 0 in shape:
        raise ValueError(f"pixel_values must not be empty, got shape {shape}")
    if num_channels is not None and shape[-3] != num_channels:
        raise ValueError(
            f"pixel_values must have {num_channels} channels (num_channels of the configuration), got shape {shape}"
        )


def image_channels(config: PreTrainedConfig) -> int | None:
    """Channels of the images that a network takes, or the network of its `backbone_config`; None if it does not say."""
    while (inner := getattr(config, "backbone_config", None)) is not None:
        config = inner
    if config.model_type == "timm_wrapper":
        return (config.model_args or {}).get("in_chans", 3)
    return getattr(config, "num_channels", None)
