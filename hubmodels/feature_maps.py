"""Feature maps in one layout."""

from collections.abc import Sequence

import torch


def channels_first(feature_map: torch.Tensor, channels: int) -> torch.Tensor:
    """A map [B, D, h, w] of one that may be [B, h, w, D], as those of timm's Swin and MambaOut are.

    Args:
        feature_map: The map.
        channels: Its channels D.

    Returns:
        The map, channels first.
    """
    return all_channels_first([feature_map], channels)[0]


def all_channels_first(feature_maps: Sequence[torch.Tensor], channels: int) -> tuple[torch.Tensor, ...]:
    """Maps of a network [B, D, h, w] of ones that may be [B, h, w, D]; the last, whose sides are smallest, tells.

    Args:
        feature_maps: The maps, the last one last.
        channels: Channels of the last.

    Returns:
        The maps, channels first.
    """
    shape = feature_maps[-1].shape
    turned = shape[1] != channels and shape[-1] == channels
    return tuple(each.permute(0, 3, 1, 2) if turned else each for each in feature_maps)
