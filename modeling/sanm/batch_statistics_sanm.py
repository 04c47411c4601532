"""Batch statistics that torch's channels_last kernel would compute with too few digits on a CPU."""

import torch
from torch.autograd import forward_ad
from torch.nn import functional

# Values per channel above which the statistics of channels_last maps are computed in parts, and numbers that are added
# up side by side then.
VALUES_OF_A_SUM = 1024
SUMS = 2048


def is_repeated_forward() -> bool:
    """Whether gradient checkpointing repeats a forward inside of a backward: its batch was counted before."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def sums_lose_digits(input: torch.Tensor) -> bool:
    """Whether torch would add up very many numbers of a channel one after the other, in float32."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0  # torch's kernel of parts has no derivative forwards
        and input.device.type == "cpu"
        and input.dtype == torch.float32
        and input.numel() > VALUES_OF_A_SUM * input.shape[1]
        and input.is_contiguous(memory_format=torch.channels_last)
        and not input.is_contiguous()
    )


@torch.no_grad()
def statistics_by_parts(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and population variance `[C]` of channels_last maps `[N, C, H, W]`.

    torch's kernel for this memory format adds up one pixel after the other: of 800,000 pixels the variance has an error
    of 4e-4. Here several pixels side by side count as one with more channels, whose statistics are combined.
    """
    channels = input.shape[1]
    pixels = input.numel() // channels
    parts = next(parts for parts in range(max(1, SUMS // channels), 0, -1) if pixels % parts == 0)
    wide = input.permute(0, 2, 3, 1).reshape(1, pixels // parts, 1, parts * channels).permute(0, 3, 1, 2)
    zeros = input.new_zeros(2, parts * channels)
    mean, var = (part.view(parts, channels) for part in torch.batch_norm_update_stats(wide, *zeros, 0.0))
    total_mean = mean.mean(0)
    return total_mean, var.mean(0) + (mean - total_mean).square().mean(0)


class BatchNormOfStatistics(torch.autograd.Function):
    """Normalisation with statistics of the input that were computed before."""

    @staticmethod
    def forward(ctx, input, weight, bias, mean, var, eps):
        ctx.save_for_backward(input, weight, mean, (var + eps).rsqrt())
        ctx.eps = eps
        return functional.batch_norm(input, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, grad_output):
        input, weight, mean, inverse_std = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad_output, input, weight, None, None, mean, inverse_std, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *gradients, None, None, None
