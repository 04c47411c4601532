"""The networks that SANM can train: the official ones, and every backbone of transformers and timm."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoModel
from transformers.backbone_utils import BackboneMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from .configuration_sanm import SANMConfig
from .networks_sanm import SANMResNet
from .token_backbone_sanm import TokenBackbone, channels_first, is_vision_transformer


def build_backbone(config: SANMConfig) -> nn.Module:
    """
    The network of a configuration, without head and decoder.

    Args:
        config (`SANMConfig`): configuration.

    Returns:
        One of the official networks, the backbone that `AutoBackbone` makes of `backbone_config` or, for a vision
        transformer that is none (a plain ViT), [`TokenBackbone`]. For other networks, of which only the last map can be
        had, the model that `AutoModel` makes of it.

    Raises:
        ValueError: if `backbone_config` describes a model that gives no feature maps.
    """
    if config.backbone_config is None:
        return SANMResNet(config)
    inner = config.backbone_config
    if type(inner) in MODEL_FOR_BACKBONE_MAPPING:
        return AutoBackbone.from_config(inner)
    if is_vision_transformer(inner):
        return TokenBackbone(inner)
    try:
        return AutoModel.from_config(inner)
    except ValueError as error:
        raise ValueError(
            f"backbone_config must describe a network with feature maps (an AutoBackbone or a vision transformer), got "
            f"model_type {inner.model_type!r}: {error}"
        ) from error


def feature_maps(
    backbone: nn.Module, pixel_values: torch.Tensor, output_hidden_states: bool, **kwargs: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
    """
    Runs a network.

    Args:
        backbone: what `build_backbone` returned.
        pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
        output_hidden_states (`bool`): whether to return the earlier maps.
        kwargs: further arguments of transformers models.

    Returns:
        The last feature map `[B, D, h, w]`, the maps (or tokens) of all stages or None, and attentions or None.

    Raises:
        ValueError: if the network returns no feature map.
    """
    if isinstance(backbone, SANMResNet):
        maps = backbone(pixel_values)
        return maps[-1], maps if output_hidden_states else None, None
    if isinstance(backbone, BackboneMixin | TokenBackbone):
        outputs = backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, **kwargs
        )
        last = channels_first(outputs.feature_maps[-1], backbone.channels[-1])
    else:
        outputs = backbone(pixel_values, output_hidden_states=output_hidden_states, **kwargs)
        last = token_grid(outputs.last_hidden_state, pixel_values.shape[-2:], backbone.config)
    hidden_states = outputs.hidden_states if output_hidden_states else None
    return last, hidden_states, outputs.get("attentions")


def token_grid(tokens: torch.Tensor, size: tuple[int, int], config: Any) -> torch.Tensor:
    """
    The map of a vision transformer's tokens, without class and register tokens.

    Args:
        tokens (`torch.Tensor`): `[B, N, D]`, or a map `[B, D, h, w]`, which is returned as it is.
        size (`tuple[int, int]`): height and width of the images in pixels.
        config: configuration of the transformer; its `patch_size`, if it has one.

    Returns:
        `[B, D, h, w]`.

    Raises:
        ValueError: if the tokens make no grid.
    """
    if tokens.ndim == 4:
        return tokens
    patch = getattr(config, "patch_size", None)
    if patch is None:
        side = math.isqrt(tokens.shape[1]) if tokens.ndim == 3 else 0
        grid = (side, side)
    else:
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        grid = (size[0] // patch[0], size[1] // patch[1])
    count = grid[0] * grid[1]
    if tokens.ndim != 3 or not 0 < count <= tokens.shape[1]:
        raise ValueError(
            f"the backbone must return feature maps [B, D, h, w] or tokens [B, N, D] of a grid, got shape "
            f"{tuple(tokens.shape)} for images of {tuple(size)} pixels"
        )
    return tokens[:, tokens.shape[1] - count :].transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def probe_feature_map(backbone: nn.Module, config: SANMConfig) -> tuple[int, int]:
    """
    Channels of a network's last map, and how many times smaller than the image it is (rounded up).

    Args:
        backbone: what `build_backbone` returned; it sees one black image in evaluation mode.
        config (`SANMConfig`): configuration.

    Raises:
        ValueError: if the network takes no such images, or gives no map.
    """
    size = config.image_height_width
    network = backbone.model if isinstance(backbone, TokenBackbone) else backbone
    if network.main_input_name != "pixel_values":
        raise ValueError(
            f"backbone_config must describe a network for images, got model_type "
            f"{config.backbone_config.model_type!r}, which takes {network.main_input_name}"
        )
    parameter = next(backbone.parameters())
    black = torch.zeros(1, config.num_channels, *size, dtype=parameter.dtype, device=parameter.device)
    training = backbone.training
    try:
        last, _, _ = feature_maps(backbone.eval(), black, output_hidden_states=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"backbone_config (model_type {config.backbone_config.model_type!r}) does not take images of "
            f"{config.num_channels} channels (num_channels) and {size} pixels (image_size): {error}"
        ) from error
    backbone.train(training)
    return last.shape[1], max(math.ceil(side / grid) for side, grid in zip(size, last.shape[-2:], strict=True))
