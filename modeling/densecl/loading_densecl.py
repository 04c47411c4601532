"""What a loaded file must hold, so that nothing of a backbone is silently random."""

from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict

from .configuration_densecl import MAX_STAGES, DenseCLConfig
from .loaded_shapes_densecl import listed, shapes_of
from .queue_densecl import QUEUES

BACKBONE = "encoder.backbone."


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
        names = [name for name in info[key] if name.startswith(BACKBONE) and not name.startswith(left_out)]
        if names:
            raise ValueError(
                f"{source} {found} backbone weights for this configuration (depths {config.depths}): "
                f"{listed(names)}. None may be random or left out; official files are "
                "converted first: `hubmodels convert densecl`"
            )


def stored_tensors(state_dict: Mapping[str, Any] | None, files: Collection[str] | None) -> dict[str, torch.Tensor]:
    """
    The tensors that a model is about to be loaded from, of files without their values.

    Args:
        state_dict: given tensors, used in place of files.
        files: paths of the shards of a checkpoint.
    """
    if state_dict is not None:
        return dict(state_dict)
    return {name: t for file in files or () for name, t in load_state_dict(file, map_location="meta").items()}


def check_queue_shapes(mismatched: Collection[tuple[str, Any, Any]], source: str | PathLike | None) -> None:
    """
    Args:
        mismatched: names of weights with their shapes in the file and in the model, where these differ.
        source (`str`): where the weights come from.

    Raises:
        ValueError: if a queue or a pointer is among them.
    """
    queues = [entry for entry in mismatched if entry[0].removesuffix("_ptr") in QUEUES]
    if queues:
        raise ValueError(
            f"{source} holds other queues than projection_size and queue_length say: {shapes_of(queues)}; "
            "ignore_mismatched_sizes=True starts these anew"
        )


def check_queue_types(state: Mapping[str, torch.Tensor]) -> None:
    """
    Args:
        state: tensors by name; no queue has to be there.

    Raises:
        ValueError: if a queue is not of floating-point numbers, or a pointer not int64.
    """
    for name in QUEUES:
        queue, pointer = state.get(name), state.get(f"{name}_ptr")
        if queue is not None and not queue.is_floating_point():
            raise ValueError(f"{name} must be floating-point keys, got {queue.dtype}")
        if pointer is not None and pointer.dtype != torch.int64:
            raise ValueError(f"{name}_ptr must be {torch.int64}, got {pointer.dtype}")


def check_queue_pointers(state: Mapping[str, torch.Tensor], length: int) -> None:
    """
    Args:
        state: tensors by name, with both pointers.
        length (`int`): number of keys in a queue.

    Raises:
        ValueError: if a pointer is not a column of its queue.
    """
    for name in QUEUES:
        column = int(state[f"{name}_ptr"])
        if not 0 <= column < length:
            raise ValueError(f"{name}_ptr must be a column of the queue, in [0, {length}), got {column}")


__all__ = ["check_backbone", "check_queue_pointers", "check_queue_shapes", "check_queue_types", "stored_tensors"]
