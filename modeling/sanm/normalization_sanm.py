"""Batch normalisation of SANM's networks: torch's, exact for large maps and under gradient checkpointing."""

import torch
from torch import nn
from torch.nn import functional

from .batch_statistics_sanm import BatchNormOfStatistics, is_repeated_forward, statistics_by_parts, sums_lose_digits


class SANMBatchNorm2d(nn.BatchNorm2d):
    """Counts every batch once: when gradient checkpointing repeats a forward in the backward, the averages stay."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises `[B, C, H, W]`."""
        if not self.training:
            return super().forward(input)
        is_first = not is_repeated_forward()
        if sums_lose_digits(input):
            mean, var = statistics_by_parts(input)
            if is_first:
                count = input.numel() // input.shape[1]
                self._move_averages(mean, var * (count / (count - 1)))
            return BatchNormOfStatistics.apply(input, self.weight, self.bias, mean, var, self.eps)
        if is_first:
            return super().forward(input)
        averages = self.running_mean, self.running_var
        return functional.batch_norm(input, *averages, self.weight, self.bias, True, 0.0, self.eps)

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


__all__ = ["SANMBatchNorm2d"]
