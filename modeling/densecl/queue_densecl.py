"""The queue of negatives and the momentum encoder (He et al., MoCo, arXiv 1911.05722, sections 3.1 and 3.2)."""

import torch
from torch import nn
from torch.nn import functional


def random_queue(size: int, length: int) -> torch.Tensor:
    """A queue of random directions: `[size, length]`, columns of unit length, float32 whatever torch's default."""
    return functional.normalize(torch.randn(size, length, dtype=torch.float32), dim=0)


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
        self._weights_seen: int | None = None

    def is_new_step(self, module: nn.Module) -> bool:
        """
        Args:
            module (`nn.Module`): the network that the optimiser trains.
        """
        parameters = list(module.parameters())
        # torch counts the in-place changes of every tensor.
        weights = sum(parameter._version for parameter in parameters)
        unchanged, self._weights_seen = weights == self._weights_seen, weights
        return not (unchanged and any(parameter.grad is not None for parameter in parameters))


__all__ = ["StepDetector", "enqueue", "random_queue", "update_momentum_encoder"]
