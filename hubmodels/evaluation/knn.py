"""Weighted k-nearest-neighbour classification of frozen features."""

import torch
from torch.nn import functional as F


def check_features(features: torch.Tensor, labels: torch.Tensor | None, name: str) -> None:
    """Check features and labels.

    Args:
        features: [N, D].
        labels: int64 [N].
        name: What to call them in the error.

    Raises:
        ValueError: No labels, shapes that do not agree, or features that are not finite.
    """
    if labels is None:
        raise ValueError(f"the {name} data has no labels, which this evaluation needs")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"expected {name} features [N, D] and labels [N], got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    check_finite(features, f"{name} features")


def check_finite(values: torch.Tensor, name: str) -> None:
    """Refuse infinite values and NaN, from which any classifier makes some prediction.

    Args:
        values: [N, ...].
        name: What to call them in the error.

    Raises:
        ValueError: Some are not finite.
    """
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(f"{name} must be finite, those of {int((~finite).sum())} of {len(values)} images are not")


def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    num_classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Class scores from the k nearest training images (Wu et al., "Unsupervised feature learning via non-parametric
    instance discrimination", section 3.4; the protocol of DINO).

    Features are L2-normalised; a neighbour with cosine similarity s votes for its class with weight
    exp(s / temperature).

    Args:
        train_features: [N, D].
        train_labels: int64 [N].
        test_features: [M, D].
        num_classes: Number of classes; None means the largest label plus one.
        k: Number of neighbours.
        temperature: Temperature of the weights.
        chunk_size: Test images compared at a time.

    Returns:
        float32 [M, num_classes], each row sums to 1.

    Raises:
        ValueError: `k` or `temperature` is out of range, or features are not finite.
    """
    check_features(train_features, train_labels, "training")
    check_finite(test_features, "test features")
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must be in [1, {len(train_features)}] (the number of training images), got {k}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    num_classes = num_classes or int(train_labels.max()) + 1
    bank = F.normalize(train_features.float(), dim=1).T
    scores = []
    for chunk in F.normalize(test_features.float(), dim=1).split(chunk_size):
        similarities, neighbours = (chunk @ bank).topk(k, dim=1)
        weights = torch.softmax(similarities / temperature, dim=1)
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        scores.append(votes.scatter_add_(1, train_labels[neighbours], weights))
    return torch.cat(scores)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> float:
    """Top-1 accuracy of [`knn_predict`].

    Args:
        train_features: [N, D].
        train_labels: int64 [N].
        test_features: [M, D].
        test_labels: int64 [M].
        k: Number of neighbours.
        temperature: Temperature of the weights.
        chunk_size: Test images compared at a time.

    Returns:
        Accuracy in [0, 1].
    """
    check_features(test_features, test_labels, "test")
    scores = knn_predict(train_features, train_labels, test_features, None, k, temperature, chunk_size)
    return (scores.argmax(dim=1) == test_labels).float().mean().item()
