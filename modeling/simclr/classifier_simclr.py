"""The supervised head of SimCLR and its loss."""

import torch
from torch import nn
from torch.nn import functional

from .class_labels_simclr import class_targets
from .configuration_simclr import SimCLRConfig
from .heads_simclr import SimCLRProjectionHead
from .precision_simclr import at_least_float32


def make_classifier(config: SimCLRConfig, head: SimCLRProjectionHead) -> nn.Linear:
    """The supervised head, on the activation that `config.ft_proj_selector` names."""
    classifier = nn.Linear(head.widths[config.selected_layer], config.num_labels)
    classifier.zero_init = config.zero_init_logits_layer
    return classifier


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Mean softmax cross entropy, in float32 at least.

    Args:
        logits (`torch.Tensor` of shape `[B, num_labels]`): scores.
        labels (`torch.Tensor`): classes or distributions, see [`class_targets`].

    Raises:
        ValueError: as [`class_targets`].
    """
    logits = at_least_float32(logits)
    return functional.cross_entropy(logits, class_targets(labels, logits))


def kernel_decay(config: SimCLRConfig, classifier: nn.Linear) -> torch.Tensor | float:
    """`weight_decay / 2 * |W|^2` of the supervised head, which the official code adds to the loss under LARS."""
    return 0.5 * config.weight_decay * classifier.weight.square().sum() if config.weight_decay else 0.0


__all__ = ["classification_loss", "kernel_decay", "make_classifier"]
