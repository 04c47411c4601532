"""How well a model with positional labels tells where its patches sit, and where it goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hubmodels.evaluation_mode import evaluation_mode

from .figures import (
    HEAT_COLOURS,
    ChannelValues,
    draw_overlay,
    draw_picture,
    drawable,
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


def _position_rows(model: Any) -> torch.Tensor | None:
    """Rows of the patches in the table of positions `[N, D]`, a view of it; None where there is no table."""
    backbone = model.backbone if hasattr(model, "backbone") else model.mae.base_model
    network = getattr(backbone, "timm_model", None)
    if network is not None:
        table = getattr(network, "pos_embed", None)
        if not isinstance(table, torch.Tensor):
            return None
        prefix = 0 if getattr(network, "no_embed_class", False) else getattr(network, "num_prefix_tokens", 0)
        return table.detach()[0, prefix:]
    embeddings = getattr(getattr(backbone, "vision_model", backbone), "embeddings", None)
    rows = getattr(embeddings, "position_embedding", None)
    if isinstance(rows, torch.nn.Embedding):  # CLIP, SigLIP
        return rows.weight.detach()[-getattr(embeddings, "num_patches", len(rows.weight)) :]
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, torch.Tensor) or embeddings is None:
        return None
    return table.detach()[0, -embeddings.patch_embeddings.num_patches :]


@contextmanager
def _without_positions(model: Any) -> Iterator[None]:
    """Sets the rows of the patches in the table of positions to zero for the length of a `with` block."""
    rows = _position_rows(model)
    if rows is None:
        raise ValueError(
            f"drop_positions: the network of this {type(model).__name__} adds no table of positions to its tokens "
            "that could be taken away; give drop_positions=False"
        )
    before = rows.clone()
    rows.zero_()
    try:
        yield
    finally:
        rows.copy_(before)


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
        ValueError: If the model has no position head, or no table of positions that could be dropped.
    """
    if not model.position_heads:
        raise ValueError("the model has no position head (position_label is None)")
    if drop_positions is None:
        drop_positions = model.config.position_dropout > 0 or model.config.scheme == "jigsaw"
    with evaluation_mode(model):
        with _without_positions(model) if drop_positions else nullcontext():
            tokens = model.encode(pixel_values.to(model.device)).last_hidden_state
        return [_errors(label, head, tokens) for label, head in model.position_heads.items()]


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
    lines = [axis.plot(range(len(values)), values, marker="o", markersize=3)[0] for values in accuracies.values()]
    axis.set_xlabel("layer (0: its input)", fontsize=8)
    axis.set_ylabel("accuracy of the place", fontsize=8)
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=7)
    # A label of a line that starts with "_" would be left out.
    names, family = drawable(list(accuracies))
    axis.legend(lines, names, prop={"size": 7, "family": family})
    if path is not None:
        save_figure(figure, path)
    return figure
