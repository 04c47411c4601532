"""The authors' ViT: no class token, a position table of the patches alone, mean pooling (official `ViT-B_APL`)."""

import torch
from torch import nn
from transformers import ViTConfig, ViTModel
from transformers import initialization as init
from transformers.models.vit.modeling_vit import ViTEmbeddings

# Official initialisation: all linear layers of the network and of its heads.
AUTHORS_VIT_STD = 0.01


class PositionalLabelViTEmbeddings(ViTEmbeddings):
    """Patch embeddings and position table `[1, N, D]`, without class token."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        del self.cls_token
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.patch_embeddings.num_patches, config.hidden_size))

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
    ) -> torch.Tensor:
        """Tokens `[B, N, D]` of images of the configured size; the arguments are those of [`ViTModel`]."""
        if bool_masked_pos is not None or interpolate_pos_encoding:
            raise ValueError("the authors' ViT has neither mask tokens nor interpolated positions")
        if tuple(pixel_values.shape[-2:]) != tuple(self.image_size):
            height, width = self.image_size
            raise ValueError(f"pixel_values must be {height}x{width} pixels, got {list(pixel_values.shape)}")
        return self.dropout(self.patch_embeddings(pixel_values) + self.position_embeddings)


class PositionalLabelViTModel(ViTModel):
    """
    The authors' ViT. Its blocks are those of transformers.

    Args:
        config (`ViTConfig`): configuration; the official one has `layer_norm_eps` 1e-6.
    """

    def __init__(self, config: ViTConfig):
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = PositionalLabelViTEmbeddings(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=AUTHORS_VIT_STD)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PositionalLabelViTEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=0.02)
