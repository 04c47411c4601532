"""Weights of hubmodels' contrastive ResNets under torchvision's names, for contenders that are built of torchvision."""

import re
from collections.abc import Mapping

import torch

_RULES = (
    (r"^embedder\.(?:embedder\.)?convolution\.", "conv1."),
    (r"^embedder\.(?:embedder\.)?normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
)


def torchvision_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a `SimCLRResNet` or `DenseCLResNet` as that of a torchvision ResNet without `fc`."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
