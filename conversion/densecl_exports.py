"""Writing DenseCL models for other code: the official one, torchvision, timm, detectron2, transformers' ResNet."""

import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel, ResNetBackbone, ResNetConfig
from transformers.utils import logging

from .checkpoint_reading import ConversionError
from .densecl_names import ALIAS, QUERY, backbone_state, check_own_resnet, detectron2_name, official_state
from .output import check_new_file, check_new_folder, new_file, new_folder

logger = logging.get_logger(__name__)

_USUAL_SHAPE = {"strides": [1, 2, 2, 2], "dilations": [1, 1, 1, 1], "style": "pytorch"}


def to_official(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Map the weights of one of our models to the official names, in the official order.

    Args:
        model: a `DenseCLBackbone`, `DenseCLModel` or `DenseCLForPreTraining` with its own ResNet.

    Returns:
        The state dict, with tensors of its own: of a backbone that of a released file, of the others that of a training
        run, with its second names of the backbone.

    Raises:
        ConversionError: the model has another backbone.
    """
    if isinstance(model, DenseCLBackbone):
        return backbone_state(model)
    state = official_state(model)
    return state | {ALIAS + k.removeprefix(QUERY): tensor for k, tensor in state.items() if k.startswith(QUERY)}


def to_detectron2(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Map the backbone of one of our models to the names of detectron2.

    Args:
        model: any DenseCL model with its own ResNet.

    Returns:
        The tensors, in the official order.

    Raises:
        ConversionError: the model has another backbone.
    """
    return {detectron2_name(name): tensor for name, tensor in backbone_state(model).items()}


def to_transformers(model: PreTrainedModel) -> ResNetBackbone:
    """Copy the backbone of one of our models into the ResNet of transformers.

    Args:
        model: any DenseCL model with its own ResNet.

    Returns:
        The same function, with the same `out_features`.

    Raises:
        ConversionError: that ResNet has no such strides, dilations or stem, or the model has another backbone.
    """
    check_own_resnet(model)
    config: DenseCLConfig = model.config
    strides, dilations = (getattr(config, name)[: config.num_stages] for name in ("strides", "dilations"))
    if set(strides[1:]) - {2} or strides[0] > 2 or set(dilations) != {1}:
        raise ConversionError(
            f"transformers' ResNet has strides (1 or 2, 2, 2, 2) and no dilations, not {strides} and {dilations}"
        )
    if "stem" in config.out_features:
        raise ConversionError(
            "the stem of transformers' ResNet is the map behind the max pool, ours the one before it: "
            f"out_features must be of stage1 to stage{config.num_stages}, got {list(config.out_features)}"
        )
    resnet = ResNetBackbone(
        ResNetConfig(
            num_channels=config.num_channels,
            embedding_size=config.embedding_size,
            hidden_sizes=config.hidden_sizes,
            depths=list(config.depths[: config.num_stages]),
            layer_type=config.layer_type,
            downsample_in_first_stage=strides[0] == 2,
            downsample_in_bottleneck=config.style == "caffe",
            out_features=list(config.out_features),
        )
    )
    resnet.to(next(model.parameters()).dtype)
    resnet.load_state_dict(model.encoder.backbone.state_dict())
    return resnet.eval()


def write_official(model: PreTrainedModel, out: str | os.PathLike[str], layout: str = "official") -> None:
    """Write one of our models for other code.

    Args:
        model: a DenseCL model with its own ResNet.
        out: file to create, for `transformers` folder; it appears only when it is complete.
        layout: what to write; all but `official` take the backbone only.

            - `official` (`.pth`): of a backbone `{"state_dict", "author"}`, as released; of other models
              `{"meta", "state_dict", "optimizer"}`, as of a training run.
            - `torchvision`, `timm` (`.pth` or `.safetensors`): the state dict of `resnet50` and the like, without `fc`.
            - `detectron2` (`.pkl` or `.safetensors`): `{"model", "__author__", "matching_heuristics"}` with numpy
              arrays; in the second case only these.
            - `transformers`: a folder that `ResNetBackbone.from_pretrained` loads.

    Raises:
        ConversionError: the layout cannot hold the model, or `out` has the wrong suffix.
        ValueError: unknown `layout`.
        FileExistsError: `out` exists.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "transformers":
        check_new_folder(out)
        resnet = to_transformers(model)
        with new_folder(out) as folder:
            resnet.save_pretrained(folder)
        return
    suffixes = _WRITERS[layout]
    suffix = Path(out).suffix
    if suffix not in suffixes:
        raise ConversionError(f"out must end in {' or '.join(suffixes)} for layout {layout}, got {os.fspath(out)!r}")
    check_new_file(out)
    _warn_of_shape(model.config)
    content = suffixes[suffix](model)
    with new_file(out) as file:
        if suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in content.items()}, file, {"format": "pt"})
        elif suffix == ".pkl":
            file.write_bytes(content)
        else:
            torch.save(content, file)


def _warn_of_shape(config: DenseCLConfig) -> None:
    """Say what a state dict does not hold and whoever loads it must know."""
    given = {name: getattr(config, name) for name in _USUAL_SHAPE}
    unusual = {name: value for name, value in given.items() if value != _USUAL_SHAPE[name]}
    if unusual:
        logger.warning(f"The file does not say that the ResNet has {unusual}: build the network so before loading it.")


def _official_content(model: PreTrainedModel) -> dict[str, Any]:
    state = to_official(model)
    if isinstance(model, DenseCLBackbone):
        return {"state_dict": state, "author": "DenseCL"}
    return {"meta": {}, "state_dict": state, "optimizer": {}}


def _detectron2_pickle(model: PreTrainedModel) -> bytes:
    """The pickle that detectron2's checkpointer reads."""
    tensors = to_detectron2(model)
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
        raise ConversionError("a .pkl for detectron2 holds numpy arrays, which cannot be bfloat16; use .safetensors")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    _ArrayPickler(buffer, protocol=4).dump({"model": arrays, "__author__": "OpenSelfSup", "matching_heuristics": True})
    return buffer.getvalue()


class _ArrayPickler(pickle.Pickler):
    """Stores arrays as calls of `numpy.ndarray`, which every release of numpy has under that name.

    numpy 2 itself stores the name of a private function that older releases lack.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


# Layout -> suffix of the file -> what to store in it.
_WRITERS: Mapping[str, Mapping[str, Callable[[PreTrainedModel], Any]]] = {
    "official": {".pth": _official_content},
    "torchvision": {".pth": backbone_state, ".safetensors": backbone_state},
    "timm": {".pth": backbone_state, ".safetensors": backbone_state},
    "detectron2": {".pkl": _detectron2_pickle, ".safetensors": to_detectron2},
}
LAYOUTS: tuple[str, ...] = (*_WRITERS, "transformers")
