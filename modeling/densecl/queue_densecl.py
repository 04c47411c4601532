"""The queue of negatives and the momentum encoder (He et al., MoCo, arXiv 1911.05722, sections 3.1 and 3.2)."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from transformers import initialization as init

from .shuffle_densecl import gather_rows, world_size

QUEUES = ("queue", "queue2")
HALF_PRECISION = (torch.float16, torch.bfloat16)


def random_queue(size: int, length: int) -> torch.Tensor:
    """A queue of random directions: `[size, length]`, columns of unit length, in torch's default, at least float32."""
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


class DenseCLQueues(nn.Module):
    """
    The two queues of a model and how they change: `queue` of image keys and `queue2` of pooled dense keys `[D, K]`,
    each with the column of its oldest key (`queue_ptr`, `queue2_ptr`). A mixin, for the buffers to be the model's own.
    """

    def add_queues(self, size: int, length: int) -> None:
        """
        Registers the buffers.

        Args:
            size (`int`): length D of a key.
            length (`int`): number K of keys in a queue.
        """
        for name in QUEUES:
            self.register_buffer(name, random_queue(size, length))
            self.register_buffer(f"{name}_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def initialize_queues(self) -> None:
        """Fills queues that were not loaded with random keys of unit length, and starts at their beginning."""
        for name in QUEUES:
            queue = getattr(self, name)
            if not getattr(queue, "_is_hf_initialized", False):
                init.normal_(queue)
                queue.copy_(functional.normalize(queue, dim=0))
            init.zeros_(getattr(self, f"{name}_ptr"))

    def _apply(self, fn, recurse=True):
        """As in torch, for `to`, `half` and the like; the queues follow to a device, not to half precision."""
        before = {name: getattr(self, name) for name in QUEUES}
        super()._apply(fn, recurse)
        for name, queue in before.items():
            moved = getattr(self, name)
            if moved.dtype in HALF_PRECISION:
                setattr(self, name, queue.to(moved.device, torch.float32))
        return self

    @torch.compiler.disable
    def _enqueue(self, keys: torch.Tensor, pooled_keys: torch.Tensor) -> None:
        """The keys of all processes replace the oldest ones."""
        keys, pooled_keys = gather_rows(torch.stack([keys, pooled_keys], dim=1)).unbind(dim=1)
        enqueue(self.queue, self.queue_ptr, keys)
        enqueue(self.queue2, self.queue2_ptr, pooled_keys)

    def _share_training_state(self) -> None:
        """Gives all processes the queues of rank 0, which DDP leaves to us."""
        if world_size() > 1:
            for _, buffer in self.named_buffers(recurse=False):
                dist.broadcast(buffer, src=0)

    def check_queues(self) -> None:
        """
        Compares the queues of all processes. Called every 100 forwards if `TORCH_DISTRIBUTED_DEBUG` is set.

        Raises:
            RuntimeError: if they differ.
        """
        if world_size() == 1:
            return
        checksums = torch.stack([buffer.double().sum() for _, buffer in self.named_buffers(recurse=False)])
        everyone = gather_rows(checksums[None])
        if not (everyone == everyone[0]).all():
            raise RuntimeError(f"the queues differ between the processes; checksums by rank: {everyone.tolist()}")


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


__all__ = ["QUEUES", "DenseCLQueues", "StepDetector", "enqueue", "random_queue", "update_momentum_encoder"]
