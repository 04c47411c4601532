"""Configuration of SANM models (Tu et al., CVPR 2023, arXiv 2302.06805)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .backbone_stages_sanm import take_channels_of_backbone, take_stages_of_backbone
from .model_types_sanm import check_model_type

# Blocks per stage of the published networks, by their layers.
DEPTHS = {"preact": (2, 2, 2, 2), "basic": (2, 2, 2, 2), "bottleneck": (3, 4, 6, 3)}
BOTTLENECK_EXPANSION = 4

CHOICES = {
    "framework": ("dividemix", "c2d", "ce"),
    "layer_type": tuple(DEPTHS),
    "decoder_type": ("resnet18", "resnet50", "auto"),
    "mask": ("activation", "random", "none"),
    "mask_position": ("corner", "center"),
}

# Written to every config.json, so that a folder loads with the Auto classes where only transformers is installed; an
# ensemble replaces the classifier by its own class when it is saved.
AUTO_MAP = {
    "AutoConfig": "configuration_sanm.SANMConfig",
    "AutoModel": "encoders_sanm.SANMModel",
    "AutoModelForImageClassification": "modeling_sanm.SANMForImageClassification",
    "AutoBackbone": "encoders_sanm.SANMBackbone",
}


@strict
class SANMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of every SANM model: classifier, ensemble of two, encoder and backbone.

    The defaults are the pre-activation ResNet-18 for 32-pixel images with the masking of the CIFAR experiments.

    Args:
        framework (`str`, defaults to `"dividemix"`):
            How the network learns. `"dividemix"` and `"c2d"` (the same from self-supervised weights) are trained in
            pairs by `SANMTrainer`; given labels, their forward returns the plain cross entropy. `"ce"` is the light
            single-network
            mode: in training the forward returns the whole SANM loss, so that any `Trainer` can run it.
        backbone_config (configuration or `dict`, *optional*):
            Any configuration that `AutoBackbone` or, for plain vision transformers, `AutoModel` knows (also
            `TimmBackboneConfig`), used in place of the official networks; `layer_type`, `depths`, `widths` and `pool`
            then have no effect.
        layer_type (`str`, defaults to `"preact"`):
            `"preact"`: pre-activation ResNet-18 of DivideMix; `"basic"`: ResNet-18 of C2D; `"bottleneck"`: ResNet-50.
        depths (`list[int]`, *optional*):
            Blocks of each stage (also `num_blocks`); [2, 2, 2, 2], or [3, 4, 6, 3] for bottlenecks.
        widths (`list[int]`, defaults to `[64, 128, 256, 512]`):
            Inner channels of each stage; bottlenecks put out four times as many. The stem has as many as the first
            stage. `hidden_sizes`, the channels that stages put out, can be given in their place.
        pool (`bool`, *optional*):
            Stem of a 7x7 convolution with stride 2 and max pooling in place of a 3x3 convolution; by default for
            bottlenecks.
        num_channels (`int`, defaults to 3): channels of the images.
        image_size (`int` or pair of `int`, defaults to 32): pixels, one number or `(height, width)`.
        softmax_outputs (`bool`, defaults to `False`):
            Return softmax probabilities as `logits`, to which every loss applies softmax again, as the official C2D
            ResNet-18 does. Only for exact comparisons: such networks hardly learn from random weights.
        decoder_type (`str`, *optional*):
            `"resnet18"` (a 4x4 grid to 32 pixels), `"resnet50"` (7x7 to 224), `"auto"` (any grid to any size). By
            default the one that fits the network and the size.
        temperature (`float`, defaults to 0.5): of the sharpening of guessed labels (`p ** (1 / T)`, normalised).
        area_range (pair of `float`, defaults to `(0.02, 0.07)`): range of the masked share of an image whose label is
        right.
        min_aspect (`float`, defaults to 0.8): height over width of the masked box is in `[min_aspect, 1 / min_aspect]`.
        quality_slope (`float`, defaults to 0.03):
            What is added to the share as the probability that the label is right falls from 1 to 0.
        area_factor (`float`, defaults to 0.5):
            Share of the picture that is masked over share of the label that is moved.
        separate_areas (`bool`, defaults to `False`): draw size and aspect separately for both views (Clothing1M).
        mask (`str`, defaults to `"activation"`):
            Where boxes lie: at the largest and smallest activation, `"random"` (a control of equal area), or `"none"`.
        mask_position (`str`, defaults to `"corner"`):
            Whether the box begins at the extreme activation (the code) or is centred on it (the paper's picture).
        mask_labels (`bool`, defaults to `True`): move the masked share of the label to the other classes.
        clip_labels (`bool`, defaults to `False`): keep masked labels from becoming negative (many classes).
        recon_weight (`float`, defaults to 0.02): of the reconstruction loss; 0 turns it off.
        out_features (`list[str]`, *optional*):
            Stages that [`SANMBackbone`] returns, of `stem, stage1 ... stage4`; the last one by default.
        out_indices (`list[int]`, *optional*): the same as indices.

    Raises:
        ValueError: for an unknown choice, sizes or ratios out of range, lists of different lengths.

    Example:

    ```python
    >>> from hubmodels import SANMConfig, SANMForImageClassification

    >>> model = SANMForImageClassification(SANMConfig(num_labels=10))
    ```
    """

    model_type = "sanm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "classification_loss",
        "masked_loss",
        "reconstruction_loss",
        "last_hidden_state",
        "pooler_output",
        "reconstruction",
    ]
    attribute_map: ClassVar[dict[str, str]] = {"num_blocks": "depths"}
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True)
    }

    framework: str = "dividemix"
    backbone_config: dict | PreTrainedConfig | None = None
    layer_type: str = "preact"
    depths: list[int] | tuple[int, ...] | None = None
    widths: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    pool: bool | None = None
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    softmax_outputs: bool = False
    decoder_type: str | None = None
    temperature: float | int = 0.5
    area_range: list[float] | tuple[float, ...] = (0.02, 0.07)
    min_aspect: float | int = 0.8
    quality_slope: float | int = 0.03
    area_factor: float | int = 0.5
    separate_areas: bool = False
    mask: str = "activation"
    mask_position: str = "corner"
    mask_labels: bool = True
    clip_labels: bool = False
    recon_weight: float | int = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.depths = kwargs.pop("num_blocks", self.depths)
        put_out = kwargs.pop("hidden_sizes", None)
        if put_out is not None:
            self.widths = [size // self._expansion for size in put_out]
        if isinstance(self.image_size, list):
            self.image_size = tuple(self.image_size)
        self.area_range = list(self.area_range)
        self.widths = list(self.widths)
        self._check_choice("layer_type")
        self.depths = list(DEPTHS[self.layer_type] if self.depths is None else self.depths)
        if self.pool is None:
            self.pool = self.layer_type == "bottleneck"
        if self.decoder_type is None:
            self.decoder_type = self._fitting_decoder()
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self._check()
        check_model_type(self.backbone_config)
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)
        take_channels_of_backbone(self)
        if self.backbone_config is None:
            self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(self.depths) + 1))]
            self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        else:
            take_stages_of_backbone(self, out_features, out_indices)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; changed fields are checked like those of a new configuration, and the stages follow."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"backbone_config", "dtype"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if "depths" in changes:  # the stored selection may name stages that are gone
            config_dict = {k: v for k, v in config_dict.items() if k not in ("out_features", "out_indices")}
        return super().from_dict(config_dict | changes, **kwargs)

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Image size as `(height, width)` in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels after each stage of the official networks."""
        return [width * self._expansion for width in self.widths]

    @property
    def _expansion(self) -> int:
        return BOTTLENECK_EXPANSION if self.layer_type == "bottleneck" else 1

    def _fitting_decoder(self) -> str:
        if self.backbone_config is None and len(self.widths) == 4:
            if self.image_height_width == (32, 32) and not self.pool:
                return "resnet18"
            if self.image_height_width == (224, 224) and self.pool:
                return "resnet50"
        return "auto"

    def _check_choice(self, name):
        if getattr(self, name) not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {CHOICES[name]}, got {getattr(self, name)!r}")

    def _check(self):
        for name in CHOICES:
            self._check_choice(name)
        if len(self.depths) != len(self.widths) or not self.depths or min(*self.depths, *self.widths) < 1:
            raise ValueError(
                f"depths and widths must be positive numbers, one each per stage, got {self.depths} and {self.widths}"
            )
        if len(self.image_height_width) != 2 or min(self.image_height_width) < 1:
            raise ValueError(f"image_size must be a positive number or (height, width), got {self.image_size}")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {self.num_channels}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not self.recon_weight >= 0:
            raise ValueError(f"recon_weight must be at least 0, got {self.recon_weight}")
        check_ratios(self.area_range, self.min_aspect, self.quality_slope, self.area_factor)


def check_ratios(area_range: Sequence[float], min_aspect: float, quality_slope: float, area_factor: float) -> None:
    """
    Refuses ratios of the masks that are out of range.

    Args:
        area_range, min_aspect, quality_slope, area_factor: see [`SANMConfig`].

    Raises:
        ValueError: for such a ratio.
    """
    if len(area_range) != 2 or not 0 < area_range[0] <= area_range[1] < 1:
        raise ValueError(f"area_range must be (min, max) with 0 < min <= max < 1, got {tuple(area_range)}")
    if not 0 < min_aspect <= 1:
        raise ValueError(f"min_aspect must be in (0, 1], got {min_aspect}")
    if not 0 <= quality_slope < 1:
        raise ValueError(f"quality_slope must be in [0, 1), got {quality_slope}")
    if not 0 < area_factor <= 1:
        raise ValueError(f"area_factor must be in (0, 1], got {area_factor}")


__all__ = ["SANMConfig"]
