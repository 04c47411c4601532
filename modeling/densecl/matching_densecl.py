"""Dense correspondence: which cell of the key view belongs to a cell of the query view (paper, section 3.3)."""

import torch
from torch.nn import functional

from .precision_densecl import at_least_float32


def normalize_positions(feature_map: torch.Tensor) -> torch.Tensor:
    """
    Flattens a map and gives the vector of every cell unit length, in float32 if the dtype is lower.

    Args:
        feature_map (`torch.Tensor` of shape `[B, C, h, w]`): features or embeddings.

    Returns:
        `[B, C, L]`, the cells row by row.
    """
    return functional.normalize(at_least_float32(feature_map).flatten(2), dim=1)


@torch.no_grad()
def match_by_similarity(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    The key of the highest cosine similarity for every query cell (paper, equation 3); no gradient flows through it.

    Args:
        queries, keys (`torch.Tensor` of shape `[B, C, L]`): vectors of unit length.

    Returns:
        Indices of key cells, int64 `[B, L]`; the first of equal ones.
    """
    return torch.bmm(queries.transpose(1, 2), keys).argmax(dim=2)


@torch.no_grad()
def match_by_geometry(crop_boxes: torch.Tensor, flips: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    The key cell that shows the point of the image at the centre of a query cell, or is closest to it.

    Args:
        crop_boxes (`torch.Tensor` of shape `[B, 2, 4]`): `(top, left, height, width)` of both views in the image.
        flips (`torch.Tensor` of shape `[B, 2]`): whether a view is mirrored.
        grid (`tuple[int, int]`): rows and columns of cells of a view.

    Returns:
        Indices of key cells, int64 `[B, L]`.
    """
    rows, columns = grid
    key_rows, key_columns, _ = _places_in_key_view(crop_boxes, flips, grid)
    key_rows = key_rows.floor().clamp(0, rows - 1).long()
    key_columns = key_columns.floor().clamp(0, columns - 1).long()
    return key_rows * columns + key_columns


def check_matches(match_index: torch.Tensor, batch: int, cells: int) -> None:
    """
    Raises:
        ValueError: if `match_index` does not name one of `cells` key cells for each query cell of `batch` images (its
            range is looked at on the CPU only, as an accelerator would be waited for).
    """
    if not isinstance(match_index, torch.Tensor):
        raise ValueError(f"match_index must be a tensor, got {type(match_index).__name__}")
    if match_index.shape != (batch, cells) or match_index.dtype != torch.int64:
        raise ValueError(
            f"match_index must be int64 of shape {(batch, cells)} (batch, cells), got {match_index.dtype} of shape "
            f"{tuple(match_index.shape)}"
        )
    if match_index.device.type != "cpu":
        return
    low, high = (int(value) for value in match_index.aminmax())
    if low < 0 or high >= cells:
        raise ValueError(f"match_index must name cells in [0, {cells}), got {low} to {high}")


def check_boxes(crop_boxes: torch.Tensor | None, flips: torch.Tensor | None, batch: int) -> None:
    """
    Raises:
        ValueError: if the boxes or flips of the two views of `batch` images are no tensors of that shape.
    """
    for name, given, shape in (("crop_boxes", crop_boxes, (batch, 2, 4)), ("flips", flips, (batch, 2))):
        if given is not None and not isinstance(given, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}")
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, as from the image processor, got {tuple(given.shape)}")


@torch.no_grad()
def match_accuracy(
    match_index: torch.Tensor, crop_boxes: torch.Tensor, flips: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """
    Share of the query cells inside the overlap of the views whose match lies within one cell of the true place.

    Args:
        match_index (`torch.Tensor` of shape `[B, L]`): matched key cells.
        crop_boxes, flips, grid: see [`match_by_geometry`].

    Returns:
        A scalar in [0, 1]; NaN if no views overlap.
    """
    columns = grid[1]
    key_rows, key_columns, inside = _places_in_key_view(crop_boxes, flips, grid)
    row_distance = (match_index // columns + 0.5 - key_rows).abs()
    column_distance = (match_index % columns + 0.5 - key_columns).abs()
    hits = (row_distance <= 1) & (column_distance <= 1)
    return hits[inside].to(key_rows.dtype).mean()


@torch.no_grad()
def chance_accuracy(crop_boxes: torch.Tensor, flips: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What [`match_accuracy`] is on average if every match is drawn at random; arguments as there."""
    rows, columns = grid
    key_rows, key_columns, inside = _places_in_key_view(crop_boxes, flips, grid)
    row_centres = torch.arange(rows, device=key_rows.device) + 0.5
    column_centres = torch.arange(columns, device=key_rows.device) + 0.5
    near_rows = ((row_centres - key_rows[..., None]).abs() <= 1).sum(dim=-1)
    near_columns = ((column_centres - key_columns[..., None]).abs() <= 1).sum(dim=-1)
    return (near_rows * near_columns / (rows * columns))[inside].mean()


def distinct_matches(match_index: torch.Tensor, cells: int) -> torch.Tensor:
    """
    How many different key cells are matched in an image, on average over the batch; near 1 the features have collapsed.

    Args:
        match_index (`torch.Tensor` of shape `[B, L]`): matched key cells.
        cells (`int`): number of key cells.
    """
    matched = torch.zeros(len(match_index), cells, device=match_index.device)
    return matched.scatter_(1, match_index, 1.0).sum(dim=1).mean()


def _places_in_key_view(
    crop_boxes: torch.Tensor, flips: torch.Tensor, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres of the query cells in the key view, as row and column in cells `[B, L]`, and whether they lie in it."""
    rows, columns = grid
    boxes = at_least_float32(crop_boxes)
    (top, left, height, width), (key_top, key_left, key_height, key_width) = boxes[..., None].permute(1, 2, 0, 3)
    flip, key_flip = flips.bool()[..., None].unbind(dim=1)
    cells = torch.arange(rows * columns, device=boxes.device)
    y = (cells // columns + 0.5) / rows
    x = (cells % columns + 0.5) / columns
    x = torch.where(flip, 1 - x, x)
    key_y = (top + y * height - key_top) / key_height
    key_x = (left + x * width - key_left) / key_width
    key_x = torch.where(key_flip, 1 - key_x, key_x)
    inside = (key_y >= 0) & (key_y < 1) & (key_x >= 0) & (key_x < 1)
    return key_y * rows, key_x * columns, inside


__all__ = [
    "chance_accuracy",
    "check_boxes",
    "check_matches",
    "distinct_matches",
    "match_accuracy",
    "match_by_geometry",
    "match_by_similarity",
    "normalize_positions",
]
