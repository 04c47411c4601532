"""The official networks: pre-activation ResNet-18 (DivideMix), and post-activation ResNet-18 and -50 (C2D)."""

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_sanm import BOTTLENECK_EXPANSION, SANMConfig
from .normalization_sanm import SANMBatchNorm2d

# Convolutions on the CPU are faster if the channels of a pixel lie side by side, which
# every layer here keeps. Networks with narrower stems do not gain reliably.
CHANNELS_LAST_WIDTH = 8


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    padding = (kernel_size - 1) // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


class SANMPreActLayer(GradientCheckpointingLayer):
    """
    Pre-activation block `[B, C, H, W] -> [B, C', H', W']` as the official code has it: the shortcut carries the
    *activated* input, where the usual block carries the input itself.

    Args:
        in_channels (`int`): channels of the input.
        width (`int`): channels of the output.
        stride (`int`): stride of the first convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = SANMBatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn2 = SANMBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(_conv(in_channels, width, 1, stride))
        else:
            self.shortcut = nn.Sequential()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        activated = functional.relu(self.bn1(hidden_states))
        hidden_states = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return hidden_states + self.shortcut(activated)


class SANMBasicLayer(GradientCheckpointingLayer):
    """Block of two 3x3 convolutions with post-activation; arguments as [`SANMPreActLayer`]."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = SANMBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = SANMBatchNorm2d(width)
        self.shortcut = _projection(in_channels, width, stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        residual = self.shortcut(hidden_states)
        hidden_states = functional.relu(self.bn1(self.conv1(hidden_states)))
        return functional.relu(self.bn2(self.conv2(hidden_states)) + residual)


class SANMBottleneckLayer(GradientCheckpointingLayer):
    """Bottleneck with post-activation and the stride on the 3x3 convolution; arguments as [`SANMPreActLayer`]."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * BOTTLENECK_EXPANSION
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = SANMBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = SANMBatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = SANMBatchNorm2d(out_channels)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        residual = self.shortcut(hidden_states)
        hidden_states = functional.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = functional.relu(self.bn2(self.conv2(hidden_states)))
        return functional.relu(self.bn3(self.conv3(hidden_states)) + residual)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), SANMBatchNorm2d(out_channels))


LAYERS = {"preact": SANMPreActLayer, "basic": SANMBasicLayer, "bottleneck": SANMBottleneckLayer}


class SANMResNet(nn.Module):
    """
    Stem and stages `layer1`, `layer2` ... with the official names. Pre-activation networks have neither a normalisation
    nor an activation after the last block.

    Args:
        config (`SANMConfig`): configuration without `backbone_config`.
    """

    def __init__(self, config: SANMConfig):
        super().__init__()
        stem, layer_class = config.widths[0], LAYERS[config.layer_type]
        kernel_size, stride = (7, 2) if config.pool else (3, 1)
        self.pools = config.pool
        self.conv1 = _conv(config.num_channels, stem, kernel_size, stride)
        self.bn1 = SANMBatchNorm2d(stem)
        self.channels = [stem, *config.hidden_sizes]
        stages = zip(self.channels, config.widths, config.hidden_sizes, config.depths, strict=False)
        for number, (in_channels, width, out_channels, depth) in enumerate(stages, start=1):
            first = layer_class(in_channels, width, stride=1 if number == 1 else 2)
            others = [layer_class(out_channels, width, stride=1) for _ in range(depth - 1)]
            setattr(self, f"layer{number}", nn.Sequential(first, *others))
        self.num_stages = len(config.depths)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, num_channels, H, W]`): normalised images.

        Returns:
            Maps after the stem and after each stage.
        """
        if pixel_values.device.type == "cpu" and self.channels[0] >= CHANNELS_LAST_WIDTH:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        hidden_states = functional.relu(self.bn1(self.conv1(pixel_values)))
        if self.pools:
            hidden_states = functional.max_pool2d(hidden_states, kernel_size=3, stride=2, padding=1)
        maps = [hidden_states]
        for number in range(1, self.num_stages + 1):
            maps.append(getattr(self, f"layer{number}")(maps[-1]))
        return tuple(maps)
