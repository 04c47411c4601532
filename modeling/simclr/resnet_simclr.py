"""The ResNets of the official SimCLR code: v1 and v2 stems, any width, selective kernels, squeeze-and-excitation."""

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_simclr import SimCLRConfig
from .normalization_simclr import SimCLRBatchNorm2d

BN_EPS = 1e-5
BN_MOMENTUM = 0.1  # the official "decay" of 0.9
MIN_SQUEEZED_CHANNELS = 32
# Convolutions on the CPU are faster if the channels of a pixel lie side by side, which
# every layer here keeps. Networks with narrower stems do not gain reliably.
CHANNELS_LAST_WIDTH = 16


def batch_norm(config: SimCLRConfig, channels: int) -> SimCLRBatchNorm2d:
    """Batch normalisation of feature maps `[B, channels, H, W]` as the official code has it."""
    return SimCLRBatchNorm2d(
        channels,
        eps=BN_EPS,
        momentum=BN_MOMENTUM,
        running_var=config.running_variance,
        global_stats=config.global_bn,
    )


class SimCLRConvLayer(nn.Module):
    """Convolution without bias, batch normalisation and, where `relu`, a ReLU: `[B, C, H, W] -> [B, C', H', W']`."""

    def __init__(
        self,
        config: SimCLRConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        relu: bool = True,
        zero_init: bool = False,
    ):
        super().__init__()
        # The official fixed padding for strides and SAME without stride are both (k - 1) // 2 for odd k.
        padding = (kernel_size - 1) // 2
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.normalization = batch_norm(config, out_channels)
        self.normalization.zero_init = zero_init
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the three in order."""
        return self.activation(self.normalization(self.convolution(hidden_states)))


class SimCLRSelectiveKernel(SimCLRConvLayer):
    """
    Selective kernel (Li et al., arXiv 1903.06586) as the official code has it: two branches of *one* 3x3 convolution,
    mixed channel by channel with a softmax of their pooled sum. `[B, C, H, W] -> [B, C', H', W']`.
    """

    def __init__(self, config: SimCLRConfig, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(config, in_channels, 2 * out_channels, kernel_size=3, stride=stride)
        squeezed = max(int(out_channels * config.sk_ratio), MIN_SQUEEZED_CHANNELS)
        self.squeeze = SimCLRConvLayer(config, out_channels, squeezed)
        self.expand = nn.Conv2d(squeezed, 2 * out_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Mixes the two halves of the channels."""
        first, second = super().forward(hidden_states).chunk(2, dim=1)
        pooled = (first + second).mean(dim=(2, 3), keepdim=True)
        weights = self.expand(self.squeeze(pooled)).unflatten(1, (2, -1)).softmax(dim=1)
        return weights[:, 0] * first + weights[:, 1] * second


class SimCLRSqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al., arXiv 1709.01507): channels scaled by a gate computed from their means."""

    def __init__(self, config: SimCLRConfig, channels: int, filters: int):
        super().__init__()
        reduced = max(1, int(filters * config.se_ratio))
        self.reduce = nn.Conv2d(channels, reduced, kernel_size=1)
        self.expand = nn.Conv2d(reduced, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Gates `[B, C, H, W]`."""
        gate = self.expand(functional.relu(self.reduce(hidden_states.mean(dim=(2, 3), keepdim=True))))
        return hidden_states * gate.sigmoid()


class SimCLRShortcut(SimCLRConvLayer):
    """Projection shortcut: a strided 1x1 convolution, or (ResNet-D) a 2x2 average pool and a 1x1 convolution."""

    def __init__(self, config: SimCLRConfig, in_channels: int, out_channels: int, stride: int):
        pools = config.sk_ratio > 0
        super().__init__(config, in_channels, out_channels, stride=1 if pools else stride, relu=False)
        self.pooled_stride = stride if pools else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Projects `[B, C, H, W]`."""
        if self.pooled_stride == 1:
            # TensorFlow's SAME leaves padding out of the average, which repeating the last row and column equals.
            hidden_states = functional.pad(hidden_states, (0, 1, 0, 1), mode="replicate")
        elif self.pooled_stride:
            # Of the zeros that the official code pads, only odd sizes see any.
            height, width = hidden_states.shape[-2:]
            hidden_states = functional.pad(hidden_states, (0, width % 2, 0, height % 2))
        if self.pooled_stride:
            hidden_states = functional.avg_pool2d(hidden_states, kernel_size=2, stride=self.pooled_stride)
        return super().forward(hidden_states)


class SimCLRResidualLayer(GradientCheckpointingLayer):
    """
    Basic or bottleneck block with post-activation; the stride is in the first 3x3 convolution.

    Args:
        config (`SimCLRConfig`): configuration.
        in_channels (`int`): channels of the input.
        filters (`int`): inner channels; a bottleneck puts out four times as many.
        stride (`int`): stride of the block.
        project (`bool`): whether the shortcut is a projection (the first block of every group).
    """

    def __init__(self, config: SimCLRConfig, in_channels: int, filters: int, stride: int, project: bool):
        super().__init__()
        last = {"relu": False, "zero_init": True}
        if config.layer_type == "basic":
            out_channels = filters
            layers = [
                SimCLRConvLayer(config, in_channels, filters, kernel_size=3, stride=stride),
                SimCLRConvLayer(config, filters, filters, kernel_size=3, **last),
            ]
        else:
            out_channels = 4 * filters
            if config.sk_ratio > 0:
                middle = SimCLRSelectiveKernel(config, filters, filters, stride)
            else:
                middle = SimCLRConvLayer(config, filters, filters, kernel_size=3, stride=stride)
            layers = [
                SimCLRConvLayer(config, in_channels, filters),
                middle,
                SimCLRConvLayer(config, filters, out_channels, **last),
            ]
        self.shortcut = SimCLRShortcut(config, in_channels, out_channels, stride) if project else nn.Identity()
        self.layer = nn.Sequential(*layers)
        self.se = SimCLRSqueezeExcitation(config, out_channels, filters) if config.se_ratio > 0 else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, C', H', W']`."""
        residual = self.shortcut(hidden_states)
        hidden_states = self.se(self.layer(hidden_states))
        hidden_states += residual
        return functional.relu(hidden_states, inplace=True)


class SimCLRStage(nn.Module):
    """A group of residual layers; the first one strides and projects."""

    def __init__(
        self, config: SimCLRConfig, in_channels: int, filters: int, out_channels: int, stride: int, depth: int
    ):
        super().__init__()
        first = SimCLRResidualLayer(config, in_channels, filters, stride, project=True)
        others = [SimCLRResidualLayer(config, out_channels, filters, 1, project=False) for _ in range(depth - 1)]
        self.layers = nn.Sequential(first, *others)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, C', H', W']`."""
        return self.layers(hidden_states)


class SimCLRStem(nn.Module):
    """
    Stem: 7x7 with stride 2 (v1), three 3x3 (ResNet-D, with selective kernels) or one 3x3 without stride (CIFAR).

    All but the last are followed by a 3x3 max pool with stride 2. The official weights expect TensorFlow's SAME padding
    there, which pads even sizes only at the bottom and right.
    """

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        width = config.embedding_size
        self.pool_padding = None if config.uses_cifar_stem else config.pool_padding
        self.is_deep = config.sk_ratio > 0 and not config.uses_cifar_stem
        if self.is_deep:
            self.stem = nn.Sequential(
                SimCLRConvLayer(config, config.num_channels, width // 2, kernel_size=3, stride=2),
                SimCLRConvLayer(config, width // 2, width // 2, kernel_size=3),
                SimCLRConvLayer(config, width // 2, width, kernel_size=3),
            )
        else:
            kernel_size, stride = (3, 1) if config.uses_cifar_stem else (7, 2)
            layer = SimCLRConvLayer(config, config.num_channels, width, kernel_size, stride)
            self.convolution, self.normalization = layer.convolution, layer.normalization

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W] -> [B, width, H', W']`."""
        if self.is_deep:
            hidden_states = self.stem(pixel_values)
        else:
            hidden_states = functional.relu(self.normalization(self.convolution(pixel_values)), inplace=True)
        if self.pool_padding is None:
            return hidden_states
        if self.pool_padding == "torch":
            return functional.max_pool2d(hidden_states, kernel_size=3, stride=2, padding=1)
        # SAME pads (0, 1) to even sizes and (1, 1) to odd ones; `ceil_mode` brings the last window in.
        height, width = hidden_states.shape[-2:]
        return functional.max_pool2d(
            hidden_states, kernel_size=3, stride=2, padding=(height % 2, width % 2), ceil_mode=True
        )


class SimCLRResNetEncoder(nn.Module):
    """The groups of residual layers."""

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        widths = [config.embedding_size, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            SimCLRStage(
                config,
                in_channels=widths[i],
                filters=config.embedding_size * 2**i,
                out_channels=widths[i + 1],
                stride=1 if i == 0 else 2,
                depth=depth,
            )
            for i, depth in enumerate(config.depths)
        )


class SimCLRResNet(nn.Module):
    """
    ResNet of the official code (module names as transformers' ResNet).

    Args:
        config (`SimCLRConfig`): configuration without `backbone_config`.
    """

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        self.embedder = SimCLRStem(config)
        self.encoder = SimCLRResNetEncoder(config)
        self.channels = [config.embedding_size, *config.hidden_sizes]

    def blocks(self) -> list[nn.Module]:
        """Stem and groups, in the order in which fine-tuning freezes them."""
        return [self.embedder, *self.encoder.stages]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, 3, H, W]`): images in [0, 1].

        Returns:
            Maps after the stem and after each group.
        """
        hidden_states = pixel_values
        if pixel_values.device.type == "cpu" and self.channels[0] >= CHANNELS_LAST_WIDTH:
            hidden_states = pixel_values.contiguous(memory_format=torch.channels_last)
        feature_maps = []
        for block in self.blocks():
            hidden_states = block(hidden_states)
            feature_maps.append(hidden_states)
        return tuple(feature_maps)
