"""SANM: checkpoints of the official networks (CVPR 2023; DivideMix, C2D) to our folders and back.

The official scripts save no weights; their networks do, in whatever run added a `torch.save`, and C2D published
self-supervised encoders to start from. The kinds of file are told apart by their keys:

| keys | kind | becomes |
| --- | --- | --- |
| `conv1.weight`, `layer1.0.bn1...`, `linear.*`, `recon_module.*` | pre-activation ResNet (DivideMix) | classifier |
| `encoder.conv1.weight`, ..., `fc.*`, `recon_module.*` | ResNet of C2D | classifier |
| `{"model": {"encoder.module.conv1.weight", ..., "head.*"}}` | encoder of C2D | classifier with a fresh head |
| the first two without `recon_module.*` | networks of DivideMix and C2D themselves | classifier with a fresh decoder |

Every name may have the prefix `module.` of a parallel model, also in the middle. The projection head `head.*` of an
encoder is dropped, as the official code does. Two files make an ensemble.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
)
from hubmodels.modeling.sanm.image_processing_sanm import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    CIFAR100_MEAN,
    CIFAR100_STD,
    CLOTHING1M_MEAN,
    CLOTHING1M_STD,
)
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming

from .building import build_config, build_skeleton, check_positive, find_state_dict, load_official, shape_of
from .cards import Origin, converted_card
from .checkpoint_reading import ConversionError, read_checkpoint
from .converted import Converted
from .key_mapping import KeyMap
from .output import check_new_file, new_file
from .recognition import describe

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model.__name__: model for model in (SANMForImageClassification, SANMEnsembleForImageClassification)
}

ORIGIN = Origin(
    method="sanm",
    paper_title="Learning with Noisy Labels via Self-supervised Adversarial Noisy Masking",
    paper="https://arxiv.org/abs/2302.06805",
    code="https://github.com/yuanpengtu/SANM",
    licence="unknown",
    licence_name="none stated by the authors; DivideMix and C2D are MIT",
    citation="""@inproceedings{tu2023learning,
  title={Learning with Noisy Labels via Self-supervised Adversarial Noisy Masking},
  author={Tu, Yuanpeng and Zhang, Boshen and Li, Yuxi and Liu, Liang and Li, Jian and Zhang, Jiangning and
          Wang, Yabiao and Wang, Chengjie and Zhao, Cai Rong},
  booktitle={CVPR},
  year={2023}
}""",
)

_DECODER = WeightRenaming(r"^recon_module\.", r"^decoder.")
_STAGES = range(1, 9)
PREACT_MAP = KeyMap(
    [
        *(WeightRenaming(rf"^{name}\.", rf"^backbone.{name}.") for name in ("conv1", "bn1")),
        *(WeightRenaming(rf"^layer{number}\.", rf"^backbone.layer{number}.") for number in _STAGES),
        WeightRenaming(r"^linear\.", r"^classifier."),
        _DECODER,
    ]
)
C2D_MAP = KeyMap([WeightRenaming(r"^encoder\.", r"^backbone."), WeightRenaming(r"^fc\.", r"^classifier."), _DECODER])
_FRESH = ("fc.", "recon_module.")  # what a self-supervised file does not hold


def convert(
    checkpoint: Mapping[str, Any],
    source: Path,
    *,
    second: str | Path | None = None,
    head: str | Path | None = None,
    num_labels: int | None = None,
    image_size: int | list[int] | None = None,
    softmax_outputs: bool = False,
    framework: str | None = None,
    image_mean: list[float] | None = None,
    image_std: list[float] | None = None,
) -> Converted:
    """Convert the content of a checkpoint of an official network.

    Architecture, widths, classes and decoder are read from the tensors. What they do not show is published, or given:

    Args:
        checkpoint: top-level dictionary of the file, with the state dict under `"model"` or as it is.
        source: where it was read from.
        second: file of the second network; both become an ensemble.
        head: file with `fc.*` and `recon_module.*` for an encoder of C2D; without it they start anew.
        num_labels: classes, for an encoder without head (default 10); others have theirs.
        image_size: pixels, one number or (height, width), where they are not 32 (3x3 stem) or 224 (7x7 stem).
        softmax_outputs: return probabilities in place of scores, as the C2D ResNet-18 of the CIFAR script does.
        framework: how the model will be trained: "dividemix", "c2d" or "ce"; by default as its network was.
        image_mean, image_std: statistics of the pixels per channel; by default those that the official scripts have for
            the data: Clothing1M for a 7x7 stem, CIFAR-100 for 100 classes, else CIFAR-10.

    Returns:
        The model, its image processor and its card.

    Raises:
        ConversionError: no network of ours in it, unknown or missing keys, wrong shapes, another number of classes
            than `num_labels`, two files of different networks, statistics of another number of channels.
    """
    check_positive(num_labels=num_labels, image_size=image_size)
    official, is_fresh = _official_state(checkpoint, head)
    options = {"image_size": image_size, "framework": framework, "softmax_outputs": softmax_outputs}
    config = _config(official, num_labels, {name: value for name, value in options.items() if value is not None})
    if second is None:
        model: PreTrainedModel = _build(config, official)
        notes = []
    else:
        other, other_is_fresh = _official_state(read_checkpoint(second), head)
        if is_fresh or other_is_fresh:
            raise ConversionError("second makes an ensemble of two trained classifiers; an encoder has no classifier")
        model, notes = _ensemble(config, official, other), [f"The second network comes from `{Path(second).name}`."]
    if _without_decoder(official) or (second is not None and _without_decoder(other)):
        notes.append(_fresh_note(is_fresh))
    processor = _processor(config, image_mean, image_std)
    return Converted(model, (processor,), _card(model, source, notes, second))


def to_official(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Map the weights of a classifier to the official names.

    Args:
        model: a `SANMForImageClassification` with one of the official networks.

    Returns:
        The state dict, with tensors of its own.

    Raises:
        ConversionError: the model has another backbone, or is an ensemble.
    """
    if isinstance(model, SANMEnsembleForImageClassification):
        raise ConversionError("an ensemble is two official files: write each with layout net1 and net2")
    if model.config.backbone_config is not None:
        kind = model.config.backbone_config.model_type
        raise ConversionError(f"only the official networks can be written, this model has a {kind} backbone")
    key_map = PREACT_MAP if model.config.layer_type == "preact" else C2D_MAP
    return {name: tensor.clone() for name, tensor in key_map.to_official(model.state_dict()).items()}


def write_official(model: PreTrainedModel, out: str | os.PathLike[str], layout: str | None = None) -> None:
    """Write a network as the official code would: `{"model": state_dict}`.

    Args:
        model: a classifier, or an ensemble.
        out: `.pth` file to create; it appears only when it is complete.
        layout: which network of an ensemble, "net1" or "net2".

    Raises:
        ConversionError: as `to_official`.
        ValueError: unknown `layout`, or one for a single classifier.
        FileExistsError: `out` exists.
    """
    check_new_file(out)
    if layout is not None:
        if layout not in ("net1", "net2") or not isinstance(model, SANMEnsembleForImageClassification):
            raise ValueError(
                f"layout must be net1 or net2, of an ensemble, got {layout!r} for a {type(model).__name__}"
            )
        model = getattr(model, layout)
    state = to_official(model)
    with new_file(out) as file:
        torch.save({"model": state}, file)


def _official_state(checkpoint: Mapping[str, Any], head: str | Path | None) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors of a network, without prefixes and projection head, and whether it is an encoder without a head."""
    state = _state_dict(checkpoint)
    is_preact = "linear.weight" in state and "conv1.weight" in state
    if head is not None and (is_preact or "fc.weight" in state):
        raise ConversionError(f"head={os.fspath(head)!r} was given, but the checkpoint has a classifier of its own")
    if is_preact:
        return state, False
    if "encoder.conv1.weight" not in state:
        raise ConversionError(
            "no network of SANM found; known layouts: conv1.weight, layer1.0.bn1.weight, linear.weight (DivideMix), "
            "encoder.conv1.weight, ..., fc.weight (C2D), encoder.module.* and head.* (its encoders); "
            f"{describe(checkpoint)}"
        )
    if "fc.weight" in state:
        return state, False
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    if head is None:
        return encoder, True
    parts = _state_dict(read_checkpoint(head))
    unknown = [name for name in parts if not name.startswith(_FRESH)]
    if unknown:
        raise ConversionError(f"head must hold fc.* and recon_module.* only, found {', '.join(unknown[:5])}")
    return encoder | parts, False


def _state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    state = find_state_dict(checkpoint, ("model", "state_dict"))
    return {re.sub(r"(^|\.)module\.", r"\1", name): tensor for name, tensor in state.items()}


def _config(official: Mapping[str, torch.Tensor], num_labels: int | None, options: dict[str, Any]) -> SANMConfig:
    """The configuration that the tensors show."""
    is_preact = "linear.weight" in official
    prefix, classifier = ("", "linear") if is_preact else ("encoder.", "fc")
    kernel = "C, channels, k, k"
    _, channels, *_, side = shape_of(official, f"{prefix}conv1.weight", kernel)
    pattern = re.compile(rf"{re.escape(prefix)}layer(\d+)\.(\d+)\.conv1\.weight")
    blocks = [match.groups() for name in official if (match := pattern.fullmatch(name))]
    stages = sorted({int(stage) for stage, _ in blocks})
    if not stages or stages != list(range(1, len(stages) + 1)):
        raise ConversionError(f"the network must have stages layer1, layer2, ..., found {stages}")
    layer_type = "basic"
    if is_preact:
        layer_type = "preact"
    elif f"{prefix}layer1.0.conv3.weight" in official:
        layer_type = "bottleneck"
    pool = side == 7
    fields: dict[str, Any] = {
        "layer_type": layer_type,
        "depths": [sum(int(stage) == number for stage, _ in blocks) for number in stages],
        "widths": [shape_of(official, f"{prefix}layer{number}.0.conv1.weight", kernel)[0] for number in stages],
        "pool": pool,
        "num_channels": channels,
        "image_size": 224 if pool else 32,
        "framework": "dividemix" if is_preact else "c2d",
    }
    if f"{classifier}.weight" in official:
        classes = shape_of(official, f"{classifier}.weight", "classes, D")[0]
        if num_labels not in (None, classes):
            raise ConversionError(f"num_labels must be that of the file, {classes}, or left out, got {num_labels}")
        num_labels = classes
    if "recon_module.layer1.weight" in official:
        names = [name for name in official if re.fullmatch(r"recon_module.*weight", name)]
        kernels = [shape_of(official, name, kernel)[-1] for name in names]
        fields["decoder_type"] = {(4, 6, 4): "resnet18", (6, 2, 2): "resnet50"}.get(tuple(kernels), "auto")
    return build_config(SANMConfig, {"num_labels": 10 if num_labels is None else num_labels, **fields, **options})


def _build(config: SANMConfig, official: dict[str, torch.Tensor]) -> SANMForImageClassification:
    """Build a network around the official tensors, checking every name, shape and, back again, every bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SANMForImageClassification(config)
    key_map = PREACT_MAP if config.layer_type == "preact" else C2D_MAP
    expected = key_map.to_official(model.state_dict())
    if _without_decoder(official):
        parts = _FRESH if "fc.weight" not in official and "linear.weight" not in official else _FRESH[1:]
        dtype = next(tensor.dtype for name, tensor in official.items() if name.endswith("conv1.weight"))
        fresh = {name: tensor.to(dtype) for name, tensor in expected.items() if name.startswith(parts)}
        official = official | fresh
    return load_official(model, key_map, official)


def _ensemble(
    config: SANMConfig, official: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> SANMEnsembleForImageClassification:
    networks = [_build(config, state) for state in (official, other)]
    ensemble = build_skeleton(SANMEnsembleForImageClassification, config)
    state = {f"net{i}.{name}": t for i, net in enumerate(networks, 1) for name, t in net.state_dict().items()}
    ensemble.load_state_dict(state, assign=True)
    return ensemble.eval()


def _without_decoder(official: Mapping[str, torch.Tensor]) -> bool:
    """Whether nothing of the decoder is in a file, as in those of DivideMix and C2D themselves."""
    return not any(name.startswith("recon_module.") for name in official)


def _fresh_note(is_encoder: bool) -> str:
    if is_encoder:
        return "The file is a self-supervised encoder: classifier and decoder start anew."
    return "No reconstruction decoder is in the file (as in those of DivideMix and C2D): it starts anew."


def _processor(config: SANMConfig, mean: list[float] | None, std: list[float] | None) -> SANMImageProcessor:
    published = CIFAR100_MEAN, CIFAR100_STD
    if config.pool:
        published = CLOTHING1M_MEAN, CLOTHING1M_STD
    elif config.num_labels != 100:
        published = CIFAR10_MEAN, CIFAR10_STD
    statistics = {}
    for name, given, default in (("image_mean", mean, published[0]), ("image_std", std, published[1])):
        if given is None and config.num_channels != len(default):
            raise ConversionError(
                f"{name} must be given for images of {config.num_channels} channels: the published one has 3"
            )
        values = [float(value) for value in (default if given is None else given)]
        if len(values) != config.num_channels or not all(map(math.isfinite, values)):
            raise ConversionError(
                f"{name} must have one number for each of the {config.num_channels} channels, got {given}"
            )
        if name == "image_std" and min(values) <= 0:
            raise ConversionError(f"image_std must be positive, got {given}")
        statistics[name] = values
    height, width = config.image_height_width
    size: dict[str, int] = {"height": height, "width": width}
    if config.pool:  # as 256 to 224 pixels
        size = {"shortest_edge": round(min(height, width) * 256 / 224)}
    return SANMImageProcessor(
        size=size,
        crop_size={"height": height, "width": width},
        do_center_crop=config.pool,
        do_convert_rgb=config.num_channels == 3,
        **statistics,
    )


def _card(model: PreTrainedModel, source: Path, notes: list[str], second: str | Path | None) -> str:
    if not model.config.softmax_outputs and model.config.layer_type == "basic":
        notes.append(
            "The official CIFAR script takes a softmax inside of this network and applies its losses to the result; "
            "convert with `--set softmax_outputs=true` to compare with it."
        )
    return converted_card(
        ORIGIN,
        source,
        title=source.stem,
        description=f"{model.config.layer_type} ResNet for training with wrong labels.",
        architecture=type(model).__name__,
        auto_class="AutoModelForImageClassification",
        task="image-classification",
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        notes=tuple(notes),
        files=[source, *([Path(second)] if second else [])],
        changes="they were only renamed",
    )


__all__ = ["MODEL_CLASSES", "ORIGIN", "convert", "to_official", "write_official"]
