"""DenseCL: the official PyTorch checkpoints (arXiv 2011.09157) to our folders and back.

The official code wrote two kinds of file, which are told apart by their keys:

| keys | kind | becomes |
| --- | --- | --- |
| `conv1.weight`, `layer1.0...` (released files, torchvision), also under `backbone.` | backbone | `DenseCLBackbone` |
| `encoder_q.*` | encoder with heads | `DenseCLModel` |
| `encoder_q.*`, `encoder_k.*`, `queue`, `queue2` (a training run) | everything | `DenseCLForPreTraining` |

A training run also stores `backbone.*`, a second name of the tensors `encoder_q.0.*`; both must agree. Every name may
have the prefix `module.` of a parallel model. Training runs of mmselfsup 1.x and mmpretrain (`backbone.*`, `neck.*`,
`encoder_k.module.*`, both queues) are read too.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hubmodels.modeling.densecl import (
    DenseCLBackbone,
    DenseCLConfig,
    DenseCLForPreTraining,
    DenseCLImageProcessor,
    DenseCLModel,
)
from hubmodels.modeling.densecl.loading_densecl import check_queue_pointers, check_queue_types
from transformers import PreTrainedModel
from transformers.utils import logging

from .building import build_config, build_skeleton, find_state_dict, load_official, shape_of
from .cards import Origin, converted_card
from .checkpoint_reading import ConversionError, read_checkpoint
from .converted import Converted
from .densecl_exports import to_official, write_official
from .densecl_names import ALIAS, KEY_MAP, QUERY
from .key_mapping import check_identical, check_keys
from .pickled_classes import ALLOWED_CLASSES, MMENGINE_CLASSES
from .recognition import describe

logger = logging.get_logger(__name__)

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model.__name__: model for model in (DenseCLModel, DenseCLForPreTraining, DenseCLBackbone)
}

ORIGIN = Origin(
    method="densecl",
    paper_title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
    paper="https://arxiv.org/abs/2011.09157",
    code="https://github.com/WXinlong/DenseCL",
    licence="unknown",
    licence_name="none stated by the authors for the weights; their code is GPL-3.0",
    citation="""@inproceedings{wang2021dense,
  title={Dense Contrastive Learning for Self-Supervised Visual Pre-Training},
  author={Wang, Xinlong and Zhang, Rufeng and Shen, Chunhua and Kong, Tao and Li, Lei},
  booktitle={CVPR},
  year={2021}
}""",
)

QUEUES = ("queue", "queue2")
_HEADS = "encoder_q.1."
_PARALLEL = "module."
_CLASSIFIER = {"fc.weight", "fc.bias"}
_VARIANCE, _COUNT = "running_var", "num_batches_tracked"
# Names of mmpretrain (`mmpretrain/models/selfsup/densecl.py`); its averaged encoder also counts its steps.
_MM_NECK, _MM_STEPS = "neck.", "encoder_k.steps"
_MM_PREFIXES = {ALIAS: QUERY, _MM_NECK: _HEADS, "encoder_k.module.": "encoder_k."}
_DESCRIPTIONS = {
    DenseCLBackbone: "Backbone pre-trained by dense contrastive learning, for detectors and segmentation models.",
    DenseCLModel: "Encoder pre-trained by dense contrastive learning, with its two projection heads.",
    DenseCLForPreTraining: "State of a DenseCL training run: both encoders with their heads, and both queues.",
}
_AUTO_CLASSES = {
    DenseCLBackbone: "AutoModel",  # AutoBackbone looks for folders on the Hub
    DenseCLModel: "AutoModel",
    DenseCLForPreTraining: "AutoModelForPreTraining",
}


def read_official(path: str | Path) -> dict[str, Any]:
    """Read a file of the official code, of mmselfsup or of mmpretrain; of the logs in it nothing is kept.

    Args:
        path: the file.

    Returns:
        Its top-level dictionary.

    Raises:
        ConversionError: as `read_checkpoint`.
    """
    return read_checkpoint(path, (*ALLOWED_CLASSES, *MMENGINE_CLASSES))


def convert(
    checkpoint: Mapping[str, Any],
    source: Path,
    *,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    style: str | None = None,
    momentum: float | None = None,
    temperature: float | None = None,
    loss_lambda: float | None = None,
    num_grid: int | None = None,
    frozen_stages: int | None = None,
    norm_eval: bool | None = None,
    matching: str | None = None,
    queue_partial: str | None = None,
    shuffle_bn: bool | None = None,
) -> Converted:
    """Convert the content of an official DenseCL checkpoint, or of a ResNet's state dict with torchvision's names.

    Depth, widths, sizes of heads and queues are read from the tensors. What they do not show is published, or given:

    Args:
        checkpoint: top-level dictionary of the file, with the state dict under `"state_dict"` or as it is.
        source: where it was read from.
        strides, dilations, style, frozen_stages, norm_eval: of the ResNet.
        momentum, temperature, loss_lambda, num_grid, matching, queue_partial, shuffle_bn: of the pre-training, for a
            run that goes on.

    Returns:
        The model, its image processor and its card.

    Raises:
        ConversionError: no backbone weights in it, an alias that disagrees, unknown or missing keys, wrong shapes.
    """
    notes: list[str] = []
    state = _without_classifier(_state_dict(checkpoint), notes)
    official = _with_batch_counts(_canonical(state, checkpoint), notes)
    options = {
        "strides": strides,
        "dilations": dilations,
        "style": style,
        "momentum": momentum,
        "temperature": temperature,
        "loss_lambda": loss_lambda,
        "num_grid": num_grid,
        "frozen_stages": frozen_stages,
        "norm_eval": norm_eval,
        "matching": matching,
        "queue_partial": queue_partial,
        "shuffle_bn": shuffle_bn,
    }
    given = {name: value for name, value in options.items() if value is not None}
    config = build_config(DenseCLConfig, _config_fields(official) | given)
    model = _build(_model_class(official), config, official, notes)
    processors = (DenseCLImageProcessor(),) if config.num_channels == 3 else ()
    return Converted(model, processors, _card(model, source, notes))


def _state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The named tensors, without the prefix of a parallel model."""
    # The queues of half-precision runs are in float32, and pointers and steps are integers.
    free = [*QUEUES, *(f"{name}_ptr" for name in QUEUES), _MM_STEPS]
    free_types = [prefix + name for prefix in ("", _PARALLEL) for name in free]
    state = find_state_dict(checkpoint, ("state_dict", "model"), free_types)
    return {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}


def _without_classifier(state: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """The state dict without the last layer of a torchvision ResNet, which a backbone does not have."""
    if not ("conv1.weight" in state and _CLASSIFIER & state.keys()):
        return state
    notes.append("The classifier of the file (`fc.weight`, `fc.bias`) was left out: a backbone has none.")
    logger.warning(notes[-1])
    return {name: tensor for name, tensor in state.items() if name not in _CLASSIFIER}


def _with_batch_counts(official: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """The state dict with `num_batches_tracked`, which files from before torch 0.4.1 lack and no result depends on."""
    if any(name.endswith(_COUNT) for name in official):
        return official
    layers = [name.removesuffix(_VARIANCE) for name in official if name.endswith(_VARIANCE)]
    notes.append(
        "The file does not say how many batches its statistics have seen (`num_batches_tracked`): 0 is stored."
    )
    logger.warning(notes[-1])
    return official | {layer + _COUNT: torch.tensor(0) for layer in layers}


def _canonical(state: dict[str, torch.Tensor], checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict with all backbone weights under `encoder_q.0.`, and without their second names."""
    if "conv1.weight" in state:
        return {QUERY + name: tensor for name, tensor in state.items()}
    if any(name.startswith(_MM_NECK) for name in state):
        return {_official_name(name): tensor for name, tensor in state.items() if name != _MM_STEPS}
    alias = {QUERY + name.removeprefix(ALIAS): t for name, t in state.items() if name.startswith(ALIAS)}
    official = {name: tensor for name, tensor in state.items() if not name.startswith(ALIAS)}
    if QUERY + "conv1.weight" not in official and QUERY + "conv1.weight" not in alias:
        raise ConversionError(
            "no backbone weights found; known layouts: conv1.weight, layer1.0.conv1.weight, ... (released files, "
            "torchvision), these under backbone., and under encoder_q.0. (training runs) or backbone. and neck. "
            f"(mmpretrain's); {describe(checkpoint)}"
        )
    if not any(name.startswith(QUERY) for name in official):
        return official | alias
    if alias:
        encoder = {name: tensor for name, tensor in official.items() if name.startswith(QUERY)}
        try:
            check_identical(encoder, alias)
        except ConversionError as error:
            raise ConversionError(f"backbone.* and encoder_q.0.* must be the same tensors. {error}") from error
    return official


def _official_name(name: str) -> str:
    """The official name of a weight of mmpretrain's."""
    prefix = next((prefix for prefix in _MM_PREFIXES if name.startswith(prefix)), "")
    return _MM_PREFIXES.get(prefix, "") + name.removeprefix(prefix)


def _model_class(official: Mapping[str, torch.Tensor]) -> type[PreTrainedModel]:
    """The class of which all known parts are in a file; unknown names in it are refused later."""
    if any(name.startswith(("encoder_k.", "queue")) for name in official):
        return DenseCLForPreTraining
    return DenseCLModel if any(name.startswith(_HEADS) for name in official) else DenseCLBackbone


def _config_fields(official: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Config fields that the tensors show."""
    width, channels, *_ = shape_of(official, "encoder_q.0.conv1.weight", "C, channels, k, k")
    layers = {match.groups() for name in official if (match := re.match(r"encoder_q\.0\.layer(\d+)\.(\d+)\.", name))}
    depths = [sum(int(stage) == number for stage, _ in layers) for number in range(1, 5)]
    num_stages = sum(depth > 0 for depth in depths)
    if not num_stages or 0 in depths[:num_stages]:
        raise ConversionError(f"the ResNet must have stages layer1, layer2, ..., found {sorted(layers)}")
    fields: dict[str, Any] = {
        "embedding_size": width,
        "num_channels": channels,
        "num_stages": num_stages,
        "depths": depths[:num_stages],
        "layer_type": "bottleneck" if "encoder_q.0.layer1.0.conv3.weight" in official else "basic",
    }
    if _model_class(official) is not DenseCLBackbone:
        fields["projection_hidden_size"] = shape_of(official, "encoder_q.1.mlp.0.weight", "hidden, C")[0]
        fields["projection_size"] = shape_of(official, "encoder_q.1.mlp.2.weight", "D, hidden")[0]
    queue = next((name for name in QUEUES if name in official), None)
    if queue is not None:
        fields["queue_length"] = shape_of(official, queue, "D, K")[1]
    return fields


def _build(
    model_class: type[PreTrainedModel], config: DenseCLConfig, official: dict[str, torch.Tensor], notes: list[str]
) -> PreTrainedModel:
    """Build the model around the official tensors, checking every name, shape and, back again, every bit."""
    model = build_skeleton(model_class, config)
    expected = KEY_MAP.to_official(model.state_dict())
    if model_class is DenseCLForPreTraining:
        official = official | _fresh_queues(config, official, notes)
    # Names as in the file, if it is of a backbone.
    prefix = QUERY if model_class is DenseCLBackbone else ""
    check_keys(*({name.removeprefix(prefix): t for name, t in state.items()} for state in (expected, official)))
    if model_class is DenseCLForPreTraining:
        try:
            check_queue_types(official)
            check_queue_pointers(official, config.queue_length)
        except ValueError as error:
            raise ConversionError(f"the queues cannot be used: {error}") from error
    load_official(model, KEY_MAP, official)
    if isinstance(model, DenseCLForPreTraining):
        model.momentum_encoder.requires_grad_(False)
    return model


def _fresh_queues(
    config: DenseCLConfig, official: Mapping[str, torch.Tensor], notes: list[str]
) -> dict[str, torch.Tensor]:
    """Random keys for the queues that a training run does not have; an old one has the first queue only."""
    dtype = torch.promote_types(torch.float32, official["encoder_q.1.mlp.2.weight"].dtype)
    fresh = {}
    for name, content in zip(QUEUES, ("image", "dense"), strict=True):
        if any(key in official for key in (name, f"{name}_ptr")):
            continue
        notes.append(f"The file has no queue of {content} keys (`{name}`): it starts with random ones.")
        logger.warning(notes[-1])
        keys = torch.randn(config.projection_size, config.queue_length, dtype=dtype)
        fresh[name] = torch.nn.functional.normalize(keys, dim=0)
        fresh[f"{name}_ptr"] = torch.zeros(1, dtype=torch.int64)
    return fresh


def _card(model: PreTrainedModel, source: Path, notes: list[str]) -> str:
    """The model card, saying what the file is good for."""
    architecture = type(model)
    if architecture is DenseCLBackbone:
        notes = [
            "The file has no projection heads and no queues (those of the released files were not published): "
            "`AutoModel` and `DenseCLForPreTraining` start them anew and say so. For a detector or segmentation model "
            "load `DenseCLBackbone` of `hubmodels.modeling.densecl`, with the `out_features` it needs.",
            *notes,
        ]
    return converted_card(
        ORIGIN,
        source,
        title=source.stem,
        description=_DESCRIPTIONS[architecture],
        architecture=architecture.__name__,
        auto_class=_AUTO_CLASSES[architecture],
        task="image-feature-extraction",
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        notes=tuple(notes),
        changes="they were only renamed",
    )


__all__ = ["MODEL_CLASSES", "ORIGIN", "convert", "read_official", "to_official", "write_official"]
