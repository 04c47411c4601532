"""The supervised head of SimCLR and its loss."""

import torch
from torch import nn
from torch.nn import functional

from .configuration_simclr import SimCLRConfig
from .heads_simclr import SimCLRProjectionHead
from .precision_simclr import at_least_float32

IGNORED = -100  # of torch's cross entropy


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
        labels (`torch.Tensor`): classes `[B]`, integers (-100 leaves an image out), or target distributions
            `[B, num_labels]`.

    Raises:
        ValueError: for labels of another shape, classes that are no integers or, on a CPU, out of range (on other
            devices looking would cost a synchronisation).
    """
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])} or {tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    if labels.ndim == 1:
        labels = _checked_classes(labels, logits.shape[1])
    logits = at_least_float32(logits)
    return functional.cross_entropy(logits, labels if labels.ndim == 1 else labels.to(logits.dtype))


def _checked_classes(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels of shape [B] must be integers (classes), got {labels.dtype}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        known = labels[labels != IGNORED]
        if len(known) and (known.min() < 0 or known.max() >= num_labels):
            low, high = int(known.min()), int(known.max())
            raise ValueError(f"labels must be in [0, {num_labels}) (config.num_labels), got {low} to {high}")
    return labels.long()


def kernel_decay(config: SimCLRConfig, classifier: nn.Linear) -> torch.Tensor | float:
    """`weight_decay / 2 * |W|^2` of the supervised head, which the official code adds to the loss under LARS."""
    return 0.5 * config.weight_decay * classifier.weight.square().sum() if config.weight_decay else 0.0


__all__ = ["classification_loss", "kernel_decay", "make_classifier"]
