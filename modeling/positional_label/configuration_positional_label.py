"""Configuration of Positional Label models (Zhang and Gong, arXiv 2206.04981)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .model_types_positional_label import check_model_type

try:
    import timm
except ImportError:  # then no network of timm's is there either
    timm = None

logger = logging.get_logger(__name__)

CHOICES = {
    "position_label": ("absolute", "relative", "both", None),
    "pooling": ("mean", "cls", "cls_mean", "pooler"),
    "feature_split": ("half", "full"),
    "scheme": ("plain", "jigsaw", "droppos"),
    "backbone_variant": ("stock", "authors"),
}
AUTHORS_BACKBONES = ("vit", "swin")
# Backbones that are autoencoders of patches, whose encoder is a ViT.
AUTOENCODERS = ("mae", "vit_mae")
# Fields of the backbone that can be read here, but are not set here.
BACKBONE_FIELDS = (
    "image_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
)
# Fields of every configuration: what models return unless they are told.
OUTPUT_FIELDS = ("output_hidden_states", "output_attentions")
DEFAULT_POSITION_DROPOUT = 0.75  # of DropPos (arXiv 2309.03576)

# Written to every config.json, so that a folder saved from one of the classes loads with all of the Auto classes
# where only transformers is installed; the files named here are saved next to it.
AUTO_MAP = {
    "AutoConfig": "configuration_positional_label.PositionalLabelConfig",
    "AutoModel": "modeling_positional_label.PositionalLabelModel",
    "AutoModelForPreTraining": "pretraining_positional_label.PositionalLabelForPreTraining",
    "AutoModelForImageClassification": "modeling_positional_label.PositionalLabelForImageClassification",
}


@strict
class PositionalLabelConfig(PreTrainedConfig):
    r"""
    Configuration of a vision transformer that also learns where its tokens sit.

    The defaults are ViT-B/16 at 224 pixels with the absolute label at its published weight.

    Args:
        backbone_config (configuration or `dict`, *optional*):
            Any ViT or Swin that `AutoModel` knows (ViT, DeiT, DINOv2, BEiT, Swin, Swinv2, and timm's by
            `TimmWrapperConfig`); for pre-training an autoencoder (`mae` or `vit_mae`). ViT-B/16 by default.
        backbone_variant (`str`, defaults to `"stock"`):
            `"stock"` takes the backbone as it is, with its own position information. `"authors"`: the networks of the
            official code. A ViT without class token, or a Swin without position bias and with a depthwise convolution
            in front of every block.
        keep_resolution (`bool`, *optional*):
            Authors' Swin only: the last stage has the resolution of the one before and one window over the whole grid.
            By default with absolute labels, as in the official code. For square images and at least two stages.
        position_label (`str` or `None`, defaults to `"absolute"`):
            `"absolute"`: the cell of a token. `"relative"`: the offset of every ordered pair of tokens. `"both"`: two
            heads. `None`: no head, a plain classifier (the baseline, or what is left after training).
        position_loss_weight (`float`, defaults to 0.5):
            Weight lambda of the position loss (official code); with `"both"` that of the absolute one.
        relative_loss_weight (`float`, *optional*):
            Weight of the relative loss with `"both"`; `position_loss_weight` by default.
        pooling (`str`, defaults to `"mean"`):
            What the classifier reads: `"mean"` of the patch tokens after the final norm, the class token (`"cls"`),
            both next to each other (`"cls_mean"`, as DINOv2's classifier), or what the backbone pools (`"pooler"`, as
            BEiT's classifier and timm's do).
        feature_split (`str`, defaults to `"half"`):
            `"half"`: position heads read half of a token (published); `"full"`: all of it.
        num_anchors (`int`, *optional*):
            Relative labels in training: random anchors per image and step; the loss is then an unbiased estimate of
            that of all pairs, which is the default.
        position_head_dropout (`float`, defaults to 0.0): dropout in the position heads (0 in all published runs).
        position_dropout (`float`, *optional*):
            Share of the tokens that get no position embedding; the position loss then counts only these (pairs with at
            least one). Needs a backbone of transformers that adds a position table to its tokens. 0 by default, 0.75
            with `"droppos"`.
        scheme (`str`, defaults to `"plain"`):
            `"plain"`: labels of the tokens of the forward pass (published). `"jigsaw"`: of a second pass over a random
            part of the patches without any position embedding (as JigsawViT). `"droppos"`: `position_dropout` (0.75
            unless given, above 0) with Gaussian-smoothed absolute labels (as DropPos). The last two need a position
            table.
        jigsaw_ratio (`float`, defaults to 0.5): share of the patches that the second pass of `"jigsaw"` sees.
        position_sigma (`float`, defaults to 1.0): width of the smoothing of `"droppos"`, in tokens; 0 does not smooth.
        match_authors (`bool`, defaults to `False`):
            Decay the position table of the authors' ViT as their code does (which lists no exceptions).
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal that initialises heads and classifier; the authors' ViT uses 0.01
            everywhere.

    Raises:
        ValueError: for an unknown choice, negative or infinite weights, shares outside of [0, 1], a number of anchors
            that is not positive, authors' variants of other backbones, and schemes that contradict the rest.

    Example:

    ```python
    >>> from transformers import SwinConfig
    >>> from hubmodels import PositionalLabelConfig, PositionalLabelForImageClassification

    >>> config = PositionalLabelConfig(backbone_config=SwinConfig(), position_label="relative", num_labels=100)
    >>> model = PositionalLabelForImageClassification(config)
    ```
    """

    model_type = "positional_label"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")
    }
    # What `Trainer` leaves out of the predictions of an evaluation.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "attentions",
        "classification_loss",
        "reconstruction_loss",
        "position_loss",
        "position_accuracy",
        "relative_position_loss",
        "relative_position_accuracy",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_variant: str = "stock"
    keep_resolution: bool | None = None
    position_label: str | None = "absolute"
    position_loss_weight: float | int = 0.5
    relative_loss_weight: float | int | None = None
    pooling: str = "mean"
    feature_split: str = "half"
    num_anchors: int | None = None
    position_head_dropout: float | int = 0.0
    position_dropout: float | int | None = None
    scheme: str = "plain"
    jigsaw_ratio: float | int = 0.5
    position_sigma: float | int = 1.0
    match_authors: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        refuse_backbone_fields(kwargs)
        if self.position_dropout is None:
            self.position_dropout = DEFAULT_POSITION_DROPOUT if self.scheme == "droppos" else 0.0
        self._check()
        self._warn_of_unused()
        check_model_type(self.backbone_config)
        if isinstance(self.backbone_config, dict) and self.backbone_config.get("model_type") == "timm_wrapper":
            # Its configuration wants a number of classes, which a backbone has no use for.
            self.backbone_config = {"num_classes": 2} | self.backbone_config
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)
        if self.keep_resolution is None:
            swin = self.backbone_variant == "authors" and self.backbone_config.model_type == "swin"
            staged = swin and len(self.backbone_config.depths) > 1
            self.keep_resolution = staged and self.position_label == "absolute"
        self._check_backbone()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; changed fields are checked like those of a new configuration."""
        refuse_backbone_fields(kwargs)
        fields = {field.name for field in dataclasses.fields(cls)} - {"backbone_config", "dtype"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if "scheme" in changes:  # each has a position dropout of its own
            changes.setdefault("position_dropout", None)
        return super().from_dict(config_dict | changes, **kwargs)

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds of label that are learned, `"absolute"` before `"relative"`."""
        if self.position_label is None:
            return ()
        return ("absolute", "relative") if self.position_label == "both" else (self.position_label,)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of the loss of every kind of label."""
        second = self.position_loss_weight if self.relative_loss_weight is None else self.relative_loss_weight
        weights = (self.position_loss_weight, second) if self.position_label == "both" else (self.position_loss_weight,)
        return dict(zip(self.labels, weights, strict=False))

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Image size of the backbone as `(height, width)` in pixels."""
        config = self.backbone_config
        if config.model_type == "timm_wrapper":
            given = (config.model_args or {}).get("img_size")
            size = given if given is not None else timm.get_pretrained_cfg(config.architecture).input_size[1:]
        else:
            size = config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Image size of the backbone in pixels: one number, or `(height, width)` where these differ."""
        height, width = self.image_height_width
        return height if height == width else (height, width)

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        config = self.backbone_config
        if config.model_type == "timm_wrapper":
            return (config.model_args or {}).get("in_chans", 3)
        return config.num_channels

    def __getattr__(self, name: str) -> Any:
        """Widths, depths and heads are those of the backbone."""
        if name in BACKBONE_FIELDS:
            backbone = self.__dict__.get("backbone_config")
            if isinstance(backbone, PreTrainedConfig):
                return getattr(backbone, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _check(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("position_loss_weight", "relative_loss_weight", "position_sigma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative and must be finite, got {value}")
        if not 0 <= self.position_dropout <= 1:
            raise ValueError(f"position_dropout must be in [0, 1], got {self.position_dropout}")
        if not 0 < self.jigsaw_ratio <= 1:
            raise ValueError(f"jigsaw_ratio must be in (0, 1], got {self.jigsaw_ratio}")
        if not 0 <= self.position_head_dropout < 1:
            raise ValueError(f"position_head_dropout must be in [0, 1), got {self.position_head_dropout}")
        if self.num_anchors is not None and self.num_anchors < 1:
            raise ValueError(f"num_anchors must be at least 1, got {self.num_anchors}")
        if self.scheme == "droppos" and self.position_label not in ("absolute", None):
            raise ValueError(f"scheme 'droppos' has absolute labels only, got position_label {self.position_label!r}")
        if self.scheme == "droppos" and not self.position_dropout:
            raise ValueError(
                "scheme 'droppos' tells the places of tokens without position; position_dropout must be above 0 "
                f"({DEFAULT_POSITION_DROPOUT} unless given), got {self.position_dropout}"
            )
        if self.scheme == "jigsaw" and self.position_dropout:
            raise ValueError(
                f"scheme 'jigsaw' drops all positions already; position_dropout must be 0, got {self.position_dropout}"
            )

    def _warn_of_unused(self):
        # No contradictions: with another position_label, which a caller may set alone, they are used.
        unused = {"num_anchors": ("absolute",), "relative_loss_weight": ("absolute", "relative")}
        for name, labels in unused.items():
            if getattr(self, name) is not None and self.position_label in labels:
                logger.warning_once(f"{name} is not used with position_label {self.position_label!r}")

    def _check_backbone(self):
        kind = self.backbone_config.model_type
        if self.backbone_variant == "authors" and kind not in AUTHORS_BACKBONES:
            raise ValueError(f"backbone_variant 'authors' exists for {AUTHORS_BACKBONES}, got a {kind} backbone_config")
        if self.keep_resolution and (self.backbone_variant, kind) != ("authors", "swin"):
            raise ValueError(f"keep_resolution goes with the authors' Swin, got {self.backbone_variant} {kind}")
        if self.keep_resolution and len(self.backbone_config.depths) < 2:
            raise ValueError(
                "keep_resolution gives the last stage the resolution of the one before and needs at least two; got "
                f"depths {list(self.backbone_config.depths)}"
            )


def refuse_backbone_fields(arguments: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for arguments that are fields of the backbone's configuration.
    """
    for name in BACKBONE_FIELDS:
        if name in arguments:
            raise ValueError(
                f"{name} is that of backbone_config and must be set there: give a configuration, "
                f"PositionalLabelConfig(backbone_config=...); got {name}={arguments[name]!r}"
            )


__all__ = ["PositionalLabelConfig"]
