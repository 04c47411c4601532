"""The published linear probe of MAE, on cached features of a frozen encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hubmodels.data.randomness import random_permutation
from hubmodels.evaluation.knn import check_features
from hubmodels.optimization.lars import LARS
from hubmodels.optimization.schedules import warmup_cosine_lr

# LARS moves the weights by about lr * trust / (1 - momentum) of their norm per step. The published coefficient 0.001,
# made for thousands of steps of 16,384 images, leaves the head near its initial weights after a few hundred steps of
# small data; with cached features a run takes seconds, so it is searched. (A larger learning rate instead would also
# act on the bias, which LARS does not scale.)
TRUST_COEFFICIENTS = (0.001, 0.01, 0.1, 0.3, 1.0)
MIN_STEPS_PER_EPOCH = 32
MIN_BATCH_SIZE = 8
HEAD_INIT_STD = 0.01


@dataclass(frozen=True)
class LinearProbeResult:
    """Outcome of a linear probe.

    Attributes:
        accuracy: Top-1 accuracy on the test features, in [0, 1].
        head: The trained head: BatchNorm1d without affine parameters (if asked for) and Linear.
        trust_coefficient: The trust coefficient of LARS that was used.
        scores: Logits of the test features, float32 [M, num_classes].
    """

    accuracy: float
    head: nn.Sequential
    trust_coefficient: float
    scores: torch.Tensor


def make_head(num_features: int, num_classes: int, batch_norm: bool, seed: int = 0) -> nn.Sequential:
    """The head of the published probe.

    Args:
        num_features: Width D of the features.
        num_classes: Number of classes.
        batch_norm: Whether BatchNorm1d(D, affine=False, eps=1e-6) comes first.
        seed: Seed of the weights, truncated normal with standard deviation 0.01.

    Returns:
        Sequential([BatchNorm1d,] Linear).
    """
    linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)
    generator = torch.Generator().manual_seed(seed)
    nn.init.trunc_normal_(linear.weight, std=HEAD_INIT_STD, generator=generator)
    nn.init.zeros_(linear.bias)
    norm = [nn.BatchNorm1d(num_features, affine=False, eps=1e-6)] if batch_norm else []
    return nn.Sequential(*norm, linear)


def train_head(
    head: nn.Sequential,
    features: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    epochs: int,
    warmup_epochs: float,
    batch_size: int,
    trust_coefficient: float = 0.001,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Train a head with LARS and the warm-up cosine schedule (MAE, appendix A.1, table 10).

    Args:
        head: The head, trained in place.
        features: float32 [N, D].
        labels: int64 [N].
        lr: Peak learning rate.
        epochs: Passes over the features.
        warmup_epochs: Epochs of linear warm-up.
        batch_size: Features per step; the last, smaller batch of an epoch is left out.
        trust_coefficient: Trust coefficient of LARS.
        weight_decay: Weight decay of LARS.
        seed: Seed of the order.

    Returns:
        The head, in evaluation mode.
    """
    batch_size = min(batch_size, len(features))
    optimizer = LARS(
        head.parameters(),
        lr=lr,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        momentum_style="plain",
    )
    steps = len(features) // batch_size
    head.train()
    for epoch in range(epochs):
        order = torch.from_numpy(random_permutation(len(features), seed + epoch))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = warmup_cosine_lr(epoch + step / steps, lr, 0.0, warmup_epochs, epochs)
            chosen = order[step * batch_size : (step + 1) * batch_size]
            optimizer.zero_grad()
            F.cross_entropy(head(features[chosen]), labels[chosen]).backward()
            optimizer.step()
    return head.eval()


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    num_classes: int | None = None,
    batch_norm: bool = True,
    base_lr: float = 0.1,
    trust_coefficient: float | Sequence[float] = TRUST_COEFFICIENTS,
    epochs: int = 90,
    warmup_epochs: float | None = None,
    batch_size: int = 256,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> LinearProbeResult:
    """Train a linear classifier on frozen features and test it.

    Several trust coefficients are compared on a fifth of the training features that is held out; the best one is then
    used on all of them. The published setting for ImageNet is `trust_coefficient=0.001, batch_size=16384`.

    Args:
        train_features: Floats [N, D].
        train_labels: int64 [N].
        test_features: Floats [M, D].
        test_labels: int64 [M].
        num_classes: Number of classes; None means the largest label plus one.
        batch_norm: Normalise the features by BatchNorm without affine parameters first, as published.
        base_lr: Learning rate per 256 images of a batch.
        trust_coefficient: Trust coefficient of LARS, or several to choose from.
        epochs: Passes over the features.
        warmup_epochs: Epochs of linear warm-up; None means a ninth of `epochs` (10 of 90).
        batch_size: Features per step. Small data takes smaller steps at the same learning rate, 32 of them per epoch
            (but at least 8 features each).
        weight_decay: Weight decay of LARS.
        seed: Seed of the head's weights, the order and the held-out part.

    Returns:
        The result.

    Raises:
        ValueError: Features without labels, of different widths or not finite, too few of them, or settings out of
            range.
    """
    check_features(train_features, train_labels, "training")
    check_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(f"training features have width {train_features.shape[1]}, test {test_features.shape[1]}")
    if epochs < 1 or batch_size < 2:
        raise ValueError(f"epochs must be >= 1 and batch_size >= 2, got {epochs} and {batch_size}")
    searched = not isinstance(trust_coefficient, int | float)
    if len(train_features) < 2 + searched:  # one is held out, and BatchNorm needs two
        raise ValueError(f"a linear probe needs at least {2 + searched} training images, got {len(train_features)}")
    train_features, test_features = train_features.float(), test_features.float()
    num_classes = num_classes or int(torch.cat([train_labels, test_labels]).max()) + 1
    warmup_epochs = epochs / 9 if warmup_epochs is None else warmup_epochs

    def trained(features: torch.Tensor, labels: torch.Tensor, trust: float) -> nn.Sequential:
        head = make_head(features.shape[1], num_classes, batch_norm, seed)
        step_size = min(batch_size, max(MIN_BATCH_SIZE, len(features) // MIN_STEPS_PER_EPOCH))
        lr = base_lr * batch_size / 256
        return train_head(head, features, labels, lr, epochs, warmup_epochs, step_size, trust, weight_decay, seed)

    if isinstance(trust_coefficient, int | float):
        best = float(trust_coefficient)
    else:
        order = torch.from_numpy(random_permutation(len(train_labels), seed))
        held_out, kept = order.tensor_split([max(1, len(order) // 5)])
        heads = {trust: trained(train_features[kept], train_labels[kept], trust) for trust in trust_coefficient}
        best = max(
            heads, key=lambda trust: _accuracy(heads[trust], train_features[held_out], train_labels[held_out])[0]
        )
    head = trained(train_features, train_labels, best)
    accuracy, scores = _accuracy(head, test_features, test_labels)
    return LinearProbeResult(accuracy, head, best, scores)


@torch.no_grad()
def _accuracy(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Top-1 accuracy in [0, 1], and the logits."""
    scores = head(features)
    return (scores.argmax(dim=1) == labels).float().mean().item(), scores
