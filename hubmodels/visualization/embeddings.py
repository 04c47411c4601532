"""Maps of embeddings: what lies close together for a model."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn.decomposition import PCA
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .figures import ChannelValues, drawable, save_figure, to_pictures

_SIDE_INCHES = 5.0
_THUMBNAIL_INCHES = 0.3
_DPI = 150
_LISTED_CLASSES = 20


def embedding_plane(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Project features onto their two principal components.

    Args:
        features: float `[N, D]` with N and D at least 2.

    Returns:
        Coordinates `[N, 2]`, and the share of the variance that each axis explains `[2]`. The sign of an axis is such
        that its largest loading is positive: the same features give the same map.

    Raises:
        ValueError: `features` is no such table, or has values that are not finite.
    """
    if features.ndim != 2 or min(features.shape) < 2:
        raise ValueError(f"features must have shape [N, D] with both at least 2, got {list(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite")
    analysis = PCA(n_components=2, svd_solver="full")
    points = analysis.fit_transform(features.detach().double().cpu().numpy())
    return points, np.nan_to_num(analysis.explained_variance_ratio_)


def embedding_map(
    features: torch.Tensor,
    labels: torch.Tensor | Sequence[int] | None = None,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    class_names: Sequence[str] | None = None,
    thumbnails: torch.Tensor | None = None,
) -> Figure:
    """Draw features in the plane of their two principal components, coloured by class.

    Args:
        features: float `[N, D]`, for example of `hubmodels.evaluation.extract_features`.
        labels: class of each, integers `[N]` from 0; None draws all in one colour.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation of the thumbnails, one value or one per channel.
        std: deviation of the normalisation, likewise.
        class_names: names of the classes, for the legend.
        thumbnails: normalised images `[N, C, H, W]`, drawn in place of dots, framed in the colour of their class.

    Returns:
        The figure.

    Raises:
        ValueError: see `embedding_plane`; or labels, names or thumbnails are not as many as needed.

    Example:

    ```python
    >>> features, labels = extract_features(model, dataset, transform)
    >>> embedding_map(features, labels, "map.png", class_names=dataset.class_names)
    ```
    """
    points, explained = embedding_plane(features)
    classes = np.zeros(len(points), dtype=np.int64) if labels is None else np.asarray(labels)
    if classes.shape != (len(points),) or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise ValueError(f"labels must be {len(points)} integers from 0, got {classes.dtype} {list(classes.shape)}")
    if class_names is not None and len(class_names) <= classes.max():
        raise ValueError(f"class_names has {len(class_names)} names, but labels go up to {classes.max()}")
    if thumbnails is not None and len(thumbnails) != len(points):
        raise ValueError(f"thumbnails must be {len(points)} images, got {len(thumbnails)}")
    colours = colormaps["tab10" if classes.max() < 10 else "tab20"]
    figure = Figure(figsize=(_SIDE_INCHES, _SIDE_INCHES), dpi=_DPI, layout="compressed")
    axis = figure.subplots()
    names: list[str] = []
    dots: list[Any] = []
    for number in np.unique(classes):
        chosen = points[classes == number]
        names.append(str(number) if class_names is None else str(class_names[number]))
        dots.append(axis.scatter(chosen[:, 0], chosen[:, 1], s=8, color=colours(number % colours.N), linewidths=0))
    if thumbnails is not None:
        for point, number, picture in zip(points, classes, to_pictures(thumbnails, mean, std), strict=True):
            zoom = _THUMBNAIL_INCHES * 72 / max(picture.shape[:2])
            image = OffsetImage(picture, zoom=zoom, cmap="gray", clim=(0, 1))
            frame = {"edgecolor": colours(number % colours.N), "linewidth": 1.2}
            axis.add_artist(AnnotationBbox(image, tuple(point), pad=0.05, bboxprops=frame))
    if labels is not None and len(names) <= _LISTED_CLASSES:
        names, family = drawable(names)
        axis.legend(dots, names, prop={"size": 7, "family": family}, markerscale=2, frameon=False)
    axis.set_xlabel(f"first principal component ({explained[0]:.0%} of the variance)", fontsize=8)
    axis.set_ylabel(f"second ({explained[1]:.0%})", fontsize=8)
    axis.tick_params(labelsize=6)
    if path is not None:
        save_figure(figure, path)
    return figure
