"""Losses of SANM: the terms of the semi-supervised step (DivideMix), of the warm-up and of the reconstruction."""

import torch
from torch.nn import functional

from .precision_sanm import at_least_float32

RAMP_EPOCHS = 16  # of the unlabelled loss (DivideMix)
MIN_PROBABILITY = 1e-12  # below it the logarithm of a mean probability is cut off; the official code has no bound


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Makes distributions more decided: `p ** (1 / T)`, normalised.

    Args:
        probabilities (`torch.Tensor` of shape `[N, K]`): distributions.
        temperature (`float`): T; 1 changes nothing, smaller is sharper.

    Returns:
        Distributions `[N, K]`, at least float32.
    """
    probabilities = at_least_float32(probabilities)
    # Relative to the largest, whose power is 1: among many classes all powers may be too small to be represented.
    powers = (probabilities / probabilities.amax(dim=1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    `-sum_k target_k log_softmax_k`, mean over rows. Masked targets may have negative entries.

    Args:
        logits (`torch.Tensor` of shape `[N, K]`): scores.
        targets (`torch.Tensor` of shape `[N, K]`): soft labels.

    Returns:
        Scalar, at least float32.
    """
    return -(at_least_float32(logits).log_softmax(dim=1) * targets).sum(dim=1).mean()


def unlabelled_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Squared difference of probabilities and guessed labels, mean over all entries.

    Args:
        logits (`torch.Tensor` of shape `[N, K]`): scores.
        targets (`torch.Tensor` of shape `[N, K]`): guessed labels.

    Returns:
        Scalar, at least float32.
    """
    return (at_least_float32(logits).softmax(dim=1) - targets).square().mean()


def prior_penalty(logits: torch.Tensor) -> torch.Tensor:
    """
    Divergence of the mean prediction of a batch from the uniform distribution, which keeps the network from putting all
    images into one class: `sum_k 1/K log((1/K) / mean_n softmax_nk)`.

    Args:
        logits (`torch.Tensor` of shape `[N, K]`): scores of labelled and unlabelled images.

    Returns:
        Scalar, at least float32.
    """
    mean = at_least_float32(logits).softmax(dim=1).mean(dim=0).clamp(min=MIN_PROBABILITY)
    prior = 1 / logits.shape[1]
    return (prior * torch.log(prior / mean)).sum()


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """
    Mean of `sum_k p_k log p_k`: added to the warm-up loss under asymmetric noise, it keeps predictions undecided.

    Args:
        logits (`torch.Tensor` of shape `[N, K]`): scores.

    Returns:
        Scalar, at least float32.
    """
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    return (log_probabilities.exp() * log_probabilities).sum(dim=1).mean()


def ramped_weight(weight: float, epoch: float, warm_up: float, ramp: float = RAMP_EPOCHS) -> float:
    """
    Weight of the unlabelled loss at a moment of the training: 0 at the end of the warm-up, full `ramp` epochs later.

    Args:
        weight (`float`): the full weight, `lambda_u`.
        epoch (`float`): epoch and the part of it that is done.
        warm_up (`float`): epochs of warm-up.
        ramp (`float`): epochs of the ramp.

    Returns:
        `weight * clip((epoch - warm_up) / ramp, 0, 1)`.
    """
    return weight * min(max((epoch - warm_up) / ramp, 0.0), 1.0)


def reconstruction_loss(reconstructions: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """
    Squared error of both reconstructions of every image.

    Args:
        reconstructions (`torch.Tensor` of shape `[2N, C, H, W]`): of the images masked at the largest activation, then
            of those masked at the smallest one.
        images (`torch.Tensor` of shape `[N, C, H, W]`): the unmasked images.

    Returns:
        Sum of the mean squared errors of both halves (scalar, at least float32).
    """
    images = at_least_float32(images)
    return sum(functional.mse_loss(at_least_float32(half), images) for half in reconstructions.chunk(2))


__all__ = [
    "negative_entropy",
    "prior_penalty",
    "ramped_weight",
    "reconstruction_loss",
    "sharpen",
    "soft_cross_entropy",
    "unlabelled_loss",
]
