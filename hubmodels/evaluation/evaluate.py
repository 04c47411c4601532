"""One call that evaluates a saved model on a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubmodels.catalog import model_source
from hubmodels.data.class_names import match_classes
from hubmodels.data.collators import BatchTransform
from hubmodels.data.images import ImageDataset
from hubmodels.data.loading import load_image_dataset
from hubmodels.data.processing import ProcessorTransform
from hubmodels.data.splits import MissingSplitError
from hubmodels.evaluation.classification import (
    ClassificationReport,
    check_classes,
    classification_report,
    evaluate_classifier,
    write_json,
)
from hubmodels.evaluation.features import extract_features
from hubmodels.evaluation.knn import knn_predict
from hubmodels.evaluation.linear_probe import linear_probe

CLASSIFIER_CLASS = "AutoModelForImageClassification"
PROTOCOLS = ("finetuned", "knn", "linear")
HELD_OUT_FRACTION = 0.2


class UnlabelledError(ValueError):
    """Images that are to be evaluated have no labels."""


@dataclass(frozen=True)
class Evaluation:
    """Outcome of [`evaluate`].

    Attributes:
        model: Where the model came from.
        data: Where the data came from.
        split: What was tested on.
        protocol: "finetuned", "knn" or "linear".
        settings: Settings of the protocol.
        report: Accuracies.
    """

    model: str
    data: str
    split: str
    protocol: str
    settings: dict[str, Any]
    report: ClassificationReport

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain values for JSON."""
        return {**vars(self), "report": self.report.to_dict()}

    def save(self, path: str | Path) -> None:
        """Write the outcome as JSON, in one step.

        Args:
            path: The file; replaced if there is one.
        """
        write_json(path, self.to_dict())


def evaluate(
    folder: str | Path,
    data: Any,
    protocol: str = "finetuned",
    split: str | None = None,
    train_split: str = "train",
    label_column: str | None = None,
    transform: BatchTransform | None = None,
    pooling: str = "mean",
    k: int = 20,
    temperature: float = 0.07,
    batch_norm: bool = True,
    epochs: int = 90,
    batch_size: int = 256,
    num_workers: int = 0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate a saved model on labelled images.

    Args:
        folder: A folder written by `save_pretrained`, a packaged checkpoint, or a repository id on the Hub.
        data: Labelled data, see [`hubmodels.data.load_image_dataset`].
        protocol: "finetuned": accuracy of the saved classifier. "knn": k nearest neighbours on frozen features.
            "linear": the published linear probe (BatchNorm without affine, LARS) on frozen features.
        split: The split to test on; None means the test split, or the validation split if that has no labels or is not
            there, else (of data that is not divided) a seeded fifth for "knn" and "linear", and everything for
            "finetuned".
        train_split: The split that "knn" and "linear" learn from.
        label_column: Column of the labels, where its name does not tell.
        transform: Evaluation transform; None means the model's own image processor.
        pooling: Features of "knn" and "linear": "mean" of the patch tokens or "cls" token.
        k: Neighbours of "knn", as far as there are as many images.
        temperature: Temperature of "knn".
        batch_norm: Whether the linear probe has the BatchNorm.
        epochs: Epochs of the linear probe.
        batch_size: Images per forward pass, and features per step of the linear probe.
        num_workers: Worker processes that load the images.
        seed: Seed of the linear probe and of the held-out fifth.
        device: Where the model runs; None means the GPU if there is one.
        progress: Show progress bars.
        trust_remote_code: Allow a repository's own code to run.

    Returns:
        The outcome; print `outcome.report.table()` with rich, or `outcome.save("evaluation.json")`.

    Raises:
        ValueError: Unknown protocol, unlabelled data, a model without a trained classifier, classes that differ, or a
            single class.

    Example:

    ```python
    >>> from hubmodels.evaluation import evaluate
    >>> evaluate("run/", "fashion-mnist-small", protocol="knn").report.accuracy  # doctest: +SKIP
    ```
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    source = model_source(folder)
    model = _load_model(source, protocol == "finetuned", trust_remote_code)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    transform = transform or _processor_transform(source, model, trust_remote_code)
    load = partial(_labelled, data, label_column=label_column)
    test, tested = _test_data(load, split)
    loading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    settings: dict[str, Any] = {}
    if protocol == "finetuned":
        report = _evaluate_classifier(model, transform, test or load(None), loading)
    else:
        train = load(train_split)
        if test is None:
            test, train = train.split(HELD_OUT_FRACTION, seed)
            tested = f"{HELD_OUT_FRACTION:.0%} of {train_split} held out, seed {seed}"
        if protocol == "knn":
            settings = {"k": min(k, len(train)), "temperature": temperature}
        else:
            settings = {"batch_norm": batch_norm, "epochs": epochs, "batch_size": batch_size, "seed": seed}
        report, settings = _evaluate_features(model, transform, train, test, pooling, loading, protocol, settings)
    return Evaluation(str(folder), str(data), tested or "all", protocol, settings, report)


def _evaluate_classifier(
    model: nn.Module, transform: BatchTransform, test: ImageDataset, loading: dict[str, Any]
) -> ClassificationReport:
    """Accuracy of the model's own classes."""
    test, class_names = match_classes(test, model_classes(model))
    return evaluate_classifier(model, test, transform, class_names, **loading)


def _evaluate_features(
    model: nn.Module,
    transform: BatchTransform,
    train: ImageDataset,
    test: ImageDataset,
    pooling: str,
    loading: dict[str, Any],
    protocol: str,
    settings: dict[str, Any],
) -> tuple[ClassificationReport, dict[str, Any]]:
    """Accuracy of a classifier of frozen features, and its settings with what was found out."""
    test, class_names = match_classes(test, train.class_names, "the training split")
    check_classes(class_names)
    features = extract_features(model, train, transform, pooling, **loading)[0], train.labels
    test_features = extract_features(model, test, transform, pooling, **loading)[0]
    settings = {"pooling": pooling, "train_images": len(train), **settings}
    if protocol == "knn":
        scores = knn_predict(*features, test_features, train.num_classes, settings["k"], settings["temperature"])
    else:
        chosen = {name: settings[name] for name in ("batch_norm", "epochs", "batch_size", "seed")}
        probe = linear_probe(*features, test_features, test.labels, num_classes=train.num_classes, **chosen)
        scores, settings["trust_coefficient"] = probe.scores, probe.trust_coefficient
    return classification_report(test.labels, scores, class_names), settings


def _load_model(folder: str, classifier: bool, trust_remote_code: bool) -> nn.Module:
    """Load a classifier, or the encoder alone."""
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
    )

    if not classifier:
        return AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    published = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and CLASSIFIER_CLASS not in published:
        raise ValueError(
            f"{folder} is a model of type {config.model_type}, which has no classifier; choose "
            f"protocol 'knn' or 'linear'"
        )
    model, loaded = AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} holds no trained classifier (its weights lack {', '.join(missing[:4])}); "
            "fine-tune it first, or choose protocol 'knn' or 'linear'"
        )
    return model


def classifier_and_transform(
    folder: str | Path, trust_remote_code: bool = False
) -> tuple[nn.Module, ProcessorTransform]:
    """Load a saved classifier with the preprocessing of its image processor.

    Args:
        folder: A folder written by `save_pretrained`, a packaged checkpoint, or a repository id on the Hub.
        trust_remote_code: Allow a repository's own code to run.

    Returns:
        The model and its transform.

    Raises:
        ValueError: A model without a trained classifier.
    """
    source = model_source(folder)
    model = _load_model(source, True, trust_remote_code)
    return model, _processor_transform(source, model, trust_remote_code)


def _processor_transform(folder: str, model: nn.Module, trust_remote_code: bool) -> ProcessorTransform:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return ProcessorTransform(processor, getattr(model.config, "num_channels", 3))


def _test_data(load: Callable[[str], ImageDataset], split: str | None) -> tuple[ImageDataset | None, str | None]:
    """The split to test on, and its name; None for data that is not divided into splits."""
    if split is not None:
        return load(split), split
    unlabelled = None
    for name in ("test", "validation"):
        try:
            return load(name), name
        except MissingSplitError:
            pass
        except UnlabelledError as error:  # as of the test split of ImageNet, whose labels are withheld
            unlabelled = unlabelled or error
    if unlabelled is not None:
        raise unlabelled
    return None, None


def _labelled(data: Any, split: str | None, label_column: str | None = None) -> ImageDataset:
    """Load a split and see that it has labels."""
    dataset = load_image_dataset(data, split, label_column=label_column)
    if not isinstance(dataset, ImageDataset) or not dataset.class_names:
        reason = getattr(dataset, "unlabelled_reason", "") or "evaluation needs one folder per class, or a label column"
        raise UnlabelledError(f"{data} has no labels: {reason}")
    return dataset


def model_classes(model: Any) -> list[str]:
    """Names of a classifier's classes, in label order."""
    return [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
