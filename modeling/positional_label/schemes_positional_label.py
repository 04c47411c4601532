"""Tokens without position embedding: position dropout, and the second pass of the jigsaw scheme."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from .labels_positional_label import Grid

TABLE = "position_embeddings"
ROWS = "position_embedding"  # of CLIP and SigLIP, which look rows up by `position_ids`


def check_position_table(backbone: nn.Module, purpose: str) -> None:
    """
    Raises:
        ValueError: if the backbone adds no learned or fixed table of positions to its tokens.
            From those of timm's networks nothing can be taken away.
    """
    embeddings = getattr(backbone, "embeddings", None)
    table = getattr(embeddings, TABLE, None)
    if isinstance(getattr(embeddings, ROWS, None), nn.Embedding):
        return
    if backbone.config.model_type == "timm_wrapper":
        raise ValueError(
            f"{purpose} takes rows of a position table away, which is not done in timm's networks; give a backbone of "
            "transformers (ViT, DeiT, DINOv2, CLIP, SigLIP)"
        )
    # The absolute table of a Swin is that of its patches, of which several become one token.
    if table is None or hasattr(backbone.config, "depths"):
        raise ValueError(
            f"{purpose} needs a backbone whose embeddings add a position table to its tokens (ViT, DeiT, DINOv2, CLIP, "
            f"SigLIP, MAE); {type(backbone).__name__} has none" + ("" if table is None else " but at its patches")
        )


def check_dropout_grid(grid: Grid, configured: Grid) -> None:
    """
    Raises:
        ValueError: for images of another size than the position table is made for, which rows of it could not be
            dropped from.
    """
    if tuple(grid) != tuple(configured):
        raise ValueError(
            f"position_dropout takes rows of the position table away, which is one of {configured[0]}x{configured[1]} "
            f"tokens; got images of {grid[0]}x{grid[1]}"
        )


def random_rows(noise: torch.Tensor, share: float) -> torch.Tensor:
    """
    Marks a share of every row: where `noise` `[B, N]` is smallest.

    Returns:
        `torch.BoolTensor` of shape `[B, N]` with `round(share * N)` marks per row, at least one.
    """
    count = max(1, round(share * noise.shape[1]))
    marked = torch.zeros_like(noise, dtype=torch.bool)
    return marked.scatter_(1, noise.argsort(dim=1)[:, :count], True)


def run_with_positions(
    model: nn.Module, embeddings: str, dropped: torch.Tensor | None, *args, **kwargs
) -> torch.Tensor | tuple:
    """
    Calls a model whose patches have position embeddings only where they are not dropped.

    Args:
        model (`nn.Module`): the model.
        embeddings (`str`): dotted name of its embeddings.
        dropped (`torch.BoolTensor` of shape `[B, N]`, *optional*): patches, in image order, whose row of the position
            table is replaced by zeros; tokens in front of them keep theirs. All patches by default.
        args, kwargs: of the call.

    Returns:
        What the model returns.
    """
    module = model.get_submodule(embeddings)
    if hasattr(module, ROWS):
        tables = _looked_up(module, dropped)
        if dropped is not None:  # by its rows, of which none may be interpolated
            kwargs.pop("interpolate_pos_encoding", None)
    else:
        tables = {TABLE: _masked(module.get_parameter(TABLE), module.patch_embeddings.num_patches, dropped)}
    return functional_call(model, {f"{embeddings}.{name}": table for name, table in tables.items()}, args, kwargs)


def _masked(table: torch.Tensor, num_patches: int, dropped: torch.Tensor | None) -> torch.Tensor:
    """A table `[1, P + N, D]`, or one per image, with zeros for dropped patches (all by default)."""
    prefix = table.shape[1] - num_patches
    if dropped is None:
        return torch.cat([table[:, :prefix], torch.zeros_like(table[:, prefix:])], dim=1)
    kept = nn.functional.pad(~dropped, (prefix, 0), value=True)
    return table * kept[..., None].to(table.dtype)


def _looked_up(embeddings: nn.Module, dropped: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The same for rows `[P + N, D]` that are looked up: dropped patches look up one more, of zeros."""
    weight, ids = embeddings.get_submodule(ROWS).weight, embeddings.position_ids
    patches = getattr(embeddings, "num_patches", len(weight))  # AIMv2 has no other tokens, and does not say so
    if dropped is None:
        return {f"{ROWS}.weight": _masked(weight[None], patches, None)[0]}
    lost = nn.functional.pad(dropped, (len(weight) - patches, 0), value=False)
    weight = torch.cat([weight, torch.zeros_like(weight[:1])])
    return {f"{ROWS}.weight": weight, "position_ids": torch.where(lost, len(weight) - 1, ids)}


@contextmanager
def only_patches(backbone: nn.Module, ids: torch.Tensor, num_prefix_tokens: int) -> Iterator[None]:
    """
    Lets a ViT see some patches only, for the length of a `with` block.

    Args:
        backbone (`nn.Module`): the ViT.
        ids (`torch.LongTensor` of shape `[B, K]`): the patches, in the order in which it sees them.
        num_prefix_tokens (`int`): tokens in front of the patches, which stay.
    """

    def select(module, inputs, tokens):
        patches = tokens[:, num_prefix_tokens:].gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat([tokens[:, :num_prefix_tokens], patches], dim=1)

    handle = backbone.embeddings.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()
