"""Building blocks of MAE: patch embedding of the kept patches, transformer layer with stochastic depth, decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    ViTMAELayer,
    ViTMAEPatchEmbeddings,
)

from .attention_mae import MAEAttention, is_plain
from .configuration_mae import MAEConfig
from .inputs_mae import check_images
from .linear_mae import MAELinear
from .masking_mae import PatchMask
from .positions_mae import resize_position_table, sincos_position_table


def split_into_patches(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Views images `[B, C, H, W]` as patches `[B, rows, columns, p, p, C]` (no copy)."""
    batch, channels, height, width = pixel_values.shape
    patches = pixel_values.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1)


def gather_patches(patches: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Copies the patches `ids` `[B, K]` of `[B, rows, columns, ...]` to `[B, K, ...]`."""
    images = torch.arange(patches.shape[0], device=ids.device)[:, None]
    columns = patches.shape[2]
    return patches[images, torch.div(ids, columns, rounding_mode="floor"), ids % columns]


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """
    Tokens `ids` `[B, K]` of `[B, L, D]` (or of one shared `[1, L, D]` table) as `[B, K, D]`.

    Whole rows are copied, which `gather` along an expanded index does not see: it is much slower on a CPU.
    """
    images, length, width = tokens.shape
    rows = ids + length * torch.arange(images, device=ids.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).view(*ids.shape, width)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Runs a `with` block in evaluation mode; afterwards every part has the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class MAEPatchEmbeddings(ViTMAEPatchEmbeddings):
    """Patch projection; with a mask only the kept patches are projected (equal up to rounding, 75 % less work)."""

    def forward(self, pixel_values: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        """Embeds all patches `[B, L, D]`, or those of `ids_keep` as `[B, K, D]`."""
        if ids_keep is None:
            return super().forward(pixel_values)
        if not is_plain(self.projection, nn.Conv2d):
            return gather_tokens(super().forward(pixel_values), ids_keep)
        patches = split_into_patches(pixel_values, self.patch_size[0]).permute(0, 1, 2, 5, 3, 4)
        kept = gather_patches(patches, ids_keep).flatten(2)
        return nn.functional.linear(kept, self.projection.weight.flatten(1), self.projection.bias)


class MAEEmbeddings(ViTMAEEmbeddings):
    """
    Patch, position and class embeddings.

    Attributes:
        fixed_positions (`bool`): the table is the sin-cos table and is rebuilt for other image sizes (pre-training);
            otherwise it counts as learnt and is resized bicubically.
    """

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.patch_embeddings = MAEPatchEmbeddings(config)
        self.fixed_positions = False

    def position_table(self, height: int, width: int) -> torch.Tensor:
        """Position table `[1, 1 + L, D]` for images of `height x width` pixels."""
        patch = self.config.patch_size
        grid, own_grid = (height // patch, width // patch), self.config.grid_size
        if grid == own_grid:
            return self.position_embeddings
        if self.fixed_positions:
            table = self.position_embeddings
            return sincos_position_table(table.shape[-1], grid, table.dtype, table.device)[None]
        return resize_position_table(self.position_embeddings, own_grid, grid)

    def forward(self, pixel_values: torch.Tensor, mask: PatchMask | None = None) -> torch.Tensor:
        """Returns the tokens `[B, 1 + K, D]` of the kept patches, or of all of them in natural order without `mask`."""
        positions = self.position_table(*pixel_values.shape[-2:])
        tokens = self.patch_embeddings(pixel_values, None if mask is None else mask.ids_keep)
        patch_positions = positions[:, 1:]
        if mask is not None:
            patch_positions = gather_tokens(patch_positions, mask.ids_keep)
        tokens = tokens + patch_positions
        cls_token = (self.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls_token, tokens], dim=1)

    def check_pixel_values(self, pixel_values: torch.Tensor | None, interpolate_pos_encoding: bool) -> None:
        """
        Checks that images fit the configuration.

        Raises:
            ValueError: if they are no floats `[B, C, H, W]`, have other channels or a size that the patches do not
                divide, or (without `interpolate_pos_encoding`) another size than the configured one.
        """
        check_images(pixel_values, self.config.num_channels)
        height, width = pixel_values.shape[-2:]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"pixel_values: image size {height}x{width} is not divisible by patch size {patch}")
        own = self.config.image_height_width
        if (height, width) != own and not interpolate_pos_encoding:
            raise ValueError(
                f"pixel_values: image size {height}x{width} differs from the model's {own[0]}x{own[1]}; pass "
                "interpolate_pos_encoding=True to adapt the position table"
            )

    def initialize_weights(self):
        """Sin-cos table and normal class token (official code)."""
        table = self.position_embeddings
        init.copy_(table, sincos_position_table(table.shape[-1], self.config.grid_size, table.dtype)[None])
        init.normal_(self.cls_token, std=self.config.initializer_range)


class MAEDropPath(nn.Module):
    """
    Stochastic depth per sample: `floor(1 - rate + u)` keeps a branch, kept branches are divided by `1 - rate`.

    Args:
        rate (`float`): probability of dropping.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor, uniform: torch.Tensor | None = None) -> torch.Tensor:
        """Drops samples of `[B, L, D]`; `uniform` `[B]` in [0, 1) replaces the random draw."""
        if not self.training or not self.rate:
            return hidden_states
        if uniform is None:
            uniform = torch.rand(hidden_states.shape[0], device=hidden_states.device)
        keep = torch.floor(1 - self.rate + uniform).to(hidden_states.dtype)
        return hidden_states / (1 - self.rate) * keep.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class MAELayer(ViTMAELayer):
    """Pre-norm transformer layer with stochastic depth, and an exact short cut for outputs that only some rows need."""

    def __init__(self, config: MAEConfig, drop_path_rate: float = 0.0):
        super().__init__(config)
        self.attention = MAEAttention(config)
        self.drop_path = MAEDropPath(drop_path_rate)
        MAELinear.adopt(self)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_ids: torch.Tensor | None = None,
        drop_path_uniform: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `[B, L, D]`): input tokens.
            attention_mask (`torch.Tensor`, *optional*): as in transformers.
            output_ids (`torch.LongTensor` of shape `[B, Q]`, *optional*): rows whose output is wanted.
            drop_path_uniform (`torch.Tensor` of shape `[2, B]`, *optional*): stochastic-depth draws of both branches.

        Returns:
            `torch.Tensor` of shape `[B, L, D]`, or `[B, Q, D]` with `output_ids`.
        """
        draws = (None, None) if drop_path_uniform is None else drop_path_uniform
        normed, normed_queries = self.layernorm_before(hidden_states), None
        if output_ids is not None:
            hidden_states, normed_queries = gather_tokens(hidden_states, output_ids), gather_tokens(normed, output_ids)
        attended, _ = self.attention(normed, attention_mask, query_states=normed_queries, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended), draws[0])
        branch = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(branch, draws[1])


class MAEDecoder(ViTMAEDecoder):
    """
    Decoder: the encoded patches and mask tokens in image order, some narrow layers, a projection to pixels.

    Its layers read the attention implementation from the model's own configuration, so that `set_attn_implementation`
    reaches them.
    """

    def __init__(self, config: MAEConfig, num_patches: int):
        super().__init__(config, num_patches=num_patches)
        widths = copy(config)
        widths.hidden_size = config.decoder_hidden_size
        widths.num_attention_heads = config.decoder_num_attention_heads
        widths.intermediate_size = config.decoder_intermediate_size
        self.decoder_layers = nn.ModuleList([MAELayer(widths) for _ in range(config.decoder_num_hidden_layers)])
        for layer in self.decoder_layers:
            layer.attention.config = config
        self.config = config
        self.new_biases: list[str] = []
        MAELinear.adopt(self)

    def note_new_weights(self, report: dict) -> None:
        """Remembers which biases of the decoder the loaded weights lack; `report` is `from_pretrained`'s."""
        new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        self.new_biases = [name for name, _ in self.named_parameters() if f"decoder.{name}" in new and "bias" in name]

    def check_weights(self) -> None:
        """
        Refuses a decoder, or parts of one, that neither loading nor training has given weights.

        Raises:
            ValueError: if the loaded weights lack some, whose biases are still zero as only initialised ones are.
        """
        # Training moves every bias at the first step; adapters rename the parameters that they wrap.
        now, new = dict(self.named_parameters()), self.new_biases
        if new and all(name in now and not now[name].any() for name in new):
            raise ValueError(
                f"decoder.{new[0]} and {len(new) - 1} more biases of the decoder were not among the loaded weights: "
                "its pictures would be noise; load weights that include the decoder, or train it first"
            )

    def position_table(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Decoder position table `[1, 1 + L, E]` for a grid of patches."""
        table = self.decoder_pos_embed
        if grid_size == self.config.grid_size:
            return table
        return sincos_position_table(table.shape[-1], grid_size, table.dtype, table.device)[None]

    def forward(
        self,
        latent: torch.Tensor,
        mask: PatchMask,
        grid_size: tuple[int, int],
        masked_only: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            latent (`torch.Tensor` of shape `[B, 1 + K, D]`): output of the encoder.
            mask (`PatchMask`): the mask that made it.
            grid_size (`tuple[int, int]`): rows and columns of patches.
            masked_only (`bool`): predict the removed patches only, in the order of `mask.ids_masked`: the last layer,
                norm and projection then skip the rows that the loss does not read.
            output_hidden_states (`bool`): also return the input of the first layer and the output of each.

        Returns:
            Predictions `[B, L, p * p * C]` (or `[B, L - K, p * p * C]`) and the hidden states or `None`.
        """
        hidden_states = self._with_mask_tokens(self.decoder_embed(latent), mask) + self.position_table(grid_size)
        all_hidden_states = (hidden_states,)
        output_ids = mask.ids_masked + 1 if masked_only else None
        for index, layer in enumerate(self.decoder_layers):
            last = index == len(self.decoder_layers) - 1
            hidden_states = layer(hidden_states, None, output_ids if last else None)
            all_hidden_states += (hidden_states,)
        if masked_only and not self.decoder_layers:
            hidden_states = gather_tokens(hidden_states, output_ids)
        predictions = self.decoder_pred(self.decoder_norm(hidden_states))
        return predictions if masked_only else predictions[:, 1:], all_hidden_states if output_hidden_states else None

    def _with_mask_tokens(self, tokens: torch.Tensor, mask: PatchMask) -> torch.Tensor:
        mask_tokens = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], mask.ids_masked.shape[1], -1)
        class_and_restored_ids = nn.functional.pad(mask.ids_restore + 1, (1, 0))
        return gather_tokens(torch.cat([tokens, mask_tokens], dim=1), class_and_restored_ids)

    def initialize_weights(self, num_patches: int | None = None):
        """Sin-cos table and normal mask token (official code); `num_patches` is the base class' and not needed."""
        table = self.decoder_pos_embed
        init.copy_(table, sincos_position_table(table.shape[-1], self.config.grid_size, table.dtype)[None])
        init.normal_(self.mask_token, std=self.config.initializer_range)
