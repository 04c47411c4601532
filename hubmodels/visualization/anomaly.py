"""Where an image is not what a masked autoencoder expects."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .figures import (
    HEAT_COLOURS,
    ChannelValues,
    draw_overlay,
    draw_picture,
    new_sheet,
    save_figure,
    to_pictures,
    upscale,
)
from .reconstruction import check_decoder

if TYPE_CHECKING:
    from hubmodels.modeling.mae import MAEForPreTraining


def anomaly_map(
    model: MAEForPreTraining,
    pixel_values: torch.Tensor,
    rounds: int = 4,
    mask_ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Measure how badly every patch is predicted from the others.

    Every round draws a random order of the patches and hides `ceil(L / hidden)` overlapping stretches of it, one after
    the other, that together hide every patch at least once; a patch counts only while hidden.

    Args:
        model: an `MAEForPreTraining` with trained weights.
        pixel_values: normalised images `[B, C, H, W]` of any size that the patches divide.
        rounds: how often every patch is hidden, at least; more rounds, less noise. With a mask ratio of 0.75 a round
            costs two passes.
        mask_ratio: share of hidden patches; that of the model's config by default.
        generator: source of the random orders, on the CPU.

    Returns:
        Mean squared error of the pixels of each patch `[B, rows, columns]`, float32, in the units of `pixel_values`
        squared.

    Raises:
        ValueError: `model` has no decoder, or the weights that it was loaded from have none; `rounds` is not positive;
            `mask_ratio` hides no patch or all.
    """
    check_decoder(model)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    patch = model.config.patch_size
    length = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
    ratio = model.config.mask_ratio if mask_ratio is None else mask_ratio
    num_hidden = length - int(length * (1 - ratio))
    if not 0 < num_hidden < length:
        raise ValueError(f"mask_ratio must hide some and not all of {length} patches, got {ratio}")
    pixel_values = pixel_values.to(model.device)
    errors = torch.zeros(len(pixel_values), length, device=pixel_values.device)
    counts = torch.zeros_like(errors)
    for _ in range(rounds):
        for masked in _covering_masks(len(pixel_values), length, num_hidden, generator):
            masked = masked.to(pixel_values.device)
            error = model.reconstruct(pixel_values, bool_masked_pos=masked).error
            errors += error.flatten(1) * masked
            counts += masked
    return (errors / counts).view_as(error)


def _covering_masks(batch: int, length: int, num_hidden: int, generator: torch.Generator | None) -> list[torch.Tensor]:
    """Masks `[B, L]` of `num_hidden` patches each that together hide every patch, evenly spread over a random order."""
    rank = torch.rand(batch, length, generator=generator).argsort(dim=1)
    number = math.ceil(length / num_hidden)
    return [(rank - length * i // number) % length < num_hidden for i in range(number)]


def anomaly_sheet(
    model: MAEForPreTraining,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    rounds: int = 4,
    mask_ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Figure:
    """Draw images beside their anomaly maps; one colour scale for the whole sheet.

    Args:
        model: an `MAEForPreTraining` with trained weights.
        pixel_values: normalised images `[B, C, H, W]`.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        rounds, mask_ratio, generator: see `anomaly_map`.

    Returns:
        The figure.

    Raises:
        ValueError: see `anomaly_map`.
    """
    pictures = to_pictures(pixel_values, mean, std)
    errors = anomaly_map(model, pixel_values, rounds, mask_ratio, generator)
    height, width = pixel_values.shape[-2:]
    figure, axes = new_sheet(len(pixel_values), ["image", "reconstruction error"], aspect=height / width)
    scale = Normalize(vmin=0, vmax=max(errors.max().item(), 1e-12))
    for (left, right), picture, heat in zip(axes, pictures, upscale(errors, (height, width)), strict=True):
        draw_picture(left, picture)
        draw_overlay(right, picture, heat, scale)
    bar = figure.colorbar(ScalarMappable(scale, HEAT_COLOURS), ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=6)
    if path is not None:
        save_figure(figure, path)
    return figure
