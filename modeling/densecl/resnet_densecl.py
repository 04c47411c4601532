"""The torchvision-style ResNet of DenseCL, with the state-dict names of transformers' `ResNetBackbone`."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut

from .configuration_densecl import DenseCLConfig
from .normalization_densecl import DenseCLBatchNorm2d, check_count

# Convolutions on the CPU are faster if the channels of a pixel lie side by side, which
# every layer here keeps. Networks with narrower stems do not gain reliably.
CHANNELS_LAST_WIDTH = 16


class DenseCLConvLayer(ResNetConvLayer):
    """Convolution without bias, batch normalisation and, unless it is `None`, the activation; padded to keep sizes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: str | None = "relu",
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, activation=activation)
        padding = dilation * (kernel_size // 2)
        self.convolution.padding = (padding, padding)
        self.normalization = DenseCLBatchNorm2d(out_channels)
        if activation is not None:
            self.activation = nn.ReLU(inplace=True)


class DenseCLShortCut(ResNetShortCut):
    """Projection of the residual: 1x1 convolution and batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, stride)
        self.normalization = DenseCLBatchNorm2d(out_channels)


class DenseCLResidualLayer(GradientCheckpointingLayer):
    """
    Basic or bottleneck layer (He et al., arXiv 1512.03385, figure 5).

    Args:
        config (`DenseCLConfig`): configuration; `layer_type` and `style` are read.
        in_channels (`int`): channels of the input.
        out_channels (`int`): channels of the output; a bottleneck computes in a quarter of them.
        stride (`int`): stride of the layer.
        dilation (`int`): dilation of its (first) 3x3 convolution.
    """

    def __init__(self, config: DenseCLConfig, in_channels: int, out_channels: int, stride: int, dilation: int):
        super().__init__()
        if config.layer_type == "basic":
            layers = [
                DenseCLConvLayer(in_channels, out_channels, 3, stride, dilation),
                DenseCLConvLayer(out_channels, out_channels, 3, activation=None),
            ]
        else:
            width = out_channels // 4
            first, second = (stride, 1) if config.style == "caffe" else (1, stride)
            layers = [
                DenseCLConvLayer(in_channels, width, 1, first),
                DenseCLConvLayer(width, width, 3, second, dilation),
                DenseCLConvLayer(width, out_channels, 1, activation=None),
            ]
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = DenseCLShortCut(in_channels, out_channels, stride) if projects else nn.Identity()
        self.layer = nn.Sequential(*layers)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, C', H / stride, W / stride]`."""
        residual = self.shortcut(hidden_states)
        hidden_states = self.layer(hidden_states)
        hidden_states += residual
        return self.activation(hidden_states)


class DenseCLStem(nn.Module):
    """The 7x7 convolution with stride 2; the max pool after it halves the size once more."""

    def __init__(self, config: DenseCLConfig):
        super().__init__()
        self.embedder = DenseCLConvLayer(config.num_channels, config.embedding_size, kernel_size=7, stride=2)
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map before the max pool (the endpoint "stem") and after it."""
        stem = self.embedder(pixel_values)
        return stem, self.pooler(stem)


class DenseCLStage(nn.Module):
    """Residual layers of one resolution; the first one changes stride and width."""

    def __init__(self, config: DenseCLConfig, index: int):
        super().__init__()
        out_channels = config.hidden_sizes[index]
        in_channels = config.hidden_sizes[index - 1] if index else config.embedding_size
        dilation = config.dilations[index]
        first = DenseCLResidualLayer(config, in_channels, out_channels, config.strides[index], dilation)
        others = [
            DenseCLResidualLayer(config, out_channels, out_channels, 1, dilation)
            for _ in range(config.depths[index] - 1)
        ]
        self.layers = nn.Sequential(first, *others)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, C', H / stride, W / stride]`."""
        return self.layers(hidden_states)


class DenseCLStages(nn.Module):
    """All stages."""

    def __init__(self, config: DenseCLConfig):
        super().__init__()
        self.stages = nn.ModuleList([DenseCLStage(config, index) for index in range(config.num_stages)])


class DenseCLResNet(nn.Module):
    """
    ResNet with the options of the official code: strides, dilations, fewer stages, frozen stages, two styles.

    Args:
        config (`DenseCLConfig`): configuration.
    """

    def __init__(self, config: DenseCLConfig):
        super().__init__()
        self.frozen_stages = config.frozen_stages
        self.norm_eval = config.norm_eval
        self.channels = [config.embedding_size, *config.hidden_sizes]
        self.stride = 4 * math.prod(config.strides[: config.num_stages])
        self.embedder = DenseCLStem(config)
        self.encoder = DenseCLStages(config)
        self.freeze()
        self.train(self.training)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, num_channels, H, W]`): normalised images.

        Returns:
            The map of the stem, before its max pool, and of every stage.
        """
        if pixel_values.device.type == "cpu" and self.channels[0] >= CHANNELS_LAST_WIDTH:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        stem, hidden_states = self.embedder(pixel_values)
        feature_maps = [stem]
        for stage in self.encoder.stages:
            hidden_states = stage(hidden_states)
            feature_maps.append(hidden_states)
        return tuple(feature_maps)

    def check_step(self, batch: int, height: int, width: int) -> tuple[int, int]:
        """
        Finds what a training forward of such images would stumble over, before it moves running statistics.

        Returns:
            Rows and columns of the last map.

        Raises:
            ValueError: for one image with a 1x1 map under batch normalisation.
        """
        rows, columns = -(-height // self.stride), -(-width // self.stride)  # every layer rounds up
        last = self.encoder.stages[-1].layers[-1].layer[-1].normalization
        if isinstance(last, DenseCLBatchNorm2d) and last.training:  # none that is synchronised between processes
            check_count(batch * rows * columns)
        return rows, columns

    def train(self, mode: bool = True) -> "DenseCLResNet":
        """As in torch; the normalisation of frozen stages, with `norm_eval` all, stays in evaluation mode."""
        super().train(mode)
        for part in [self] if self.norm_eval else self._frozen_parts():
            for module in part.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Takes the parameters of the frozen stages out of training."""
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.embedder, *self.encoder.stages][: self.frozen_stages + 1]


__all__ = ["DenseCLResNet", "DenseCLResidualLayer"]
