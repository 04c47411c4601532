"""The encoder of DenseCL: a backbone with a global and a dense projection head (paper, section 3.2)."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoBackbone
from transformers.backbone_utils import BackboneType
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from .configuration_densecl import DenseCLConfig
from .inputs_densecl import check_images, image_channels
from .onednn_densecl import prefers_onednn
from .resnet_densecl import DenseCLResNet
from .token_backbone_densecl import TokenBackbone, channels_first


class DenseCLEncoding(NamedTuple):
    """
    What the encoder makes of B images; nothing is normalised.

    Attributes:
        feature_map: last map of the backbone `[B, C, h, w]`.
        global_embedding: `[B, D]`.
        dense_embedding: `[B, D, rows, columns]`, or `None` if it was not asked for.
        hidden_states: all maps of the ResNet; of another backbone its hidden states, or `None` if not asked for.
        attentions: of another backbone, or `None` if not asked for.
    """

    feature_map: torch.Tensor
    global_embedding: torch.Tensor
    dense_embedding: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None = None


class DenseCLPointwiseConv2d(nn.Conv2d):
    """
    1x1 convolution. On a CPU a matrix product is faster at the sizes of the dense head, unless convolutions, which run
    in oneDNN, have the faster products.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, C, h, w] -> [B, C', h, w]`, with the channels of a cell side by side in memory."""
        is_eager = not torch.compiler.is_compiling()
        if is_eager and hidden_states.is_cpu and hidden_states.dtype == torch.float32 and prefers_onednn():
            return super().forward(hidden_states.contiguous(memory_format=torch.channels_last))
        cells = hidden_states.permute(0, 2, 3, 1)
        return functional.linear(cells, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def build_backbone(config: DenseCLConfig) -> nn.Module:
    """
    The ResNet of a configuration, or the network of its `backbone_config`.

    Args:
        config (`DenseCLConfig`): configuration.

    Raises:
        ValueError: for networks that are neither a backbone of transformers or timm nor a vision transformer.
    """
    inner = config.backbone_config
    if inner is None:
        return DenseCLResNet(config)
    return AutoBackbone.from_config(inner) if type(inner) in MODEL_FOR_BACKBONE_MAPPING else TokenBackbone(inner)


class DenseCLEncoder(nn.Module):
    """
    Backbone and heads. The heads share nothing and have no batch normalisation.

    Args:
        config (`DenseCLConfig`): configuration.
        with_heads (`bool`): whether the heads exist; a backbone for other models has none.
    """

    def __init__(self, config: DenseCLConfig, with_heads: bool = True):
        super().__init__()
        self.config = config
        self.num_grid, self.num_channels = config.num_grid, image_channels(config)
        self.backbone = build_backbone(config)
        if with_heads:
            hidden, size = config.projection_hidden_size, config.projection_size
            channels = self.backbone.channels[-1]
            self.global_head = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, size))
            self.dense_head = nn.Sequential(
                DenseCLPointwiseConv2d(channels, hidden), nn.ReLU(), DenseCLPointwiseConv2d(hidden, size)
            )

    def forward(self, pixel_values: torch.Tensor, dense: bool = True, **kwargs) -> DenseCLEncoding:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, channels, H, W]`): normalised images.
            dense (`bool`): compute the dense embedding.
            kwargs: of another backbone (`interpolate_pos_encoding`, `output_hidden_states` ...).

        Raises:
            ValueError: for images of another shape, a backbone whose last map is not `[B, C, h, w]`, and a `num_grid`
                larger than the map.
        """
        outputs = self.run_backbone(pixel_values, **kwargs)
        feature_map = outputs.feature_maps[-1]
        return DenseCLEncoding(
            feature_map=feature_map,
            global_embedding=self.global_head(feature_map.mean(dim=(2, 3))),
            dense_embedding=self.dense_head(pool_to_grid(feature_map, self.num_grid)) if dense else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def check_step(self, batch: int, height: int, width: int) -> int | None:
        """
        Finds what a training forward of such images would stumble over, before it changes anything.

        Returns:
            Number of dense embeddings of an image; `None` with a foreign backbone, of which nothing is known before.

        Raises:
            ValueError: as [`DenseCLEncoder.forward`] and [`DenseCLResNet.check_step`].
        """
        if not isinstance(self.backbone, DenseCLResNet):
            return None
        rows, columns = self.backbone.check_step(batch, height, width)
        if self.num_grid is None:
            return rows * columns
        check_grid(self.num_grid, rows, columns)
        return self.num_grid**2

    def with_dense_embedding(self, encoding: DenseCLEncoding) -> DenseCLEncoding:
        """Adds the dense embedding to the encoding of a `forward` without it."""
        grid = pool_to_grid(encoding.feature_map, self.num_grid)
        return encoding._replace(dense_embedding=self.dense_head(grid))

    def feature_maps(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, ...]:
        """All maps of the ResNet, or the chosen ones of another backbone; arguments and errors as `forward`."""
        return self.run_backbone(pixel_values, **kwargs).feature_maps

    def run_backbone(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """As `feature_maps`, with all maps of the ResNet as hidden states, or what another backbone returns besides."""
        check_images(pixel_values, self.num_channels)
        if isinstance(self.backbone, DenseCLResNet):
            feature_maps = self.backbone(pixel_values)
            return BackboneOutput(feature_maps=feature_maps, hidden_states=feature_maps)
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None and getattr(self.config, name):
                kwargs[name] = True
        if timm_states := self.backbone.backbone_type == BackboneType.TIMM and kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = False  # transformers knows them with all stages chosen only
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)
        maps = tuple(outputs.feature_maps)
        is_turned = channels_first(maps[-1], self.backbone.channels[-1]) is not maps[-1]
        outputs.feature_maps = tuple(each.permute(0, 3, 1, 2) for each in maps) if is_turned else maps
        outputs.hidden_states = outputs.feature_maps if timm_states else outputs.hidden_states
        return outputs


def pool_to_grid(feature_map: torch.Tensor, num_grid: int | None) -> torch.Tensor:
    """
    Averages a map `[B, C, h, w]` over the cells of a grid (adaptive average pooling), `[B, C, num_grid, num_grid]`.

    Args:
        feature_map (`torch.Tensor`): the map.
        num_grid (`int`, *optional*): side of the grid; `None` leaves the map as it is.

    Raises:
        ValueError: for a grid larger than the map.
    """
    height, width = feature_map.shape[-2:]
    if num_grid is None or (height, width) == (num_grid, num_grid):
        return feature_map
    check_grid(num_grid, height, width)
    return functional.adaptive_avg_pool2d(feature_map, num_grid)


def check_grid(num_grid: int, height: int, width: int) -> None:
    """
    Raises:
        ValueError: for a grid larger than a map of `height` x `width` cells.
    """
    if num_grid > min(height, width):
        raise ValueError(f"num_grid must be at most the sides of the feature map, {height}x{width}, got {num_grid}")


__all__ = ["DenseCLEncoder", "DenseCLEncoding", "build_backbone", "pool_to_grid"]
