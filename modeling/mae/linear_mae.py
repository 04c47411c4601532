"""Linear layers whose float32 products run in oneDNN on processors where that is faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn


@lru_cache(maxsize=1)
def prefers_onednn() -> bool:
    """
    Whether float32 matrix products are faster in oneDNN than in MKL, torch's default, at the same precision.

    On AMD processors MKL stays with AVX2 where oneDNN uses AVX-512: 2.2 times the rate on Zen 5. Processors with AMX
    are left out, where `float32_products_in_onednn` would allow oneDNN to round to bfloat16; without AMX it never does.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False
    processor = torch.cpu.get_capabilities()
    return "AMD" in processor.get("cpu_name", "") and processor.get("avx512_f", False) and not processor.get("amx_tile")


@contextmanager
def float32_products_in_onednn() -> Iterator[None]:
    """Sends the float32 matrix products of a `with` block on CPU to oneDNN where that is faster and as precise."""
    matmul = torch.backends.mkldnn.matmul
    if not prefers_onednn():
        yield
        return
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class MAELinear(nn.Linear):
    """
    `nn.Linear`; where oneDNN is faster, large float32 products on CPU are computed as a convolution of 1x1 over the
    rows, an operation that torch gives to oneDNN, forward and backward.
    """

    # Multiplications from which the way through the convolution is shorter.
    MIN_MULTIPLICATIONS = 2**20

    @classmethod
    def adopt(cls, module: nn.Module) -> None:
        """Makes every plain `nn.Linear` in `module` one of these; its weights stay."""
        for child in module.modules():
            if type(child) is nn.Linear:
                child.__class__ = cls

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        if not self._uses_convolution(hidden_states):
            return super().forward(hidden_states)
        rows = hidden_states.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)
        mapped = nn.functional.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return mapped.permute(0, 2, 3, 1).reshape(*hidden_states.shape[:-1], self.out_features)

    def _uses_convolution(self, hidden_states: torch.Tensor) -> bool:
        return (
            hidden_states.device.type == "cpu"
            and hidden_states.dtype == self.weight.dtype == torch.float32
            and hidden_states.shape[-1] == self.in_features
            and hidden_states.numel() * self.out_features >= self.MIN_MULTIPLICATIONS
            and prefers_onednn()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )
