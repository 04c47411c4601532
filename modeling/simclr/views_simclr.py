"""What the official weights and pre-training want of images: values in [0, 1], two views of each."""

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)


def is_range_known(pixel_values: torch.Tensor) -> bool:
    """
    Warns of images that do not lie in [0, 1].

    Args:
        pixel_values (`torch.Tensor`): images.

    Returns:
        Whether further batches need no look: after a warning, and on other devices than the CPU after the first batch,
        as looking costs them a synchronisation.
    """
    low, high = (bound.item() for bound in pixel_values.detach().aminmax())
    is_inside = low >= 0 and high <= 1  # never of NaN
    if not is_inside:
        logger.warning(
            f"pixel_values are expected in [0, 1], without subtracting a mean; got values from {low:.3g} to "
            f"{high:.3g}. Weights of the official code give poor features on such images."
        )
    return not is_inside or pixel_values.device.type != "cpu"


def flat_views(pixel_values: torch.Tensor | None, pairs: bool = True) -> torch.Tensor:
    """
    Rows of all first views, then of all second views.

    Args:
        pixel_values (`torch.Tensor`): views `[B, 2, C, H, W]`, or such rows `[2B, C, H, W]`.
        pairs (`bool`): whether rows must be two views of every image; without it any number of them will do.

    Returns:
        `torch.Tensor` of shape `[2B, C, H, W]`.

    Raises:
        ValueError: for another shape.
    """
    if pixel_values is None:
        raise ValueError("pixel_values is required")
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim == 5 and shape[1] == 2:
        return pixel_values.transpose(0, 1).flatten(0, 1)
    if pixel_values.ndim != 4 or (pairs and shape[0] % 2):
        raise ValueError(
            "expected two views of every image, pixel_values of shape [B, 2, C, H, W] or (an even number of rows, "
            f"first views first) [2B, C, H, W], got shape {shape}"
        )
    return pixel_values


__all__ = ["flat_views", "is_range_known"]
