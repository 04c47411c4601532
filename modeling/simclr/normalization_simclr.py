"""Batch normalisation with the statistics of the global batch (SimCLR, section 2.1 "Global BN")."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .batch_statistics_simclr import (
    BatchNormOfStatistics,
    is_repeated_forward,
    statistics_by_parts,
    sums_lose_digits,
)

RUNNING_VARIANCES = ("biased", "unbiased")


class SimCLRBatchNorm(nn.modules.batchnorm._BatchNorm):
    """
    Batch normalisation of `[N, C]` vectors or `[N, C, H, W]` feature maps as SimCLR trains it.

    In training the mean and the variance are those of the batches of all processes together (if `global_stats` and
    several processes run): a view of an image then cannot be told by the statistics of its process. Two things differ
    from `torch.nn.SyncBatchNorm`: it works on the CPU, and the moving variance can be the population variance
    ("biased", as the official code stores it with global statistics), where torch always stores n / (n - 1) of it.
    State-dict names are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features (`int`): channels C.
        eps (`float`): added to the variance.
        momentum (`float`): share of the batch in the moving averages; 0.1 is the "decay" 0.9 of the official code.
        bias (`bool`): whether there is a shift (beta); the last layer of the projection head has none.
        running_var (`str`): variance that goes into the moving average of feature maps: `"biased"` or `"unbiased"`
            (what the official code stores without global statistics). Vectors always store the biased one.
        global_stats (`bool`): take statistics over all processes of `process_group`.
        process_group (*optional*): the processes; default all.
        affine (`bool`): whether there is a scale (gamma), and a shift if `bias`.

    Raises:
        ValueError: for an unknown `running_var`, a momentum outside [0, 1], an input that is neither `[N, C]` nor
            `[N, C, H, W]`, or training with one value per channel.

    Example:
        >>> norm = SimCLRBatchNorm(8, bias=False)
        >>> norm(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        bias: bool = True,
        running_var: str = "biased",
        global_stats: bool = True,
        process_group: "dist.ProcessGroup | None" = None,
        affine: bool = True,
    ):
        if running_var not in RUNNING_VARIANCES:
            raise ValueError(f"running_var must be one of {RUNNING_VARIANCES}, got {running_var!r}")
        if momentum is None or not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)
        if not bias:
            self.register_parameter("bias", None)
        self.stored_variance = running_var
        self.global_stats = global_stats
        self.process_group = process_group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected input of shape [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """
        Normalises `input` (`[N, C]` or `[N, C, H, W]`); in training also moves the averages.

        Returns:
            `torch.Tensor` of the same shape.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if self.global_stats and _world_size(self.process_group) > 1:
            mean, var, count = _global_statistics(input, self.running_mean, self.process_group)
            output = _GlobalBatchNorm.apply(
                input, self.weight, self.bias, mean, var, count, self.eps, self.process_group
            )
        elif sums_lose_digits(input):
            mean, var = statistics_by_parts(input)
            output = BatchNormOfStatistics.apply(input, self.weight, self.bias, mean, var, self.eps)
            count = input.numel() // input.shape[1]
        else:
            # With momentum 1 torch's kernel hands out the statistics that it computes anyway.
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            output = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            count = input.numel() // input.shape[1]
            var = var * ((count - 1) / count)
        if not is_repeated_forward():
            biased = input.dim() == 2 or self.stored_variance == "biased"
            self._move_averages(mean, var if biased else var * (count / (count - 1)))
        return output

    @torch.no_grad()
    def _move_averages(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum  # None: plain means
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)

    def extra_repr(self) -> str:
        """Adds the two options to torch's description."""
        return f"{super().extra_repr()}, running_var={self.stored_variance}, global_stats={self.global_stats}"


class SimCLRBatchNorm2d(SimCLRBatchNorm, nn.BatchNorm2d):
    """
    [`SimCLRBatchNorm`] of the feature maps of a network. Code that looks for `torch.nn.BatchNorm2d` finds it: that
    of DETR, for example, which freezes the normalisation of its backbone.
    """


class SimCLRBatchNormAct2d(SimCLRBatchNorm2d):
    """[`SimCLRBatchNorm2d`] in place of timm's `BatchNormAct2d`, whose layers `drop` and `act` follow it."""

    def __init__(self, num_features: int, **kwargs):
        super().__init__(num_features, **kwargs)
        self.drop, self.act = nn.Identity(), nn.Identity()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises, drops and activates `input` `[N, C, H, W]`."""
        return self.act(self.drop(super().forward(input)))


def _world_size(group: "dist.ProcessGroup | None") -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _global_statistics(
    input: torch.Tensor, like: torch.Tensor, group: "dist.ProcessGroup | None"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean `[C]`, population variance `[C]` and count `[1]` of values over all processes, in the dtype of `like`."""
    mean, var = torch.batch_norm_update_stats(input, torch.zeros_like(like), torch.zeros_like(like), 0.0)
    count = torch.full_like(mean[:1], input.numel() // input.shape[1])
    own = torch.cat([mean, var, count])
    parts = [torch.empty_like(own) for _ in range(_world_size(group))]
    dist.all_gather(parts, own, group=group)
    means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
    # Means and variances are combined, not sums of squares: nothing cancels where the mean is large.
    total = counts.sum(0)
    shares = counts / total
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


class _GlobalBatchNorm(torch.autograd.Function):
    """Normalisation with given statistics whose gradient counts what every process contributed to them."""

    @staticmethod
    def forward(ctx, input, weight, bias, mean, var, count, eps, group):
        ctx.save_for_backward(input, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return F.batch_norm(input, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, weight, mean, var = ctx.saved_tensors
        # The kernel of inference gives the two sums that the gradient needs from every process: its gradients of scale
        # and shift.
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_output, input, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.cat([grad_weight, grad_bias])
        dist.all_reduce(sums, group=ctx.group)
        mean_grad_normalized, mean_grad = (sums / ctx.count).chunk(2)
        # scale * (grad_output - mean_grad - normalized * mean_grad_normalized), in float32 until the end
        inverse_std = (var + ctx.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        slope = -scale * inverse_std * mean_grad_normalized
        offset = -scale * mean_grad - slope * mean
        scale, slope, offset = (c.view([1, -1] + [1] * (input.dim() - 2)) for c in (scale, slope, offset))
        grad_input = torch.addcmul(offset, input, slope).addcmul_(grad_output, scale).to(input.dtype)
        needed = ctx.needs_input_grad
        return grad_input, grad_weight if needed[1] else None, grad_bias if needed[2] else None, *(None,) * 5


__all__ = ["SimCLRBatchNorm", "SimCLRBatchNorm2d", "SimCLRBatchNormAct2d"]
