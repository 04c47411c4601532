"""Sheets of reconstructions of a masked autoencoder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .figures import ChannelValues, draw_picture, new_sheet, save_figure, to_pictures

if TYPE_CHECKING:
    from hubmodels.modeling.mae import MAEForPreTraining


def reconstruction_sheet(
    model: MAEForPreTraining,
    pixel_values: torch.Tensor,
    path: str | os.PathLike[str] | None = None,
    mean: ChannelValues = IMAGENET_DEFAULT_MEAN,
    std: ChannelValues = IMAGENET_DEFAULT_STD,
    *,
    noise: torch.Tensor | None = None,
    bool_masked_pos: torch.Tensor | None = None,
    mask_ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Figure:
    """Draw what a masked autoencoder makes of images of which it sees only a part (MAE paper, figure 2).

    One row per image; the columns are the image, its visible patches (hidden ones in the mean colour), the
    reconstruction of every patch, and the reconstruction of the hidden patches pasted into the image. A model that
    predicts normalised patches (`norm_pix_loss`) gets the mean and deviation of the *true* patches put back, which the
    sheet says.

    Args:
        model: an `MAEForPreTraining` with trained weights.
        pixel_values: normalised images `[B, C, H, W]` of any size that the patches divide.
        path: file to write, of the format its suffix says; it is complete or absent. None: nothing is written.
        mean: mean of the normalisation, one value or one per channel.
        std: deviation of the normalisation, likewise.
        noise: decides which patches stay visible, `[B, L]`, the smallest do.
        bool_masked_pos: the mask itself, `[B, L]`, true where hidden.
        mask_ratio: share of hidden patches; that of the model's config by default.
        generator: source of the random mask.

    Returns:
        The figure.

    Raises:
        ValueError: `model` has no decoder, or the weights that it was loaded from have none; or the images or the mask
            do not fit, as in `model.reconstruct`.

    Example:

    ```python
    >>> reconstruction_sheet(model, processor(pictures, return_tensors="pt").pixel_values, "sheet.png")
    ```
    """
    check_decoder(model)
    originals = to_pictures(pixel_values, mean, std)
    pixel_values = pixel_values.to(model.device)
    output = model.reconstruct(
        pixel_values, noise=noise, bool_masked_pos=bool_masked_pos, mask_ratio=mask_ratio, generator=generator
    )
    hidden = f"{output.mask_image.mean().item():.0%} hidden"
    columns = {
        "image": originals,
        hidden: to_pictures(output.masked, mean, std),
        "reconstruction": to_pictures(output.reconstruction, mean, std),
        "pasted": to_pictures(output.pasted, mean, std),
    }
    height, width = pixel_values.shape[-2:]
    figure, axes = new_sheet(len(pixel_values), list(columns), aspect=height / width)
    for row, pictures in zip(axes, zip(*columns.values(), strict=True), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            draw_picture(axis, picture)
    if model.config.norm_pix_loss:
        figure.supxlabel("brightness and contrast of each patch are those of the true patch", fontsize=7)
    if path is not None:
        save_figure(figure, path)
    return figure


def check_decoder(model: MAEForPreTraining) -> None:
    """Refuse a model that cannot reconstruct.

    Raises:
        ValueError: `model` has no decoder (an encoder, classifier or backbone).
        ValueError: its decoder is as a new model's, because the weights it was loaded from hold an encoder only.
    """
    if not hasattr(model, "reconstruct"):
        raise ValueError(f"model must have a decoder to reconstruct (MAEForPreTraining), got {type(model).__name__}")
    # Training moves every bias away from its initial value at the first step.
    biases = [parameter for name, parameter in model.decoder.named_parameters() if name.endswith("bias")]
    if not any(bias.any() for bias in biases):
        raise ValueError(
            "the decoder of model is untrained (all its biases are zero), its pictures would be noise; load weights "
            "that include the decoder, like mae_visualize_vit_base; mae_pretrain_vit_base holds an encoder only"
        )
