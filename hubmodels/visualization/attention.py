"""What the class token of a vision transformer looks at."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hubmodels.evaluation_mode import evaluation_mode

from .figures import ChannelValues, draw_overlay, draw_picture, new_sheet, save_figure, to_pictures, upscale


@torch.no_grad()
def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """Read the attention of the class token to every patch.

    The model runs without masking, in evaluation mode and with eager attention (the fused kernels return no
    probabilities); mode and attention implementation are put back.

    Args:
        model: any MAE model.
        pixel_values: normalised images `[B, C, H, W]` of any size that the patches divide.
        layer: which encoder layer, negative numbers count from the end.

    Returns:
        Probabilities `[B, heads, rows, columns]`, float32. What is missing to 1 goes to the class token itself.

    Raises:
        ValueError: there is no such layer, or the images do not fit the model.
    """
    depth = model.config.num_hidden_layers
    if not -depth <= layer < depth:
        raise ValueError(f"layer must be in [{-depth}, {depth - 1}], got {layer}")
    encoder = getattr(model, "vit", model)
    with _evaluating_eagerly(model):
        output = encoder(
            pixel_values.to(model.device, model.dtype),
            mask_ratio=0.0,
            interpolate_pos_encoding=True,
            output_attentions=True,
        )
    patch = model.config.patch_size
    grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
    return output.attentions[layer][:, :, 0, 1:].float().unflatten(-1, grid)


@contextmanager
def _evaluating_eagerly(model: PreTrainedModel) -> Iterator[None]:
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with evaluation_mode(model):
            yield
    finally:
        model.set_attn_implementation(implementation)


def attention_sheet(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    layer: int = -1,
) -> Figure:
    """Draw each image beside the attention of the class token, one column per head, each map on its own colour scale.

    Args:
        model: any MAE model.
        pixel_values: normalised images `[B, C, H, W]`.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        layer: which encoder layer, negative numbers count from the end.

    Returns:
        The figure.

    Raises:
        ValueError: see `attention_maps`.
    """
    pictures = to_pictures(pixel_values, mean, std)
    maps = attention_maps(model, pixel_values, layer)
    height, width = pixel_values.shape[-2:]
    titles = ["image", *(f"head {head + 1}" for head in range(maps.shape[1]))]
    figure, axes = new_sheet(len(pixel_values), titles, aspect=height / width)
    for row, picture, heads in zip(axes, pictures, maps, strict=True):
        draw_picture(row[0], picture)
        for axis, heat in zip(row[1:], upscale(heads, (height, width)), strict=True):
            draw_overlay(axis, picture, heat, Normalize(vmin=0, vmax=heat.max()))
    if path is not None:
        save_figure(figure, path)
    return figure
