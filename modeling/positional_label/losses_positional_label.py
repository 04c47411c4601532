"""Cross entropy over all pairs of tokens that never holds all pairs: value and gradients tile by tile."""

from typing import NamedTuple

import torch
from torch.nn import functional

from .computed_gradients_positional_label import WithGradients
from .onednn_positional_label import float32_products_in_onednn

# Logits of a tile: what stays in the cache of a core, and what keeps an accelerator busy.
TILE_BYTES = 2**20
ACCELERATOR_TILE_BYTES = 2**26


class PairParts(NamedTuple):
    """
    The two-layer head of pairs in parts: logits of anchor i and other token j are `weight gelu(anchors_i + others_j) +
    bias`.

    Attributes:
        anchors (`torch.Tensor` of shape `[B, S, E]`): what the first layer makes of the anchors, with its bias.
        others (`torch.Tensor` of shape `[B, N, E]`): what it makes of the other tokens.
        weight (`torch.Tensor` of shape `[C, E]`): the layers after the activation, as one matrix.
        bias (`torch.Tensor` of shape `[C]`): the same of their biases.
    """

    anchors: torch.Tensor
    others: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


class PairLabels(NamedTuple):
    """
    Labels `anchor_ranks_i - other_ranks_j + origin`, and which pairs count.

    Attributes:
        anchor_ranks (`torch.LongTensor` of shape `[B, S]`): may be expanded along B.
        other_ranks (`torch.LongTensor` of shape `[B, N]`): the same.
        origin (`int`): label of a token with itself.
        anchors_count (`torch.BoolTensor` of shape `[B, S]`, *optional*): a pair counts if one of its tokens does.
        others_count (`torch.BoolTensor` of shape `[B, N]`, *optional*): given together with `anchors_count`.
    """

    anchor_ranks: torch.Tensor
    other_ranks: torch.Tensor
    origin: int
    anchors_count: torch.Tensor | None = None
    others_count: torch.Tensor | None = None


def pair_logits(parts: PairParts) -> torch.Tensor:
    """All logits at once, `[B, S * N, C]`, anchor-major: what the loss below never holds."""
    hidden = functional.gelu(parts.anchors[:, :, None] + parts.others[:, None])
    return functional.linear(hidden.flatten(1, 2), parts.weight, parts.bias)


def pair_cross_entropy(
    parts: PairParts, labels: PairLabels, dropout: float = 0.0, tile_bytes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean cross entropy of all pairs of an anchor and another token, equal in value and gradients to that of
    [`pair_logits`]. The anchors are some of the tokens, or all.

    Tiles of pairs are evaluated one after the other. Their gradients are summed in the same pass, so that nothing of a
    tile is kept or computed again; memory grows with the number of tokens, not of pairs. Matrix products run in the
    type of `parts` (of autocast, where it is on), everything else and all sums in float32 at least.

    Args:
        parts (`PairParts`): the head in parts.
        labels (`PairLabels`): classes of the pairs.
        dropout (`float`): rate of the dropout after the activation.
        tile_bytes (`int`, *optional*): memory for the logits of a tile, by default 1 MiB on a CPU and 64 MiB elsewhere;
            at least one anchor is evaluated at a time.

    Returns:
        The mean over all pairs that count, and the share of them whose largest logit (the first of equal ones) is that
        of the label. With S anchors out of the N tokens, the sum of the loss is divided by S / N times the pairs that
        count with all N as anchors: the number of those that are found depends on the draw, and dividing by it would
        make a biased estimate. The share is that of the pairs that are found.
    """
    needs_gradients = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    device = parts.anchors.device.type
    tile_bytes = tile_bytes or (TILE_BYTES if device == "cpu" else ACCELERATOR_TILE_BYTES)
    compute_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parts.anchors.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False), float32_products_in_onednn():
        sums = _Sums(parts, compute_dtype, needs_gradients, dropout)
        images, anchors, others = *parts.anchors.shape[:2], parts.others.shape[1]
        anchor_bytes = others * len(parts.bias) * sums.logit_bytes
        anchors_at_once = max(1, min(anchors, tile_bytes // anchor_bytes))
        images_at_once = max(1, tile_bytes // (anchor_bytes * anchors)) if anchors_at_once == anchors else 1
        for first in range(0, images, images_at_once):
            rows = slice(first, first + images_at_once)
            for start in range(0, anchors, anchors_at_once):
                sums.add(rows, slice(start, start + anchors_at_once), labels)
        found, count = (number.to(sums.loss) for number in _counts(labels, images, anchors, others))
        count = count * (anchors / others)
        loss, accuracy = sums.loss / count, sums.hits / found
        if not needs_gradients:
            return loss, accuracy
        gradients = [total.div_(count) for total in sums.gradients]
    return WithGradients.apply(loss, *parts, *gradients), accuracy


def _counts(labels: PairLabels, images: int, anchors: int, others: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of pairs that count, of the given anchors and with all tokens as anchors; both at least 1."""
    of_given, of_all = images * anchors * others, images * others * others
    if labels.anchors_count is None:
        return torch.tensor(of_given), torch.tensor(of_all)
    silent = (~labels.others_count).sum(1)
    found = of_given - ((~labels.anchors_count).sum(1) * silent).sum()
    return found.clamp(min=1), (of_all - silent.square().sum()).clamp(min=1)


class _Sums:
    """Sums of loss, hits and gradients over tiles."""

    def __init__(self, parts: PairParts, compute_dtype: torch.dtype, needs_gradients: bool, dropout: float):
        exact = torch.promote_types(parts.anchors.dtype, torch.float32)
        self.anchors, self.others = parts.anchors.to(exact), parts.others.to(exact)
        self.weight, self.bias = parts.weight.to(compute_dtype), parts.bias.to(exact)
        self.compute_dtype, self.exact, self.dropout = compute_dtype, exact, dropout
        self.logit_bytes = self.bias.element_size()
        self.loss, self.hits = self.bias.new_zeros(()), self.bias.new_zeros(())
        sources = (self.anchors, self.others, self.weight, self.bias)
        self.gradients = [torch.zeros_like(part, dtype=exact) for part in sources] if needs_gradients else None

    def add(self, images: slice, anchors: slice, labels: PairLabels) -> None:
        """Adds the pairs of some anchors of some images."""
        before = self.anchors[images, anchors, None] + self.others[images, None]  # [b, s, N, E]
        hidden = functional.gelu(before)
        keep = None
        if self.dropout:
            keep = functional.dropout(torch.ones_like(hidden), self.dropout)
            hidden = hidden * keep
        hidden = hidden.flatten(0, 2).to(self.compute_dtype)
        logits = (hidden @ self.weight.T).to(self.exact).add_(self.bias)
        target = labels.anchor_ranks[images, anchors, None] - labels.other_ranks[images, None] + labels.origin
        target = target.reshape(-1, 1)
        true = logits.gather(1, target)
        largest, place = logits.max(1, keepdim=True)
        exponentials = logits.sub_(largest).exp_()
        total = exponentials.sum(1, keepdim=True)
        losses, hits = total.log() + largest - true, (place == target).to(self.exact)
        counts = None
        if labels.anchors_count is not None:
            counts = labels.anchors_count[images, anchors, None] | labels.others_count[images, None]
            counts = counts.reshape(-1, 1).to(self.exact)
            losses, hits = losses * counts, hits * counts
        self.loss += losses.sum()
        self.hits += hits.sum()
        if self.gradients is not None:
            ones = torch.ones_like(total) if counts is None else counts
            slopes = exponentials.mul_(ones / total).scatter_add_(1, target, -ones)  # softmax - one-hot
            self._add_gradients(images, anchors, slopes, hidden, before, keep)

    def _add_gradients(self, images, anchors, slopes, hidden, before, keep) -> None:
        of_anchors, of_others, of_weight, of_bias = self.gradients
        of_bias += slopes.sum(0)
        slopes = slopes.to(self.compute_dtype)
        of_weight += slopes.T @ hidden
        of_hidden = (slopes @ self.weight).to(self.exact).view_as(before)
        if keep is not None:
            of_hidden *= keep
        of_hidden = torch.ops.aten.gelu_backward(of_hidden, before)
        of_anchors[images, anchors] += of_hidden.sum(2)
        of_others[images] += of_hidden.sum(1)
