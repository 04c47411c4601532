"""LARS (You et al., 2017, arXiv 1708.03888): the optimiser of SimCLR and of the published linear probes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch.optim import Optimizer

MOMENTUM_STYLES = ("plain", "classic", "popular")


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum, in the three forms that official codes have.

    For a parameter `p` with gradient `g`, learning rate `lr` and momentum `m`, where `d = g + weight_decay * p` if `p`
    is decayed, else `g`, and `trust(x) = trust_coefficient * |p| / |x|` if `p` is adapted and both norms are above 0,
    else 1:

    | `momentum_style` | buffer | step | used by |
    | --- | --- | --- | --- |
    | `"plain"` | `v = m * v + trust(d) * d` | `p = p - lr * v` | MAE's linear probe |
    | `"classic"` | `v = m * v + lr * trust(d) * d` | `p = p - v` | SimCLR (its default) |
    | `"popular"` | `v = m * v + d` | `p = p - lr * trust(v) * v` | SimCLR (`classic_momentum=False`) |

    With `nesterov` the step takes `m * v +` the term just added in place of `v`. There is no epsilon, and a weight
    decay of 0 does not switch the adaptation off: `timm.optim.Lars` differs in these points.

    Which parameters are decayed and adapted is a key of the parameter groups, `adapt`: None decides by the number of
    dimensions (matrices and kernels are decayed and adapted, biases and normalisation neither); True or False says it
    for the whole group, which is then decayed by its `weight_decay`. Or the names decide, as in the official code of
    SimCLR: then `params` are `model.named_parameters()`, or groups of such pairs. transformers' `Trainer` takes them as
    `optimizer_cls_and_kwargs=(LARS, {"params": list(model.named_parameters()), "lr": 0.3,
    "exclude_from_weight_decay": ["normalization", "bias", "classifier"]})`.

    Norms and buffers of half-precision parameters are float32.

    Args:
        params: Parameters, named parameters, or parameter groups.
        lr: Learning rate.
        weight_decay: Decay added to the gradient of decayed parameters.
        momentum: Momentum factor, in [0, 1).
        trust_coefficient: Factor of the layer-wise rate (`eeta` in the official SimCLR code), greater than 0.
        momentum_style: "plain", "classic" or "popular".
        nesterov: Use Nesterov momentum.
        adapt: Default of the groups' `adapt`.
        exclude_from_weight_decay: Regular expressions; parameters whose name contains one are neither decayed nor,
            without the next argument, adapted. The others are, whatever their dimensions.
        exclude_from_layer_adaptation: The same for the adaptation alone; None and an empty list stand for the list
            above.

    Raises:
        ValueError: If an argument lies outside its range, or names are excluded and the parameters have none.

    Example:

        >>> import torch
        >>> from hubmodels.training import LARS
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(layer.named_parameters(), lr=0.1, exclude_from_weight_decay=["bias"])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        momentum_style: Literal["plain", "classic", "popular"] = "classic",
        nesterov: bool = False,
        adapt: bool | None = None,
        exclude_from_weight_decay: Sequence[str] | None = None,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
    ):
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient must be greater than 0, got {trust_coefficient}")
        if momentum_style not in MOMENTUM_STYLES:
            raise ValueError(f"momentum_style must be one of {MOMENTUM_STYLES}, got {momentum_style!r}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "momentum_style": momentum_style,
            "nesterov": nesterov,
            "adapt": adapt,
        }
        params = list(params)
        if params and (exclude_from_weight_decay is not None or exclude_from_layer_adaptation):
            params = _groups_by_name(params, weight_decay, exclude_from_weight_decay, exclude_from_layer_adaptation)
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
            for parameters, weight_decay, adapt in _by_treatment(group):
                self._update(parameters, weight_decay, adapt, group)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; float32 buffers of half-precision parameters stay float32.

        Args:
            state_dict: What `state_dict()` returned.
        """
        super().load_state_dict(dict(state_dict))
        indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(indices, parameters, strict=True):
            if index in state_dict["state"]:
                # torch has cast it to the type of the parameter
                saved = state_dict["state"][index]["momentum_buffer"]
                self.state[parameter]["momentum_buffer"] = saved.to(parameter.device, copy=True)

    def _update(self, parameters: list[torch.Tensor], weight_decay: float, adapt: bool, group: dict[str, Any]) -> None:
        lr, momentum, style = group["lr"], group["momentum"], group["momentum_style"]
        weights = [_at_least_float32(parameter) for parameter in parameters]
        gradients = [_at_least_float32(parameter.grad) for parameter in parameters]  # type: ignore[arg-type]
        buffers = [self._buffer(parameter) for parameter in parameters]
        updates = list(torch._foreach_add(gradients, weights, alpha=weight_decay))
        if adapt and style != "popular":
            _scale_by_trust(updates, weights, group["trust_coefficient"])
        if style == "classic":
            torch._foreach_mul_(updates, lr)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        if group["nesterov"]:
            torch._foreach_add_(updates, buffers, alpha=momentum)
        else:
            torch._foreach_copy_(updates, buffers)
        if adapt and style == "popular":
            _scale_by_trust(updates, weights, group["trust_coefficient"])
        torch._foreach_add_(parameters, updates, alpha=-1.0 if style == "classic" else -lr)

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(_at_least_float32(parameter))
        return state["momentum_buffer"]


def _groups_by_name(
    params: list[Any],
    weight_decay: float,
    undecayed: Sequence[str] | None,
    unadapted: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Split named parameters by whether they are decayed and adapted; lists that are None go by the dimensions."""
    split = []
    for group in params if isinstance(params[0], dict) else [{"params": params}]:
        members = list(group["params"])
        if not all(isinstance(member, tuple) for member in members):
            raise ValueError(
                "exclude_from_weight_decay and exclude_from_layer_adaptation need names: give params as "
                "model.named_parameters(), got parameters without names"
            )
        parts: dict[tuple[bool, bool], list[Any]] = {}
        for name, parameter in members:
            decayed = parameter.ndim > 1 if undecayed is None else not _is_named(name, undecayed)
            adapted = not _is_named(name, unadapted) if unadapted else decayed
            parts.setdefault((decayed, adapted), []).append((name, parameter))
        decay = group.get("weight_decay", weight_decay)
        for (decayed, adapted), pairs in parts.items():
            split.append({**group, "params": pairs, "weight_decay": decay if decayed else 0.0, "adapt": adapted})
    return split


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _by_treatment(group: Mapping[str, Any]) -> Iterator[tuple[list[torch.Tensor], float, bool]]:
    """Parameters with a gradient, their weight decay and whether they are adapted: at most two lists of a group."""
    trained = [parameter for parameter in group["params"] if parameter.grad is not None]
    if group["adapt"] is not None:
        lists = [(trained, group["weight_decay"], group["adapt"])]
    else:
        lists = [
            ([parameter for parameter in trained if parameter.ndim > 1], group["weight_decay"], True),
            ([parameter for parameter in trained if parameter.ndim <= 1], 0.0, False),
        ]
    return (entry for entry in lists if entry[0])


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _scale_by_trust(updates: list[torch.Tensor], weights: list[torch.Tensor], coefficient: float) -> None:
    """Multiply updates by `coefficient * |weight| / |update|` in place; by 1 where a norm is 0."""
    ratios = []
    norms = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
    for weight_norm, update_norm in norms:
        usable = (weight_norm > 0) & (update_norm > 0)
        ratio = coefficient * weight_norm / update_norm
        ratios.append(torch.where(usable, ratio, torch.ones_like(ratio)))
    torch._foreach_mul_(updates, ratios)
