"""The SimCLR checkpoints: a small packaged one, and 65 of v2 and 9 of v1 with the figures of their authors.

Those lie as folders in Google's storage: TensorFlow 1 checkpoints in `gs://simclr-checkpoints`, the same weights as
TensorFlow 2 SavedModels in `gs://simclr-checkpoints-tf2` (there in `PATH/saved_model`). Keep the path when downloading:
the converter reads from it which layer the classifier was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubmodels.catalog_records import SMALL_CHECKPOINTS_COMMAND, Checkpoint, Metric

_BUCKET = "gs://simclr-checkpoints"
_README = "published by the authors"
_NOTEBOOK = "published by the authors (tf2/colabs/imagenet_results.ipynb)"
_V1_PAPER = "https://arxiv.org/abs/2002.05709"
_V2_PAPER = "https://arxiv.org/abs/2006.10029"
_VALIDATION = "imagenet-1k validation"


@dataclass(frozen=True, slots=True)
class _Network:
    """One row of the official README: a v2 network, the values of its encoder, and its ImageNet accuracies.

    `accuracies` in percent: fine-tuned on 1, 10 and 100 % of the labels, linear evaluation, supervised.
    """

    depth: int
    width: int
    selective_kernels: bool
    parameters: int
    accuracies: tuple[float, float, float, float, float]

    @property
    def name(self) -> str:
        return f"r{self.depth}_{self.width}x_sk{int(self.selective_kernels)}"


# fmt: off
_V2 = (
    _Network(50, 1, False, 23_561_152, (57.9, 68.4, 76.3, 71.7, 76.6)),
    _Network(50, 1, True, 35_277_408, (64.5, 72.1, 78.7, 74.6, 78.5)),
    _Network(50, 2, False, 94_013_312, (66.3, 73.9, 79.1, 75.6, 77.8)),
    _Network(50, 2, True, 140_428_864, (70.6, 77.0, 81.3, 77.7, 79.3)),
    _Network(101, 1, False, 42_605_504, (62.1, 71.4, 78.2, 73.6, 78.0)),
    _Network(101, 1, True, 64_786_144, (68.3, 75.1, 80.6, 76.3, 79.6)),
    _Network(101, 2, False, 169_981_824, (69.1, 75.8, 80.7, 77.0, 78.9)),
    _Network(101, 2, True, 257_377_984, (73.2, 78.8, 82.4, 79.0, 80.1)),
    _Network(152, 1, False, 58_295_232, (64.0, 73.0, 79.3, 74.5, 78.3)),
    _Network(152, 1, True, 89_119_584, (70.0, 76.5, 81.3, 77.2, 79.9)),
    _Network(152, 2, False, 232_556_416, (70.2, 76.6, 81.1, 77.4, 79.1)),
    _Network(152, 2, True, 353_752_896, (74.2, 79.4, 82.9, 79.4, 80.4)),
    _Network(152, 3, True, 795_235_360, (74.9, 80.1, 83.1, 79.8, 80.5)),
)
# Folder -> what its checkpoints are, in the order of `_Network.accuracies`.
_V2_FOLDERS = {
    "finetuned_1pct": "Fine-tuned on 1 % of the labels; the classifier reads the first layer of the projection head.",
    "finetuned_10pct": "Fine-tuned on 10 % of the labels; the classifier reads the first layer of the projection head.",
    "finetuned_100pct": "Fine-tuned on all labels; the classifier reads the first layer of the projection head.",
    "pretrained": "Pre-trained without labels, with projection head and a linear classifier on the representation.",
    "supervised": "The same network trained with labels only: the baseline.",
}
# ResNet-50 by width: values of the encoder; accuracy of linear evaluation, fine-tuned on 10 and on 100 % of the labels.
_V1 = {
    1: (23_561_152, 69.1, 65.8, 75.6),
    2: (94_013_312, 74.2, 71.6, 79.2),
    4: (375_590_656, 76.6, 74.5, 80.8),
}
# fmt: on
_V1_FOLDERS = {
    "pretrain": "Pre-trained without labels, with a linear classifier on the representation; no projection head.",
    "finetune_10pct": "Fine-tuned on 10 % of the labels; no projection head.",
    "finetune_100pct": "Fine-tuned on all labels; no projection head.",
}


def _checkpoint(
    version: int, folder: str, network: str, parameters: int, notes: str, accuracy: float, source: str
) -> Checkpoint:
    path = f"simclrv{version}/{folder}/{network}"
    pretrained = folder.startswith("pretrain")
    tuned = folder.startswith("finetune")
    return Checkpoint(
        name=path.replace("/", "_"),
        method="simclr",
        task="image-feature-extraction" if pretrained else "image-classification",
        modality="image",
        parameters=parameters,
        licence="apache-2.0",
        source=f"{_BUCKET}/{path}",
        base_model=f"simclrv{version}_{'pretrained' if version == 2 else 'pretrain'}_{network}" if tuned else None,
        datasets=("imagenet-1k",),
        paper=_V2_PAPER if version == 2 else _V1_PAPER,
        metrics=(
            Metric(
                "linear probe accuracy" if pretrained else "accuracy",
                accuracy,
                _VALIDATION,
                f"hubmodels convert simclr {path} OUT && "
                "hubmodels evaluate OUT --data ILSVRC/imagenet-1k --split validation --protocol finetuned",
                source,
            ),
        ),
        notes=notes,
    )


SIMCLR_SMALL_32 = Checkpoint(
    name="simclr-small-32",
    method="simclr",
    task="image-feature-extraction",
    modality="image",
    parameters=736_583,
    licence="apache-2.0",
    source="simclr-small-32",
    base_model=None,
    datasets=("cifar10", "clothing-dataset-small", "tiny-imagenet"),
    paper=_V1_PAPER,
    metrics=(
        Metric("linear probe accuracy", 49.3, "cifar10 test, 2,000 images", SMALL_CHECKPOINTS_COMMAND),
        Metric("k-NN accuracy", 43.4, "cifar10 test, 2,000 images", SMALL_CHECKPOINTS_COMMAND),
    ),
    notes="Small ResNet-18 with projection head for images of 32 pixels, trained on a CPU.",
)

SIMCLR_CHECKPOINTS: tuple[Checkpoint, ...] = (
    SIMCLR_SMALL_32,
    *(
        _checkpoint(2, folder, network.name, network.parameters, notes, accuracy, _README)
        for network in _V2
        for (folder, notes), accuracy in zip(_V2_FOLDERS.items(), network.accuracies, strict=True)
    ),
    *(
        _checkpoint(1, folder, f"{width}x", parameters, notes, accuracy, _README if folder == "pretrain" else _NOTEBOOK)
        for width, (parameters, *accuracies) in _V1.items()
        for (folder, notes), accuracy in zip(_V1_FOLDERS.items(), accuracies, strict=True)
    ),
)
