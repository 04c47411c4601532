"""Backbones of every family behind one view: tokens after the final norm, their grid, what the classifier pools."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_positional_label import AUTOENCODERS, OUTPUT_FIELDS, PositionalLabelConfig
from .inputs_positional_label import image_channels
from .labels_positional_label import Grid
from .swin_positional_label import PositionalLabelSwinModel, reset_windows
from .vit_positional_label import PositionalLabelViTModel

# Tables of tokens in front of the patches, where the embeddings have them (class, distillation, registers).
PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")

# Of CLIP's kind: the final norm is applied to the class token alone, which is what they pool.
CLASS_NORMS = ("chinese_clip_vision_model", "clip_vision_model", "mlcd_vision_model")
# Their position bias is one of whole windows, so that a map must hold one.
FIXED_WINDOWS = ("swin", "donut-swin")


def build_backbone(config: PositionalLabelConfig) -> PreTrainedModel:
    """
    Builds the network of `config.backbone_config` with random weights.

    Raises:
        ValueError: for an autoencoder, which only pre-training holds.
    """
    inner = config.backbone_config
    if inner.model_type in AUTOENCODERS:
        raise ValueError(
            f"backbone_config of model_type {inner.model_type!r} is an autoencoder, for PositionalLabelForPreTraining; "
            "a classifier takes the ViT inside of it: PositionalLabelForImageClassification.from_pretrained does so"
        )
    if config.backbone_variant == "authors":
        if inner.model_type == "vit":
            return PositionalLabelViTModel(inner)
        return PositionalLabelSwinModel(inner, config.keep_resolution)
    return AutoModel.from_config(inner, **pooler_options(config))


def pooler_options(config: PositionalLabelConfig) -> dict[str, bool]:
    """Arguments of a stock backbone's class that leave out a pooler which the classifier does not read."""
    inner = config.backbone_config
    if "add_pooling_layer" not in inspect.signature(AutoModel._model_mapping[type(inner)].__init__).parameters:
        return {}
    # The final norm of Hiera, and of a BEiT that pools by the mean, is a part of the pooler.
    norm_inside = inner.model_type == "hiera" or getattr(inner, "use_mean_pooling", False)
    return {"add_pooling_layer": config.pooling == "pooler" or norm_inside}


def patch_grid(config: PreTrainedConfig, height: int, width: int) -> Grid:
    """Rows and columns of patches of a plain ViT for images of `height x width` pixels."""
    rows, columns = _patches(config)
    return height // rows, width // columns


def is_timm(config: PreTrainedConfig) -> bool:
    """Whether a backbone is one of timm's."""
    return config.model_type == "timm_wrapper"


class TokenView:
    """
    What the position heads and the classifier read of a backbone. It has no weights, and does not own the backbone.

    Args:
        backbone (`PreTrainedModel`): the network.
        config (`PositionalLabelConfig`): configuration.

    Attributes:
        width (`int`): channels D of the tokens.
        grid (`tuple[int, int]`): rows and columns of tokens for images of the configured size.
        num_prefix_tokens (`int`): tokens in front of those of the patches.
        num_channels (`int`, *optional*): channels of the images, where the backbone says it.

    Raises:
        ValueError: if `config.pooling` needs a class token or a pooler that the backbone has not, for a window larger
            than the last map, and for networks whose tokens are of no grid of one width.
    """

    def __init__(self, backbone: PreTrainedModel, config: PositionalLabelConfig):
        self.config, self.inner = config, config.backbone_config
        self.num_channels = image_channels(config)
        self.num_prefix_tokens = _num_prefix_tokens(backbone)
        if is_timm(self.inner):
            network = backbone.timm_model
            self.patch, self.merged, self.pads = _timm_patches(network)
            self.width = network.num_features
        else:
            self.patch, self.width = _patches(self.inner), self.inner.hidden_size
            stages = len(getattr(self.inner, "depths", [1]))
            self.merged = 2 ** (stages - 1 - int(config.keep_resolution))
            # Swin pads what its patches do not divide; a ViT leaves it out.
            self.pads = hasattr(self.inner, "depths")
        self.grid = self.grid_of(*config.image_height_width)
        self._check_window(self.grid)
        if config.pooling in ("cls", "cls_mean") and not self.num_prefix_tokens:
            raise ValueError(f"pooling {config.pooling!r} needs a class token, which {type(backbone).__name__} has not")
        if config.pooling == "pooler" and not _has_pooler(backbone):
            raise ValueError(f"pooling 'pooler' needs a backbone with a pooler; {type(backbone).__name__} has none")

    @property
    def pooled_width(self) -> int:
        """Channels that the classifier reads."""
        if self.config.pooling == "pooler":
            return getattr(self.inner, "pooler_output_size", None) or self.width
        return 2 * self.width if self.config.pooling == "cls_mean" else self.width

    def grid_of(self, height: int, width: int) -> Grid:
        """Rows and columns of tokens for images of `height x width` pixels."""
        divide = math.ceil if self.pads else math.floor
        rows, columns = divide(height / self.patch[0]), divide(width / self.patch[1])
        # Merging pads odd maps.
        return math.ceil(rows / self.merged), math.ceil(columns / self.merged)

    def run(
        self,
        backbone: PreTrainedModel,
        pixel_values: torch.Tensor,
        kwargs: Mapping,
        call: Callable[..., Any] | None = None,
        all_patches: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """
        Runs the backbone on images `[B, C, H, W]`, or calls `call` in its place (which may leave patches out where
        `all_patches` is false).

        Returns:
            Tokens of the patches after the final norm `[B, N, D]`, what the classifier reads `[B, D']`, and the output
            of the backbone.

        Raises:
            ValueError: if the backbone returns no token per cell of the grid, and for images smaller than a window.
        """
        grid = self.grid_of(*pixel_values.shape[-2:])
        self._check_window(grid)
        given = {name: value for name, value in kwargs.items() if value is not None}
        given = {name: True for name in OUTPUT_FIELDS if getattr(self.config, name)} | given
        if is_timm(self.inner):
            given["do_pooling"] = self.config.pooling == "pooler"
        reset_windows(backbone)
        try:
            outputs = (call or backbone)(pixel_values, **given)
        finally:
            reset_windows(backbone)
        states = _as_sequence(outputs.last_hidden_state, self.width, backbone)
        norm = _outer_norm(backbone)
        states = states if norm is None else norm(states)
        prefix = self.num_prefix_tokens
        tokens = states[:, prefix:]
        if all_patches:
            self.check_tokens(tokens, grid)
        if self.config.pooling == "pooler":
            pooled = outputs.pooler_output.flatten(1)
        elif self.config.pooling == "mean":
            pooled = tokens.mean(dim=1)
        else:
            pooled = states[:, 0]
            if self.config.pooling == "cls_mean":
                pooled = torch.cat([pooled, tokens.mean(dim=1)], dim=1)
        return tokens, pooled, outputs

    def _check_window(self, grid: Grid) -> None:
        size = getattr(self.inner, "window_size", None)
        if self.inner.model_type in FIXED_WINDOWS and self.config.backbone_variant == "stock" and min(grid) < size:
            raise ValueError(
                f"window_size of the {self.inner.model_type} must be at most the shorter side of its last map, which "
                f"has {grid[0]}x{grid[1]} tokens for these images; got {size}"
            )

    def check_tokens(self, tokens: torch.Tensor, grid: Grid) -> None:
        """
        Raises:
            ValueError: if the backbone returned no token per cell of the grid.
        """
        if tokens.shape[1] != grid[0] * grid[1]:
            prefix = self.num_prefix_tokens
            raise ValueError(
                f"backbone returned {tokens.shape[1] + prefix} tokens, expected h*w + prefix = "
                f"{grid[0]}*{grid[1]} + {prefix}"
            )


def _vision_part(backbone: PreTrainedModel) -> nn.Module:
    """The network itself, which older versions of CLIP and SigLIP have inside of another module."""
    return getattr(backbone, "vision_model", backbone)


def _has_pooler(backbone: PreTrainedModel) -> bool:
    part = _vision_part(backbone)
    if is_timm(backbone.config) or backbone.config.model_type in CLASS_NORMS:
        return True
    return getattr(part, "pooler", None) is not None or getattr(part, "use_head", False)  # SigLIP's is a head


def _num_prefix_tokens(backbone: PreTrainedModel) -> int:
    network = getattr(backbone, "timm_model", None)
    if network is not None:
        return getattr(network, "num_prefix_tokens", 0)
    embeddings = getattr(_vision_part(backbone), "embeddings", None)
    tables = (getattr(embeddings, name, None) for name in PREFIX_TOKENS)
    # CLIP's class token is a vector [D], the others are [1, tokens, D].
    return sum(1 if table.ndim == 1 else table.shape[1] for table in tables if table is not None)


def _patches(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of pixels of a patch."""
    # Hiera's patches overlap.
    patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
    if patch is None or not hasattr(config, "hidden_size"):
        raise ValueError(
            "backbone_config must have one patch_size and one hidden_size for all stages, as those of ViT and Swin; "
            f"that of a {config.model_type} has not"
        )
    if not hasattr(config, "image_size"):
        raise ValueError(
            f"backbone_config must have an image_size, which makes a grid of its tokens; that of a {config.model_type} "
            "has none"
        )
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def _timm_patches(network: nn.Module) -> tuple[tuple[int, int], int, bool]:
    """Rows and columns of a patch, how many patches a token is in each direction, whether patches are padded."""
    names = ("patch_embed", "pixel_embed", "embeds")  # of TNT, of NaFlexViT
    embed = next((getattr(network, name) for name in names if hasattr(network, name)), None)
    patch, stages = getattr(embed, "patch_size", None), getattr(network, "feature_info", None)
    has_tokens = any("patch_embed" in name or "attn" in name for name, _ in network.named_modules())
    if not has_tokens or (patch is None and not stages):
        raise ValueError(f"backbone_config: timm's {type(network).__name__} has no patches, hence no tokens")
    if patch is None:  # overlapping convolutions
        return (stages[-1]["reduction"],) * 2, 1, True
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    merged = stages[-1]["reduction"] // max(patch) if stages else 1
    return patch, merged, getattr(embed, "dynamic_img_pad", False)


def _as_sequence(states: torch.Tensor, width: int, backbone: PreTrainedModel) -> torch.Tensor:
    """Tokens `[B, N, D]`, also of the maps of timm's networks: `[B, h, w, D]` (Swin), `[B, D, h, w]` (NesT)."""
    network = getattr(backbone, "timm_model", None)
    if not isinstance(states, torch.Tensor):
        raise ValueError(
            f"backbone must return one sequence of tokens [B, N, {width}]; {type(network or backbone).__name__} "
            f"returns {len(states)} of different scales"
        )
    if states.ndim == 4:
        # What timm's Swin says of itself; the others are told by the axis of their channels.
        channels_last = getattr(network, "output_fmt", "NHWC" if states.shape[1] != width else "NCHW") == "NHWC"
        if channels_last and states.shape[-1] == width:
            return states.flatten(1, 2)
        if not channels_last and hasattr(network, "patch_embed"):  # maps without patches are those of a CNN
            return states.flatten(2).transpose(1, 2)
    if states.ndim != 3:
        raise ValueError(
            f"backbone returned states of shape {list(states.shape)}, expected tokens [B, N, {width}] or a map of "
            "them; convolutional networks have no tokens"
        )
    return states


def _outer_norm(backbone: PreTrainedModel) -> nn.Module | None:
    """The final norm where it is not applied to the tokens but after pooling (BEiT, CLIP, Hiera, some of timm's)."""
    network, inner = getattr(backbone, "timm_model", None), backbone.config
    if network is None:
        if inner.model_type in CLASS_NORMS:
            return _vision_part(backbone).post_layernorm
        in_pooler = inner.model_type == "hiera" or isinstance(getattr(backbone, "layernorm", None), nn.Identity)
        return backbone.pooler.layernorm if in_pooler else None
    if not isinstance(getattr(network, "norm", None), nn.Identity | None):
        return None
    norms = getattr(network, "fc_norm", None), getattr(getattr(network, "head", None), "norm", None)
    return next((norm for norm in norms if not isinstance(norm, nn.Identity | None)), None)
