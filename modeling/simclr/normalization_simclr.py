"""Batch normalisation with the statistics of the global batch (SimCLR, section 2.1 "Global BN")."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

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
        ValueError: for an unknown `running_var`, an input that is neither `[N, C]` nor `[N, C, H, W]`, or training
            with one value per channel.

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
        bias: bool = True,
        running_var: str = "biased",
        global_stats: bool = True,
        process_group: "dist.ProcessGroup | None" = None,
        affine: bool = True,
    ):
        if running_var not in RUNNING_VARIANCES:
            raise ValueError(f"running_var must be one of {RUNNING_VARIANCES}, got {running_var!r}")
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
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        self.num_batches_tracked.add_(1)
        if self.global_stats and _world_size(self.process_group) > 1:
            return self._global_forward(input)
        if self._stores_biased(input):
            return self._local_forward(input)
        return F.batch_norm(
            *(input, self.running_mean, self.running_var, self.weight, self.bias),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _stores_biased(self, input: torch.Tensor) -> bool:
        return input.dim() == 2 or self.stored_variance == "biased"

    def _local_forward(self, input: torch.Tensor) -> torch.Tensor:
        # with momentum 1 torch's kernel hands out the statistics that it computes anyway
        mean, var = torch.empty_like(self.running_mean), torch.empty_like(self.running_var)
        output = F.batch_norm(input, mean.zero_(), var.zero_(), self.weight, self.bias, True, 1.0, self.eps)
        count = input.numel() // input.shape[1]
        self._move_averages(mean, var * ((count - 1) / count))
        return output

    def _global_forward(self, input: torch.Tensor) -> torch.Tensor:
        mean, var, count = _global_statistics(input, self.running_mean, self.process_group)
        if count < 2:
            raise ValueError(f"training needs more than one value per channel, got input {list(input.shape)}")
        output = _GlobalBatchNorm.apply(input, self.weight, self.bias, mean, var, count, self.eps, self.process_group)
        self._move_averages(mean, var if self._stores_biased(input) else var * (count / (count - 1)))
        return output

    @torch.no_grad()
    def _move_averages(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)

    def extra_repr(self) -> str:
        """Adds the two options to torch's description."""
        return f"{super().extra_repr()}, running_var={self.stored_variance}, global_stats={self.global_stats}"


def _world_size(group: "dist.ProcessGroup | None") -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _global_statistics(
    input: torch.Tensor, like: torch.Tensor, group: "dist.ProcessGroup | None"
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and population variance `[C]` over all processes, in the dtype of `like`, and the count of values."""
    scratch = torch.zeros_like(like), torch.ones_like(like)
    mean, var = torch.batch_norm_update_stats(input.detach(), *scratch, 0.0)
    count = torch.full_like(mean[:1], input.numel() // input.shape[1])
    own = torch.cat([mean, var, count])
    parts = [torch.empty_like(own) for _ in range(_world_size(group))]
    dist.all_gather(parts, own, group=group)
    # Means and variances are combined, not sums of squares: no cancellation where the mean is large.
    size = mean.numel()
    means, variances, counts = torch.stack(parts).split([size, size, 1], dim=1)
    total = counts.sum()
    shares = counts / total
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, int(total)


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
        inverse_std = (var + ctx.eps).rsqrt()
        # The kernel of inference gives the two sums of the backward pass as the gradients of scale and shift.
        grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            *(grad_output, input, weight, mean, var, None, None, False, ctx.eps),
            [True, True, True],
        )
        sums = torch.cat([grad_weight, grad_bias])
        dist.all_reduce(sums, group=ctx.group)
        sum_grad_normalized, sum_grad = (sums / ctx.count).chunk(2)
        scale = inverse_std if weight is None else inverse_std * weight
        slope = -scale * inverse_std * sum_grad_normalized
        offset = -scale * sum_grad - slope * mean
        shape = [1, -1] + [1] * (input.dim() - 2)
        grad_input = grad_input + (input * slope.view(shape) + offset.view(shape)).to(grad_input.dtype)
        needs = ctx.needs_input_grad
        return grad_input, grad_weight if needs[1] else None, grad_bias if needs[2] else None, *(None,) * 5


__all__ = ["SimCLRBatchNorm"]
