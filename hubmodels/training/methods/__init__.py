"""What training must know of each method."""

from hubmodels.training.methods.base import Collator, MethodTraining, method_class
from hubmodels.training.methods.densecl import DenseCLTraining
from hubmodels.training.methods.mae import MAETraining
from hubmodels.training.methods.positional_label import PositionalLabelTraining
from hubmodels.training.methods.sanm import SANMTraining
from hubmodels.training.methods.simclr import SimCLRTraining
from hubmodels.training.recipe import RecipeError, nearest

_KINDS: dict[str, type[MethodTraining]] = {
    "mae": MAETraining,
    "simclr": SimCLRTraining,
    "densecl": DenseCLTraining,
    "positional_label": PositionalLabelTraining,
    "sanm": SANMTraining,
}


def method_training(method: str) -> MethodTraining:
    """What training must know of a method.

    Args:
        method: Name of the method.

    Returns:
        Its record.

    Raises:
        RecipeError: If there is no such method.
    """
    if method not in _KINDS:
        raise RecipeError(f"method must be one of {', '.join(_KINDS)}, got {method!r}{nearest(method, list(_KINDS))}")
    return _KINDS[method](method)


__all__ = ["Collator", "MethodTraining", "method_class", "method_training"]
