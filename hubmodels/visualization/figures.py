"""What all pictures share: colours of normalised images, sheets of panels, writing a file completely or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from hubmodels.files import printable, replacing

logger = logging.get_logger(__name__)

PANEL_INCHES = 1.8
HEAT_COLOURS = "inferno"

# Fonts of Linux, macOS and Windows with scripts that matplotlib's own lacks.
FALLBACK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC"),
    *("Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAGothic", "NanumGothic"),
    *("Hiragino Sans", "Hiragino Sans GB", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI", "Tahoma"),
    *("Noto Sans Arabic", "Noto Naskh Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Lohit Devanagari"),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Loma", "Garuda", "Thonburi", "Kohinoor Devanagari"),
)
BOX = "\N{WHITE SQUARE}"
NAMED_CHARACTERS = 20  # of those that no font has, how many a warning names

# Normalisation of a channel: one value for all, or one per channel.
ChannelValues = float | Sequence[float]


def to_pictures(
    pixel_values: torch.Tensor,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
) -> np.ndarray:
    """Undo the normalisation of images, for display.

    Args:
        pixel_values: normalised images `[B, C, H, W]`.
        mean: mean that was subtracted, one value or one per channel, in units of [0, 1].
        std: deviation that was divided by, likewise.

    Returns:
        Colours in [0, 1] (clipped) `[B, H, W, 3]`, or `[B, H, W]` in grey unless there are three channels: the one
        channel, or the mean of several.

    Raises:
        ValueError: `pixel_values` is no batch of images, or `mean` or `std` has not one value per channel.
    """
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values must have shape [B, C, H, W], got {list(pixel_values.shape)}")
    channels = pixel_values.shape[1]
    pixels = pixel_values.detach().float().cpu()
    pixels = pixels * _per_channel("std", std, channels) + _per_channel("mean", mean, channels)
    pictures = pixels.permute(0, 2, 3, 1) if channels == 3 else pixels.mean(dim=1)
    return pictures.clamp(0, 1).numpy()


def _per_channel(name: str, values: ChannelValues, channels: int) -> torch.Tensor:
    vector = torch.as_tensor(values, dtype=torch.float32).reshape(-1)
    if len(vector) not in (1, channels):
        raise ValueError(f"{name} has {len(vector)} values, but pixel_values has {channels} channels")
    return vector.view(1, -1, 1, 1)


def upscale(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps of patches `[B, rows, columns]` as maps of pixels `[B, height, width]`, bilinearly."""
    maps = maps.detach().float().cpu()[:, None]
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


def new_sheet(rows: int, titles: Sequence[str], aspect: float = 1.0) -> tuple[Figure, np.ndarray]:
    """Start a sheet of panels without frames.

    Args:
        rows: number of rows.
        titles: one per column, written above the first row.
        aspect: height of a panel divided by its width.

    Returns:
        The figure, which belongs to no window system and no global state, and its axes `[rows, columns]`.
    """
    size = (PANEL_INCHES * len(titles), PANEL_INCHES * rows * aspect + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="compressed")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    return figure, axes


def draw_picture(axis: Axes, picture: np.ndarray) -> None:
    """Draw one picture of `to_pictures`."""
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def draw_overlay(axis: Axes, picture: np.ndarray, heat: np.ndarray, scale: Normalize) -> None:
    """Draw a picture in pale grey under a map `[H, W]` in colours; `scale` maps its values to [0, 1]."""
    grey = picture.mean(axis=-1) if picture.ndim == 3 else picture
    draw_picture(axis, grey)
    axis.imshow(heat, cmap=HEAT_COLOURS, norm=scale, alpha=0.65, interpolation="nearest")


def drawable(names: Sequence[str], elsewhere: str = "") -> tuple[list[str], list[str]]:
    """Names of any script as matplotlib can draw them: without formulas between dollar signs, in fonts that have them.

    Where no installed font has a character, a box stands for it; one warning says which.

    Args:
        names: The names.
        elsewhere: Ends the warning: where such names can be read.

    Returns:
        The names to draw, and the families of the fonts to draw them in.
    """
    texts = [printable(name).replace("$", r"\$") for name in names]
    families = list(rcParams["font.family"])
    lacking = sorted(_lacking(set("".join(texts)) - {"\n"}, families))
    if lacking:
        installed = set(font_manager.get_font_names())
        families += [family for family in FALLBACK_FONTS if family in installed and _opens(family)]
        lacking = sorted(_lacking(set(lacking), families))
    if lacking:
        more = f" and {len(lacking) - NAMED_CHARACTERS} more" if len(lacking) > NAMED_CHARACTERS else ""
        named = " ".join(lacking[:NAMED_CHARACTERS])
        logger.warning(f"no installed font can draw {named}{more}: boxes stand for them in the picture{elsewhere}")
    boxes = str.maketrans(dict.fromkeys(lacking, BOX))
    return [text.translate(boxes) for text in texts], families


def _font(family: str) -> FT2Font:
    return font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[family])))


def _opens(family: str) -> bool:
    """Whether the file of a font is there and whole."""
    try:
        _font(family)
    except (OSError, RuntimeError):
        return False
    return True


def _lacking(characters: set[str], families: Sequence[str]) -> set[str]:
    """Characters that none of the fonts has."""
    fonts = [_font(family) for family in families]
    return {one for one in characters if not any(font.get_char_index(ord(one)) for font in fonts)}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure; the file is complete or absent, and replaces one of the same name only then.

    Args:
        figure: what to write.
        path: file to write; its suffix (`.png`, `.pdf`, `.svg`, `.jpg` ...) is the format. Folders are created.

    Returns:
        The path of the file.

    Raises:
        ValueError: matplotlib writes no format of that suffix.
    """
    path = Path(path)
    file_format = _file_format(figure, path)
    with replacing(path) as written:
        figure.savefig(written, format=file_format, bbox_inches="tight")
    return path


def _file_format(figure: Figure, path: Path) -> str:
    known = figure.canvas.get_supported_filetypes()
    file_format = path.suffix.lstrip(".").lower()
    if file_format not in known:
        raise ValueError(f"path must end in one of {', '.join(f'.{name}' for name in known)}, got {str(path)!r}")
    return file_format
