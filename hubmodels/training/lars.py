"""LARS, the optimiser of the published linear probes (You et al., 2017, arXiv 1708.03888)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum, as the MAE linear probe uses it.

    For a parameter `p` of two or more dimensions with gradient `g`::

        d = g + weight_decay * p
        d = d * trust_coefficient * |p| / |d|      (left alone when either norm is 0)

    For a one-dimensional parameter (bias, normalisation) `d = g`: neither decay nor scaling. Then
    `buffer = momentum * buffer + d` and `p = p - lr * buffer`. The learning rate stays outside the buffer, and there
    is no Nesterov step, no dampening and no epsilon: `timm.optim.Lars` differs in these points.

    Args:
        params: Parameters, or parameter groups.
        lr: Learning rate.
        weight_decay: Decay added to the gradient of parameters with `ndim > 1`.
        momentum: Momentum factor, in [0, 1).
        trust_coefficient: Factor of the layer-wise rate, greater than 0.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:

        >>> import torch
        >>> from hubmodels.training import LARS
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(layer.parameters(), lr=0.1)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ):
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient must be greater than 0, got {trust_coefficient}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Recomputes the loss and its gradients.

        Returns:
            The value of `closure`, or None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        update = gradient
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            parameter_norm, update_norm = parameter.norm(), update.norm()
            usable = (parameter_norm > 0) & (update_norm > 0)
            rate = group["trust_coefficient"] * parameter_norm / update_norm
            update = update * torch.where(usable, rate, torch.ones_like(rate))
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update)
        parameter.add_(buffer, alpha=-group["lr"])
