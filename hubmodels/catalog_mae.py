"""The MAE checkpoints: a small packaged one, and the files of the official release with their published numbers."""

from __future__ import annotations

from dataclasses import dataclass

from hubmodels.catalog_records import Checkpoint, Metric

_PAPER = "https://arxiv.org/abs/2111.06377"
_AUTHORS = "published by the authors"


@dataclass(frozen=True, slots=True)
class _Size:
    """Published numbers of one size of the official MAE release (its README and FINETUNE documents)."""

    name: str
    encoder: int
    with_decoder: int
    classifier: int
    pretrain_md5: str
    finetuned_md5: str
    linear_probe: float
    finetuned: float
    robustness: tuple[float, float, float, float]  # ImageNet-C error, ImageNet-A, -R and -Sketch accuracy


_SIZES = (
    _Size("base", 85_798_656, 111_907_840, 86_567_656, "8cad7c", "1b25e9", 67.8, 83.664, (51.7, 35.9, 48.3, 34.5)),
    _Size("large", 303_301_632, 329_541_888, 304_326_632, "b8b06e", "51f550", 76.0, 85.952, (41.8, 57.1, 59.9, 45.3)),
    _Size("huge", 630_764_800, 657_074_508, 632_045_800, "9bdbb0", "2541f2", 77.2, 86.928, (33.8, 68.2, 64.4, 49.6)),
)


def _official(name: str, folder: str, parameters: int, notes: str, **extra) -> Checkpoint:
    fields = {
        "task": "image-feature-extraction",
        "base_model": None,
        "modality": "image",
        "licence": "cc-by-nc-4.0",
        "paper": _PAPER,
        "datasets": ("imagenet-1k",),
    } | extra
    source = f"https://dl.fbaipublicfiles.com/mae/{folder}/{name}.pth"
    return Checkpoint(name=name, method="mae", parameters=parameters, source=source, notes=notes, **fields)


def _finetuned_metrics(checkpoint: str, size: _Size) -> tuple[Metric, ...]:
    command = (
        f"hubmodels convert mae {checkpoint}.pth {checkpoint} && "
        f"hubmodels evaluate {checkpoint} --data ILSVRC/imagenet-1k --split validation --protocol finetuned"
    )
    corruption, *others = size.robustness
    return (
        Metric("accuracy", size.finetuned, "imagenet-1k validation", command, _AUTHORS),
        Metric("error rate", corruption, "imagenet-c", source=_AUTHORS),
        *(
            Metric("accuracy", value, dataset, source=_AUTHORS)
            for dataset, value in zip(("imagenet-a", "imagenet-r", "imagenet-sketch"), others, strict=True)
        ),
    )


def _files_of(size: _Size) -> tuple[Checkpoint, ...]:
    """The four files that the authors released for one size (the large one has a fifth, see `MAE_CHECKPOINTS`)."""
    pretrain = f"mae_pretrain_vit_{size.name}"
    finetuned = f"mae_finetuned_vit_{size.name}"
    probe = Metric(
        "linear probe accuracy",
        size.linear_probe,
        "imagenet-1k validation",
        f"hubmodels convert mae {pretrain}.pth {pretrain} && "
        f"hubmodels train mae/paper_linear_probe_{size.name} --backbone {pretrain} --data ILSVRC/imagenet-1k",
        _AUTHORS,
    )
    return (
        _official(
            pretrain,
            "pretrain",
            size.encoder,
            "Encoder only, trained on normalised pixels for 1600 epochs: the one to fine-tune. It cannot reconstruct.",
            metrics=(probe,),
            md5_prefix=size.pretrain_md5,
        ),
        _official(
            f"{pretrain}_full",
            "pretrain",
            size.with_decoder,
            "Encoder and decoder, trained on normalised pixels: for continued pre-training. Pictures need "
            "de-normalising, which `reconstruct` does with the statistics of the true patches.",
        ),
        _official(
            f"mae_visualize_vit_{size.name}",
            "visualize",
            size.with_decoder,
            "Encoder and decoder, trained on plain pixels: for reconstruction pictures.",
        ),
        _official(
            finetuned,
            "finetune",
            size.classifier,
            "Classifier over the 1000 ImageNet classes, on the mean of the final tokens.",
            task="image-classification",
            base_model=pretrain,
            metrics=_finetuned_metrics(finetuned, size),
            md5_prefix=size.finetuned_md5,
        ),
    )


MAE_CHECKPOINTS: tuple[Checkpoint, ...] = (
    Checkpoint(
        name="mae-small-32",
        method="mae",
        task="image-feature-extraction",
        modality="image",
        parameters=1_320_304,
        licence="apache-2.0",
        source="mae-small-32",
        base_model=None,
        datasets=("cifar10", "clothing-dataset-small", "fashion-mnist"),
        paper=_PAPER,
        metrics=(
            Metric(
                "linear probe accuracy", 81.8, "fashion-mnist-small test", "python -m benchmarks.mae_claims OUT probe"
            ),
            Metric("k-NN accuracy", 77.9, "fashion-mnist-small test", "python -m benchmarks.mae_claims OUT probe"),
        ),
        notes=(
            "Small encoder and decoder for images of 32 pixels, trained on a CPU; "
            "the default of `hubmodels quickstart`."
        ),
    ),
    *(checkpoint for size in _SIZES for checkpoint in _files_of(size)),
    _official(
        "mae_visualize_vit_large_ganloss",
        "visualize",
        _SIZES[1].with_decoder,
        "Encoder and decoder, trained on plain pixels with an additional adversarial loss: sharper pictures only.",
    ),
)
