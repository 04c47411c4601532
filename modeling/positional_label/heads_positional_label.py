"""Position heads: a two-layer block on half of every token and a linear classifier over its positional labels."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers.utils import logging

from .labels_positional_label import (
    Grid,
    absolute_labels,
    check_anchors,
    check_grid,
    check_ids,
    num_relative_labels,
    relative_origin,
    smoothed_labels,
    token_ranks,
)
from .losses_positional_label import PairLabels, PairParts, pair_cross_entropy, pair_logits
from .precision_positional_label import at_least_float32

logger = logging.get_logger(__name__)

# From here on all pairs are many: 400 tokens have 160 000 of them per image.
MANY_TOKENS = 400


class PositionPrediction(NamedTuple):
    """
    Attributes:
        loss (`torch.Tensor`): mean cross entropy (scalar, at least float32).
        accuracy (`torch.Tensor`): share of right labels (scalar).
        logits (`torch.Tensor`, *optional*): on request: `[B, K, N]` of tokens, `[B, S * K, (2h - 1)(2w - 1)]` of pairs,
            anchor-major.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    logits: torch.Tensor | None = None


class _PositionHead(nn.Module):
    def __init__(self, inputs: int, hidden: int, features: int, classes: int, grid: Grid, dropout: float):
        super().__init__()
        self.grid = tuple(grid)
        self.fc1 = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, features)
        self.classifier = nn.Linear(features, classes)

    def extra_repr(self) -> str:
        return f"grid={self.grid[0]}x{self.grid[1]}"

    def _ids(self, tokens, ids, grid) -> torch.Tensor:
        """Indices `[B, K]` (expanded) of the tokens."""
        if ids is None:
            if tokens.shape[1] != grid[0] * grid[1]:
                raise ValueError(f"expected {grid[0]}x{grid[1]} tokens, got {tokens.shape[1]}; say which, with ids")
            ids = absolute_labels(grid, tokens.device)[None]
        else:
            check_ids(ids, tokens, grid)
            ids = ids.long()
        return ids.expand(tokens.shape[0], -1)


class AbsolutePositionHead(_PositionHead):
    """
    Which cell of the grid a token comes from (absolute positional label, APL).

    Args:
        width (`int`): channels D of the tokens, divisible by 4.
        grid (`tuple[int, int]`): rows and columns of the tokens; every cell is a class.
        dropout (`float`): rate after the activation.
        feature_split (`str`): `"half"`: the head reads the first D / 2 channels (published); `"full"`: all of them.

    Raises:
        ValueError: if 4 does not divide the width.
    """

    def __init__(self, width: int, grid: Grid, dropout: float = 0.0, feature_split: str = "half"):
        if width % 4:
            raise ValueError(f"hidden size must be divisible by 4 for absolute position labels, got {width}")
        inputs = width // 2 if feature_split == "half" else width
        super().__init__(inputs, width // 2, width // 4, grid[0] * grid[1], grid, dropout)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Position features `[B, K, D / 4]` of tokens `[B, K, D]`."""
        half = tokens[..., : self.fc1.in_features]
        return self.fc2(self.dropout(functional.gelu(self.fc1(half))))

    def forward(
        self,
        tokens: torch.Tensor,
        ids: torch.Tensor | None = None,
        grid: Grid | None = None,
        counted: torch.Tensor | None = None,
        sigma: float = 0.0,
        return_logits: bool = False,
    ) -> PositionPrediction:
        """
        Args:
            tokens (`torch.Tensor` of shape `[B, K, D]`): after the final norm, without class token.
            ids (`torch.LongTensor` of shape `[B, K]`, *optional*): their indices in the grid; all in order by default.
            grid (`tuple[int, int]`, *optional*): the grid of these images, which must be that of the head.
            counted (`torch.BoolTensor` of shape `[B, K]`, *optional*): tokens that the loss counts; all by default.
            sigma (`float`): above 0, labels are smoothed by a Gaussian of this many tokens.
            return_logits (`bool`): also return the logits.

        Raises:
            ValueError: for another grid, and for indices that are none of it.
        """
        check_grid(tuple(grid or self.grid), self.grid, smaller_is_fine=False)
        labels = self._ids(tokens, ids, self.grid)
        logits = self.classifier(self.features(tokens))
        exact = at_least_float32(logits)
        target = labels.flatten()
        if sigma:
            target = smoothed_labels(self.grid, sigma, exact.dtype, exact.device)[target]
        weights = torch.ones_like(labels, dtype=exact.dtype) if counted is None else counted.to(exact.dtype)
        weights = weights / weights.sum().clamp(min=1)
        with torch.autocast(exact.device.type, enabled=False):
            losses = functional.cross_entropy(exact.flatten(0, 1), target, reduction="none").view_as(weights)
        hits = (exact.detach().argmax(-1) == labels).to(weights.dtype)
        return PositionPrediction((losses * weights).sum(), (hits * weights).sum(), logits if return_logits else None)


class RelativePositionHead(_PositionHead):
    """
    The offset of every ordered pair of tokens (relative positional label, RPL), a token with itself included.

    Published is one layer on [first half of the anchor; second half of the other token] of all pairs. It is linear, so
    it is evaluated once per token and added per pair; the layers after the activation are one matrix. Both are exact.

    Args:
        width (`int`): channels D of the tokens, even.
        grid (`tuple[int, int]`): rows h and columns w; there are `(2h - 1)(2w - 1)` classes.
        dropout (`float`): rate after the activation.
        feature_split (`str`): `"half"`: halves as above; `"full"`: all channels of both tokens.

    Raises:
        ValueError: if the width is odd.
    """

    def __init__(self, width: int, grid: Grid, dropout: float = 0.0, feature_split: str = "half"):
        if width % 2:
            raise ValueError(f"hidden size {width} must be even to split tokens in halves")
        half, inputs = width // 2, width if feature_split == "half" else 2 * width
        super().__init__(inputs, half, half, num_relative_labels(grid), grid, dropout)

    def parts(self, tokens: torch.Tensor) -> PairParts:
        """The head of tokens `[B, K, D]` in parts, for all of them as anchors."""
        inputs = self.fc1.in_features // 2  # of either token: half of its channels, or all
        anchors = functional.linear(tokens[..., :inputs], self.fc1.weight[:, :inputs], self.fc1.bias)
        others = functional.linear(tokens[..., -inputs:], self.fc1.weight[:, inputs:])
        weight = self.classifier.weight @ self.fc2.weight
        bias = functional.linear(self.fc2.bias, self.classifier.weight, self.classifier.bias)
        return PairParts(anchors, others, weight, bias)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Position features `[B, K * K, D / 2]` of all pairs, anchor-major; large, for inspection."""
        parts = self.parts(tokens)
        hidden = functional.gelu(parts.anchors[:, :, None] + parts.others[:, None])
        return self.fc2(self.dropout(hidden.flatten(1, 2)))

    def forward(
        self,
        tokens: torch.Tensor,
        ids: torch.Tensor | None = None,
        grid: Grid | None = None,
        counted: torch.Tensor | None = None,
        anchors: torch.Tensor | None = None,
        return_logits: bool = False,
    ) -> PositionPrediction:
        """
        Args:
            tokens (`torch.Tensor` of shape `[B, K, D]`): after the final norm, without class token.
            ids (`torch.LongTensor` of shape `[B, K]`, *optional*): their indices in the grid; all in order by default.
            grid (`tuple[int, int]`, *optional*): the grid of these images, at most that of the head.
            counted (`torch.BoolTensor` of shape `[B, K]`, *optional*): a pair counts if one of its tokens is marked.
            anchors (`torch.LongTensor` of shape `[B, S]`, *optional*): rows of `tokens` that are anchors; all by
                default. With random ones the loss is an unbiased estimate of that of all pairs: with `counted` too,
                as it is divided by the number of pairs to expect, not of those that are drawn. The accuracy is of the
                latter.
            return_logits (`bool`): also return the logits of all these pairs, which are many.

        Raises:
            ValueError: for a larger grid, for indices that are none of it, and for anchors that are no rows of
                `tokens`.
        """
        grid = tuple(grid or self.grid)
        check_grid(grid, self.grid, smaller_is_fine=True)
        if anchors is None and tokens.shape[1] > MANY_TOKENS:
            logger.warning_once(
                f"relative position labels of {tokens.shape[1]} tokens are {tokens.shape[1] ** 2} pairs per image; "
                "config.num_anchors (8, say) takes a random part of them"
            )
        ranks = token_ranks(self._ids(tokens, ids, grid), grid[1], self.grid[1])
        parts, labels = self.parts(tokens), PairLabels(ranks, ranks, relative_origin(self.grid), counted, counted)
        if anchors is not None:
            check_anchors(anchors, tokens)
            anchors = anchors.long()
            rows = anchors[..., None].expand(-1, -1, parts.anchors.shape[-1])
            parts = parts._replace(anchors=parts.anchors.gather(1, rows))
            labels = labels._replace(anchor_ranks=ranks.gather(1, anchors))
            if counted is not None:
                labels = labels._replace(anchors_count=counted.gather(1, anchors))
        logits = pair_logits(parts) if return_logits else None
        loss, accuracy = pair_cross_entropy(parts, labels, self.dropout.p if self.training else 0.0)
        return PositionPrediction(loss, accuracy, logits)


__all__ = ["AbsolutePositionHead", "PositionPrediction", "RelativePositionHead"]
