"""Pairs of augmented views, and which cells of two views belong together for a dense method."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hubmodels.evaluation_mode import evaluation_mode

from .figures import ChannelValues, draw_picture, new_sheet, save_figure, to_pictures

if TYPE_CHECKING:
    from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLForPreTraining, DenseCLModel

_VIEW_COLOURS = ("tab:orange", "tab:cyan", "tab:pink", "tab:olive")
_LINE_COLOURS = "viridis"
_GAP = 0.06  # between two views, as a share of their width


class Correspondences(NamedTuple):
    """
    Matches of B pairs of views with `rows * columns` cells each.

    Attributes:
        match_index: for every cell of the first view the cell of the second, int64 `[B, rows * columns]`, row by row.
        similarity: cosine similarity of the two `[B, rows * columns]`.
        grid: rows and columns.
    """

    match_index: torch.Tensor
    similarity: torch.Tensor
    grid: tuple[int, int]


def view_pairs(
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    images: Sequence[torch.Tensor | Image] | None = None,
    crop_boxes: torch.Tensor | None = None,
) -> Figure:
    """Draw the augmented views that a contrastive method learns from, one row per image.

    Args:
        pixel_values: normalised views `[B, V, C, H, W]` of V views per image.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        images: PIL images or uint8 `[C, H, W]`, what the views were made of: drawn in front of them.
        crop_boxes: `[B, V, 4]` (top, left, height, width) of the crops in pixels, drawn into `images`.

    Returns:
        The figure.

    Raises:
        ValueError: `pixel_values` is no batch of views; there are not as many images or boxes as views.
    """
    views = _check_views(pixel_values)
    count = views.shape[1]
    pictures = to_pictures(views.flatten(0, 1), mean, std)
    if images is not None and len(images) != len(views):
        raise ValueError(f"images must be as many as pixel_values has ({len(views)}), got {len(images)}")
    if crop_boxes is not None and (images is None or crop_boxes.shape != (len(views), count, 4)):
        raise ValueError(f"crop_boxes must have shape {(len(views), count, 4)} and need images")
    titles = [f"view {number + 1}" for number in range(count)]
    height, width = views.shape[-2:]
    figure, axes = new_sheet(len(views), titles if images is None else ["image", *titles], aspect=height / width)
    for row, axis_row in enumerate(axes):
        for axis, picture in zip(axis_row[-count:], pictures[row * count :], strict=False):
            draw_picture(axis, picture)
        if images is not None:
            draw_picture(axis_row[0], to_pictures(_pixels(images[row])[None] / 255, mean=0.0, std=1.0)[0])
            _draw_boxes(axis_row[0], [] if crop_boxes is None else crop_boxes[row].tolist())
    if path is not None:
        save_figure(figure, path)
    return figure


def _pixels(image: torch.Tensor | Image) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def correspondences(
    model: DenseCLForPreTraining | DenseCLModel | DenseCLBackbone, pixel_values: torch.Tensor
) -> Correspondences:
    """Match every cell of the first view with the most similar cell of the second (DenseCL paper, section 3.3).

    As in training: cosine similarity of the backbone's features, those of the second view by the momentum encoder if
    the model has one. The model runs in evaluation mode; its mode is put back.

    Args:
        model: a DenseCL model.
        pixel_values: two normalised views `[B, 2, C, H, W]` of each image.

    Returns:
        The matches, on the CPU.

    Raises:
        ValueError: `pixel_values` holds no pairs.
        TypeError: `model` is no DenseCL model.
    """
    if _check_views(pixel_values).shape[1] != 2:
        raise ValueError(f"pixel_values must have two views per image, got shape {list(pixel_values.shape)}")
    encoder: Any = getattr(model, "encoder", None)
    if not hasattr(encoder, "feature_maps"):
        raise TypeError(f"model must be a DenseCL model, got {type(model).__name__}")
    views = pixel_values.to(model.device, model.dtype)
    with evaluation_mode(model), torch.no_grad():
        queries = encoder.feature_maps(views[:, 0])[-1].float()
        keys = getattr(model, "momentum_encoder", encoder).feature_maps(views[:, 1])[-1].float()
    grid = (queries.shape[2], queries.shape[3])
    queries, keys = (nn.functional.normalize(maps.flatten(2), dim=1) for maps in (queries, keys))
    similarity, match_index = torch.bmm(queries.transpose(1, 2), keys).max(dim=2)
    return Correspondences(match_index.cpu(), similarity.cpu(), grid)


def dense_correspondences(
    model: DenseCLForPreTraining | DenseCLModel | DenseCLBackbone,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    lines: int = 12,
) -> Figure:
    """Draw pairs of views with lines between the cells that a dense method takes for the same place.

    Args:
        model: a DenseCL model.
        pixel_values: two normalised views `[B, 2, C, H, W]` of each image.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        lines: how many cells of the first view get a line, those with the most similar matches.

    Returns:
        The figure; lines are coloured by cosine similarity, on one scale for the whole sheet.

    Raises:
        TypeError: see `correspondences`.
        ValueError: see `correspondences`; or `lines` is not positive.
    """
    if lines < 1:
        raise ValueError(f"lines must be at least 1, got {lines}")
    matches = correspondences(model, pixel_values)
    height, width = pixel_values.shape[-2:]
    pictures = to_pictures(pixel_values.flatten(0, 1), mean, std)
    chosen = matches.similarity.topk(min(lines, matches.similarity.shape[1]), dim=1)
    low, high = chosen.values.min().item(), chosen.values.max().item()
    scale = Normalize(vmin=low, vmax=max(high, low + 1e-6))
    offset = width * (1 + _GAP)
    columns = 2 if len(pixel_values) > 1 else 1
    rows = -(-len(pixel_values) // columns)
    figure, axes = new_sheet(rows, ["query and key view"] * columns, aspect=height / (width + offset))
    figure.set_size_inches(*(2 * figure.get_size_inches()))  # a panel holds two pictures
    for index, axis in zip(range(len(pixel_values)), axes.flat, strict=False):
        axis.set_axis_off()
        draw_picture(axis, pictures[2 * index])
        draw_picture(axis, pictures[2 * index + 1])
        axis.images[0].set_extent((0, width, height, 0))
        axis.images[1].set_extent((offset, offset + width, height, 0))
        axis.set_xlim(0, offset + width)
        axis.set_ylim(height, 0)
        cells = chosen.indices[index]
        starts = _centres(cells, matches.grid, height, width)
        ends = _centres(matches.match_index[index, cells], matches.grid, height, width)
        segments = np.stack([starts, ends + np.array([offset, 0])], axis=1)
        drawn = LineCollection(list(segments), cmap=_LINE_COLOURS, norm=scale, linewidths=0.8)
        drawn.set_array(chosen.values[index].numpy())
        axis.add_collection(drawn)
    bar = figure.colorbar(ScalarMappable(scale, _LINE_COLOURS), ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("cosine similarity", fontsize=7)
    if path is not None:
        save_figure(figure, path)
    return figure


def _check_views(pixel_values: torch.Tensor) -> torch.Tensor:
    if pixel_values.ndim != 5:
        raise ValueError(f"pixel_values must have shape [B, views, C, H, W], got {list(pixel_values.shape)}")
    return pixel_values


def _draw_boxes(axis: Axes, boxes: Sequence[Sequence[float]]) -> None:
    """Outlines of crops (top, left, height, width)."""
    for number, (top, left, height, width) in enumerate(boxes):
        colour = _VIEW_COLOURS[number % len(_VIEW_COLOURS)]
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.5))


def _centres(cells: torch.Tensor, grid: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Centres (x, y) of cells in pixels `[n, 2]`."""
    rows, columns = grid
    x = (cells % columns + 0.5) * width / columns
    y = (cells // columns + 0.5) * height / rows
    return torch.stack([x, y], dim=1).numpy()
