"""The authors' Swin: a depthwise convolution in front of every block in place of the relative position bias.

For absolute labels its last stage keeps the resolution of the one before (an older version of the official code).
"""

import torch
from torch import nn
from transformers import SwinConfig, SwinModel
from transformers import initialization as init
from transformers.models.swin.modeling_swin import (
    SwinDropPath,
    SwinEncoder,
    SwinLayer,
    SwinMLP,
    SwinPatchMerging,
    SwinStage,
)


def reset_windows(backbone: nn.Module) -> None:
    """
    Gives the windows of a stock Swin their configured sizes and shifts.

    transformers stores what it shrinks for a small map on the layer, so that one small image changes the outputs for
    all later ones. Windows are also shrunk after a pass, when gradient checkpointing computes it again.
    """
    for stage in backbone.modules():
        if isinstance(stage, SwinStage) and not isinstance(stage, PositionalLabelSwinStage):
            size = stage.config.window_size
            for index, block in enumerate(stage.blocks):
                block.window_size, block.shift_size = size, size // 2 * (index % 2)


class PositionalLabelSwinNoBias(nn.Module):
    """Stands where attention asks for its relative position bias, and gives zeros `[1, 1, L, L]`."""

    def __init__(self, window_size: int):
        super().__init__()
        self.length = window_size * window_size
        self.register_buffer("zeros", torch.zeros(1, 1, self.length, self.length), persistent=False)

    def forward(self) -> torch.Tensor:
        """The zeros."""
        return self.zeros


class PositionalLabelSwinMLP(SwinMLP):
    """The two-layer perceptron with stochastic depth, which the stock layer applies to attention only."""

    def __init__(self, config: SwinConfig, dim: int, drop_path_rate: float):
        super().__init__(config, dim)
        self.drop_path = SwinDropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, C]` to tokens."""
        return self.drop_path(super().forward(hidden_states))


class PositionalLabelSwinLayer(SwinLayer):
    """
    A Swin block after a residual 3x3 depthwise convolution (`cpe`), without position bias.

    Args:
        config (`SwinConfig`): configuration.
        dim (`int`): channels.
        input_resolution (`tuple[int, int]`): rows and columns of the map.
        num_heads (`int`): attention heads.
        drop_path_rate (`float`): stochastic depth of both branches.
        shift_size (`int`): shift of the windows.
        window_size (`int`): side of the windows.
    """

    def __init__(self, config, dim, input_resolution, num_heads, drop_path_rate, shift_size, window_size):
        super().__init__(config, dim, input_resolution, num_heads, drop_path_rate, shift_size)
        self.window_size = window_size
        self.set_shift_and_window_size(input_resolution)
        self.attention.relative_position_bias = PositionalLabelSwinNoBias(self.window_size)
        self.mlp = PositionalLabelSwinMLP(config, dim, drop_path_rate)
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, hidden_states: torch.Tensor, input_dimensions: tuple[int, int], **kwargs):
        """Tokens `[B, h * w, C]` of a map of `input_dimensions`, and attention probabilities, as in [`SwinLayer`]."""
        if tuple(input_dimensions) != tuple(self.input_resolution):
            raise ValueError(f"this Swin was built for maps of {self.input_resolution}, got {tuple(input_dimensions)}")
        feature_map = hidden_states.transpose(1, 2).unflatten(2, tuple(input_dimensions))
        hidden_states = hidden_states + self.cpe(feature_map).flatten(2).transpose(1, 2)
        return super().forward(hidden_states, input_dimensions, **kwargs)


class PositionalLabelSwinWiden(nn.Module):
    """Doubles the channels at the same resolution: norm and linear layer, in place of patch merging."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduction = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, C]` to `[B, L, 2C]`."""
        return self.reduction(self.norm(hidden_states))


class PositionalLabelSwinStage(SwinStage):
    """A stage of blocks, then patch merging, widening (`widen`) or nothing."""

    def __init__(self, config, dim, input_resolution, num_heads, drop_path, downsample, widen, window_size):
        # Without blocks: those of the base class are others.
        super().__init__(config, dim, input_resolution, 0, num_heads, [], SwinPatchMerging if downsample else None)
        shifted = config.window_size // 2
        self.blocks = nn.ModuleList(
            PositionalLabelSwinLayer(config, dim, input_resolution, num_heads, rate, shifted * (i % 2), window_size)
            for i, rate in enumerate(drop_path)
        )
        self.widen = PositionalLabelSwinWiden(dim) if widen else None

    def forward(self, hidden_states, input_dimensions, output_hidden_states_before_downsampling=False, **kwargs):
        """As [`SwinStage`]."""
        hidden_states, reshaped, attentions = super().forward(
            hidden_states,
            input_dimensions,
            output_hidden_states_before_downsampling=output_hidden_states_before_downsampling,
            **kwargs,
        )
        if self.widen is not None:
            hidden_states = self.widen(hidden_states)
            if not output_hidden_states_before_downsampling:
                reshaped = hidden_states.transpose(1, 2).unflatten(2, tuple(input_dimensions)).contiguous()
        return hidden_states, reshaped, attentions


class _AuthorsInitialization:
    """Official initialisation, of the encoder and of the model around it."""

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # torch's own: Kaiming uniform with a = sqrt(5)
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, PositionalLabelSwinNoBias):
            init.zeros_(module.zeros)


class PositionalLabelSwinEncoder(_AuthorsInitialization, SwinEncoder):
    """All stages; arguments as [`PositionalLabelSwinModel`], with the patches as `grid_size`."""

    def __init__(self, config: SwinConfig, grid_size: tuple[int, int], keep_resolution: bool = False):
        super().__init__(config, grid_size)
        rates = [config.drop_path_rate * i / max(sum(config.depths) - 1, 1) for i in range(sum(config.depths))]
        resolution, last, stages = tuple(grid_size), len(config.depths) - 1, []
        for index, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            whole, widen = keep_resolution and index == last, keep_resolution and index == last - 1
            if whole and resolution[0] != resolution[1]:
                raise ValueError(
                    "keep_resolution gives the last stage one square window, which needs a square grid of tokens; got "
                    f"{resolution[0]}x{resolution[1]}; take square images or keep_resolution=False"
                )
            downsample = index < last and not widen
            stages.append(
                PositionalLabelSwinStage(
                    config,
                    config.embed_dim * 2**index,
                    resolution,
                    heads,
                    [rates.pop(0) for _ in range(depth)],
                    downsample,
                    widen,
                    max(resolution) if whole else config.window_size,
                )
            )
            if downsample:
                resolution = tuple((side + 1) // 2 for side in resolution)
        self.layers = nn.ModuleList(stages)
        self.post_init()


class PositionalLabelSwinModel(_AuthorsInitialization, SwinModel):
    """
    The authors' Swin, for images of the configured size.

    Args:
        config (`SwinConfig`): configuration.
        keep_resolution (`bool`): the last stage has the map of the one before, doubled channels and one window.

    Raises:
        ValueError: for `keep_resolution` with images that are not square, and for images that are no whole number of
            patches.
    """

    def __init__(self, config: SwinConfig, keep_resolution: bool = False):
        size, patch = config.image_size, config.patch_size
        sides, strides = ((value, value) if isinstance(value, int) else value for value in (size, patch))
        # The official code cuts the rest of such an image off, transformers pads it.
        if any(side % stride for side, stride in zip(sides, strides, strict=True)):
            raise ValueError(f"image_size of the authors' Swin must be a multiple of patch_size {patch}, got {size}")
        super().__init__(config, add_pooling_layer=False)
        self.encoder = PositionalLabelSwinEncoder(config, self.embeddings.patch_grid, keep_resolution)
        self.post_init()
