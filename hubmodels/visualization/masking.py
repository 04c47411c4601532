"""Where a SANM network looks, what the masks hide, and what the decoder makes of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hubmodels.evaluation_mode import evaluation_mode

from .figures import ChannelValues, draw_overlay, draw_picture, new_sheet, save_figure, to_pictures

if TYPE_CHECKING:
    from hubmodels.modeling.sanm import SANMEnsembleForImageClassification, SANMForImageClassification

TITLES = ("image", "activation", "most activated hidden", "least activated hidden", "reconstruction")


def masking_sheet(
    model: SANMForImageClassification | SANMEnsembleForImageClassification,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    clean_prob: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Figure:
    """Draw activation maps, both masked views and the reconstruction of the first of them, one row per image.

    Args:
        model: a SANM classifier; of an ensemble the first network is drawn.
        pixel_values: normalised images `[B, C, H, W]`.
        path: file to write, complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        clean_prob: probability that the label of each image is right `[B]`; the lower, the larger the masks. Default 1.
        generator: draws sizes and colours of the masks; a fixed one by default.

    Returns:
        The figure.
    """
    from hubmodels.modeling.sanm import AdversarialNoisyMasking

    network = getattr(model, "net1", model)
    masking = AdversarialNoisyMasking.from_config(network.config)
    trust = torch.ones(len(pixel_values)) if clean_prob is None else clean_prob.float().cpu()
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with evaluation_mode(network), torch.no_grad():
        outputs = network(pixel_values)
        targets = outputs.logits.softmax(dim=1)
        views = masking(
            pixel_values, outputs.last_hidden_state, trust.to(pixel_values.device), targets, generator=generator
        )
        restored = network(views.max_views, output_reconstruction=True).reconstruction
    images, most, least = (to_pictures(t, mean, std) for t in (pixel_values, views.max_views, views.min_views))
    fits = restored.shape == pixel_values.shape
    shown = TITLES if fits else TITLES[:-1]
    figure, axes = new_sheet(len(images), shown, aspect=images.shape[1] / images.shape[2])
    heats = views.activation.float().cpu().numpy() / 255
    for row, panels in enumerate(axes):
        draw_picture(panels[0], images[row])
        draw_overlay(panels[1], images[row], heats[row], Normalize(0, 1))
        draw_picture(panels[2], most[row])
        draw_picture(panels[3], least[row])
        if fits:
            draw_picture(panels[4], to_pictures(restored[row : row + 1], mean, std)[0])
    if path is not None:
        save_figure(figure, path)
    return figure
