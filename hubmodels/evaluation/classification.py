"""Accuracy of classifiers: overall and per class, with confidence intervals."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from scipy.stats import binomtest
from torch import nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from hubmodels.data.collators import BatchTransform
from hubmodels.data.images import ImageDataset
from hubmodels.evaluation.features import batches
from hubmodels.evaluation_mode import evaluation_mode
from hubmodels.files import printable, write_text


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson, 1927).

    Args:
        correct: Number of successes.
        total: Number of trials; 0 gives the whole range (0, 1).
        confidence: Coverage, in (0, 1).

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: `correct` is not in [0, total], or `confidence` is not in (0, 1).
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must be in [0, total], got {correct} of {total}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ClassResult:
    """Result of one class.

    Attributes:
        name: Name of the class.
        images: Images of the class.
        correct: Those predicted as it.
        predicted: Images predicted as it, right or wrong.
        accuracy: correct / images; None without images.
        interval: 95 % Wilson interval of the accuracy.
        precision: correct / predicted; None if it was never predicted.
    """

    name: str
    images: int
    correct: int
    predicted: int
    accuracy: float | None
    interval: tuple[float, float]
    precision: float | None


@dataclass(frozen=True)
class ClassificationReport:
    """Accuracies of a classifier, all in [0, 1].

    Attributes:
        images: Number of images.
        accuracy: Top-1 accuracy.
        interval: Its Wilson interval.
        confidence: Coverage of the intervals.
        top5_accuracy: Top-5 accuracy; None for five classes or fewer.
        balanced_accuracy: Mean accuracy of the classes that have images.
        classes: One result per class.
        confusion: Images of class i predicted as class j.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    confidence: float
    top5_accuracy: float | None
    balanced_accuracy: float
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, in one step.

        Args:
            path: The file; replaced if there is one.
        """
        write_json(path, self.to_dict())

    def table(self) -> Table:
        """The per-class table, to be printed with rich."""
        low, high = self.interval
        percent = f"{100 * self.confidence:g} %"
        table = Table(title=f"accuracy {self.accuracy:.2%} ({percent} interval {low:.2%} to {high:.2%})")
        table.add_column("class")
        for name in ("images", "correct", "accuracy", f"{percent} interval", "precision"):
            table.add_column(name, justify="right")
        for result in self.classes:
            table.add_row(
                escape(printable(result.name)),
                str(result.images),
                str(result.correct),
                _percent(result.accuracy),
                f"{result.interval[0]:.1%} to {result.interval[1]:.1%}",
                _percent(result.precision),
            )
        return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file beside its place and move it there.

    Args:
        path: The file; replaced if there is one.
        content: Plain values.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def check_classes(class_names: Sequence[str]) -> None:
    """Refuse data without classes that could be told apart.

    Args:
        class_names: Name of each class.

    Raises:
        ValueError: A single class.
    """
    if len(class_names) < 2:
        raise ValueError(f"an evaluation needs at least two classes, got {', '.join(map(str, class_names)) or 'none'}")


def classification_report(
    labels: torch.Tensor, scores: torch.Tensor, class_names: Sequence[str], confidence: float = 0.95
) -> ClassificationReport:
    """Compare scores with labels.

    Args:
        labels: int64 [N].
        scores: Logits or probabilities, float [N, num_classes].
        class_names: Name of each class.
        confidence: Coverage of the intervals.

    Returns:
        The report.

    Raises:
        ValueError: No images, shapes that do not agree, labels out of range, scores that are not finite, or a single
            class.
    """
    num_classes = len(class_names)
    check_classes(class_names)
    if len(labels) == 0 or scores.shape != (len(labels), num_classes):
        raise ValueError(
            f"expected labels [N > 0] and scores [N, {num_classes}], got {tuple(labels.shape)}, {tuple(scores.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}")
    if not torch.isfinite(scores).all():
        raise ValueError(f"scores must be finite, {int((~torch.isfinite(scores)).any(dim=1).sum())} images have others")
    confusion = multiclass_confusion_matrix(scores.argmax(dim=1), labels, num_classes)
    correct, images, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    classes = tuple(
        ClassResult(
            name=str(name),
            images=total,
            correct=right,
            predicted=guesses,
            accuracy=right / total if total else None,
            interval=wilson_interval(right, total, confidence),
            precision=right / guesses if guesses else None,
        )
        for name, right, total, guesses in zip(
            class_names, correct.tolist(), images.tolist(), predicted.tolist(), strict=True
        )
    )
    present = [result.accuracy for result in classes if result.accuracy is not None]
    in_top5 = (scores.topk(5, dim=1).indices == labels[:, None]).any(dim=1) if num_classes > 5 else None
    return ClassificationReport(
        images=len(labels),
        accuracy=int(correct.sum()) / len(labels),
        interval=wilson_interval(int(correct.sum()), len(labels), confidence),
        confidence=confidence,
        top5_accuracy=None if in_top5 is None else in_top5.float().mean().item(),
        balanced_accuracy=sum(present) / len(present),
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def evaluate_classifier(
    model: nn.Module,
    dataset: ImageDataset,
    transform: BatchTransform,
    class_names: Sequence[str] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = True,
) -> ClassificationReport:
    """Accuracy of an image classifier on a labelled data set, in evaluation mode and without gradients.

    Args:
        model: A transformers image classifier (its output has `logits`), or a module that returns logits.
        dataset: Labelled items as in [`hubmodels.data.ImageDataset`]; labels number the model's classes.
        transform: An evaluation transform.
        class_names: Name of each class of the model; None takes the data set's.
        batch_size: Images per batch.
        num_workers: Worker processes that load the images.
        progress: Show a progress bar.

    Returns:
        The report.

    Raises:
        ValueError: No labels, or labels outside of the model's classes.
    """
    names = class_names if class_names is not None else dataset.class_names
    if names:
        check_classes(names)
    labels, scores = [], []
    with evaluation_mode(model), torch.inference_mode():
        for pixel_values, batch_labels in batches(
            model, dataset, transform, batch_size, num_workers, "evaluation" if progress else None
        ):
            if batch_labels is None:
                raise ValueError("the data has no labels, which this evaluation needs")
            outputs = model(pixel_values)
            scores.append(getattr(outputs, "logits", outputs).float().cpu())
            labels.append(batch_labels)
    return classification_report(torch.cat(labels), torch.cat(scores), names)
