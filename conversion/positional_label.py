"""Positional Label: the authors' PyTorch checkpoints (arXiv 2206.04981) to our folders and back.

No checkpoint was released; these are the files that the official training code writes. Its three networks are told
apart by their keys:

| keys | network |
| --- | --- |
| `pos_embed`, `blocks.N...` | ViT with absolute labels |
| `layers.S.blocks.N...` | Swin with relative labels |
| the same with `layers.S.FinalLayer_Mlp` | Swin with absolute labels, whose last stage keeps the resolution |

The position head is `To2D` and `head_coordinate`. A training file also holds its settings as a `CfgNode` of yacs,
which is read as a plain dictionary and not used; masks of attention windows are computed anew.
"""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from transformers import BitImageProcessor, PreTrainedModel
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.utils import logging

from .building import (
    attention_heads,
    build_config,
    build_skeleton,
    check_positive,
    find_state_dict,
    load_official,
    shape_of,
)
from .cards import Origin, converted_card
from .checkpoint_reading import ConversionError, read_checkpoint
from .converted import Converted
from .key_mapping import KeyMap, check_keys
from .output import check_new_file, new_file
from .pickled_classes import ALLOWED_CLASSES
from .recognition import describe

logger = logging.get_logger(__name__)

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "PositionalLabelForImageClassification": PositionalLabelForImageClassification
}

# Heads of the published sizes, by the width of the patch embedding (official configurations).
VIT_HEADS = {768: (12,)}
SWIN_HEADS = {96: (3, 6, 12, 24), 128: (4, 8, 16, 32)}
SWIN_WINDOW = 7
# Beside the weights in a file of ours: height and width of the images.
_SIZE_ENTRY = "image_size"

ORIGIN = Origin(
    method="positional_label",
    paper_title="Positional Label for Self-Supervised Vision Transformer",
    paper="https://arxiv.org/abs/2206.04981",
    code="https://github.com/zhangzhemin/PositionalLabel",
    licence="unknown",
    licence_name="none stated by the authors; their code derives from Swin's, which is under the MIT licence",
    citation="""@inproceedings{zhang2023positional,
  title={Positional Label for Self-Supervised Vision Transformer},
  author={Zhang, Zhemin and Gong, Xun},
  booktitle={AAAI},
  year={2023}
}""",
)

# The settings in a training file: the class that its pickle names makes a plain dictionary, without yacs' code.
_Settings = type("CfgNode", (), {"__module__": "yacs.config", "__new__": lambda cls: OrderedDict()})

_QKV = WeightConverter(
    [r"\.attn\.qkv\."],
    [r".attention.q_proj.", r".attention.k_proj.", r".attention.v_proj."],
    operations=[Chunk(dim=0)],
)
_COMMON = [
    WeightRenaming(r"^To2D\.", r"^position_head."),
    WeightRenaming(r"^head_coordinate\.", r"^position_head.classifier."),
    WeightRenaming(r"^head\.", r"^classifier."),
    WeightRenaming(r"^norm\.", r"^backbone.layernorm."),
    WeightRenaming(r"\.norm1\.", r".layernorm_before."),
    WeightRenaming(r"\.norm2\.", r".layernorm_after."),
    WeightRenaming(r"\.attn\.proj\.", r".attention.o_proj."),
    WeightRenaming(r"^patch_embed\.proj\.", r"^backbone.embeddings.patch_embeddings.projection."),
]
VIT_MAP = KeyMap(
    [
        *_COMMON,
        WeightRenaming(r"^pos_embed", r"^backbone.embeddings.position_embeddings"),
        WeightRenaming(r"^blocks\.", r"^backbone.layers."),
        _QKV,
    ]
)
SWIN_MAP = KeyMap(
    [
        *_COMMON,
        WeightRenaming(r"^patch_embed\.norm\.", r"^backbone.embeddings.norm."),
        WeightRenaming(r"^layers\.", r"^backbone.encoder.layers."),
        WeightRenaming(r"\.FinalLayer_norm\.", r".widen.norm."),
        WeightRenaming(r"\.FinalLayer_Mlp\.", r".widen.reduction."),
        _QKV,
    ]
)


def read_official(path: str | Path) -> dict[str, Any]:
    """Read a file of the official training code; of its settings only plain values are kept.

    Args:
        path: the file.

    Returns:
        Its top-level dictionary.

    Raises:
        ConversionError: as `read_checkpoint`.
    """
    return read_checkpoint(path, (*ALLOWED_CLASSES, _Settings))


def convert(
    checkpoint: Mapping[str, Any],
    source: Path,
    *,
    num_heads: int | list[int] | None = None,
    window_size: int | None = None,
    image_size: int | list[int] | None = None,
) -> Converted:
    """Convert the content of a checkpoint of the official code.

    Sizes are read from the tensors, except what they do not show:

    Args:
        checkpoint: top-level dictionary of the file, with the state dict under `"model"` or as it is.
        source: where it was read from.
        num_heads: attention heads, of a Swin one number per stage; needed unless the width is a published one.
        window_size: side of Swin's windows; needed if the file has no shifted windows and they are not 7.
        image_size: pixels, one number or (height, width), by default as `write_official` stored them. Otherwise the
            patches are taken for a square grid, and the card says so; needed where they are none, and for a Swin
            without position head.

    Returns:
        The model, its image processor and its card.

    Raises:
        ConversionError: not such a checkpoint, unknown or missing keys, wrong shapes, or one of the values above is
            needed and not given.
    """
    check_positive(window_size=window_size, image_size=image_size)
    sides, notes = _sides(_stored_size(checkpoint) if image_size is None else image_size), []
    official = find_state_dict(checkpoint, ("model",))
    is_vit = "pos_embed" in official
    if "patch_embed.proj.weight" not in official or not (is_vit or "layers.0.blocks.0.cpe.weight" in official):
        raise ConversionError(
            "not a checkpoint of the official Positional Label code: it needs patch_embed.proj and either pos_embed "
            f"(ViT) or layers.N.blocks.N.cpe (Swin); {describe(checkpoint)}"
        )
    if is_vit and "cls_token" in official:
        raise ConversionError("the official ViT has no class token, but the checkpoint has one: it is another ViT")
    if is_vit and window_size is not None:
        raise ConversionError(
            f"window_size={window_size} was given, but the checkpoint is of a ViT, which has no windows"
        )
    official, dropped = _without_computed(official)
    fields = _vit_fields(official, num_heads) if is_vit else _swin_fields(official, dropped, num_heads, window_size)
    if sides is None:
        sides = _square(official, fields, notes)
    fields["backbone_config"]["image_size"] = sides[0] if sides[0] == sides[1] else list(sides)
    num_labels = shape_of(official, "head.weight", "classes, D")[0]
    config = build_config(PositionalLabelConfig, {"backbone_variant": "authors", "num_labels": num_labels, **fields})
    model = _build(VIT_MAP if is_vit else SWIN_MAP, config, official)
    return Converted(model, _processors(config), _card(model, source, dropped, notes))


def to_official(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Map the weights of one of our models to the official names, with the masks that the official Swin stores.

    Args:
        model: a `PositionalLabelForImageClassification` with the authors' backbone.

    Returns:
        The official state dict, with tensors of its own.

    Raises:
        ConversionError: the official code has no such model.
    """
    config = model.config
    if config.backbone_variant != "authors" or config.position_label == "both" or config.pooling != "mean":
        raise ConversionError(
            "the official code has ViT and Swin in the authors' variant, with mean pooling and one position head; got "
            f"backbone_variant={config.backbone_variant!r}, pooling={config.pooling!r}, "
            f"position_label={config.position_label!r}"
        )
    if config.feature_split != "half":
        raise ConversionError(
            f"the official position heads read half tokens, got feature_split={config.feature_split!r}"
        )
    if config.backbone_config.model_type == "vit":
        return {name: tensor.clone() for name, tensor in VIT_MAP.to_official(model.state_dict()).items()}
    _check_maps(model.backbone)
    state = {name: tensor.clone() for name, tensor in SWIN_MAP.to_official(model.state_dict()).items()}
    for name, layer in model.backbone.named_modules():
        if getattr(layer, "shift_size", 0):
            rows, columns = layer.input_resolution
            like = model.classifier.weight
            mask = layer.get_attn_mask(rows, columns, like.dtype, like.device)
            state[f"{name.removeprefix('encoder.')}.attn_mask"] = mask
    return state


def write_official(model: PreTrainedModel, out: str | os.PathLike[str]) -> None:
    """Write a model as the official code would, `{"model": state_dict}`, with the size of its images beside it.

    The tensors do not show the shape of the grid. The official code leaves the entry alone.

    Args:
        model: as for `to_official`.
        out: `.pth` file to create; it appears only when it is complete.

    Raises:
        ConversionError: as `to_official`.
        FileExistsError: `out` exists.
    """
    check_new_file(out)
    content = {"model": to_official(model), _SIZE_ENTRY: list(model.config.image_height_width)}
    with new_file(out) as file:
        torch.save(content, file)


def _stored_size(checkpoint: Mapping[str, Any]) -> list[int] | None:
    """Height and width that `write_official` stored; what others store under that name is left alone."""
    stored = checkpoint.get(_SIZE_ENTRY)
    is_size = isinstance(stored, list) and len(stored) == 2 and all(type(side) is int and side > 0 for side in stored)
    return stored if is_size else None


def _sides(image_size: int | list[int] | None) -> tuple[int, int] | None:
    """Height and width."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ConversionError(f"image_size must be one number or (height, width), got {image_size}")
    return sides


def _check_maps(backbone: PreTrainedModel) -> None:
    """The official Swin pads no map, neither for its windows nor to merge its patches; ours does."""
    for stage in backbone.encoder.layers:
        (rows, columns), window = stage.blocks[0].input_resolution, stage.blocks[0].window_size
        if rows % window or columns % window:
            raise ConversionError(
                f"the official Swin has whole windows, but window_size {window} does not divide a map of "
                f"{rows}x{columns} tokens"
            )
        if stage.downsample is not None and (rows % 2 or columns % 2):
            raise ConversionError(
                f"the official Swin merges maps of even sides only, got one of {rows}x{columns} tokens"
            )


def _without_computed(official: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights, and what is not one: masks, and the patch merging that the widening stage never uses."""
    widening = [name.partition(".FinalLayer_Mlp")[0] for name in official if ".FinalLayer_Mlp." in name]
    unused = tuple(f"{stage}.downsample." for stage in widening)
    dropped = {
        name: tensor
        for name, tensor in official.items()
        if name.endswith(".attn_mask") or (unused and name.startswith(unused))
    }
    return {name: tensor for name, tensor in official.items() if name not in dropped}, dropped


def _vit_fields(official: Mapping[str, torch.Tensor], num_heads: int | list[int] | None) -> dict[str, Any]:
    width, channels, patch, _ = shape_of(official, "patch_embed.proj.weight", "D, C, p, p")
    shape_of(official, "pos_embed", "1, L, D")
    return {
        "backbone_config": {
            "model_type": "vit",
            "hidden_size": width,
            "num_channels": channels,
            "patch_size": patch,
            "num_hidden_layers": len({name.split(".")[1] for name in official if name.startswith("blocks.")}),
            "intermediate_size": shape_of(official, "blocks.0.mlp.fc1.weight", "4 D, D")[0],
            "num_attention_heads": attention_heads("num_heads", num_heads, [width], VIT_HEADS)[0],
            "layer_norm_eps": 1e-6,
        },
        "position_label": _position_label(official, width),
    }


def _swin_fields(
    official: Mapping[str, torch.Tensor],
    dropped: Mapping[str, torch.Tensor],
    num_heads: int | list[int] | None,
    window: int | None,
) -> dict[str, Any]:
    width, channels, patch, _ = shape_of(official, "patch_embed.proj.weight", "D, C, p, p")
    blocks = {match.groups() for name in official if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))}
    stages = len({stage for stage, _ in blocks})
    depths = [sum(int(stage) == number for stage, _ in blocks) for number in range(stages)]
    hidden = shape_of(official, "layers.0.blocks.0.mlp.fc1.weight", "4 D, D")[0]
    keeps = any(".FinalLayer_Mlp." in name for name in official)
    masks = [name for name in dropped if name.endswith(".attn_mask")]
    if masks:
        shown = _side(
            shape_of(dropped, masks[0], "windows, N, N")[-1], "an attention mask of {} tokens is no square window"
        )
        if window not in (None, shown):
            raise ConversionError(f"window_size {window} was given, but the masks are of windows of {shown}")
        window = shown
    widths = [width * 2**stage for stage in range(stages)]
    label = _position_label(official, widths[-1])
    inner = {
        "model_type": "swin",
        "embed_dim": width,
        "num_channels": channels,
        "patch_size": patch,
        "depths": depths,
        "num_heads": attention_heads("num_heads", num_heads, widths, SWIN_HEADS),
        "window_size": SWIN_WINDOW if window is None else window,
        "mlp_ratio": hidden / width,
        "drop_path_rate": 0.0,  # of the training run, which no tensor shows
    }
    return {"backbone_config": inner, "position_label": label, "keep_resolution": keeps}


def _position_label(official: Mapping[str, torch.Tensor], width: int) -> str | None:
    """Which head it is: that of pairs reads as many channels as a token has, the other one half of them."""
    if "To2D.fc1.weight" not in official and "head_coordinate.weight" not in official:
        return None
    inputs = shape_of(official, "To2D.fc1.weight", "hidden, channels")[1]
    if inputs not in (width, width // 2):
        raise ConversionError(
            f"To2D.fc1 reads {inputs} channels; expected {width // 2} (absolute) or {width} (relative)"
        )
    return "relative" if inputs == width else "absolute"


def _square(official: Mapping[str, torch.Tensor], fields: dict[str, Any], notes: list[str]) -> tuple[int, int]:
    """Sides of images whose grid of patches is square, which is noted: oblong grids may have as many patches."""
    inner, label, stages = fields["backbone_config"], fields["position_label"], 1
    hint = "Pass image_size (--image-size HEIGHT,WIDTH)"
    if inner["model_type"] == "vit":
        side = _side(official["pos_embed"].shape[1], f"pos_embed has {{}} rows, which is not a square grid. {hint}")
        what = f"{side**2} rows of `pos_embed`"
    elif label is None:
        raise ConversionError(f"image_size not given: without position head no tensor shows it. {hint}")
    else:
        classes = shape_of(official, "head_coordinate.weight", "cells, hidden")[0]
        side = _side(classes, f"head_coordinate has {{}} classes, which no square grid has. {hint}")
        side = side if label == "absolute" else (side + 1) // 2
        what, stages = f"{classes} classes of `head_coordinate`", len(inner["depths"]) - int(fields["keep_resolution"])
    pixels = side * inner["patch_size"] * 2 ** (stages - 1)
    notes.append(
        f"The {what} were taken for those of a square grid of {side}x{side} tokens, that is of images of "
        f"{pixels}x{pixels} pixels; the file does not say. If they are not, pass `image_size` (height, width)."
    )
    logger.warning(notes[-1])
    return pixels, pixels


def _side(cells: int, complaint: str) -> int:
    side = math.isqrt(cells)
    if side * side != cells:
        raise ConversionError(complaint.format(cells))
    return side


def _check_grid(model: PreTrainedModel, official: Mapping[str, torch.Tensor]) -> None:
    """The tensors must have as many rows or classes as the grid of the images."""
    (height, width), (rows, columns) = model.config.image_height_width, model.view.grid
    cells, label = rows * columns, model.config.position_label
    expected = {"pos_embed": (1, cells)} if model.config.backbone_config.model_type == "vit" else {}
    if label is not None:
        classes = cells if label == "absolute" else (2 * rows - 1) * (2 * columns - 1)
        expected["head_coordinate.weight"] = (0, classes)
    for name, (axis, size) in expected.items():
        if name in official and official[name].ndim > axis and official[name].shape[axis] != size:
            raise ConversionError(
                f"image_size {height}x{width} gives a grid of {rows}x{columns} tokens, for which {name} must have "
                f"{size} {'classes' if axis == 0 else 'rows'}, found {official[name].shape[axis]}"
            )


def _build(mapping: KeyMap, config: PositionalLabelConfig, official: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Build the model around the official tensors, checking every name, shape and, back again, every bit."""
    skeleton = build_skeleton(PositionalLabelForImageClassification, config)
    _check_grid(skeleton, official)
    check_keys(mapping.to_official(skeleton.state_dict()), official)
    model = load_official(PositionalLabelForImageClassification(config), mapping, official)
    return model.to(official["head.weight"].dtype)  # also what is computed and not in the file


def _processors(config: PositionalLabelConfig) -> tuple[Any, ...]:
    """The official evaluation transform: resize to 8 / 7 of the size (256 for 224), centre crop."""
    if config.num_channels != 3:
        return ()
    height, width = config.image_height_width
    size = {"shortest_edge": int(256 / 224 * min(height, width))}
    return (BitImageProcessor(size=size, crop_size={"height": height, "width": width}),)


def _card(model: PreTrainedModel, source: Path, dropped: Mapping[str, torch.Tensor], notes: Sequence[str]) -> str:
    kind = {"vit": "ViT", "swin": "Swin"}[model.config.backbone_config.model_type]
    label = model.config.position_label
    head = f"with the head of {label} positional labels" if label else "without position head"
    notes = [
        *notes,
        "`model.without_position_head()` leaves the position head out; it is not used at inference anyway.",
    ]
    merging = sorted(name for name in dropped if ".downsample." in name)
    if merging:
        notes.append(f"The unused tensors {', '.join(f'`{name}`' for name in merging)} were left out.")
    return converted_card(
        ORIGIN,
        source,
        title=source.stem,
        description=f"Image classifier: the {kind} of the authors' code, {head}.",
        architecture=type(model).__name__,
        auto_class="AutoModelForImageClassification",
        task="image-classification",
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        notes=tuple(notes),
    )


__all__ = [
    "MODEL_CLASSES",
    "ORIGIN",
    "SWIN_MAP",
    "VIT_MAP",
    "convert",
    "read_official",
    "to_official",
    "write_official",
]
