"""Feature maps in one layout."""

import torch


def channels_first(feature_map: torch.Tensor, channels: int) -> torch.Tensor:
    """A map [B, D, h, w] of one that may be [B, h, w, D], as those of timm's Swin and MambaOut are.

    Args:
        feature_map: The map.
        channels: Its channels D.

    Returns:
        The map, channels first.
    """
    turned = feature_map.shape[1] != channels and feature_map.shape[-1] == channels
    return feature_map.permute(0, 3, 1, 2) if turned else feature_map
