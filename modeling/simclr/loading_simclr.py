"""What a loaded file must hold, so that nothing of a pre-trained network is silently random."""

from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

from .configuration_simclr import SimCLRConfig
from .loaded_shapes_simclr import listed, shapes_of

BACKBONE = "backbone."
HEAD = "projection_head.layers."


def check_encoder(config: SimCLRConfig, info: Mapping[str, Collection[Any]], source: str | PathLike) -> None:
    """
    Args:
        config (`SimCLRConfig`): configuration of the model. Other backbones than the official ResNet may have optional
            parts, and are not checked.
        info: the lists `missing_keys`, `unexpected_keys` and `mismatched_keys` of loading.
        source (`str`): where the weights come from.

    Raises:
        ValueError: if the file lacks weights of the ResNet, has more of them, or has them in other shapes.
    """
    if config.backbone_config is not None:
        return
    for found, key in (("lacks", "missing_keys"), ("has too many", "unexpected_keys")):
        names = [name for name in info[key] if name.startswith(BACKBONE)]
        if names:
            raise ValueError(
                f"{source} {found} encoder weights for this configuration ({config.layer_type} blocks, depths "
                f"{config.depths}): {listed(names)}. None may be random or left out; official files are converted "
                "first: `hubmodels convert simclr`"
            )
    mismatched = [entry for entry in info["mismatched_keys"] if entry[0].startswith(BACKBONE)]
    if mismatched:
        raise ValueError(f"{source} does not fit the configuration: {shapes_of(mismatched)}")


def check_head(layers: int, info: Mapping[str, Collection[Any]], source: str | PathLike) -> None:
    """
    Args:
        layers (`int`): number of layers of the projection head that the file must hold.
        info: as for [`check_encoder`].
        source (`str`): where the weights come from.

    Raises:
        ValueError: if the file lacks weights of one of them, or has them in other shapes.
    """
    absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    needed = tuple(f"{HEAD}{number}." for number in range(layers))
    names = [name for name in absent if name.startswith(needed)]
    if names:
        raise ValueError(
            f"{source} has no projection head that fits, and {layers} of its layers are needed: {listed(names)}. "
            "ft_proj_selector=0 puts the classifier on the representation; from_head=False starts the head anew"
        )


__all__ = ["check_encoder", "check_head"]
