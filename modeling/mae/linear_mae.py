"""Linear layers whose float32 products run in oneDNN on processors where that is faster."""

import torch
from torch import nn

from .onednn_mae import prefers_onednn


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
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled("cpu")
            and prefers_onednn()
            and hidden_states.numel() * self.out_features >= self.MIN_MULTIPLICATIONS  # last: a size of any batch
        )
