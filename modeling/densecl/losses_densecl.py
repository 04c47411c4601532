"""InfoNCE against a queue of negatives, the loss of both branches of DenseCL (paper, equations 1 and 2)."""

from typing import NamedTuple

import torch

from .computed_gradients_densecl import WithGradients
from .onednn_densecl import float32_products_in_onednn
from .precision_densecl import at_least_float32

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
    image_keys: torch.Tensor | None = None,
    match_index: torch.Tensor | None = None,
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
        image_keys (`torch.Tensor` of shape `[G, D, M]`, *optional*):
            Further negatives, which get no gradient: the queries are those of G images, one image after the other, and
            each is compared with the M keys of its own image.
        match_index (`torch.Tensor` of shape `[G, N / G]`, *optional*): which of `image_keys` each query leaves out.

    Returns:
        [`InfoNCEOutput`]

    Raises:
        ValueError: for a temperature that is not positive or shapes that do not fit, and for one of `image_keys` and
            `match_index` without the other.
    """
    _check(query, positive, queue, temperature, chunk)
    _check_image_keys(query, image_keys, match_index)
    with torch.autocast(query.device.type, enabled=False), float32_products_in_onednn():
        query = at_least_float32(query)
        inputs = query, positive.to(query.dtype)
        with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        with torch.no_grad():
            loss, correct, gradients = _stream(
                *(tensor.detach() for tensor in inputs),
                queue.detach(),
                temperature,
                chunk,
                with_gradient,
                None if image_keys is None else (image_keys.detach().to(query.dtype), match_index),
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


def _check_image_keys(query, image_keys, match_index) -> None:
    if image_keys is None and match_index is None:
        return
    rows, size = query.shape
    groups = len(image_keys) if image_keys is not None and image_keys.dim() == 3 and image_keys.shape[1] == size else 0
    if not groups or match_index is None or tuple(match_index.shape) != (groups, rows / groups):
        given = [None if tensor is None else list(tensor.shape) for tensor in (image_keys, match_index)]
        raise ValueError(
            f"image_keys [G, {size}, M] and match_index [G, {rows} / G] must be given together, got {given[0]} and "
            f"{given[1]}"
        )


def _stream(query, positive, queue, temperature, chunk, with_gradient, of_image):
    """Sum of the losses, number of correct queries, gradients of the sum with respect to query and positive."""
    loss, correct = query.new_zeros(2)
    gradients = [torch.empty_like(query), torch.empty_like(positive)] if with_gradient else []
    cells = 1 if of_image is None else of_image[1].shape[1]
    step = max(1, QUERY_ROWS // cells) * cells  # of whole images
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        images = slice(start // cells, (start + step) // cells)
        scaled = query[rows] / temperature
        own = (scaled * positive[rows]).sum(1, keepdim=True)
        mean_key = positive[rows].clone(memory_format=torch.contiguous_format) if with_gradient else None
        negatives = of_image and tuple(tensor[images] for tensor in of_image)
        largest, sums, beaten = _stream_rows(scaled, own, queue, mean_key, chunk, negatives)
        loss += (sums.log() + largest - own).sum()
        correct += (~beaten).sum()
        if with_gradient:
            share = (own - largest).exp() / sums
            gradients[0][rows] = (mean_key / sums - positive[rows]) / temperature
            gradients[1][rows] = (share - 1) * scaled
    return loss, correct, gradients


def _stream_rows(scaled, own, queue, weighted_keys, chunk, of_image):
    """
    Running softmax of some queries over the positive and all negatives.

    Args:
        scaled: queries divided by the temperature, `[n, D]`.
        own: logits of the positives, `[n, 1]`.
        weighted_keys: starts as the positives and becomes the sum of all keys times `exp(logit - largest)`, `[n, D]`.
        of_image: keys `[g, D, M]` of the queries' images and which of them a query leaves out `[g, n / g]`, or `None`.

    Returns:
        The largest logit, the sum of `exp(logit - largest)` and whether a negative beats the positive, each `[n, 1]`.
    """
    largest, sums = own, torch.ones_like(own)
    for logits, add_keys in _negatives(scaled, queue, chunk, of_image):
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        shrink = (before - largest).exp()
        weights = logits.sub_(largest).exp_()
        sums = sums * shrink + weights.sum(1, keepdim=True)
        if weighted_keys is not None:
            add_keys(weighted_keys.mul_(shrink), weights)
    return largest, sums, largest > own


def _negatives(scaled, queue, chunk, of_image):
    """Logits `[n, m]` of some negatives after the other, each with a function that adds weighted keys to `[n, D]`."""
    if of_image is not None:
        keys, left_out = of_image
        logits = torch.bmm(scaled.reshape(*left_out.shape, -1), keys).scatter_(2, left_out[..., None], -torch.inf)
        shape = logits.shape
        yield (
            logits.flatten(0, 1),
            lambda total, weights: total.view(*left_out.shape, -1).baddbmm_(weights.view(shape), keys.mT),
        )
    columns = chunk or max(1, TILE_ELEMENTS // (ALIGNMENT * len(scaled))) * ALIGNMENT
    for start in range(0, queue.shape[1], columns):
        keys = queue[:, start : start + columns].to(scaled.dtype)
        yield scaled @ keys, lambda total, weights, keys=keys: total.addmm_(weights, keys.T)


__all__ = ["InfoNCEOutput", "info_nce"]
