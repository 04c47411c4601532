"""MAE: the official PyTorch checkpoints (arXiv 2111.06377) to our folders and back.

The official code wrote six kinds of file, which are told apart by their keys:

| keys | kind | becomes |
| --- | --- | --- |
| neither decoder nor head (`mae_pretrain_vit_*.pth`) | encoder | `MAEModel` |
| `decoder_*`, `mask_token` (`*_full.pth`, `mae_visualize_*.pth`) | pre-training | `MAEForPreTraining` |
| `head.weight`, `fc_norm` (`mae_finetuned_vit_*.pth`) | classifier, mean pooling | `MAEForImageClassification` |
| `head.weight`, `norm` | classifier, class token | `MAEForImageClassification` |
| `head.0`, `head.1` (with `norm` or `fc_norm`) | linear probe | `MAEForImageClassification` |
| any of these beside `optimizer`, `epoch`, `scaler`, `args` | checkpoint of a training run | as above |
"""

import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hubmodels.modeling.mae import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from .building import (
    attention_heads,
    build_config,
    build_skeleton,
    in_official_order,
    label_fields,
    load_official,
    shape_of,
)
from .cards import Origin, converted_card
from .checkpoint_reading import ConversionError, model_state_dict
from .converted import Converted
from .key_mapping import KeyMap
from .recognition import describe

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "MAEModel": MAEModel,
    "MAEForPreTraining": MAEForPreTraining,
    "MAEForImageClassification": MAEForImageClassification,
    "ViTMAEModel": MAEModel,  # the stock classes of transformers have the same modules
    "ViTMAEForPreTraining": MAEForPreTraining,
}

# Heads of the released sizes, by width: base, large, huge; all have the same decoder (official `models_mae.py`).
RELEASED_HEADS = {768: (12,), 1024: (16,), 1280: (16,)}
RELEASED_DECODER_HEADS = {512: (16,)}

ORIGIN = Origin(
    method="mae",
    paper_title="Masked Autoencoders Are Scalable Vision Learners",
    paper="https://arxiv.org/abs/2111.06377",
    code="https://github.com/facebookresearch/mae",
    licence="cc-by-nc-4.0",
    licence_name="[CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/) (no commercial use)",
    citation="""@inproceedings{he2022masked,
  title={Masked Autoencoders Are Scalable Vision Learners},
  author={He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle={CVPR},
  year={2022}
}""",
)

# The names every official MAE file has, whatever its kind.
_COMMON_KEYS = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp.fc1.weight",
)

# The parts of official names in the order of an official state dict (in which the official modules register them).
# fmt: off
_OFFICIAL_PARTS = (
    "cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed", "blocks", "norm",
    "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred", "head", "fc_norm",
    "norm1", "attn", "norm2", "mlp", "qkv", "proj", "fc1", "fc2",
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
)
# fmt: on


@dataclass(frozen=True)
class Kind:
    """What kind of official file a state dict comes from.

    Args:
        model_class: the class it becomes.
        mean_pooling: the classifier averages the patch tokens and has `fc_norm` in place of the final norm.
        probe: the classifier is a linear probe, with a BatchNorm in front of the linear layer.
    """

    model_class: type[PreTrainedModel]
    mean_pooling: bool = False
    probe: bool = False

    @property
    def description(self) -> str:
        """One sentence for the model card."""
        if self.model_class is MAEModel:
            return "Encoder of a masked autoencoder, without the decoder: for features and as initialisation."
        if self.model_class is MAEForPreTraining:
            return "Masked autoencoder, encoder and decoder: for reconstruction and continued pre-training."
        head = "Linear probe on the features" if self.probe else "Image classifier fine-tuned from the encoder"
        tokens = "the mean of the patch tokens" if self.mean_pooling else "the class token"
        return f"{head} of a masked autoencoder; it reads {tokens}."

    @classmethod
    def of_keys(cls, keys: Mapping[str, Any]) -> "Kind":
        """Detect the kind from the official parameter names."""
        if any(key.startswith("decoder_") or key == "mask_token" for key in keys):
            return cls(MAEForPreTraining)
        if any(key.startswith("head.") for key in keys):
            probe = any(key.startswith("head.0.") for key in keys)
            return cls(MAEForImageClassification, mean_pooling="fc_norm.weight" in keys, probe=probe)
        return cls(MAEModel)

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "Kind":
        """The kind of file the official code would write for one of our models."""
        if isinstance(model, MAEForImageClassification):
            mean_pooling = model.config.pooling == "mean"
            return cls(MAEForImageClassification, mean_pooling=mean_pooling, probe=model.config.probe_batch_norm)
        return cls(MAEForPreTraining if isinstance(model, MAEForPreTraining) else MAEModel)


def key_map(kind: Kind) -> KeyMap:
    """The declared map between official names and ours for one kind of file."""
    encoder = "" if kind.model_class is MAEModel else "vit."
    linear = r"^head\.1\." if kind.probe else r"^head\."
    return KeyMap(
        [
            WeightRenaming(r"^cls_token", rf"^{encoder}embeddings.cls_token"),
            WeightRenaming(r"^pos_embed", rf"^{encoder}embeddings.position_embeddings"),
            WeightRenaming(r"^patch_embed\.proj\.", rf"^{encoder}embeddings.patch_embeddings.projection."),
            WeightRenaming(r"^blocks\.", rf"^{encoder}layers."),
            WeightRenaming(r"^norm\.", rf"^{encoder}layernorm."),
            WeightRenaming(r"^mask_token", r"^decoder.mask_token"),
            WeightRenaming(r"^decoder_pos_embed", r"^decoder.decoder_pos_embed"),
            WeightRenaming(r"^decoder_embed\.", r"^decoder.decoder_embed."),
            WeightRenaming(r"^decoder_blocks\.", r"^decoder.decoder_layers."),
            WeightRenaming(r"^decoder_norm\.", r"^decoder.decoder_norm."),
            WeightRenaming(r"^decoder_pred\.", r"^decoder.decoder_pred."),
            WeightRenaming(r"^head\.0\.", r"^probe_norm."),
            WeightRenaming(linear, r"^classifier."),
            WeightRenaming(r"\.norm1\.", r".layernorm_before."),
            WeightRenaming(r"\.norm2\.", r".layernorm_after."),
            WeightRenaming(r"\.attn\.proj\.", r".attention.o_proj."),
            WeightConverter(
                [r"\.attn\.qkv\."],
                [r".attention.q_proj.", r".attention.k_proj.", r".attention.v_proj."],
                operations=[Chunk(dim=0)],
            ),
        ]
    )


def convert(
    checkpoint: Mapping[str, Any],
    source: Path,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    norm_pix_loss: bool | None = None,
) -> Converted:
    """Convert the content of an official MAE checkpoint.

    Everything is inferred from the names and shapes of the tensors, except what they do not determine:

    Args:
        checkpoint: top-level dictionary of the file, with the state dict under `"model"`.
        source: where it was read from; the name of a released file says which loss it was trained with.
        num_heads: attention heads of the encoder; needed unless its width is that of a released size.
        decoder_num_heads: the same for the decoder, where there is one.
        norm_pix_loss: whether the decoder predicts normalised pixels; needed for a decoder unless the checkpoint
            records it (`args` of a training run) or has the name of a released file (`pretrain` or `visualize`).

    Returns:
        The model, its image processor and its card.

    Raises:
        ConversionError: not an MAE checkpoint, unknown or missing keys, wrong shapes, or one of the values above is
            needed and not given.
    """
    official = model_state_dict(checkpoint)
    absent = [key for key in _COMMON_KEYS if key not in official]
    if absent:
        raise ConversionError(f"not an MAE checkpoint: no {', '.join(absent)}; {describe(checkpoint)}")
    kind = Kind.of_keys(official)
    recorded = _recorded_arguments(checkpoint)
    fields = {
        **_encoder_fields(official, num_heads),
        **_task_fields(official, kind, source, decoder_num_heads),
        **_training_fields(kind, recorded, source, norm_pix_loss),
    }
    config = build_config(MAEConfig, fields)
    model = load_official(build_skeleton(kind.model_class, config), key_map(kind), official)
    return Converted(model, _image_processors(config), _card(kind, model, source))


def to_official(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Map the weights of one of our models to the official names, in the official order.

    Args:
        model: an `MAEModel`, `MAEForPreTraining` or `MAEForImageClassification`.

    Returns:
        The official state dict, with tensors of its own.

    Raises:
        ConversionError: the official code has no such model (non-square images, no qkv bias, another activation).
    """
    config = model.config
    for name, value, expressible in (
        ("image_size", config.image_size, len(set(config.image_height_width)) == 1),
        ("qkv_bias", config.qkv_bias, config.qkv_bias),
        ("hidden_act", config.hidden_act, config.hidden_act == "gelu"),
    ):
        if not expressible:
            raise ConversionError(f"the official MAE code cannot express {name}={value!r}")
    return in_official_order(key_map(Kind.of_model(model)).to_official(model.state_dict()), _OFFICIAL_PARTS)


def _encoder_fields(official: Mapping[str, torch.Tensor], num_heads: int | None) -> dict[str, Any]:
    """Config fields of the encoder, from the shapes of its tensors."""
    width, channels, patch, _ = shape_of(official, "patch_embed.proj.weight", "D, C, p, p")
    rows = shape_of(official, "pos_embed", "1, L + 1, D")[1]
    side = math.isqrt(rows - 1)
    if side * side != rows - 1:
        raise ConversionError(
            f"pos_embed has {rows} rows: one for the class token leaves {rows - 1} patches, which is not a square "
            "grid; the official code knows square images only"
        )
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "num_hidden_layers": _depth(official, "blocks"),
        "intermediate_size": shape_of(official, "blocks.0.mlp.fc1.weight", "4 D, D")[0],
        "num_attention_heads": attention_heads("num_heads", num_heads, [width], RELEASED_HEADS)[0],
        "layer_norm_eps": 1e-6,
    }


def _task_fields(
    official: Mapping[str, torch.Tensor], kind: Kind, source: Path, decoder_num_heads: int | None
) -> dict[str, Any]:
    """Config fields of the decoder or of the classifier."""
    if kind.model_class is not MAEForPreTraining and decoder_num_heads is not None:
        raise ConversionError(f"decoder_num_heads={decoder_num_heads} was given, but the checkpoint has no decoder")
    if kind.model_class is MAEForPreTraining:
        width = shape_of(official, "decoder_embed.weight", "E, D")[0]
        return {
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": _depth(official, "decoder_blocks"),
            "decoder_intermediate_size": shape_of(official, "decoder_blocks.0.mlp.fc1.weight", "4 E, E")[0],
            "decoder_num_attention_heads": attention_heads(
                "decoder_num_heads", decoder_num_heads, [width], RELEASED_DECODER_HEADS
            )[0],
        }
    if kind.model_class is MAEForImageClassification:
        num_labels = shape_of(official, "head.1.weight" if kind.probe else "head.weight", "classes, D")[0]
        return {
            **label_fields(num_labels, is_released=source.stem.startswith("mae_finetuned_vit_")),
            "pooling": "mean" if kind.mean_pooling else "cls",
            "probe_batch_norm": kind.probe,
        }
    return {}


def _training_fields(
    kind: Kind,
    recorded: Mapping[str, Any],
    source: Path,
    norm_pix_loss: bool | None,
) -> dict[str, Any]:
    """Config fields that no shape shows: from the recorded arguments, the name of a released file, or the caller."""
    fields = {}
    if norm_pix_loss is None:
        norm_pix_loss = _recorded(recorded, "norm_pix_loss", bool)
    if norm_pix_loss is None and (released := re.search(r"(pretrain|visualize)_vit", source.stem)):
        norm_pix_loss = released.group(1) == "pretrain"
    if norm_pix_loss is not None:
        fields["norm_pix_loss"] = norm_pix_loss
    elif kind.model_class is MAEForPreTraining:
        raise ConversionError(
            "neither the file nor its name says whether the decoder predicts normalised pixels; pass norm_pix_loss "
            "(True for the released mae_pretrain_*_full files, False for mae_visualize_*)"
        )
    for argument, field in (("mask_ratio", "mask_ratio"), ("drop_path", "drop_path_rate")):
        if (value := _recorded(recorded, argument, (int, float))) is not None:
            fields[field] = value
    return fields


def _recorded_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The command-line arguments that a training run stores beside its weights."""
    arguments = checkpoint.get("args", {})
    if isinstance(arguments, Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, Mapping):
        raise ConversionError(f"'args' must be the arguments of a training run, it is a {type(arguments).__name__}")
    return dict(arguments)


def _recorded(recorded: Mapping[str, Any], name: str, types: type | tuple[type, ...]) -> Any:
    value = recorded.get(name)
    if value is not None and not isinstance(value, types):
        raise ConversionError(f"args.{name} has an unexpected value: {value!r}")
    return value


def _depth(official: Mapping[str, torch.Tensor], stack: str) -> int:
    """Number of distinct blocks; a gap in their numbers shows up as missing keys later."""
    return len({key.split(".")[1] for key in official if key.startswith(f"{stack}.")})


def _image_processors(config: MAEConfig) -> tuple[MAEImageProcessor, ...]:
    """The official evaluation transform at the size of the model; none without the three channels it is made for."""
    if config.num_channels != 3:
        return ()
    crop = config.image_size
    short_side = int(crop / (224 / 256)) if crop <= 224 else crop  # official `util/datasets.py`
    size = {"shortest_edge": short_side}
    return (MAEImageProcessor(size=size, crop_size={"height": crop, "width": crop}),)


def _card(kind: Kind, model: PreTrainedModel, source: Path) -> str:
    """The model card, saying what the released files are good for."""
    auto_classes = {
        MAEModel: ("AutoModel", "image-feature-extraction"),
        MAEForPreTraining: ("AutoModelForPreTraining", "image-feature-extraction"),
        MAEForImageClassification: ("AutoModelForImageClassification", "image-classification"),
    }
    auto_class, task = auto_classes[kind.model_class]
    return converted_card(
        ORIGIN,
        source,
        title=source.stem,
        description=kind.description,
        architecture=kind.model_class.__name__,
        auto_class=auto_class,
        task=task,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        notes=tuple(_notes(kind, model.config, source)),
    )


def _notes(kind: Kind, config: MAEConfig, source: Path) -> Iterator[str]:
    size, patch = config.image_size, config.patch_size
    yield f"Images are {size} x {size} pixels, patches {patch} x {patch}."
    if config.num_channels != 3:
        yield f"There is no image processor: how {config.num_channels} channels were normalised is not recorded."
    if kind.model_class is MAEModel:
        yield "The file has no decoder, so this model cannot reconstruct images."
    if kind.model_class is MAEForPreTraining and config.norm_pix_loss:
        yield (
            "The decoder predicts pixels normalised per patch. `model.reconstruct` undoes this with the mean and "
            "deviation of the true patches; without that, pictures look wrong."
        )
    if kind.model_class is MAEForPreTraining and not config.norm_pix_loss:
        yield "The decoder predicts plain pixels, which suits pictures; to fine-tune, prefer `mae_pretrain_*`."
    if source.stem.endswith("ganloss"):
        yield "Trained with an additional adversarial loss: for pictures only."
