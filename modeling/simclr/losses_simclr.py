"""NT-Xent, the contrastive loss of SimCLR (paper, section 2.1, equation 1), without storing the logits."""

from typing import NamedTuple

import torch
import torch.distributed as dist

from .computed_gradients_simclr import WithGradients
from .onednn_simclr import float32_products_in_onednn
from .precision_simclr import at_least_float32

REDUCTIONS = ("official", "mean")
# Logits that are held at a time: 4 MiB in float32, which stay in a CPU's last cache.
TILE_ELEMENTS = 2**20


class NTXentOutput(NamedTuple):
    """
    What `nt_xent` computes.

    Attributes:
        loss (`torch.Tensor`, scalar): the loss of this process over its own 2b rows; the only part with a gradient.
        accuracy (`torch.Tensor`, scalar): share of this process' first views whose most similar second view, among
            those of the global batch, is their own.
        entropy (`torch.Tensor`, scalar): mean entropy, in nats, of the softmax over these second views.
        logits_ab (`torch.Tensor` of shape `[b, N]` or `None`): similarities of own first views to all second views,
            divided by the temperature; only if asked for.
        labels (`torch.LongTensor` of shape `[b]`): column of the own second view in `logits_ab`.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    entropy: torch.Tensor
    logits_ab: torch.Tensor | None
    labels: torch.Tensor


def nt_xent(
    projections: torch.Tensor,
    temperature: float = 0.1,
    hidden_norm: bool = True,
    reduction: str = "official",
    group: "dist.ProcessGroup | None" = None,
    chunk: int | None = None,
    return_logits: bool = False,
) -> NTXentOutput:
    """
    Normalised temperature-scaled cross entropy over the views of all processes.

    Every row has to find its other view among the `2N - 1` other rows of the global batch (`N` images, `b` of them
    here). The `2b x 2N` logits are computed tile by tile and dropped again; the exact gradient is computed with the
    loss, so nothing but `[2N, d]` tensors waits for the backward pass. Works in float32 (or float64) also under
    autocast and for half-precision input.

    With several processes the loss is that of the own rows, and its gradient with respect to the other processes'
    rows is sent back to them. Averaging the parameter gradients over processes, as DistributedDataParallel does, gives
    the gradient of the mean loss: do not divide the loss by the number of processes.

    Args:
        projections (`torch.Tensor` of shape `[2b, d]`): rows 0..b-1 are the first views, b..2b-1 the second views of
            the same images.
        temperature (`float`): divides the similarities; positive.
        hidden_norm (`bool`): bring rows to unit length (a zero row stays zero).
        reduction (`str`): `"official"` is the sum of the two views' means, twice the mean over 2b rows that the paper
            writes; `"mean"` is the latter.
        group (*optional*): the processes that share their rows; default all, if any were started.
        chunk (`int`, *optional*): rows that are handled at a time; default by memory.
        return_logits (`bool`): also return `logits_ab`, which stores b x N numbers.

    Returns:
        [`NTXentOutput`]

    Raises:
        ValueError: for a temperature that is not positive, an unknown reduction, rows that are not pairs of views,
            unequal numbers of rows in the processes, or a single image in the global batch.
    """
    _check(projections, temperature, reduction, chunk)
    with torch.autocast(projections.device.type, enabled=False), float32_products_in_onednn():
        hidden = at_least_float32(projections)
        if hidden_norm:
            hidden = hidden * hidden.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        own = hidden.unflatten(0, (2, -1))
        everyone, first = _gather_views(own, group)
        images = own.shape[1]
        with_gradient = torch.is_grad_enabled() and own.requires_grad
        with torch.no_grad():
            loss, correct, entropy, gradients = _stream(
                own.detach(), everyone.detach(), first, temperature, chunk, with_gradient
            )
            logits_ab = own[0] @ everyone[1].T / temperature if return_logits else None
        if with_gradient:
            loss = WithGradients.apply(loss, own, everyone, *gradients)
        rows = images if reduction == "official" else 2 * images
        labels = torch.arange(first, first + images, device=own.device)
        return NTXentOutput(loss / rows, correct / images, entropy / images, logits_ab, labels)


def _check(projections: torch.Tensor, temperature: float, reduction: str, chunk: int | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if projections.dim() != 2 or not projections.is_floating_point():
        got = f"{projections.dtype} {list(projections.shape)}"
        raise ValueError(f"projections must be a floating-point tensor [2b, d], got {got}")
    if projections.shape[0] % 2 or projections.shape[0] == 0:
        raise ValueError(
            f"projections must have an even number of rows, first views then second views, got {projections.shape[0]}"
        )


def _gather_views(own: torch.Tensor, group: "dist.ProcessGroup | None") -> tuple[torch.Tensor, int]:
    """Both views `[2, N, d]` of all processes in the order of ranks, and the column of the first own image."""
    images = own.shape[1]
    world_size = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if world_size == 1:
        # A tensor of its own: torch.compile refuses the same one as two inputs of an autograd function.
        everyone, first = own.view_as(own), 0
    else:
        from torch.distributed.nn.functional import all_gather  # not in every build of torch

        sizes = [torch.empty(1, dtype=torch.int64, device=own.device) for _ in range(world_size)]
        dist.all_gather(sizes, torch.full_like(sizes[0], images), group=group)
        sizes = torch.cat(sizes).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"every process must have the same number of images, got {sizes}: drop the last, smaller batch "
                "(dataloader_drop_last=True)"
            )
        everyone, first = torch.cat(all_gather(own, group), dim=1), dist.get_rank(group) * images
    if everyone.shape[1] < 2:
        raise ValueError(
            "the global batch has 1 image, which leaves no negatives: at least 2 are needed; at the end of an epoch "
            "dataloader_drop_last=True drops a smaller batch"
        )
    return everyone, first


def _stream(own, everyone, first, temperature, chunk, with_gradient):
    """
    Streams the logits of own rows.

    A chunk of rows sees all columns at a time: its softmax and all that its logits contribute to the gradients are
    complete before it is dropped.

    Args:
        own: both own views, `[2, b, d]`.
        everyone: both views of the global batch, `[2, N, d]`.
        first: column of the first own image.

    Returns:
        Sum of the losses of the 2b rows, number of correct first views, sum of their entropies, and the gradients of
        the sum of losses with respect to `own` and `everyone`.
    """
    images, columns = own.shape[1], everyone.shape[1]
    chunk = chunk or max(1, TILE_ELEMENTS // (2 * columns))
    loss, correct, entropy = own.new_zeros(3)
    gradients = [torch.zeros_like(own), torch.zeros_like(everyone)] if with_gradient else []
    for view in (0, 1):
        keys = torch.cat([everyone[1 - view], everyone[view]])
        grad_keys = torch.zeros_like(keys) if with_gradient else None
        for start in range(0, images, chunk):
            queries = own[view, start : start + chunk]
            index = torch.arange(len(queries), device=own.device)
            labels = index + first + start
            logits = (queries / temperature) @ keys.T
            logits[index, columns + labels] = -torch.inf
            if view == 0:
                correct += (logits[:, :columns].argmax(1) == labels).sum()
                entropy += _entropy(logits[:, :columns].softmax(1))
            positives = logits[index, labels]
            largest = logits.amax(1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            sums = weights.sum(1, keepdim=True)
            loss += (sums.log() + largest).sum() - positives.sum()
            if with_gradient:
                mine = slice(first + start, first + start + len(queries))
                gradients[0][view, start : start + chunk] = weights @ keys / sums - keys[mine]
                grad_keys.addmm_(weights.T, queries / sums)
                grad_keys[mine] -= queries
        if with_gradient:
            gradients[1][1 - view] += grad_keys[:columns]
            gradients[1][view] += grad_keys[columns:]
    return loss, correct, entropy, [gradient.div_(temperature) for gradient in gradients]


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Sum of the rows' entropies, with the small number of the official code inside of the logarithm."""
    return -(probabilities + 1e-8).log_().mul_(probabilities).sum()


__all__ = ["NTXentOutput", "nt_xent"]
