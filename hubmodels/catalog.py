"""The only list of the hub's methods and released checkpoints, as typed records.

Everything that names a method or a checkpoint (`hubmodels list`, registration with the transformers Auto classes,
model cards, the converter's name table) reads it from here. The module imports neither torch nor transformers, so
that printing a table costs milliseconds.
"""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path

from hubmodels.catalog_densecl import DENSECL_CHECKPOINTS
from hubmodels.catalog_mae import MAE_CHECKPOINTS
from hubmodels.catalog_positional_label import POSITIONAL_LABEL_CHECKPOINTS
from hubmodels.catalog_records import Checkpoint, Method
from hubmodels.catalog_sanm import SANM_CHECKPOINTS
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

CHECKPOINTS: tuple[Checkpoint, ...] = (
    *MAE_CHECKPOINTS,
    *SIMCLR_CHECKPOINTS,
    *DENSECL_CHECKPOINTS,
    *POSITIONAL_LABEL_CHECKPOINTS,
    *SANM_CHECKPOINTS,
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
