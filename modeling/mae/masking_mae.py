"""Which patches MAE removes: random, block-wise and grid-wise sampling, and masks given by the caller."""

import math
from typing import NamedTuple

import torch


class PatchMask(NamedTuple):
    """
    One mask per image.

    Attributes:
        ids_keep (`torch.LongTensor` of shape `[B, K]`): kept patches, in the order in which the encoder sees them.
        ids_masked (`torch.LongTensor` of shape `[B, L - K]`): removed patches.
        ids_restore (`torch.LongTensor` of shape `[B, L]`): position of every patch in `[kept, removed]`.
        mask (`torch.Tensor` of shape `[B, L]`): 0 kept, 1 removed, in image order.
    """

    ids_keep: torch.Tensor
    ids_masked: torch.Tensor
    ids_restore: torch.Tensor
    mask: torch.Tensor


def sample_mask(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float,
    sampling: str = "random",
    noise: torch.Tensor | None = None,
    bool_masked_pos: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> PatchMask:
    """
    Draws or reads the mask of a batch (paper, section 3 "Masking" and section 4.1 "Mask sampling strategy").

    Args:
        batch_size (`int`): number of images B.
        grid_size (`tuple[int, int]`): rows and columns of patches; L is their product.
        mask_ratio (`float`): share of removed patches, in [0, 1). `int(L * (1 - mask_ratio))` are kept, as in the
            official code (the product is truncated).
        sampling (`str`): `"random"`, `"block"` or `"grid"`; used when neither `noise` nor `bool_masked_pos` is given.
        noise (`torch.Tensor` of shape `[B, L]`, *optional*): the patches with the smallest noise are kept, in that
            order.
        bool_masked_pos (`torch.Tensor` of shape `[B, L]`, *optional*): the mask itself, true where removed.
        generator (`torch.Generator`, *optional*): source of the random draws, on `device`.
        device: where the mask is needed.

    Raises:
        ValueError: for a ratio outside [0, 1) or without a kept patch, wrong shapes, images that mask unequal numbers
            of patches, both `noise` and `bool_masked_pos`, or a grid that the ratio does not fit.
    """
    length = grid_size[0] * grid_size[1]
    if noise is not None and bool_masked_pos is not None:
        raise ValueError("give either noise or bool_masked_pos, got both")
    if bool_masked_pos is not None:
        return _from_bool(bool_masked_pos, batch_size, length)
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    num_keep = int(length * (1 - mask_ratio))
    if num_keep == 0:
        raise ValueError(f"mask_ratio {mask_ratio} leaves no visible patch out of {length}")
    if noise is not None:
        if noise.shape != (batch_size, length):
            raise ValueError(f"noise must have shape ({batch_size}, {length}), got {tuple(noise.shape)}")
        noise = noise.to(device)
    else:
        # float32 whatever the model's dtype: bfloat16 noise has ties
        noise = torch.rand(batch_size, length, generator=generator, device=device, dtype=torch.float32)
        if sampling == "block":
            noise = noise + _block_masks(batch_size, grid_size, length - num_keep, generator, device)
        elif sampling == "grid":
            noise = noise + _grid_mask(grid_size, mask_ratio, device)
        elif sampling != "random":
            raise ValueError(f"sampling must be one of ('random', 'block', 'grid'), got {sampling!r}")
    return _from_shuffle(torch.argsort(noise, dim=1), num_keep)


def _from_shuffle(ids_shuffle: torch.Tensor, num_keep: int) -> PatchMask:
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= num_keep).to(torch.float32)
    return PatchMask(ids_shuffle[:, :num_keep], ids_shuffle[:, num_keep:], ids_restore, mask)


def _from_bool(bool_masked_pos: torch.Tensor, batch_size: int, length: int) -> PatchMask:
    masked = bool_masked_pos.flatten(1).bool()
    if masked.shape != (batch_size, length):
        raise ValueError(
            f"bool_masked_pos must have shape ({batch_size}, {length}), got {tuple(bool_masked_pos.shape)}"
        )
    counts = masked.sum(dim=1)
    low, high = int(counts.min()), int(counts.max())
    if low != high:
        raise ValueError(f"every image must mask the same number of patches, got {low}..{high}")
    if high == length:
        raise ValueError(f"bool_masked_pos leaves no visible patch out of {length}")
    return _from_shuffle(torch.argsort(masked.to(torch.uint8), dim=1, stable=True), length - high)


def _block_masks(batch_size, grid_size, num_masked, generator, device) -> torch.Tensor:
    """
    Block-wise masking of BEiT (arXiv 2106.08254, algorithm 1): rectangles of at least 16 patches (of 14 x 14, fewer on
    smaller grids) with aspect ratio in [0.3, 1 / 0.3] until `num_masked` patches are covered; the last one is cut
    short.
    """
    rows, columns = grid_size
    smallest = max(1, round(16 * rows * columns / 196))
    masks = torch.zeros(batch_size, rows, columns, device=device)
    for mask in masks:
        while (remaining := num_masked - int(mask.sum())) > 0:
            draws = torch.rand(4, generator=generator, device=device).tolist()
            area = smallest + draws[0] * max(0, remaining - smallest)
            aspect = math.exp((2 * draws[1] - 1) * math.log(1 / 0.3))
            height = min(rows, max(1, round(math.sqrt(area * aspect))))
            width = min(columns, max(1, round(math.sqrt(area / aspect))))
            top, left = int(draws[2] * (rows - height + 1)), int(draws[3] * (columns - width + 1))
            block = torch.zeros_like(mask, dtype=torch.bool)
            block[top : top + height, left : left + width] = True
            new = (block & (mask == 0)).flatten().nonzero().squeeze(1)[:remaining]
            mask.view(-1)[new] = 1
    return masks.flatten(1)


def _grid_mask(grid_size, mask_ratio, device) -> torch.Tensor:
    """Keeps one patch of every `s x s`, with `1 / s^2 = 1 - mask_ratio`; returns 1 where removed, shape `[1, L]`."""
    rows, columns = grid_size
    step = round((1 - mask_ratio) ** -0.5)
    if step < 2 or abs(1 - 1 / step**2 - mask_ratio) > 1e-6 or rows % step or columns % step:
        raise ValueError(
            "grid sampling keeps one patch of every s x s: mask_ratio must be 1 - 1/s^2 in full precision (0.75, "
            f"{1 - 1 / 9}, 0.9375 ...) and s must divide the {rows}x{columns} grid, got mask_ratio {mask_ratio}"
        )
    mask = torch.ones(rows, columns, device=device)
    mask[::step, ::step] = 0
    return mask.reshape(1, -1)
