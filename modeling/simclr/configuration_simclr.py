"""Configuration of SimCLR models (Chen et al., arXiv 2002.05709 "v1" and arXiv 2006.10029 "v2")."""

import dataclasses
import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .backbone_stages_simclr import take_channels_of_backbone, take_stages_of_backbone
from .model_types_simclr import check_model_type

# Blocks per group of the official networks (`resnet_depth`).
RESNETS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
DEFAULT_DEPTHS = {"basic": 18, "bottleneck": 50}
CIFAR_IMAGE_SIZE = 32

CHOICES = {
    "layer_type": ("bottleneck", "basic"),
    "pool_padding": ("same_tf", "torch"),
    "bn_running_var": ("biased", "unbiased"),
    "pooling": ("mean", "cls"),
    "proj_head_mode": ("none", "linear", "nonlinear"),
    "loss_reduction": ("official", "mean"),
    "frozen_bn": ("batch", "inference"),
}

# Written to every config.json, so that a folder saved from one of the classes loads with all of the Auto classes
# where only transformers is installed; the files named here are saved next to it.
AUTO_MAP = {
    "AutoConfig": "configuration_simclr.SimCLRConfig",
    "AutoModel": "modeling_simclr.SimCLRModel",
    "AutoModelForPreTraining": "modeling_simclr.SimCLRForPreTraining",
    "AutoModelForImageClassification": "modeling_simclr.SimCLRForImageClassification",
    "AutoBackbone": "modeling_simclr.SimCLRBackbone",
}


@strict
class SimCLRConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of every SimCLR model: pre-training, classifier, encoder and backbone.

    The defaults are ResNet-50 (1x) at 224 pixels with the three-layer projection head of v2, temperature 0.1 and global
    batch normalisation.

    Args:
        backbone_config (configuration or `dict`, *optional*):
            Any configuration that `AutoBackbone` knows (also `TimmBackboneConfig`), or of a vision transformer (ViT,
            DeiT ...), used in place of the official ResNet; the fields from `resnet_depth` to `pool_padding` then have
            no effect.
        pooling (`str`, defaults to `"mean"`):
            How `backbone_config`'s last feature map becomes the representation `h`: mean over space, or the class token
            (`"cls"`) of a ViT. The official ResNets always average.
        resnet_depth (`int`, *optional*):
            18, 34, 50, 101, 152 or 200; sets `layer_type` and `depths`.
        layer_type (`str`, *optional*): `"bottleneck"` or `"basic"`.
        depths (`list[int]`, *optional*): blocks of each group.
        num_channels (`int`, defaults to 3): channels of the images.
        stem_width (`int`, defaults to 64): channels of the stem and of the first group's inner convolutions, at 1x.
        width_multiplier (`int`, defaults to 1): factor of all widths (the published 1x, 2x, 3x, 4x).
        sk_ratio (`float`, defaults to 0.0):
            Above 0 selects selective kernels and the ResNet-D stem and shortcuts (published: 0.0625), and is the
            ratio of the bottleneck inside of them. Needs bottleneck blocks.
        se_ratio (`float`, defaults to 0.0): above 0 adds squeeze-and-excitation to every block.
        cifar_stem (`bool`, *optional*):
            3x3 stem without stride and pooling; by default for images of at most 32 pixels.
        image_size (`int` or pair of `int`, defaults to 224): pixels, one number or `(height, width)`.
        pool_padding (`str`, defaults to `"same_tf"`):
            Padding of the stem's max pool, `"same_tf"` as the official weights need it or `"torch"` (one pixel around).
        global_bn (`bool`, defaults to `True`):
            Statistics of batch normalisation over the batch of all processes; in the network of a `backbone_config`
            those of `torch.nn.BatchNorm2d` and of timm's `BatchNormAct2d`.
        bn_running_var (`str`, *optional*):
            Variance that the moving averages of the ResNet's layers store, `"biased"` or `"unbiased"`. By default, as
            in the official TF1 code, it is the biased one exactly with `global_bn`; the TF2 code stores the biased one
            always, as both do in the head. A `backbone_config`'s layers need `global_bn` for the biased one.
        frozen_bn (`str`, defaults to `"batch"`):
            What frozen blocks do in fine-tuning with `fine_tune_after_block` 0 to 3: use and update batch statistics
            (`"batch"`, TF1 code, the published numbers), or run in inference mode (`"inference"`, TF2 code).
        proj_head_mode (`str`, defaults to `"nonlinear"`): projection head `"none"`, `"linear"` or `"nonlinear"`.
        num_proj_layers (`int`, defaults to 3): layers of the nonlinear head (v1: 2).
        proj_out_dim (`int`, defaults to 128): width of the projections.
        ft_proj_selector (`int`, defaults to 0):
            Activation that the classifier reads: 0 is `h` (v1), 1 the output of the first head layer (v2), -1 the last.
        train_projection_in_finetune (`bool`, defaults to `True`):
            Whether head layers in front of the classifier learn in fine-tuning (v2 paper, TF2 code); the TF1 code
            uses them without updating them.
        temperature (`float`, defaults to 0.1): of NT-Xent.
        hidden_norm (`bool`, defaults to `True`): normalise the projections to unit length.
        loss_reduction (`str`, defaults to `"official"`):
            `"official"`: the sum of the mean losses of both views; `"mean"`: half of it, as the paper writes.
        encoder_chunk_size (`int`, *optional*):
            In pre-training, images that the encoder sees at a time. Its activations are dropped and computed again for
            the backward pass, so that memory no longer limits the batch, whose loss and gradients stay exactly those of
            one pass. Needs an encoder without batch statistics (a ViT, ConvNeXt).
        fine_tune_after_block (`int`, defaults to -1):
            -1 trains all; 0 freezes the stem; i freezes stem and groups 1 to i; 4 (the number of groups) leaves the
            classifier only, on a network in inference mode (linear evaluation).
        linear_probe (`bool`, defaults to `False`):
            Train a classifier on detached features during pre-training (`lineareval_while_pretraining`).
        weight_decay (`float`, defaults to 0.0):
            Decay of the classifier's kernel, added to the loss as `weight_decay / 2 * |W|^2`, which is what the
            official code does under LARS (LARS itself leaves the classifier out).
        zero_init_logits_layer (`bool`, defaults to `False`):
            Start a new classifier at zero. Given to `from_pretrained`, `True` zeroes that of the file too.
        out_features (`list[str]`, *optional*):
            Stages that [`SimCLRBackbone`] returns, of `stem, stage1 ... stage4`; the last one by default.
        out_indices (`list[int]`, *optional*): the same as indices.

    Raises:
        ValueError: for an unknown choice, a depth that is not in the table, a temperature that is not positive, a
            selector outside the head, selective kernels with basic blocks, and sizes or ratios out of range.

    Example:

    ```python
    >>> from hubmodels import SimCLRConfig, SimCLRForPreTraining

    >>> model = SimCLRForPreTraining(SimCLRConfig(resnet_depth=18, image_size=32, temperature=0.5))
    ```
    """

    model_type = "simclr"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True)
    }

    backbone_config: dict | PreTrainedConfig | None = None
    pooling: str = "mean"
    resnet_depth: int | None = None
    layer_type: str | None = None
    depths: list[int] | tuple[int, ...] | None = None
    num_channels: int = 3
    stem_width: int = 64
    width_multiplier: int = 1
    sk_ratio: float | int = 0.0
    se_ratio: float | int = 0.0
    cifar_stem: bool | None = None
    image_size: int | list[int] | tuple[int, ...] = 224
    pool_padding: str = "same_tf"
    global_bn: bool = True
    bn_running_var: str | None = None
    frozen_bn: str = "batch"
    proj_head_mode: str = "nonlinear"
    num_proj_layers: int = 3
    proj_out_dim: int = 128
    ft_proj_selector: int = 0
    train_projection_in_finetune: bool = True
    temperature: float | int = 0.1
    hidden_norm: bool = True
    loss_reduction: str = "official"
    encoder_chunk_size: int | None = None
    fine_tune_after_block: int = -1
    linear_probe: bool = False
    weight_decay: float | int = 0.0
    zero_init_logits_layer: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.image_size, list):
            self.image_size = tuple(self.image_size)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self._set_resnet()
        self._check()
        check_model_type(self.backbone_config)
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)
        take_channels_of_backbone(self)
        if self.backbone_config is None:
            self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
            self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        else:
            take_stages_of_backbone(self, out_features, out_indices)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; changed fields are checked; `resnet_depth`, stages and `bn_running_var` follow them."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"model_type of the configuration must be {cls.model_type!r}, got {model_type!r}")
        fields = {field.name for field in dataclasses.fields(cls)} - {"backbone_config", "dtype"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        selection = {name: kwargs.pop(name) for name in ("out_features", "out_indices") if name in kwargs}
        replaced = set()
        if selection or {"resnet_depth", "depths"} & set(changes):
            replaced |= {"out_features", "out_indices"}
        if changes.get("resnet_depth") is not None:
            replaced |= {"depths", "layer_type"}
        elif {"depths", "layer_type"} & set(changes):
            replaced.add("resnet_depth")
        if "global_bn" in changes:
            replaced.add("bn_running_var")
        stored = {name: value for name, value in config_dict.items() if name not in replaced}
        result = super().from_dict(stored | changes | selection, **kwargs)
        if kwargs.get("return_unused_kwargs") and changes.get("zero_init_logits_layer"):
            # An Auto class gives what is left to `from_pretrained` of the model, which zeroes what it loads.
            result[1]["zero_init_logits_layer"] = True
        return result

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Image size as `(height, width)` in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def uses_cifar_stem(self) -> bool:
        """Whether the official ResNet has the stem for small images."""
        return max(self.image_height_width) <= CIFAR_IMAGE_SIZE if self.cifar_stem is None else self.cifar_stem

    @property
    def running_variance(self) -> str:
        """`bn_running_var`, or what it is by default."""
        return self.bn_running_var or ("biased" if self.global_bn else "unbiased")

    @property
    def embedding_size(self) -> int:
        """Channels after the stem of the official ResNet."""
        return self.stem_width * self.width_multiplier

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels after each group of the official ResNet."""
        expansion = 4 if self.layer_type == "bottleneck" else 1
        return [self.embedding_size * 2**i * expansion for i in range(len(self.depths))]

    @property
    def num_head_layers(self) -> int:
        """Layers of the projection head in its mode."""
        return {"none": 0, "linear": 1, "nonlinear": self.num_proj_layers}[self.proj_head_mode]

    @property
    def selected_layer(self) -> int:
        """`ft_proj_selector` counted from the input: 0 is `h`, j the output of head layer j."""
        return self.ft_proj_selector % (self.num_head_layers + 1)

    @property
    def trains_classifier_only(self) -> bool:
        """Whether `fine_tune_after_block` asks for linear evaluation."""
        return self.fine_tune_after_block >= len(self.depths)

    def _set_resnet(self):
        """Fills in `layer_type` and `depths`, from the table unless they are given."""
        if self.resnet_depth is not None and self.resnet_depth not in RESNETS:
            raise ValueError(f"resnet_depth must be one of {tuple(RESNETS)}, got {self.resnet_depth}")
        if self.layer_type is not None:
            self._check_choice("layer_type")
        depth = self.resnet_depth or DEFAULT_DEPTHS[self.layer_type or "bottleneck"]
        layer_type, depths = RESNETS[depth]
        if self.depths is None:
            self.depths = depths
        if self.layer_type is None:
            self.layer_type = layer_type
        self.depths = list(self.depths)
        if self.resnet_depth is not None and (self.layer_type, tuple(self.depths)) != (layer_type, depths):
            raise ValueError(
                f"resnet_depth {depth} means {layer_type} blocks with depths {list(depths)}, "
                f"got layer_type {self.layer_type!r} and depths {self.depths}; leave resnet_depth out"
            )

    def _check_choice(self, name):
        if getattr(self, name) not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {CHOICES[name]}, got {getattr(self, name)!r}")

    def _check(self):
        for name in CHOICES:
            if name != "bn_running_var" or self.bn_running_var is not None:
                self._check_choice(name)
        for name in ("num_channels", "stem_width", "width_multiplier", "num_proj_layers", "proj_out_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.encoder_chunk_size is not None and self.encoder_chunk_size < 1:
            raise ValueError(f"encoder_chunk_size must be at least 1, got {self.encoder_chunk_size}")
        for name in ("sk_ratio", "se_ratio", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths must be at least one positive number per group, got {self.depths}")
        if len(self.image_height_width) != 2 or min(self.image_height_width) < 1:
            raise ValueError(f"image_size must be a positive number or (height, width), got {self.image_size}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.sk_ratio > 0 and self.layer_type == "basic":
            raise ValueError(
                f"sk_ratio must be 0 with layer_type 'basic' (selective kernels need bottleneck blocks), "
                f"got {self.sk_ratio}"
            )
        if self.sk_ratio > 0 and self.embedding_size < 2:
            raise ValueError(
                "stem_width * width_multiplier must be at least 2 with sk_ratio (the stem's first convolutions have "
                f"half as many channels), got {self.embedding_size}"
            )
        if not -self.num_head_layers - 1 <= self.ft_proj_selector <= self.num_head_layers:
            raise ValueError(
                f"ft_proj_selector must be in [{-self.num_head_layers - 1}, {self.num_head_layers}] (0 is h, negative "
                f"numbers count from the end) for a {self.proj_head_mode} projection head of {self.num_head_layers} "
                f"layers, got {self.ft_proj_selector}"
            )
        self._check_freezing()

    def _check_freezing(self):
        if self.fine_tune_after_block < -1:
            raise ValueError(f"fine_tune_after_block must be at least -1, got {self.fine_tune_after_block}")
        if self.backbone_config is not None:
            if self.fine_tune_after_block != -1 and not self.trains_classifier_only:
                raise ValueError(
                    f"fine_tune_after_block must be -1 (train all) or 4 (classifier only) with a backbone_config, "
                    f"got {self.fine_tune_after_block}"
                )
        elif self.pooling != "mean":
            raise ValueError(f"pooling {self.pooling!r} needs the backbone_config of a ViT; the ResNets have no tokens")


__all__ = ["SimCLRConfig"]
