"""The precision in which losses and statistics are computed."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float64 as it is, anything shorter (and integers) as float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
