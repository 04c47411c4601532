"""The most suspicious images of a data set as one picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .figures import drawable, new_sheet, save_figure

if TYPE_CHECKING:
    from hubmodels.evaluation import NoisyLabelReport

COLUMNS = 8


def noisy_label_sheet(report: NoisyLabelReport, path: str | os.PathLike[str] | None = None, count: int = 40) -> Figure:
    """Draw the most suspicious images with their given and suggested labels.

    Args:
        report: The report.
        path: file to write, complete or absent. None: nothing is written.
        count: Images.

    Returns:
        The figure.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    entries = report.top(count)
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    figure, axes = new_sheet(rows, [""] * columns, aspect=1.3)
    texts = [f"{entry.given}\n→ {entry.suggested}\nright: {entry.clean_probability:.0%}" for entry in entries]
    titles, family = drawable(texts, "; noisy_labels.html shows them")
    for entry, title, axis in zip(entries, titles, axes.flat, strict=False):
        axis.imshow(report.picture(entry.rank), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=6, family=family)
    if path is not None:
        save_figure(figure, path)
    return figure
