"""The projection head of SimCLR."""

import torch
from torch import nn
from torch.nn import functional

from .configuration_simclr import SimCLRConfig
from .normalization_simclr import SimCLRBatchNorm
from .resnet_simclr import BN_EPS, BN_MOMENTUM


class SimCLRProjectionLayer(nn.Module):
    """
    Linear layer without bias and batch normalisation; all but the last layer of a head also shift and rectify.

    Args:
        config (`SimCLRConfig`): configuration.
        in_features (`int`), out_features (`int`): widths.
        last (`bool`): leaves out the shift (beta) of the normalisation and the ReLU.
    """

    def __init__(self, config: SimCLRConfig, in_features: int, out_features: int, last: bool):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features, bias=False)
        self.normalization = SimCLRBatchNorm(
            out_features,
            eps=BN_EPS,
            momentum=BN_MOMENTUM,
            bias=not last,
            running_var="biased",
            global_stats=config.global_bn,
        )
        self.last = last

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, in_features] -> [B, out_features]`."""
        hidden_states = self.normalization(self.dense(hidden_states))
        return hidden_states if self.last else functional.relu(hidden_states)


class SimCLRProjectionHead(nn.Module):
    """
    Projection head `g` (v1 paper, section 4.2; official `projection_head`): none, linear or nonlinear.

    Args:
        config (`SimCLRConfig`): configuration.
        width (`int`): features of the encoder; the inner layers keep this width.
    """

    def __init__(self, config: SimCLRConfig, width: int):
        super().__init__()
        depth = config.num_head_layers
        self.layers = nn.ModuleList(
            SimCLRProjectionLayer(config, width, config.proj_out_dim if j == depth - 1 else width, last=j == depth - 1)
            for j in range(depth)
        )
        self.widths = [width] * max(depth, 1) + [config.proj_out_dim] * (depth > 0)

    def forward(self, features: torch.Tensor, start: int = 0, stop: int | None = None) -> tuple[torch.Tensor, ...]:
        """
        Args:
            features (`torch.Tensor` of shape `[B, width]`): representations `h`, or the output of layer `start`.
            start (`int`), stop (`int`, *optional*): layers to apply, as in a slice; all by default.

        Returns:
            `features` and the output of each layer; the last one of all is the projection.
        """
        activations = [features]
        for layer in self.layers[start:stop]:
            activations.append(layer(activations[-1]))
        return tuple(activations)
