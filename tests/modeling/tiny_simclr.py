"""Tiny SimCLR models and inputs for the behaviour tests."""

import torch
from hubmodels.modeling.simclr import SimCLRConfig
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm

SIZES = {"image_size": 16, "stem_width": 4, "depths": [1, 1, 1, 1], "proj_out_dim": 8, "num_proj_layers": 2}


def tiny_config(**overrides):
    return SimCLRConfig(**(SIZES | overrides))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, size=16, seed=0, dtype=torch.float32):
    """Uniform pixels `[*shape, 3, size, size]`."""
    return torch.rand((*shape, 3, size, size), generator=seeded(seed)).to(dtype)


def perturbed(model, scale=0.1, seed=2):
    """Moves all weights and moving statistics off their initial values, so that no zero hides a mistake."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        for module in model.modules():
            if isinstance(module, SimCLRBatchNorm):
                module.running_mean += scale * torch.randn(module.running_mean.shape, generator=generator)
                module.running_var *= 1 + scale * torch.rand(module.running_var.shape, generator=generator)
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
