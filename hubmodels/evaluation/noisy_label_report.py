"""Which labels of a data set are most probably wrong, with pictures: a list to check by eye."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn
from tqdm.auto import tqdm

from hubmodels.data.class_names import match_classes
from hubmodels.data.collators import BatchTransform
from hubmodels.data.images import ImageDataset
from hubmodels.data.loading import load_image_dataset
from hubmodels.evaluation.evaluate import classifier_and_transform, model_classes
from hubmodels.evaluation.label_quality import LabelQualityEstimator
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.files import printable, write_text

SHOWN_IMAGES = 100
WRONG_BELOW = 0.5  # probability of the label being right below which it counts as probably wrong


@dataclass(frozen=True)
class SuspiciousLabel:
    """One image of the report.

    Attributes:
        rank: Place in the list, from 1: the most suspicious.
        index: Position of the image in its split.
        name: File of the image, or its number in the data set.
        given: Name of the class that the data set gives.
        suggested: Name of the most probable other class.
        clean_probability: Probability that the given label is right.
        given_probability: What the model gives to the given class.
        suggested_probability: What it gives to the suggested one.
    """

    rank: int
    index: int
    name: str
    given: str
    suggested: str
    clean_probability: float
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True)
class DetectionQuality:
    """How well a report finds labels that are known to be wrong.

    Attributes:
        average_precision: Area under the precision-recall curve.
        auc: Area under the ROC curve.
        precision, recall: By length of the list [N].
        wrong: Number of wrong labels.
    """

    average_precision: float
    auc: float
    precision: np.ndarray
    recall: np.ndarray
    wrong: int


class NoisyLabelReport:
    """The labels of a data set, most suspicious first.

    `clean_prob` is in the order of the images; as a column of a `datasets` table, SANM's light mode learns by it.

    Args:
        dataset: Labelled images.
        clean_prob: Probability that each label is right [N].
        probabilities: Prediction of a model for each image [N, K].

    Raises:
        ValueError: Unlabelled data, or shapes that do not fit.

    Example:

        >>> report = NoisyLabelReport.from_model("run/", "labelled/")  # doctest: +SKIP
        >>> report.save("report/")  # doctest: +SKIP
        >>> table = table.add_column("clean_prob", report.clean_prob)  # doctest: +SKIP
    """

    def __init__(self, dataset: ImageDataset, clean_prob: np.ndarray, probabilities: np.ndarray | torch.Tensor):
        if not dataset.class_names:
            raise ValueError("the data set has no labels to check")
        self.dataset = dataset
        self.clean_prob = np.asarray(clean_prob, dtype=np.float64)
        self.probabilities = np.asarray(probabilities, dtype=np.float64)
        self.labels = dataset.labels.numpy()
        self.class_names = [printable(name) for name in dataset.class_names]
        expected = (len(dataset), dataset.num_classes)
        if self.clean_prob.shape != expected[:1] or self.probabilities.shape != expected:
            raise ValueError(
                f"expected clean_prob of shape {expected[:1]} and probabilities of shape {expected}, got "
                f"{self.clean_prob.shape} and {self.probabilities.shape}"
            )
        for name, values in (("clean_prob", self.clean_prob), ("probabilities", self.probabilities)):
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name} must be in [0, 1], got values from {values.min()} to {values.max()}")
        rows = np.arange(len(dataset))
        self.given_probability = self.probabilities[rows, self.labels]
        others = self.probabilities.copy()
        others[rows, self.labels] = -1.0
        self.suggested = others.argmax(axis=1)
        # Where the mixture is sure of many labels, the model's own probability of the label decides.
        self.order = np.lexsort((self.given_probability, self.clean_prob))

    @classmethod
    def from_model(
        cls,
        model: str | Path | nn.Module,
        data: Any,
        split: str | None = None,
        label_column: str | None = None,
        transform: BatchTransform | None = None,
        device: str | torch.device | None = None,
        progress: bool = True,
        trust_remote_code: bool = False,
    ) -> "NoisyLabelReport":
        """Let a trained classifier judge the labels of a data set.

        Best is a model that was trained with SANM on these data: it does not learn wrong labels by heart. A classifier
        that was trained on them plainly agrees with many of its wrong labels.

        Args:
            model: Folder, packaged checkpoint or Hub id of a classifier (an ensemble or any other), or the model itself
                with a `transform`.
            data: Labelled data, see [`hubmodels.data.load_image_dataset`], or an `ImageDataset`.
            split: Split to judge; None takes "train", or the only one.
            label_column: Column of the labels, where its name does not tell.
            transform: Transform of the evaluation; None takes the model's own image processor.
            device: Where the model runs; None means the GPU if there is one.
            progress: Show a progress bar.
            trust_remote_code: Allow a repository's own code to run.

        Returns:
            The report.

        Raises:
            ValueError: Unlabelled data, a model without a trained classifier, or classes that differ.
        """
        if isinstance(model, str | Path):
            model, own_transform = classifier_and_transform(model, trust_remote_code)
            transform = transform or own_transform
        elif transform is None:
            raise ValueError("a model that is given as an object needs its transform")
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dataset = data if isinstance(data, ImageDataset) else _loaded(data, split, label_column)
        dataset, _ = match_classes(dataset, model_classes(model))
        parts = [getattr(model, name, None) for name in ("net1", "net2")]
        networks: list[nn.Module] = [part for part in parts if part is not None] or [model]
        bar = (lambda batches: tqdm(batches, desc="judging labels")) if progress else None
        predictions = predict_samples(networks, dataset, transform, bar)
        clean_prob = np.mean([LabelQualityEstimator()(losses).clean_prob for losses in predictions.losses], axis=0)
        return cls(dataset, clean_prob, predictions.probabilities)

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} labels, {self.num_wrong} probably wrong)"

    @property
    def num_wrong(self) -> int:
        """How many labels are more probably wrong than right."""
        return int((self.clean_prob < WRONG_BELOW).sum())

    @property
    def estimated_noise(self) -> float:
        """Mean probability that a label is wrong, in [0, 1]."""
        return float(1 - self.clean_prob.mean())

    def top(self, count: int = SHOWN_IMAGES) -> list[SuspiciousLabel]:
        """The most suspicious labels.

        Args:
            count: How many, at most.

        Returns:
            The entries, most suspicious first.

        Raises:
            ValueError: A negative count.
        """
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        return [self._entry(rank, int(position)) for rank, position in enumerate(self.order[:count], start=1)]

    def _entry(self, rank: int, position: int) -> SuspiciousLabel:
        names, indices = self.class_names, self.dataset.indices
        return SuspiciousLabel(
            rank=rank,
            index=int(indices[position]),
            name=printable(self.dataset.name(position)),
            given=names[self.labels[position]],
            suggested=names[self.suggested[position]],
            clean_probability=round(float(self.clean_prob[position]), 6),
            given_probability=round(float(self.given_probability[position]), 6),
            suggested_probability=round(float(self.probabilities[position, self.suggested[position]]), 6),
        )

    def picture(self, rank: int) -> np.ndarray:
        """The image of an entry.

        Args:
            rank: Place in the list, from 1.

        Returns:
            uint8 [H, W, 3], or [H, W] of a grey image.

        Raises:
            ValueError: A place that is not in the list.
        """
        if not 1 <= rank <= len(self):
            raise ValueError(f"rank must be in 1..{len(self)}, got {rank}")
        image = self.dataset[int(self.order[rank - 1])]["image"].permute(1, 2, 0).numpy()
        return image[:, :, 0] if image.shape[2] == 1 else image

    def confusions(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Pairs of given and suggested classes among the probably wrong labels, most frequent first.

        Args:
            count: How many pairs, at most.

        Returns:
            (given, suggested, number).
        """
        wrong = self.clean_prob < WRONG_BELOW
        table = np.zeros((self.dataset.num_classes,) * 2, dtype=np.int64)
        np.add.at(table, (self.labels[wrong], self.suggested[wrong]), 1)
        names = self.class_names
        pairs = [(names[i], names[j], int(table[i, j])) for i, j in zip(*np.nonzero(table), strict=True)]
        return sorted(pairs, key=lambda pair: -pair[2])[:count]

    def detection_quality(self, clean_labels: np.ndarray | torch.Tensor | None = None) -> DetectionQuality:
        """Compare the list with true labels.

        Args:
            clean_labels: True labels [N]; by default those of the data set, where it knows them.

        Returns:
            Precision and recall by length of the list, and their summaries.

        Raises:
            ValueError: No true labels, those of other images, or none or all of the given ones are wrong.
        """
        clean = self.dataset.clean_labels if clean_labels is None else clean_labels
        if clean is None:
            raise ValueError("clean_labels are needed: the data set does not know its true labels")
        clean = np.asarray(clean)
        if clean.shape != self.labels.shape or clean.dtype.kind not in "iu":
            raise ValueError(
                f"clean_labels must be {len(self.labels)} class numbers, got {clean.dtype} of shape {list(clean.shape)}"
            )
        if clean.min(initial=0) < 0:
            raise ValueError(f"clean_labels must be class numbers from 0, {int((clean < 0).sum())} are negative")
        wrong = clean != self.labels
        if not 0 < wrong.sum() < len(wrong):
            raise ValueError(f"{int(wrong.sum())} of {len(wrong)} labels are wrong: there is nothing to tell apart")
        suspicion = np.empty(len(wrong))
        suspicion[self.order] = np.arange(len(wrong), 0, -1)
        found = wrong[self.order].cumsum()
        return DetectionQuality(
            average_precision=float(average_precision_score(wrong, suspicion)),
            auc=float(roc_auc_score(wrong, suspicion)),
            precision=found / np.arange(1, len(wrong) + 1),
            recall=found / wrong.sum(),
            wrong=int(wrong.sum()),
        )

    # Outputs

    def table(self, count: int = 20) -> Table:
        """The top of the list for a terminal.

        Args:
            count: Rows, at most.

        Returns:
            A rich table.
        """
        title = (
            f"{self.num_wrong:,} of {len(self):,} labels are probably wrong "
            f"(estimated share {self.estimated_noise:.1%}); the most suspicious:"
        )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", justify="right")
        for column in ("image", "given", "suggested"):
            table.add_column(column, overflow="fold")
        table.add_column("label is right", justify="right")
        for entry in self.top(count):
            cells = (str(entry.rank), entry.name, entry.given, entry.suggested, f"{entry.clean_probability:.1%}")
            table.add_row(*(escape(cell) for cell in cells))
        return table

    def write_csv(self, path: str | Path) -> Path:
        """Write all labels, most suspicious first: rank, index, name, classes and probabilities.

        Args:
            path: The file; complete or absent.

        Returns:
            The path.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, list(SuspiciousLabel.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in self.top(len(self)))
        return write_text(path, text.getvalue())

    def write_json(self, path: str | Path, count: int | None = None) -> Path:
        """Write summary and entries as JSON.

        Args:
            path: The file; complete or absent.
            count: Entries; None takes all.

        Returns:
            The path.
        """
        entries = self.top(len(self) if count is None else count)
        return write_text(
            path, json.dumps({**self.summary(), "labels": [asdict(entry) for entry in entries]}, indent=1)
        )

    def summary(self) -> dict[str, Any]:
        """Counts, estimated share of wrong labels and most frequent confusions, as plain values.

        Returns:
            The summary.
        """
        confusions = [
            {"given": given, "suggested": suggested, "count": number} for given, suggested, number in self.confusions()
        ]
        return {
            "images": len(self),
            "probably_wrong": self.num_wrong,
            "estimated_noise": round(self.estimated_noise, 6),
            "confusions": confusions,
        }

    def write_html(self, path: str | Path, count: int = SHOWN_IMAGES, title: str = "Suspicious labels") -> Path:
        """Write one self-contained page with pictures, filters, and buttons to note which labels are wrong.

        Args:
            path: The file; complete or absent.
            count: Images on the page.
            title: Heading.

        Returns:
            The path.
        """
        from hubmodels.visualization.noisy_label_page import noisy_label_page

        return write_text(path, noisy_label_page(self, count, title))

    def write_png(self, path: str | Path, count: int = 40) -> Path:
        """Draw the most suspicious images as one picture.

        Args:
            path: The file; complete or absent. Its suffix is the format.
            count: Images.

        Returns:
            The path.
        """
        from hubmodels.visualization.noisy_label_sheet import noisy_label_sheet

        noisy_label_sheet(self, path, count)
        return Path(path)

    @staticmethod
    def free_paths(folder: str | Path, stem: str = "noisy_labels") -> list[Path]:
        """The files that `save` writes, which must not be there yet: worth a look before a model judges for long.

        Args:
            folder: Folder to write into.
            stem: Name of the files without suffix.

        Returns:
            The files.

        Raises:
            FileExistsError: One of the files exists.
        """
        paths = [Path(folder) / f"{stem}.{suffix}" for suffix in ("html", "png", "csv", "json")]
        existing = [str(path) for path in paths if path.exists()]
        if existing:
            raise FileExistsError(f"{', '.join(existing)} exists; choose another folder")
        return paths

    def save(self, folder: str | Path, count: int = SHOWN_IMAGES, stem: str = "noisy_labels") -> list[Path]:
        """Write the report as page, picture, table and JSON.

        Args:
            folder: Folder to write into; created if it is missing.
            count: Images on the page, of which the picture shows the first 40.
            stem: Name of the files without suffix.

        Returns:
            The files: STEM.html, STEM.png, STEM.csv (all images) and STEM.json.

        Raises:
            FileExistsError: One of the files exists.
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        paths = self.free_paths(folder, stem)
        self.write_html(paths[0], count)
        self.write_png(paths[1], min(count, 40))
        self.write_csv(paths[2])
        self.write_json(paths[3], count)
        return paths


def _loaded(data: Any, split: str | None, label_column: str | None) -> ImageDataset:
    dataset = load_image_dataset(data, split, label_column=label_column)
    assert isinstance(dataset, ImageDataset)  # nothing was streamed
    if not dataset.class_names:
        reason = dataset.unlabelled_reason or "give one folder per class, or a label column"
        raise ValueError(f"{data} has no labels to check: {reason}")
    return dataset


__all__ = ["DetectionQuality", "NoisyLabelReport", "SuspiciousLabel"]
