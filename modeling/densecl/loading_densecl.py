"""What a loaded file must hold, so that nothing of a backbone is silently random."""

from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

from .configuration_densecl import MAX_STAGES, DenseCLConfig

BACKBONE = "encoder.backbone."


def check_shapes(mismatched: Collection[tuple[str, Any, Any]], source: str | PathLike | None) -> None:
    """
    Args:
        mismatched: names of weights with their shapes in the file and in the model, where these differ.
        source (`str`): where the weights come from.

    Raises:
        ValueError: if there are any.
    """
    if mismatched:
        shown = sorted(mismatched)[:3]
        shapes = "; ".join(f"{name} is {list(in_file)}, not {list(in_model)}" for name, in_file, in_model in shown)
        raise ValueError(
            f"{source} does not fit the configuration: {shapes} ({len(mismatched)} in all); "
            "ignore_mismatched_sizes=True starts these anew"
        )


def check_backbone(config: DenseCLConfig, info: Mapping[str, Collection[str]], source: str | PathLike) -> None:
    """
    Args:
        config (`DenseCLConfig`): configuration of a model with its own ResNet. Other backbones may have optional parts,
            and are not checked.
        info: the lists `missing_keys` and `unexpected_keys` of loading.
        source (`str`): where the weights come from.

    Raises:
        ValueError: if the file lacks weights of the ResNet, or has more layers. Stages beyond `config.num_stages` may
            be left out.
    """
    left_out = tuple(f"{BACKBONE}encoder.stages.{index}." for index in range(config.num_stages, MAX_STAGES))
    for found, key in (("lacks", "missing_keys"), ("has too many", "unexpected_keys")):
        names = sorted(name for name in info[key] if name.startswith(BACKBONE) and not name.startswith(left_out))
        if names:
            raise ValueError(
                f"{source} {found} backbone weights for this configuration (depths {config.depths}): "
                f"{', '.join(names[:3])} ({len(names)} in all). None may be random or left out; official files are "
                "converted first: `hubmodels convert densecl`"
            )


__all__ = ["check_backbone", "check_shapes"]
