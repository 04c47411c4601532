"""How well a model with positional labels tells where its patches sit, and where it goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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

ACCURACY_COLOURS = "viridis"


@dataclass(frozen=True)
class PositionErrors:
    """What a position head makes of a batch.

    Attributes:
        label: "absolute" or "relative".
        distances: How far every patch is from where the head puts it, in patches, `[B, h, w]`. For relative labels the
            mean over the offsets of the patch from all others.
        accuracy: Share of right answers: per cell `[h, w]` for absolute labels, per offset `[2h - 1, 2w - 1]` for
            relative ones (row h - 1 + dy, column w - 1 + dx for an anchor that lies dy below and dx right of the other
            token).
    """

    label: str
    distances: torch.Tensor
    accuracy: torch.Tensor


@contextmanager
def _without_positions(model: Any, needed: bool) -> Iterator[None]:
    """Sets the rows of the patches in the table of positions to zero for the length of a `with` block."""
    embeddings = getattr(
        model.base_model if model.base_model_prefix == "backbone" else model.mae.vit, "embeddings", None
    )
    table = getattr(embeddings, "position_embeddings", None)
    if not needed or table is None or embeddings is None:
        yield
        return
    before = table.detach().clone()
    with torch.no_grad():
        table[:, table.shape[1] - embeddings.patch_embeddings.num_patches :] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            table.copy_(before)


@torch.no_grad()
def position_errors(model: Any, pixel_values: torch.Tensor, drop_positions: bool | None = None) -> list[PositionErrors]:
    """Let the position heads tell the place of every patch.

    Args:
        model: A Positional Label classifier or autoencoder with position heads.
        pixel_values: Normalised images `[B, C, H, W]` of the model's size. Relative labels hold all pairs of the batch.
        drop_positions: Take the table of positions away. By default where the model was trained so (position dropout,
            jigsaw); with the table the places can often be read off it.

    Returns:
        One record per head.

    Raises:
        ValueError: If the model has no position head.
    """
    if not model.position_heads:
        raise ValueError("the model has no position head (position_label is None)")
    if drop_positions is None:
        drop_positions = model.config.position_dropout > 0 or model.config.scheme == "jigsaw"
    was_training = model.training
    model.eval()
    try:
        with _without_positions(model, drop_positions):
            tokens = model.encode(pixel_values.to(model.device)).last_hidden_state
        return [_errors(label, head, tokens) for label, head in model.position_heads.items()]
    finally:
        model.train(was_training)


def _errors(label: str, head: Any, tokens: torch.Tensor) -> PositionErrors:
    rows, columns = head.grid
    if label == "absolute":
        predicted = head(tokens, return_logits=True).logits.argmax(-1)
        true = torch.arange(rows * columns, device=tokens.device).expand_as(predicted)
        width, accuracy_shape = columns, (rows, columns)
    else:
        # An image at a time: all pairs of a batch are many.
        predicted = torch.cat([head(image, return_logits=True).logits.argmax(-1) for image in tokens.split(1)])
        from hubmodels.modeling.positional_label import relative_labels

        true = relative_labels(head.grid, device=tokens.device).flatten().expand_as(predicted)
        width, accuracy_shape = 2 * columns - 1, (2 * rows - 1, 2 * columns - 1)
    down = torch.div(predicted, width, rounding_mode="floor") - torch.div(true, width, rounding_mode="floor")
    distances = torch.hypot(down.float(), (predicted % width - true % width).float())
    if label == "relative":
        distances = distances.view(len(tokens), rows * columns, rows * columns).mean(1)
    hits = torch.zeros(accuracy_shape[0] * accuracy_shape[1], device=tokens.device)
    counts = torch.zeros_like(hits)
    hits.index_add_(0, true.flatten(), (predicted == true).float().flatten())
    counts.index_add_(0, true.flatten(), torch.ones_like(true.flatten(), dtype=torch.float32))
    accuracy = (hits / counts).view(accuracy_shape)
    return PositionErrors(label, distances.view(len(tokens), rows, columns).cpu(), accuracy.cpu())


def position_sheet(
    model: Any,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    drop_positions: bool | None = None,
) -> Figure:
    """Draw images under the distance by which each patch is misplaced, and last the accuracy per cell or offset.

    Args:
        model: A Positional Label classifier or autoencoder with position heads.
        pixel_values: Normalised images `[B, C, H, W]`.
        path: File to write, complete or absent. None: nothing is written.
        mean: Mean of the normalisation, one value or one per channel.
        std: Deviation of the normalisation, likewise.
        drop_positions: See `position_errors`.

    Returns:
        The figure.

    Raises:
        ValueError: See `position_errors`.
    """
    records = position_errors(model, pixel_values, drop_positions)
    pictures = to_pictures(pixel_values, mean, std)
    height, width = pixel_values.shape[-2:]
    titles = ["image", *(f"misplaced by, {record.label}" for record in records)]
    figure, axes = new_sheet(len(pictures) + 1, titles, aspect=height / width)
    furthest = max(float(record.distances.max()) for record in records)
    scale = Normalize(vmin=0, vmax=max(furthest, 1.0))
    for row, picture in enumerate(pictures):
        draw_picture(axes[row, 0], picture)
        for column, record in enumerate(records, 1):
            draw_overlay(axes[row, column], picture, upscale(record.distances, (height, width))[row], scale)
    share = Normalize(vmin=0, vmax=1)
    for column, record in enumerate(records, 1):
        axis = axes[-1, column]
        axis.imshow(record.accuracy.numpy(), cmap=ACCURACY_COLOURS, norm=share, interpolation="nearest")
        axis.set_title(f"accuracy per {'cell' if record.label == 'absolute' else 'offset'}", fontsize=8)
    for axis, scalar, text in (
        (axes[:-1], ScalarMappable(scale, HEAT_COLOURS), "patches"),
        (axes[-1:], ScalarMappable(share, ACCURACY_COLOURS), "share right"),
    ):
        bar = figure.colorbar(scalar, ax=axis, shrink=0.8)
        bar.set_label(text, fontsize=7)
        bar.ax.tick_params(labelsize=6)
    if path is not None:
        save_figure(figure, path)
    return figure


def position_probe_curves(accuracies: dict[str, Sequence[float]], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw how well a linear probe tells the place of a token after every layer (see `position_probe`).

    Args:
        accuracies: Accuracies in [0, 1], input of the first layer first, by name of the model.
        path: File to write, complete or absent. None: nothing is written.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(4.5, 3), dpi=150, layout="constrained")
    axis = figure.subplots()
    for name, values in accuracies.items():
        axis.plot(range(len(values)), values, marker="o", markersize=3, label=name)
    axis.set_xlabel("layer (0: its input)", fontsize=8)
    axis.set_ylabel("accuracy of the place", fontsize=8)
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7)
    if path is not None:
        save_figure(figure, path)
    return figure
