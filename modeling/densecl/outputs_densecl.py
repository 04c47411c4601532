"""Typed outputs of the DenseCL models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class DenseCLModelOutput(ModelOutput):
    """
    Output of [`DenseCLModel`]; nothing is normalised.

    Attributes:
        last_hidden_state (`torch.Tensor` of shape `[B, C, h, w]`): last feature map of the backbone.
        pooler_output (`torch.Tensor` of shape `[B, C]`): its mean over space.
        global_embedding (`torch.Tensor` of shape `[B, D]`): output of the global head.
        dense_embedding (`torch.Tensor` of shape `[B, D, L]`): output of the dense head, cells row by row.
        pooled_dense_embedding (`torch.Tensor` of shape `[B, D]`): mean of the dense embeddings.
        hidden_states (`tuple[torch.Tensor]`, *optional*): maps of the stem (before its max pool) and of every stage,
            or what another backbone returns.
        attentions (`tuple[torch.Tensor]`, *optional*): of another backbone.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    global_embedding: torch.Tensor | None = None
    dense_embedding: torch.Tensor | None = None
    pooled_dense_embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class DenseCLForPreTrainingOutput(ModelOutput):
    """
    Output of [`DenseCLForPreTraining`]. What belongs to the dense branch is `None` where that is not computed.

    Attributes:
        loss (`torch.Tensor`): `(1 - lambda) * loss_global + lambda * loss_dense`.
        loss_global, loss_dense (`torch.Tensor`): the two InfoNCE losses, unweighted.
        contra_single, contra_dense (`torch.Tensor`):
            Their weighted parts of `loss`; these are what the official code logs.
        accuracy_global, accuracy_dense (`torch.Tensor`): share of queries closer to their key than to all negatives.
        match_targets (`torch.Tensor`):
            Different key cells that are matched in an image, mean over the batch. Near 1: the features have collapsed.
        match_accuracy (`torch.Tensor`, *optional*):
            With `crop_boxes`: share of the cells inside the overlap of the views that are matched to within one cell.
        match_index (`torch.LongTensor` of shape `[B, L]`): the key cell of every query cell.
        query_features, key_features (`torch.Tensor` of shape `[B, D]`): normalised global embeddings.
        query_dense_features, key_dense_features (`torch.Tensor` of shape `[B, D, L]`): normalised dense embeddings.
        key_pooled_features (`torch.Tensor` of shape `[B, D]`): pooled, then normalised dense embeddings of the keys.
        query_feature_map (`torch.Tensor` of shape `[B, C, h, w]`): last map of the query's backbone.
        key_backbone_features (`torch.Tensor` of shape `[B, C, L]`):
            Last map of the key's backbone, pooled to the grid and normalised, where `matching` uses it.
        hidden_states (`tuple[torch.Tensor]`, *optional*): maps of the query's backbone.
        attentions (`tuple[torch.Tensor]`, *optional*): those of the query, of another backbone.
    """

    loss: torch.Tensor | None = None
    loss_global: torch.Tensor | None = None
    loss_dense: torch.Tensor | None = None
    contra_single: torch.Tensor | None = None
    contra_dense: torch.Tensor | None = None
    accuracy_global: torch.Tensor | None = None
    accuracy_dense: torch.Tensor | None = None
    match_targets: torch.Tensor | None = None
    match_accuracy: torch.Tensor | None = None
    match_index: torch.LongTensor | None = None
    query_features: torch.Tensor | None = None
    key_features: torch.Tensor | None = None
    query_dense_features: torch.Tensor | None = None
    key_dense_features: torch.Tensor | None = None
    key_pooled_features: torch.Tensor | None = None
    query_feature_map: torch.Tensor | None = None
    key_backbone_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["DenseCLForPreTrainingOutput", "DenseCLModelOutput"]
