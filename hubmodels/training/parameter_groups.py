"""Parameter groups and optimisers: weight decay, layer-wise learning rates, any optimiser of timm."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.optim import param_groups_layer_decay as timm_layer_decay_groups
from timm.optim import param_groups_weight_decay as timm_weight_decay_groups
from torch import nn

from hubmodels.optimization.lars import LARS


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float | None = None,
    decay_vectors: bool = False,
    for_lars: bool = False,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters with their weight decay and learning rate.

    One-dimensional parameters and the names of `model.no_weight_decay()` are not decayed, unless asked to; LARS leaves
    out those of `model.no_layer_adaptation()` too, and other optimisers decay the vectors that
    `model.decayed_vectors()` names (both are methods of SimCLR's models). With
    `layer_decay` the learning rate of layer `i` of `n` is `learning_rate * layer_decay ** (n - i)`, where
    `model.group_matcher()` (timm's convention) says which layer a parameter belongs to. Frozen parameters are in no
    group.

    Args:
        model: The model to train.
        learning_rate: Peak learning rate of the last layer.
        weight_decay: Weight decay of the decayed groups.
        layer_decay: Factor from a layer to the one before it, in (0, 1]; None or 1 gives every layer the same rate.
        decay_vectors: Decay all parameters alike.
        for_lars: Whether the groups are for [`LARS`].

    Returns:
        Groups with the keys `params`, `lr`, `weight_decay` and, with `layer_decay`, `lr_scale`.

    Raises:
        ValueError: If nothing is trainable, `layer_decay` is out of range, or the model does not name its layers.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    if decay_vectors and layer_decay not in (None, 1):
        raise ValueError(f"decay_vectors goes without layer_decay, got layer_decay = {layer_decay}")
    excluded = _names(model, "no_weight_decay")
    if for_lars:
        excluded |= _names(model, "no_layer_adaptation")
    groups: list[dict[str, Any]]
    if decay_vectors:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "weight_decay": weight_decay}] if trained else []
    elif layer_decay is None or layer_decay == 1:
        groups = timm_weight_decay_groups(model, weight_decay, no_weight_decay_list=excluded)
        if weight_decay and not for_lars:
            groups = _with_decayed(groups, model, weight_decay)
    elif not hasattr(model, "group_matcher"):
        raise ValueError(
            f"layer_decay = {layer_decay} needs a model with a group_matcher() method that names its layers; "
            f"{type(model).__name__} has none"
        )
    else:
        groups = timm_layer_decay_groups(model, weight_decay, no_weight_decay_list=excluded, layer_decay=layer_decay)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: every requires_grad is False")
    for group in groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    return groups


def layer_adaptation_groups(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups into what LARS scales layer by layer and what it does not.

    Vectors and the names of `model.no_weight_decay()` and `model.no_layer_adaptation()` are neither decayed nor adapted
    (SimCLR: biases, normalisation and the supervised head). The rest is adapted, also where the weight decay is 0.

    Args:
        model: The model to train.
        groups: Groups of `parameter_groups` with `for_lars`.

    Returns:
        Groups with the further key `adapt` of [`LARS`].
    """
    named = _names(model, "no_weight_decay") | _names(model, "no_layer_adaptation")
    excluded = {id(parameter) for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name in named}
    split = []
    for group in groups:
        for adapt in (False, True):
            members = [parameter for parameter in group["params"] if (id(parameter) not in excluded) == adapt]
            if members:
                split.append({**group, "params": members, "adapt": adapt})
    return split


def _names(model: nn.Module, method: str) -> set[str]:
    return set(getattr(model, method, set)())


def _with_decayed(groups: list[dict[str, Any]], model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Move the vectors that a model wants decayed to the decayed group."""
    named = _names(model, "decayed_vectors")
    chosen = {id(parameter): parameter for name, parameter in model.named_parameters() if name in named}
    plain: list[Any] = []
    decayed: list[Any] = []
    for group in groups:
        for parameter in group["params"]:
            (decayed if group["weight_decay"] or id(parameter) in chosen else plain).append(parameter)
    both = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [group for group in both if group["params"]]


def create_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    learning_rate: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Build an optimiser by name.

    Args:
        name: "lars" for `LARS`, or any name of `timm.optim.list_optimizers()` such as "adamw", "lamb" or "sgd". In timm
            "sgd" has Nesterov momentum, which the official SimCLR code calls momentum; "momentum" is the plain one.
        groups: Parameter groups, from `parameter_groups`.
        learning_rate: Learning rate of groups that have none.
        weight_decay: Weight decay of groups that have none.
        options: Further arguments of the optimiser, such as `{"betas": [0.9, 0.95]}`.

    Returns:
        The optimiser.

    Raises:
        ValueError: If the name is unknown, or the optimiser does not take one of the options or its value.
    """
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    optimizer_class = optimizer_class_of(name)
    accepted = inspect.signature(optimizer_class).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"optimizer {name!r} does not take {unknown}; it takes {sorted(set(accepted) - {'params'})}")
    for key, value in options.items():
        default = accepted[key].default
        if isinstance(default, tuple) and (not isinstance(value, tuple) or len(value) != len(default)):
            raise ValueError(f"{key} of optimizer {name!r} must be {len(default)} numbers, as {default}, got {value!r}")
    try:
        if optimizer_class is LARS:
            return LARS(groups, lr=learning_rate, weight_decay=weight_decay, **options)
        return create_optimizer_v2(groups, opt=name, lr=learning_rate, weight_decay=weight_decay, **options)
    except TypeError as error:
        raise ValueError(f"an option of optimizer {name!r} has the wrong type, got {options}: {error}") from error


def optimizer_class_of(name: str) -> Callable[..., Any]:
    """Class behind an optimiser name.

    Args:
        name: "lars" or a name of `timm.optim.list_optimizers()`.

    Returns:
        The class.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "lars":
        return LARS
    if name not in list_optimizers():
        raise ValueError(f"unknown optimizer {name!r}; accepted: 'lars' and the names of timm: {list_optimizers()}")
    return get_optimizer_class(name, bind_defaults=False)
