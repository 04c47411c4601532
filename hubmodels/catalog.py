"""The only list of the hub's methods and released checkpoints, as typed records.

Everything that names a method or a checkpoint (`hubmodels list`, registration with the transformers Auto classes,
model cards, the converter's name table) reads it from here. The module imports neither torch nor transformers, so
that printing a table costs milliseconds.
"""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass
from pathlib import Path

from hubmodels.catalog_densecl import DENSECL_CHECKPOINTS
from hubmodels.catalog_records import Checkpoint, Method, Metric
from hubmodels.catalog_simclr import SIMCLR_CHECKPOINTS

PACKAGED_DATASETS = ("fashion-mnist-small",)
CHECKPOINT_ROOT = Path(__file__).parent / "checkpoints"


MAE = Method(
    name="mae",
    title="Masked Autoencoders Are Scalable Vision Learners",
    summary=(
        "Pre-trains a vision transformer on unlabelled images: hides 75 % of the patches, encodes the rest and "
        "reconstructs the hidden pixels with a small decoder."
    ),
    paper="https://arxiv.org/abs/2111.06377",
    arxiv="2111.06377",
    modality="image",
    tasks=("image-feature-extraction", "image-classification"),
    code_licence="apache-2.0",
    weights_licence="cc-by-nc-4.0",
    module="hubmodels.modeling.mae",
    auto_classes={
        "AutoConfig": "MAEConfig",
        "AutoModel": "MAEModel",
        "AutoModelForPreTraining": "MAEForPreTraining",
        "AutoModelForImageClassification": "MAEForImageClassification",
        "AutoBackbone": "MAEBackbone",
        "AutoImageProcessor": "MAEImageProcessor",
    },
)

SIMCLR = Method(
    name="simclr",
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    summary=(
        "Pre-trains an image encoder on unlabelled images: two random augmentations of an image must recognise each "
        "other among those of all other images. The plain baseline of self-supervision, for any backbone."
    ),
    paper="https://arxiv.org/abs/2002.05709",
    arxiv="2002.05709",
    modality="image",
    tasks=("image-feature-extraction", "image-classification"),
    code_licence="apache-2.0",
    weights_licence="apache-2.0",
    module="hubmodels.modeling.simclr",
    auto_classes={
        "AutoConfig": "SimCLRConfig",
        "AutoModel": "SimCLRModel",
        "AutoModelForPreTraining": "SimCLRForPreTraining",
        "AutoModelForImageClassification": "SimCLRForImageClassification",
        "AutoBackbone": "SimCLRBackbone",
        "AutoImageProcessor": "SimCLRImageProcessor",
    },
)

DENSECL = Method(
    name="densecl",
    title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
    summary=(
        "Pre-trains a convolutional network on unlabelled images for detection and segmentation: every cell of the "
        "feature map must recognise its counterpart in another view of the image."
    ),
    paper="https://arxiv.org/abs/2011.09157",
    arxiv="2011.09157",
    modality="image",
    tasks=("image-feature-extraction",),
    code_licence="apache-2.0",
    weights_licence="unknown",
    module="hubmodels.modeling.densecl",
    auto_classes={
        "AutoConfig": "DenseCLConfig",
        "AutoModel": "DenseCLModel",
        "AutoModelForPreTraining": "DenseCLForPreTraining",
        "AutoBackbone": "DenseCLBackbone",
        "AutoImageProcessor": "DenseCLImageProcessor",
    },
)

POSITIONAL_LABEL = Method(
    name="positional_label",
    title="Positional Label for Self-Supervised Vision Transformer",
    summary=(
        "Lets any vision transformer also learn where its patches sit, absolutely or relative to each other: an extra "
        "target of classifiers and of masked autoencoders that helps most on small data and costs nothing afterwards."
    ),
    paper="https://arxiv.org/abs/2206.04981",
    arxiv="2206.04981",
    modality="image",
    tasks=("image-classification", "image-feature-extraction"),
    code_licence="apache-2.0",
    weights_licence="unknown",
    module="hubmodels.modeling.positional_label",
    auto_classes={
        "AutoConfig": "PositionalLabelConfig",
        "AutoModel": "PositionalLabelModel",
        "AutoModelForPreTraining": "PositionalLabelForPreTraining",
        "AutoModelForImageClassification": "PositionalLabelForImageClassification",
    },
)

SANM = Method(
    name="sanm",
    title="Learning with Noisy Labels via Self-supervised Adversarial Noisy Masking",
    summary=(
        "Trains a classifier on data with wrong labels: hides the region that a network looks at and as much of the "
        "label, the more the less the label is trusted. Two networks tell each other which labels to trust; the wrong "
        "ones are listed in a report."
    ),
    paper="https://arxiv.org/abs/2302.06805",
    arxiv="2302.06805",
    modality="image",
    tasks=("image-classification", "image-feature-extraction"),
    code_licence="apache-2.0",
    weights_licence="unknown",
    module="hubmodels.modeling.sanm",
    auto_classes={
        "AutoConfig": "SANMConfig",
        "AutoModel": "SANMModel",
        "AutoModelForImageClassification": "SANMForImageClassification",
        "AutoBackbone": "SANMBackbone",
        "AutoImageProcessor": "SANMImageProcessor",
    },
    further_classes={"AutoModelForImageClassification": ("SANMEnsembleForImageClassification",)},
)

METHODS: tuple[Method, ...] = (MAE, SIMCLR, DENSECL, POSITIONAL_LABEL, SANM)


@dataclass(frozen=True, slots=True)
class _MAESize:
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


_MAE_SIZES = (
    _MAESize("base", 85_798_656, 111_907_840, 86_567_656, "8cad7c", "1b25e9", 67.8, 83.664, (51.7, 35.9, 48.3, 34.5)),
    _MAESize(
        "large", 303_301_632, 329_541_888, 304_326_632, "b8b06e", "51f550", 76.0, 85.952, (41.8, 57.1, 59.9, 45.3)
    ),
    _MAESize("huge", 630_764_800, 657_074_508, 632_045_800, "9bdbb0", "2541f2", 77.2, 86.928, (33.8, 68.2, 64.4, 49.6)),
)
_MAE_AUTHORS = "published by the authors"


def _official_mae(name: str, folder: str, parameters: int, notes: str, **extra) -> Checkpoint:
    fields = {
        "task": "image-feature-extraction",
        "base_model": None,
        "modality": MAE.modality,
        "licence": MAE.weights_licence,
        "paper": MAE.paper,
        "datasets": ("imagenet-1k",),
    } | extra
    source = f"https://dl.fbaipublicfiles.com/mae/{folder}/{name}.pth"
    return Checkpoint(name=name, method=MAE.name, parameters=parameters, source=source, notes=notes, **fields)


def _evaluate_command(checkpoint: str, protocol: str) -> str:
    return (
        f"hubmodels convert mae {checkpoint}.pth {checkpoint} && "
        f"hubmodels evaluate {checkpoint} --data ILSVRC/imagenet-1k --protocol {protocol}"
    )


def _finetuned_metrics(checkpoint: str, size: _MAESize) -> tuple[Metric, ...]:
    command = _evaluate_command(checkpoint, "finetuned")
    corruption, *others = size.robustness
    return (
        Metric("accuracy", size.finetuned, "imagenet-1k validation", command, _MAE_AUTHORS),
        Metric("error rate", corruption, "imagenet-c", source=_MAE_AUTHORS),
        *(
            Metric("accuracy", value, dataset, source=_MAE_AUTHORS)
            for dataset, value in zip(("imagenet-a", "imagenet-r", "imagenet-sketch"), others, strict=True)
        ),
    )


def _official_mae_files(size: _MAESize) -> tuple[Checkpoint, ...]:
    """The four files that the authors released for one size (the large one has a fifth, see `CHECKPOINTS`)."""
    pretrain = f"mae_pretrain_vit_{size.name}"
    finetuned = f"mae_finetuned_vit_{size.name}"
    probe = Metric(
        "linear probe accuracy",
        size.linear_probe,
        "imagenet-1k validation",
        _evaluate_command(pretrain, "linear"),
        _MAE_AUTHORS,
    )
    return (
        _official_mae(
            pretrain,
            "pretrain",
            size.encoder,
            "Encoder only, trained on normalised pixels for 1600 epochs: the one to fine-tune. It cannot reconstruct.",
            metrics=(probe,),
            md5_prefix=size.pretrain_md5,
        ),
        _official_mae(
            f"{pretrain}_full",
            "pretrain",
            size.with_decoder,
            "Encoder and decoder, trained on normalised pixels: for continued pre-training. Pictures need "
            "de-normalising, which `reconstruct` does with the statistics of the true patches.",
        ),
        _official_mae(
            f"mae_visualize_vit_{size.name}",
            "visualize",
            size.with_decoder,
            "Encoder and decoder, trained on plain pixels: for reconstruction pictures.",
        ),
        _official_mae(
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


MAE_SMALL_32 = Checkpoint(
    name="mae-small-32",
    method=MAE.name,
    task="image-feature-extraction",
    modality=MAE.modality,
    parameters=1_320_304,
    licence="apache-2.0",
    source="mae-small-32",
    base_model=None,
    datasets=("cifar10", "clothing-dataset-small", "fashion-mnist"),
    paper=MAE.paper,
    metrics=(
        Metric("linear probe accuracy", 81.8, "fashion-mnist-small test", "python -m benchmarks.mae_claims OUT probe"),
        Metric("k-NN accuracy", 77.9, "fashion-mnist-small test", "python -m benchmarks.mae_claims OUT probe"),
    ),
    notes="Small encoder and decoder for images of 32 pixels, trained on a CPU; the default of `hubmodels quickstart`.",
)

POSITIONAL_LABEL_SMALL_32 = Checkpoint(
    name="positional-label-small-32",
    method=POSITIONAL_LABEL.name,
    task="image-classification",
    modality=POSITIONAL_LABEL.modality,
    parameters=1_214_250,
    licence="apache-2.0",
    source="positional-label-small-32",
    base_model=MAE_SMALL_32.name,
    datasets=("fashion-mnist",),
    paper=POSITIONAL_LABEL.paper,
    metrics=(
        Metric(
            "accuracy",
            77.5,
            "fashion-mnist-small test",
            "hubmodels evaluate positional-label-small-32 --data fashion-mnist-small",
        ),
    ),
    notes="Small ViT with its absolute position head, fine-tuned on clothing of 32 pixels: to try the method on.",
)

SANM_SMALL_32 = Checkpoint(
    name="sanm-small-32",
    method=SANM.name,
    task="image-classification",
    modality=SANM.modality,
    parameters=1_739_364,
    licence="apache-2.0",
    source="sanm-small-32",
    base_model="simclr-small-32",
    datasets=("fashion-mnist",),
    paper=SANM.paper,
    metrics=(
        Metric(
            "accuracy",
            78.7,
            "fashion-mnist-small test",
            "hubmodels evaluate sanm-small-32 --data fashion-mnist-small",
        ),
    ),
    notes="Two small networks that learned clothing of 32 pixels from labels of which 44 % were wrong.",
)

CHECKPOINTS: tuple[Checkpoint, ...] = (
    MAE_SMALL_32,
    POSITIONAL_LABEL_SMALL_32,
    SANM_SMALL_32,
    *(checkpoint for size in _MAE_SIZES for checkpoint in _official_mae_files(size)),
    _official_mae(
        "mae_visualize_vit_large_ganloss",
        "visualize",
        _MAE_SIZES[1].with_decoder,
        "Encoder and decoder, trained on plain pixels with an additional adversarial loss: sharper pictures only.",
    ),
    *SIMCLR_CHECKPOINTS,
    *DENSECL_CHECKPOINTS,
)


def get_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        ValueError: If there is none; the message lists the known methods.
    """
    for method in METHODS:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in METHODS)
    raise ValueError(f"unknown method {name!r}; known methods: {known}")


def get_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint called `name`.

    Raises:
        ValueError: If there is none; the message suggests similar names.
    """
    for checkpoint in CHECKPOINTS:
        if checkpoint.name == name:
            return checkpoint
    known = [checkpoint.name for checkpoint in CHECKPOINTS]
    similar = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean: {', '.join(similar)}?" if similar else ""
    raise ValueError(f"unknown checkpoint {name!r}{hint} (`hubmodels list` shows all)")


def search(pattern: str) -> tuple[tuple[Method, ...], tuple[Checkpoint, ...]]:
    """Find methods and checkpoints by name.

    Args:
        pattern: A name, or a shell pattern as in `timm.list_models`: `"*large*"`, `"mae_pretrain_vit_?ase"`.

    Returns:
        The methods and the checkpoints whose whole name matches, both possibly empty.
    """
    methods = tuple(method for method in METHODS if fnmatch.fnmatchcase(method.name, pattern))
    checkpoints = tuple(checkpoint for checkpoint in CHECKPOINTS if fnmatch.fnmatchcase(checkpoint.name, pattern))
    return methods, checkpoints


def packaged_path(name: str) -> Path:
    """Return the folder of a checkpoint that ships with the package, ready for `from_pretrained`.

    Args:
        name: Name of a checkpoint with `is_packaged`.

    Raises:
        ValueError: If there is no such checkpoint, or it is an official file that must be downloaded and converted.
        FileNotFoundError: If the installation lacks the folder.
    """
    checkpoint = get_checkpoint(name)
    if not checkpoint.is_packaged:
        raise ValueError(
            f"checkpoint {name!r} does not ship with the package; download {checkpoint.source} and run "
            f"`hubmodels convert {checkpoint.method} {checkpoint.official_file} OUT`"
        )
    path = CHECKPOINT_ROOT / checkpoint.source
    if not path.is_dir():
        raise FileNotFoundError(f"packaged checkpoint {name!r}: no folder {path}; reinstall hubmodels")
    return path


def model_source(name: str | Path) -> str:
    """Return what `from_pretrained` takes for a model that a user names.

    Args:
        name: A folder, a repository id on the Hub, or the name of a packaged checkpoint.

    Returns:
        The folder of the packaged checkpoint of that name, the folder, or the repository id as it is.

    Raises:
        ValueError: The name is that of an official file that must be downloaded and converted.
        FileNotFoundError: The folder is missing, the name is nearly that of a packaged checkpoint, or the installation
            lacks its folder.
    """
    text = str(name)
    if any(checkpoint.name == text for checkpoint in CHECKPOINTS):
        return str(packaged_path(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise FileNotFoundError(
            f"{text!r} is a file; a model is given as its folder (`hubmodels convert` makes one of an official file)"
        )
    if isinstance(name, Path) or text.startswith((".", "~", "/")) or text.endswith("/") or text.count("/") > 1:
        raise FileNotFoundError(f"there is no model folder {text!r}")
    if "/" not in text:
        packaged = [checkpoint.name for checkpoint in CHECKPOINTS if checkpoint.is_packaged]
        near = difflib.get_close_matches(text, packaged, cutoff=0.8)
        if near:
            raise FileNotFoundError(f"no folder and no packaged checkpoint {text!r}; did you mean {' or '.join(near)}?")
    return text
