"""InfoNCE against a queue of negatives, the loss of both branches of DenseCL (paper, equations 1 and 2)."""

from typing import NamedTuple

import torch

from .computed_gradients_densecl import WithGradients
from .onednn_densecl import float32_products_in_onednn

# Logits that are held at a time: 4 MiB in float32, which stay in a CPU's last cache.
TILE_ELEMENTS = 2**20
QUERY_ROWS = 2048
# Matrix products of a width that is a multiple of this are faster on the CPU.
ALIGNMENT = 64


class InfoNCEOutput(NamedTuple):
    """
    What `info_nce` computes.

    Attributes:
        loss (`torch.Tensor`, scalar): mean cross entropy of the positive among all K + 1 keys.
        accuracy (`torch.Tensor`, scalar, no gradient): share of queries whose positive is no less similar than every
            negative.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor


def info_nce(
    query: torch.Tensor,
    positive: torch.Tensor,
    queue: torch.Tensor,
    temperature: float = 0.2,
    chunk: int | None = None,
) -> InfoNCEOutput:
    """
    Cross entropy of every query's positive key against the keys of a queue, without storing the N x K logits.

    The queue is read once, tile by tile, with a running log-sum-exp; the exact gradients are accumulated on the way.
    Nothing of the queue is kept for the backward pass, so it may be overwritten as soon as this function returns.
    Works in float32 (or float64) also under autocast and for half-precision input. Vectors are used as they are:
    normalise them before.

    Args:
        query (`torch.Tensor` of shape `[N, D]`): normalised queries.
        positive (`torch.Tensor` of shape `[N, D]`): the key of each query; gets a gradient if it requires one.
        queue (`torch.Tensor` of shape `[D, K]`): negatives in columns; gets no gradient.
        temperature (`float`): divides the similarities; positive.
        chunk (`int`, *optional*): columns of the queue that are handled at a time; default by memory.

    Returns:
        [`InfoNCEOutput`]

    Raises:
        ValueError: for a temperature that is not positive or shapes that do not fit.
    """
    _check(query, positive, queue, temperature, chunk)
    with torch.autocast(query.device.type, enabled=False), float32_products_in_onednn():
        if query.dtype != torch.float64:
            query, positive = query.float(), positive.float()
        inputs = query, positive.to(query.dtype)
        with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        with torch.no_grad():
            loss, correct, gradients = _stream(
                *(tensor.detach() for tensor in inputs), queue.detach(), temperature, chunk, with_gradient
            )
        if with_gradient:
            loss = WithGradients.apply(loss, *inputs, *gradients)
        return InfoNCEOutput(loss / len(query), correct / len(query))


def _check(query, positive, queue, temperature, chunk) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if query.dim() != 2 or query.shape != positive.shape or len(query) == 0:
        raise ValueError(
            f"query and positive must both have shape [N, D], got {list(query.shape)} and {list(positive.shape)}"
        )
    if queue.dim() != 2 or queue.shape[0] != query.shape[1]:
        raise ValueError(f"queue must have shape [{query.shape[1]}, K], got {list(queue.shape)}")


def _stream(query, positive, queue, temperature, chunk, with_gradient):
    """Sum of the losses, number of correct queries, gradients of the sum with respect to query and positive."""
    loss, correct = query.new_zeros(2)
    gradients = [torch.empty_like(query), torch.empty_like(positive)] if with_gradient else []
    for start in range(0, len(query), QUERY_ROWS):
        rows = slice(start, start + QUERY_ROWS)
        scaled = query[rows] / temperature
        own = (scaled * positive[rows]).sum(1, keepdim=True)
        mean_key = positive[rows].clone() if with_gradient else None
        largest, sums, beaten = _stream_rows(scaled, own, queue, mean_key, chunk)
        loss += (sums.log() + largest - own).sum()
        correct += (~beaten).sum()
        if with_gradient:
            share = (own - largest).exp() / sums
            gradients[0][rows] = (mean_key / sums - positive[rows]) / temperature
            gradients[1][rows] = (share - 1) * scaled
    return loss, correct, gradients


def _stream_rows(scaled, own, queue, weighted_keys, chunk):
    """
    Running softmax of some queries over the positive and all negatives.

    Args:
        scaled: queries divided by the temperature, `[n, D]`.
        own: logits of the positives, `[n, 1]`.
        weighted_keys: starts as the positives and becomes the sum of all keys times `exp(logit - largest)`, `[n, D]`.

    Returns:
        The largest logit, the sum of `exp(logit - largest)` and whether a negative beats the positive, each `[n, 1]`.
    """
    columns = chunk or max(1, TILE_ELEMENTS // (ALIGNMENT * len(scaled))) * ALIGNMENT
    largest, sums = own, torch.ones_like(own)
    for start in range(0, queue.shape[1], columns):
        keys = queue[:, start : start + columns].to(scaled.dtype)
        logits = scaled @ keys
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        shrink = (before - largest).exp()
        weights = logits.sub_(largest).exp_()
        sums = sums * shrink + weights.sum(1, keepdim=True)
        if weighted_keys is not None:
            weighted_keys.mul_(shrink).addmm_(weights, keys.T)
    return largest, sums, largest > own


__all__ = ["InfoNCEOutput", "info_nce"]
