"""The queue of negatives and the momentum encoder (He et al., MoCo, arXiv 1911.05722, sections 3.1 and 3.2)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


def random_queue(size: int, length: int) -> torch.Tensor:
    """A queue of random directions: `[size, length]`, columns of unit length, in torch's default but at least float32."""
    dtype = torch.promote_types(torch.float32, torch.get_default_dtype())
    return functional.normalize(torch.randn(size, length, dtype=dtype), dim=0)


@torch.no_grad()
def enqueue(queue: torch.Tensor, pointer: torch.Tensor, keys: torch.Tensor) -> None:
    """
    Writes keys over the oldest ones, in place, and moves the pointer; at the end the queue goes on at its beginning.

    Args:
        queue (`torch.Tensor` of shape `[D, K]`): keys in columns.
        pointer (`torch.Tensor` of shape `[1]`, int64): column of the oldest key.
        keys (`torch.Tensor` of shape `[N, D]`): new keys, oldest first. Of more than K only the last K stay.
    """
    length = queue.shape[1]
    kept = keys[-length:]
    steps = torch.arange(len(keys) - len(kept), len(keys), device=queue.device)
    queue.index_copy_(1, (pointer + steps) % length, kept.T.to(queue.dtype))
    pointer.copy_((pointer + len(keys)) % length)


@torch.compiler.disable
@torch.no_grad()
def update_momentum_encoder(momentum_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """
    Moves every parameter of the momentum encoder towards the encoder's, in place; buffers stay as they are.

    Args:
        momentum_encoder (`nn.Module`): `theta_k = momentum * theta_k + (1 - momentum) * theta_q`.
        encoder (`nn.Module`): a network of the same structure.
        momentum (`float`): in [0, 1].
    """
    keys, queries = list(momentum_encoder.parameters()), list(encoder.parameters())
    torch._foreach_mul_(keys, momentum)
    torch._foreach_add_(keys, queries, alpha=1 - momentum)


class StepDetector:
    """
    Tells the first forward of an optimiser step from the further ones of gradient accumulation.

    A further one is recognised by gradients that wait for the optimiser while the weights are those of the last
    forward. So every forward counts as a step of its own unless gradients are accumulated.
    """

    def __init__(self):
        self._changes_seen: int | None = None
        self._sample_seen: torch.Tensor | None = None

    @torch.no_grad()
    def is_new_step(self, module: nn.Module) -> bool:
        """
        Args:
            module (`nn.Module`): the network that the optimiser trains.
        """
        parameters = list(module.parameters())
        changes, sample = sum(parameter._version for parameter in parameters), sample_of_weights(parameters)
        changes_seen, sample_seen = self._changes_seen, self._sample_seen
        self._changes_seen, self._sample_seen = changes, sample
        if changes != changes_seen or all(parameter.grad is None for parameter in parameters):
            return True
        # torch counts the in-place changes of every tensor, but not those of fused optimisers and of `parameter.data`.
        # Values are compared only now, as an accelerator is waited for; they may have moved to another device.
        return not torch.equal(sample_seen.to(sample), sample)


def sample_of_weights(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """
    A copy of some weights of every trained parameter, in which any optimiser step shows.

    Args:
        parameters: of a network. Of matrices and kernels the first row is taken, of vectors all.

    Returns:
        A vector, empty if nothing is trained.
    """
    trained = [parameter.detach() for parameter in parameters if parameter.requires_grad]
    rows = [weights[:1] if weights.ndim > 1 else weights for weights in trained]
    return torch.cat([row.flatten().to(rows[0].device) for row in rows]) if rows else torch.empty(0)


__all__ = ["StepDetector", "enqueue", "random_queue", "update_momentum_encoder"]
