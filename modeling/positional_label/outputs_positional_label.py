"""Typed outputs of the Positional Label models."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput


@dataclass
class PositionalLabelImageClassifierOutput(ImageClassifierOutput):
    """
    Output of [`PositionalLabelForImageClassification`].

    What begins with `position_` is of the only position head or, with `position_label="both"`, of the absolute one.

    Attributes:
        loss (`torch.Tensor`, *optional*): classification loss and, in training or with `return_position`, the weighted
            position loss (scalar).
        logits (`torch.Tensor` of shape `[B, num_labels]`): of the classes.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*): of the backbone.
        classification_loss (`torch.Tensor`, *optional*): scalar.
        position_loss (`torch.Tensor`, *optional*): mean cross entropy of the positional labels (scalar, at least
            float32), without its weight.
        position_accuracy (`torch.Tensor`, *optional*): share of right positional labels (scalar).
        position_logits (`torch.Tensor`, *optional*): with `return_position`; `[B, N, N]` for absolute labels, `[B, N *
            N, (2h - 1)(2w - 1)]` for relative ones, anchor-major.
        relative_position_loss, relative_position_accuracy, relative_position_logits (*optional*): the same of the
            second head.
    """

    classification_loss: torch.Tensor | None = None
    position_loss: torch.Tensor | None = None
    position_accuracy: torch.Tensor | None = None
    position_logits: torch.Tensor | None = None
    relative_position_loss: torch.Tensor | None = None
    relative_position_accuracy: torch.Tensor | None = None
    relative_position_logits: torch.Tensor | None = None


@dataclass
class PositionalLabelForPreTrainingOutput(ModelOutput):
    """
    Output of [`PositionalLabelForPreTraining`].

    Attributes:
        loss (`torch.Tensor`, *optional*): reconstruction loss and weighted position loss (scalar).
        logits (`torch.Tensor`, *optional*): the autoencoder's predictions of the patches, where it makes all of them.
        mask (`torch.Tensor` of shape `[B, L]`): 0 kept, 1 removed, in image order.
        ids_restore (`torch.LongTensor` of shape `[B, L]`): place of every patch among the kept and removed ones.
        ids_keep (`torch.LongTensor` of shape `[B, K]`): kept patches in the order of the tokens: their absolute labels.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*): of the encoder.
        reconstruction_loss (`torch.Tensor`, *optional*): of the autoencoder (scalar).
        position_loss, position_accuracy, position_logits, relative_position_loss, relative_position_accuracy,
            relative_position_logits (*optional*): as in [`PositionalLabelImageClassifierOutput`], for the K kept
            tokens.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.LongTensor | None = None
    ids_keep: torch.LongTensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    reconstruction_loss: torch.Tensor | None = None
    position_loss: torch.Tensor | None = None
    position_accuracy: torch.Tensor | None = None
    position_logits: torch.Tensor | None = None
    relative_position_loss: torch.Tensor | None = None
    relative_position_accuracy: torch.Tensor | None = None
    relative_position_logits: torch.Tensor | None = None


__all__ = ["PositionalLabelForPreTrainingOutput", "PositionalLabelImageClassifierOutput"]
