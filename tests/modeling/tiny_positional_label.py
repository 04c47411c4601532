"""Small Positional Label models and configurations of every backbone family for tests."""

import torch
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from transformers import (
    BeitConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    ViTConfig,
)

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 24,
    "patch_size": 8,
}
WIDE_VIT = VIT | {"intermediate_size": 64}  # four times the width, as DINOv2 has it
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
MAE = VIT | {
    "image_size": 32,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "mask_ratio": 0.5,
}
TIMM_VIT = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}


def backbone_configs() -> dict[str, PreTrainedConfig]:
    """A small configuration of each family, new at every call."""
    without_intermediate = {name: size for name, size in VIT.items() if name != "intermediate_size"}
    return {
        "vit": ViTConfig(**VIT),
        "deit": DeiTConfig(**VIT),
        "dinov2": Dinov2Config(**without_intermediate, mlp_ratio=2),
        "dinov2_with_registers": Dinov2WithRegistersConfig(**without_intermediate, mlp_ratio=2, num_register_tokens=3),
        "beit": BeitConfig(**VIT, use_mean_pooling=True, use_relative_position_bias=True),
        "beit_cls": BeitConfig(**VIT, use_mean_pooling=False, use_absolute_position_embeddings=True),
        "swin": SwinConfig(**SWIN, drop_path_rate=0.0),
        "swinv2": Swinv2Config(**SWIN, drop_path_rate=0.0),
        "timm_vit": TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM_VIT),
        "timm_vit_mean": TimmWrapperConfig(
            architecture="vit_tiny_patch16_224", model_args=TIMM_VIT | {"global_pool": "avg"}
        ),
        "timm_swin": TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=TIMM_SWIN),
        "timm_swinv2_cr": TimmWrapperConfig(architecture="swinv2_cr_tiny_224", model_args=TIMM_SWIN),
    }


def tiny_classifier(backbone: str | PreTrainedConfig = "vit", **settings) -> PositionalLabelForImageClassification:
    """A model with the same random weights at every call, in evaluation mode."""
    torch.manual_seed(0)
    inner = backbone_configs()[backbone] if isinstance(backbone, str) else backbone
    return PositionalLabelForImageClassification(
        PositionalLabelConfig(backbone_config=inner, **({"num_labels": 4} | settings))
    ).eval()


def images(model, batch_size: int = 2) -> torch.Tensor:
    """Random images of the model's size."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, *model.config.image_height_width, generator=generator)
