"""Typed outputs of the SimCLR models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SimCLRForPreTrainingOutput(ModelOutput):
    """
    Output of [`SimCLRForPreTraining`] for `B` images, two views each; rows are all first views, then all second ones.

    Attributes:
        loss (`torch.Tensor`, *optional*): contrastive loss, with a linear probe also its loss and decay (scalar).
        contrastive_loss (`torch.Tensor`, *optional*): NT-Xent (scalar, at least float32).
        supervised_loss (`torch.Tensor`, *optional*): cross entropy of the linear probe (scalar).
        logits_ab (`torch.Tensor` of shape `[B, N]`, *optional*): similarities of the first views with the second views
            of all `N` images of all processes, over the temperature; only with `return_logits=True`.
        labels (`torch.LongTensor` of shape `[B]`, *optional*): the column of the sibling in `logits_ab`.
        contrast_accuracy (`torch.Tensor`, *optional*): share of rows of `logits_ab` that are largest at the sibling.
        contrast_entropy (`torch.Tensor`, *optional*): mean entropy of the softmax of `logits_ab`, in nats.
        projections (`torch.Tensor` of shape `[2B, proj_out_dim]`): outputs of the projection head, not normalised.
        pooler_output (`torch.Tensor` of shape `[2B, D]`): representations `h`.
        projection_states (`tuple[torch.Tensor]`): `h` and the output of each layer of the projection head.
        logits (`torch.Tensor` of shape `[2B, num_labels]`, *optional*): of the linear probe.
        hidden_states (`tuple[torch.Tensor]`, *optional*): feature maps after the stem and after each group.
        attentions (`tuple[torch.Tensor]`, *optional*): of a `backbone_config` that has them.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    supervised_loss: torch.Tensor | None = None
    logits_ab: torch.Tensor | None = None
    labels: torch.LongTensor | None = None
    contrast_accuracy: torch.Tensor | None = None
    contrast_entropy: torch.Tensor | None = None
    projections: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    projection_states: tuple[torch.Tensor, ...] | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["SimCLRForPreTrainingOutput"]
