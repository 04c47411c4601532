"""Tiny MAE models and inputs for the behaviour tests."""

import torch
from hubmodels.modeling.mae import MAEConfig

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def tiny_config(**overrides):
    return MAEConfig(**(SIZES | overrides))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(config, batch=2, seed=0, dtype=torch.float32):
    """Normal pixel values that fit a config."""
    shape = (batch, config.num_channels, *config.image_height_width)
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def noise_for(config, batch=2, seed=1):
    rows, columns = config.grid_size
    return torch.rand(batch, rows * columns, generator=seeded(seed))


def perturbed(model, scale=0.1, seed=2):
    """Moves every weight off its initial value, so that no zero bias or equal row hides a mistake."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
