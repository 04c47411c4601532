"""One step of co-training with SANM: guessed labels, masked views, mixing, and the loss of one network (DivideMix)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hubmodels.modeling.sanm import (
    AdversarialNoisyMasking,
    MaskedViews,
    SANMForImageClassification,
    negative_entropy,
    prior_penalty,
    ramped_weight,
    reconstruction_loss,
    sharpen,
    soft_cross_entropy,
    unlabelled_loss,
)
from hubmodels.modeling.sanm.class_labels_sanm import IGNORED, class_targets
from hubmodels.modeling.sanm.decoder_sanm import check_decoded_size
from hubmodels.modeling.sanm.precision_sanm import at_least_float32

MIXINGS = ("all", "weak")
# Views that are mixed, beside both masked ones; the last pair is the one that labels are guessed from.
MIXED_VIEWS = {"all": ("weak1", "weak2", "strong1", "strong2"), "weak": ("guess1", "guess2")}
VIEWS = ("weak1", "weak2", "strong1", "strong2", "guess1", "guess2")


@dataclass(frozen=True)
class CoTrainingSettings:
    """How the networks learn from each other.

    Args:
        warm_up_epochs: Epochs of plain training on the given labels first.
        lambda_u: Full weight of the unlabelled loss.
        alpha: Beta parameter of the mixing.
        mixing: "all": six views of every image (CIFAR script), "weak": four, and only the labelled rows are learned
            from (Clothing1M script).
        negative_entropy: Add the negative entropy to the warm-up loss (asymmetric noise).
        warm_up_clip: Largest norm of the gradient in the warm-up; 0 does not clip.
        p_threshold: Probability above which a label counts as right.
        min_labelled: Smallest size of either set; where the threshold leaves less, the best (or worst) images fill it
            up. 0 raises an error instead.
        history: Epochs whose losses are averaged for the label quality.
        co_guess: Guess labels of unlabelled images with both networks.
        co_refine: Refine the labels of labelled images by the network's own prediction.
        guess_in_train_mode: Guess in training mode, as the official code does: the statistics of the normalisation
            move.

    Raises:
        ValueError: If a value is out of range.
    """

    warm_up_epochs: int = 10
    lambda_u: float = 25.0
    alpha: float = 4.0
    mixing: str = "all"
    negative_entropy: bool = False
    warm_up_clip: float = 1.0
    p_threshold: float = 0.5
    min_labelled: int = 0
    history: int = 1
    co_guess: bool = True
    co_refine: bool = True
    guess_in_train_mode: bool = True

    def __post_init__(self):
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {MIXINGS}, got {self.mixing!r}")
        for name in ("warm_up_epochs", "lambda_u", "warm_up_clip", "min_labelled"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be greater than 0, got {self.alpha}")
        if not 0 < self.p_threshold < 1:
            raise ValueError(f"p_threshold must be in (0, 1), got {self.p_threshold}")
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")


@dataclass(frozen=True)
class StepRandomness:
    """The random numbers of a step.

    Attributes:
        draws: Those of the masks of all labelled, then all unlabelled images, see `AdversarialNoisyMasking`.
        beta: The raw mixing weight; the larger of it and 1 - it is used.
        permutation: Partner of every row of the mixed batch; None draws one for its length from `seed`.
        seed: Seed of that permutation.
    """

    draws: torch.Tensor
    beta: float
    permutation: torch.Tensor | None = None
    seed: int = 0

    @classmethod
    def draw(
        cls, key: list[int], alpha: float, masking: AdversarialNoisyMasking, images: int, channels: int
    ) -> "StepRandomness":
        """Random numbers that depend on a key alone.

        Args:
            key: Numbers that name the step.
            alpha: Beta parameter.
            masking: The masking.
            images: Labelled and unlabelled images of the step.
            channels: Their channels.

        Returns:
            The numbers.
        """
        generator = np.random.default_rng(key)
        beta = float(generator.beta(alpha, alpha))
        seeds = generator.integers(2**62, size=2).tolist()
        draws = masking.draw(images, channels, generator=torch.Generator().manual_seed(seeds[0]))
        return cls(draws, beta, seed=seeds[1])


@dataclass
class CoTrainingOutput:
    """Loss of a step, its parts, and what led to them.

    Attributes:
        loss: The loss (scalar).
        labelled_loss, unlabelled_loss, lambda_u, penalty, reconstruction_loss: Its parts.
        targets: Guessed labels of labelled, then unlabelled images.
        views: The masked views, or None.
        feature_map: Last maps of the images that were masked.
        logits_x, logits_u, mixed_targets_x, mixed_targets_u: Scores and labels of the mixed rows.
    """

    loss: torch.Tensor
    labelled_loss: torch.Tensor
    unlabelled_loss: torch.Tensor
    lambda_u: float
    penalty: torch.Tensor
    reconstruction_loss: torch.Tensor
    targets: torch.Tensor
    views: MaskedViews | None
    feature_map: torch.Tensor
    logits_x: torch.Tensor
    logits_u: torch.Tensor
    mixed_targets_x: torch.Tensor
    mixed_targets_u: torch.Tensor


Batch = Mapping[str, Any]


def warm_up_loss(
    network: SANMForImageClassification, pixel_values: torch.Tensor, labels: torch.Tensor, settings: CoTrainingSettings
) -> torch.Tensor:
    """Cross entropy with the given labels, under asymmetric noise with the negative entropy of the predictions.

    Args:
        network: The network, in training mode.
        pixel_values: [B, C, H, W].
        labels: [B], classes, or [B, K], distributions.
        settings: The settings.

    Returns:
        Scalar.

    Raises:
        ValueError: Labels of another shape or type, or out of range.
    """
    scores = network.encode(pixel_values).logits
    precise = at_least_float32(scores)
    loss = torch.nn.functional.cross_entropy(precise, class_targets(labels, precise))
    return loss + negative_entropy(scores) if settings.negative_entropy else loss


def co_training_loss(
    network: SANMForImageClassification,
    peer: SANMForImageClassification,
    labelled: Batch,
    unlabelled: Batch,
    masking: AdversarialNoisyMasking,
    settings: CoTrainingSettings,
    moment: float,
    randomness: StepRandomness,
) -> CoTrainingOutput:
    """Loss of one network on one labelled and one unlabelled batch (SANM, sections 3 and 4; DivideMix, algorithm 1).

    Args:
        network: The network that learns, in training mode. `config.recon_weight` and `config.temperature` are used.
        peer: The other network, in evaluation mode.
        labelled: The `VIEWS` (for mixing "weak" the last two), each [B, C, H, W]; "labels" [B], classes, or
            [B, K], distributions; "clean_prob" [B].
        unlabelled: The same without labels.
        masking: The masking; with masks "none" and unmasked labels no masked views are learned from.
        settings: The settings.
        moment: Epoch and the part of it that is done, for the ramp of the unlabelled loss.
        randomness: The random numbers.

    Returns:
        Loss and parts; nothing has been differentiated yet.

    Raises:
        ValueError: Labels of another shape or type, or out of range.
    """
    config = network.config
    if not settings.guess_in_train_mode:
        network.eval()
    targets_u, maps_u = _guess(network, peer, unlabelled, config.temperature, settings.co_guess)
    targets_x, maps_x = _refine(network, labelled, config.temperature, settings.co_refine)
    network.train()
    images = torch.cat([labelled["guess1"], unlabelled["guess1"]])
    maps, targets = torch.cat([maps_x, maps_u]), torch.cat([targets_x, targets_u])
    views = None
    if masking.mask != "none" or masking.mask_labels:
        trust = torch.cat([labelled["clean_prob"], unlabelled["clean_prob"]])
        views = masking(images, maps, trust, targets, draws=randomness.draws)
    error = _reconstruction(network, images, views)
    inputs, soft, count = _blocks(labelled, unlabelled, targets_x, targets_u, views, settings.mixing)
    mixed, mixed_targets = _mix(inputs, soft, randomness)
    if settings.mixing == "weak":
        mixed = mixed[:count]
    scores = network.encode(mixed).logits
    logits_x, logits_u = scores[:count], scores[count:]
    targets_of_x, targets_of_u = mixed_targets[:count], mixed_targets[count:]
    loss_x = soft_cross_entropy(logits_x, targets_of_x)
    loss_u = scores.new_zeros(()) if settings.mixing == "weak" else unlabelled_loss(logits_u, targets_of_u)
    weight = ramped_weight(settings.lambda_u, moment, settings.warm_up_epochs)
    penalty = prior_penalty(scores)
    loss = loss_x + weight * loss_u + penalty + config.recon_weight * error
    return CoTrainingOutput(
        loss,
        loss_x,
        loss_u,
        weight,
        penalty,
        error,
        targets,
        views,
        maps,
        logits_x,
        logits_u,
        targets_of_x,
        targets_of_u,
    )


@torch.no_grad()
def _guess(network, peer, batch, temperature, co_guess):
    """Labels of unlabelled images: the mean prediction of two views, and of both networks."""
    first, second = network.encode(batch["guess1"]), network.encode(batch["guess2"])
    scores = [first.logits, second.logits]
    if co_guess:
        # In evaluation mode images do not see each other, so both views go in one pass.
        scores += peer.encode(torch.cat([batch["guess1"], batch["guess2"]])).logits.chunk(2)
    mean = sum(at_least_float32(score).softmax(dim=1) for score in scores) / len(scores)
    return sharpen(mean, temperature), first.last_hidden_state


@torch.no_grad()
def _refine(network, batch, temperature, co_refine):
    """Labels of labelled images: given label and prediction, weighed by the probability that the label is right."""
    first, second = network.encode(batch["guess1"]), network.encode(batch["guess2"])
    mean = sum(at_least_float32(output.logits).softmax(dim=1) for output in (first, second)) / 2
    labels = class_targets(batch["labels"], mean)
    if labels.device.type == "cpu" and (labels == IGNORED).any():
        raise ValueError(f"labels of labelled images must not be {IGNORED}")
    given = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, mean.shape[1]).to(mean)
    if not co_refine:
        return given, first.last_hidden_state
    trust = batch["clean_prob"].to(mean)[:, None]
    return sharpen(trust * given + (1 - trust) * mean, temperature), first.last_hidden_state


def _reconstruction(network, images, views):
    """Error of the decoder on both masked views, which may not be compared with pictures of another size."""
    if not network.config.recon_weight:
        return images.new_zeros(())
    masked = (images, images) if views is None else (views.max_views, views.min_views)
    decoded = network.encode(torch.cat(masked), output_reconstruction=True).reconstruction
    check_decoded_size(decoded[: len(images)], images)
    return reconstruction_loss(decoded, images)


def _blocks(labelled, unlabelled, targets_x, targets_u, views, mixing):
    """Views to be mixed with their labels, labelled ones first, and how many rows those are."""
    inputs, targets, count = [], [], 0
    size = len(targets_x)
    for batch, guessed, part in ((labelled, targets_x, slice(0, size)), (unlabelled, targets_u, slice(size, None))):
        inputs += [batch[name] for name in MIXED_VIEWS[mixing]]
        targets += [guessed] * len(MIXED_VIEWS[mixing])
        if views is not None:
            inputs += [views.max_views[part], views.min_views[part]]
            targets += [views.targets[part], views.min_targets[part]]
        count = count or sum(len(block) for block in inputs)
    return torch.cat(inputs), torch.cat(targets), count


def _mix(inputs, targets, randomness):
    """MixUp of every row with a partner, itself weighing more."""
    permutation = randomness.permutation
    if permutation is None:
        permutation = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(randomness.seed))
    permutation = permutation.to(inputs.device, non_blocking=True)
    weight = max(randomness.beta, 1 - randomness.beta)
    mixed = weight * inputs + (1 - weight) * inputs[permutation]
    return mixed, weight * targets + (1 - weight) * targets[permutation]
