"""Batch normalisation of DenseCL's ResNet: torch's, exact for large maps and under gradient checkpointing."""

import torch
from torch import nn
from torch.nn import functional

from .batch_statistics_densecl import (
    BatchNormOfStatistics,
    is_repeated_forward,
    statistics_by_parts,
    sums_lose_digits,
)


class DenseCLBatchNorm2d(nn.BatchNorm2d):
    """
    Batch normalisation that counts every batch once: when gradient checkpointing repeats a forward inside of the
    backward, the running statistics stay as they are.

    Raises:
        ValueError: in training with a single value per channel (one image and a 1x1 map), which has no variance.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalises `[B, C, H, W]`."""
        if not self.training:
            return super().forward(hidden_states)
        count = hidden_states.numel() // hidden_states.shape[1]
        check_count(count)
        is_first = not is_repeated_forward()
        if sums_lose_digits(hidden_states):
            mean, var = statistics_by_parts(hidden_states)
            if is_first:
                self._move_averages(mean, var * (count / (count - 1)))
            return BatchNormOfStatistics.apply(hidden_states, self.weight, self.bias, mean, var, self.eps)
        if is_first:
            return super().forward(hidden_states)
        return functional.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, True, 0.0, self.eps
        )

    @torch.no_grad()
    def _move_averages(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum  # None: plain means
        # As torch's kernel does, without a new version of the tensors: a smaller batch whose backward is to come saved
        # them too, and does not read them.
        self.running_mean.data.lerp_(mean, momentum)
        self.running_var.data.lerp_(var, momentum)


def check_count(count: int) -> None:
    """
    Args:
        count (`int`): values per channel of a map whose statistics are to be computed.

    Raises:
        ValueError: for a single one, which has no variance.
    """
    if count == 1:
        raise ValueError(
            "batch normalisation needs more than one value per channel in training, got a batch of 1 image per "
            "process with a 1x1 feature map; use more images per process, larger images or norm_eval=True"
        )


__all__ = ["DenseCLBatchNorm2d", "check_count"]
