"""State dicts in the official MAE layout, and changed archives, for the conversion tests."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hubmodels.conversion.checkpoint_reading import read_checkpoint

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "mae"


def golden_state(case: str) -> dict[str, torch.Tensor]:
    """State dict of a golden case, with the official names in the official order."""
    return read_checkpoint(GOLDEN / case / "checkpoint.pth")["model"]


def encoder_state(width: int, depth: int = 1, patch: int = 16, grid: int = 14) -> dict[str, torch.Tensor]:
    """An encoder-only official state dict of any size, of zeros."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float16)

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": zeros(rows, columns), f"{name}.bias": zeros(rows)}

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": zeros(width), f"{name}.bias": zeros(width)}

    state = {"cls_token": zeros(1, 1, width), "pos_embed": zeros(1, grid * grid + 1, width)}
    state |= {"patch_embed.proj.weight": zeros(width, 3, patch, patch), "patch_embed.proj.bias": zeros(width)}
    for index in range(depth):
        block = f"blocks.{index}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * width, width)
        state |= linear(f"{block}.attn.proj", width, width) | norm(f"{block}.norm2")
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return state | norm("norm")


def repack(
    source: Path,
    out: Path,
    compression: int = zipfile.ZIP_STORED,
    level: int | None = None,
    change: Callable[[bytes], bytes] = bytes,
) -> Path:
    """Pack the records of a zip file again, each after `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", compression, compresslevel=level) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(old.read(record)))
    return out
