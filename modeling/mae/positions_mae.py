"""The fixed sin-cos position tables of MAE and their bicubic resizing."""

import torch
from torch import nn
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from .precision_mae import at_least_float32


def sincos_position_table(
    dim: int, grid_size: tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """
    Table of the official code: for the patch in row y and column x `[sin(x w) | cos(x w) | sin(y w) | cos(y w)]` with
    `w_k = 10000^(-k / (dim / 4))`, and a row of zeros for the class token in front.

    The column half comes first, as in the released weights (the official function names its axes the other way round).

    Args:
        dim (`int`): width, divisible by 4.
        grid_size (`tuple[int, int]`): rows and columns of patches.
        dtype (`torch.dtype`): of the result; the computation is in float64.
        device: of the result.

    Returns:
        `torch.Tensor` of shape `[1 + rows * columns, dim]`.
    """
    table = build_2d_sinusoidal_position_embedding(
        *grid_size, embed_dim=dim, cls_token=True, dtype=torch.float64, device=torch.device("cpu")
    )
    rows, columns = table.chunk(2, dim=1)
    return torch.cat([columns, rows], dim=1).to(device=device, dtype=dtype)


def resize_position_table(table: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """
    Resizes the patch rows of a position table as the official `interpolate_pos_embed` does: bicubic, no antialias,
    corners not aligned; the class row stays.

    Args:
        table (`torch.Tensor` of shape `[1, 1 + L, D]`): position table.
        old_grid (`tuple[int, int]`): its rows and columns.
        new_grid (`tuple[int, int]`): rows and columns wanted.

    Returns:
        `torch.Tensor` of shape `[1, 1 + L', D]`.

    Raises:
        ValueError: if the table has not one row per patch of `old_grid` and one for the class token.
    """
    if table.shape[1] != 1 + old_grid[0] * old_grid[1]:
        raise ValueError(
            f"a {old_grid[0]}x{old_grid[1]} grid needs {1 + old_grid[0] * old_grid[1]} rows, got {table.shape[1]}"
        )
    if old_grid == new_grid:
        return table
    patches = table[:, 1:].reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(at_least_float32(patches), size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
