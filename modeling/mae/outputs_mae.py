"""Typed outputs of the MAE models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class MAEModelOutput(ModelOutput):
    """
    Output of [`MAEModel`].

    Attributes:
        last_hidden_state (`torch.Tensor` of shape `[B, 1 + K, D]`): tokens after the final norm; row 0 is the class
            token, the others are the kept patches in the order of the mask (natural order without masking).
        mask (`torch.Tensor` of shape `[B, L]`, *optional*): 0 kept, 1 removed, in image order.
        ids_restore (`torch.LongTensor` of shape `[B, L]`, *optional*): position of every patch among `[kept, removed]`.
        ids_keep (`torch.LongTensor` of shape `[B, K]`, *optional*): kept patches in the order of the rows.
        ids_masked (`torch.LongTensor` of shape `[B, L - K]`, *optional*): removed patches.
        hidden_states (`tuple[torch.Tensor]`, *optional*): input of the first layer and output of each, `[B, 1 + K, D]`.
        attentions (`tuple[torch.Tensor]`, *optional*): probabilities `[B, heads, 1 + K, 1 + K]` of each layer.
    """

    last_hidden_state: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.LongTensor | None = None
    ids_keep: torch.LongTensor | None = None
    ids_masked: torch.LongTensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(ModelOutput):
    """
    Output of [`MAEForPreTraining`].

    Attributes:
        loss (`torch.Tensor`, *optional*): mean squared error of the removed patches (scalar, float32).
        logits (`torch.Tensor` of shape `[B, L, p * p * C]`, *optional*): predicted patches, pixels in the order (row,
            column, channel); `None` on the fast training path.
        mask (`torch.Tensor` of shape `[B, L]`): 0 kept, 1 removed, in image order.
        ids_restore (`torch.LongTensor` of shape `[B, L]`): position of every patch among `[kept, removed]`.
        hidden_states (`tuple[torch.Tensor]`, *optional*): of the encoder, `[B, 1 + K, D]`.
        attentions (`tuple[torch.Tensor]`, *optional*): of the encoder.
        decoder_hidden_states (`tuple[torch.Tensor]`, *optional*): input of the first decoder layer and output of each,
            `[B, 1 + L, E]`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class MAEReconstructionOutput(ModelOutput):
    """
    The four pictures of [`MAEForPreTraining.reconstruct`], each `[B, C, H, W]` in the space of `pixel_values`.

    Attributes:
        mask_image (`torch.Tensor`): 1 where removed, 0 where kept.
        masked (`torch.Tensor`): the input with removed patches set to zero (the mean colour).
        reconstruction (`torch.Tensor`): the prediction for every patch.
        pasted (`torch.Tensor`): the kept patches and the prediction of the removed ones.
        error (`torch.Tensor` of shape `[B, rows, columns]`): mean squared pixel error per patch, an anomaly map.
    """

    mask_image: torch.Tensor | None = None
    masked: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    pasted: torch.Tensor | None = None
    error: torch.Tensor | None = None


__all__ = ["MAEForPreTrainingOutput", "MAEModelOutput", "MAEReconstructionOutput"]
