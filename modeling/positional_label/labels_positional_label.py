"""Positional labels: the class of a token by its place in the grid, and of a pair of tokens by their offset."""

import torch

Grid = tuple[int, int]


def absolute_labels(grid: Grid, device: torch.device | str | None = None) -> torch.Tensor:
    """
    Classes of the tokens of a grid: `y * w + x`.

    Args:
        grid (`tuple[int, int]`): rows h and columns w.
        device: where the labels are needed.

    Returns:
        `torch.LongTensor` of shape `[h * w]`.
    """
    return torch.arange(grid[0] * grid[1], device=device)


def num_relative_labels(grid: Grid) -> int:
    """How many offsets two tokens of a grid can have: `(2h - 1)(2w - 1)`."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def token_ranks(ids: torch.Tensor, columns: int, trained_columns: int) -> torch.Tensor:
    """
    Numbers whose difference tells the offset of two tokens: the relative label of anchor i and other token j is
    `rank(i) - rank(j) + relative_origin(grid)`. So a table of pairs never has to be stored.

    Args:
        ids (`torch.LongTensor`): row-major indices in the grid of the tokens.
        columns (`int`): columns of that grid.
        trained_columns (`int`): columns of the grid that the classes were made for.

    Returns:
        `torch.LongTensor` of the shape of `ids`.
    """
    rows = torch.div(ids, columns, rounding_mode="floor")
    return rows * (2 * trained_columns - 1) + ids - rows * columns


def relative_origin(grid: Grid) -> int:
    """The relative label of a token with itself, for classes made for `grid`."""
    return (grid[0] - 1) * (2 * grid[1] - 1) + grid[1] - 1


def relative_labels(
    grid: Grid, trained_grid: Grid | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """
    Classes of all ordered pairs of tokens: `(y_i - y_j + h - 1)(2w - 1) + (x_i - x_j + w - 1)` for anchor i (row) and
    other token j (column).

    Args:
        grid (`tuple[int, int]`): rows and columns of the tokens.
        trained_grid (`tuple[int, int]`, *optional*): the grid (h, w) that the classes were made for, `grid` by default.
            The offsets of a smaller grid are a part of its offsets.
        device: where the labels are needed.

    Returns:
        `torch.LongTensor` of shape `[N, N]`.

    Raises:
        ValueError: if `grid` is larger than `trained_grid`.
    """
    trained_grid = trained_grid or grid
    check_grid(grid, trained_grid, smaller_is_fine=True)
    ranks = token_ranks(absolute_labels(grid, device), grid[1], trained_grid[1])
    return ranks[:, None] - ranks + relative_origin(trained_grid)


def check_grid(grid: Grid, trained_grid: Grid, smaller_is_fine: bool) -> None:
    """
    Raises:
        ValueError: if a grid of tokens has not the classes of a head.
    """
    fits = grid[0] <= trained_grid[0] and grid[1] <= trained_grid[1] if smaller_is_fine else grid == trained_grid
    if not fits:
        raise ValueError(
            f"position head was built for a {trained_grid[0]}x{trained_grid[1]} grid, got {grid[0]}x{grid[1]}"
            + (" (smaller grids are possible)" if smaller_is_fine else "")
        )


def check_ids(ids: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> None:
    """
    Checks the indices `[B, K]` (or `[1, K]`) of the tokens `[B, K, D]` of a grid.

    Raises:
        ValueError: for another shape, a type that is no integer, or indices outside of the grid.
    """
    if ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(f"ids of tokens must be integers, got {ids.dtype}")
    if ids.ndim != 2 or ids.shape[0] not in (1, tokens.shape[0]) or ids.shape[1] != tokens.shape[1]:
        raise ValueError(f"ids must have shape {[tokens.shape[0], tokens.shape[1]]}, got {list(ids.shape)}")
    check_range("ids", ids, grid[0] * grid[1], f" for a {grid[0]}x{grid[1]} grid")


def check_anchors(anchors: torch.Tensor, tokens: torch.Tensor) -> None:
    """
    Checks the rows `[B, S]` of the tokens `[B, K, D]` that are anchors.

    Raises:
        ValueError: for another shape, a type that is no integer, or rows that there are not.
    """
    if anchors.dtype.is_floating_point or anchors.dtype == torch.bool:
        raise ValueError(f"anchors must be integers, got {anchors.dtype}")
    if anchors.ndim != 2 or anchors.shape[0] != tokens.shape[0]:
        raise ValueError(f"anchors must have shape [{tokens.shape[0]}, S], got {list(anchors.shape)}")
    check_range("anchors", anchors, tokens.shape[1], f" for {tokens.shape[1]} tokens")


def check_range(name: str, indices: torch.Tensor, count: int, why: str) -> None:
    """
    Raises:
        ValueError: for indices outside of `[0, count)`, which are looked at on CPU only.
    """
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or not indices.numel():
        return  # looking would cost a synchronisation
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must be in [0, {count}){why}, got {low} to {high}")


def smoothed_labels(grid: Grid, sigma: float, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """
    Soft absolute labels of DropPos (arXiv 2309.03576): a Gaussian around the true place, normalised over the grid.

    Args:
        grid (`tuple[int, int]`): rows and columns.
        sigma (`float`): width in tokens, above 0.
        dtype, device: of the result.

    Returns:
        `torch.Tensor` of shape `[N, N]`: row i is the target of token i.
    """
    ids = absolute_labels(grid, device)
    rows, columns = torch.div(ids, grid[1], rounding_mode="floor"), ids % grid[1]
    squares = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    return torch.softmax(-squares.to(dtype) / (2 * sigma**2), dim=1)


__all__ = ["absolute_labels", "num_relative_labels", "relative_labels", "smoothed_labels"]
