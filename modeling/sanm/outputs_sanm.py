"""Output of SANM models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SANMOutput(ModelOutput):
    """
    Output of [`SANMForImageClassification`] and [`SANMEnsembleForImageClassification`].

    Attributes:
        loss (`torch.Tensor`, *optional*): the training loss (scalar); in evaluation the cross entropy.
        logits (`torch.Tensor` of shape `[B, num_labels]`): scores; probabilities with `softmax_outputs`.
        classification_loss (`torch.Tensor`, *optional*): cross entropy of the plain view (scalar).
        masked_loss (`torch.Tensor`, *optional*): cross entropy of the masked views (scalar, framework `"ce"`).
        reconstruction_loss (`torch.Tensor`, *optional*): mean squared error of the decoder (scalar, framework `"ce"`).
        last_hidden_state (`torch.Tensor` of shape `[B, C, h, w]`): last feature map, before pooling.
        pooler_output (`torch.Tensor` of shape `[B, C]`): its mean over space.
        reconstruction (`torch.Tensor` of shape `[B, num_channels, H, W]`, *optional*): output of the decoder.
        hidden_states (`tuple[torch.Tensor]`, *optional*): feature maps after the stem and every stage.
        attentions (`tuple[torch.Tensor]`, *optional*): of a `backbone_config` that has them.

    `feature_map` and `pooled` are further names of `last_hidden_state` and `pooler_output`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    classification_loss: torch.Tensor | None = None
    masked_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    @property
    def feature_map(self) -> torch.Tensor | None:
        """Last feature map `[B, C, h, w]`, before pooling: `last_hidden_state`."""
        return self.last_hidden_state

    @property
    def pooled(self) -> torch.Tensor | None:
        """Pooled features `[B, C]`: `pooler_output`."""
        return self.pooler_output


__all__ = ["SANMOutput"]
