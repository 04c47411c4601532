"""The supervised head of SimCLR and its loss."""

import torch
from torch import nn
from torch.nn import functional

from .configuration_simclr import SimCLRConfig
from .heads_simclr import SimCLRProjectionHead


def make_classifier(config: SimCLRConfig, head: SimCLRProjectionHead) -> nn.Linear:
    """The supervised head, on the activation that `config.ft_proj_selector` names."""
    classifier = nn.Linear(head.widths[config.selected_layer], config.num_labels)
    classifier.zero_init = config.zero_init_logits_layer
    return classifier


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Mean softmax cross entropy, in float32 at least.

    Args:
        logits (`torch.Tensor` of shape `[B, num_labels]`).
        labels (`torch.Tensor`): classes `[B]` or target distributions `[B, num_labels]`.

    Raises:
        ValueError: for labels of another shape.
    """
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])} or {tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, labels if labels.ndim == 1 else labels.to(logits.dtype))


def kernel_decay(config: SimCLRConfig, classifier: nn.Linear) -> torch.Tensor | float:
    """`weight_decay / 2 * |W|^2` of the supervised head, which the official code adds to the loss under LARS."""
    return 0.5 * config.weight_decay * classifier.weight.square().sum() if config.weight_decay else 0.0


__all__ = ["classification_loss", "kernel_decay", "make_classifier"]
