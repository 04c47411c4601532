"""The types of the catalog's records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# What measures the small packaged checkpoints of convolutional networks.
SMALL_CHECKPOINTS_COMMAND = (
    "python -m benchmarks.small_checkpoints OUT --images CIFAR10 --cells BCCD --animals RACCOON KANGAROO"
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a checkpoint.

    Args:
        name: What was measured, in the Hub's spelling where it has one (`accuracy`, `linear probe accuracy`).
        value: The figure; accuracies and error rates are percentages in [0, 100].
        dataset: The data set and split it was measured on.
        command: The command of this project that measures it; empty if a figure is only quoted.
        source: `"measured"` if that command produced the value, otherwise who published it.
    """

    name: str
    value: float
    dataset: str
    command: str = ""
    source: str = "measured"


@dataclass(frozen=True, slots=True)
class Method:
    """A published method that the hub implements.

    Args:
        name: Short name; also the folder under `modeling/` and the `model_type` of its config.
        title: Title of the paper.
        summary: One sentence on what it does and what it is good for.
        paper: URL of the paper.
        arxiv: arXiv identifier.
        modality: `"image"`, `"text"`, `"audio"` or several joined with a comma.
        tasks: Hub pipeline tags the method's models serve.
        code_licence: SPDX identifier, in lower case, of the code in this repository.
        weights_licence: The same for the weights that the authors released.
        module: The module that holds the classes.
        auto_classes: Name of a transformers Auto class -> name of the class in `module` that it resolves to.
        further_classes: Further classes behind an Auto class, for folders whose config names them as its architecture.
    """

    name: str
    title: str
    summary: str
    paper: str
    arxiv: str
    modality: str
    tasks: tuple[str, ...]
    code_licence: str
    weights_licence: str
    module: str
    auto_classes: dict[str, str] = field(hash=False)
    further_classes: dict[str, tuple[str, ...]] = field(hash=False, default_factory=dict)

    def classes_for(self, architectures: Iterable[str] | None) -> dict[str, str]:
        """`auto_classes` of a folder: a further class where the folder names it.

        Args:
            architectures: As in the folder's config, or None.
        """
        named = set(architectures or ())
        chosen = {auto: name for auto, names in self.further_classes.items() for name in names if name in named}
        return {**self.auto_classes, **chosen}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A released set of weights: one shipped with the package, or an official file that `hubmodels convert` reads.

    Args:
        name: Unique name; of an official file, its stem or what stands for it in its path.
        method: Name of its `Method`.
        task: Hub pipeline tag.
        modality: As in `Method`.
        parameters: Number of values in the released weights, fixed position tables included; of an official SimCLR
            checkpoint those of the encoder, as its authors count.
        licence: SPDX identifier, in lower case, of these weights.
        source: Folder under `hubmodels/checkpoints/` for a packaged checkpoint, otherwise the URL of the official file
            or folder.
        base_model: Name of the checkpoint it was fine-tuned from, or None.
        datasets: Names of the data sets it was trained on.
        paper: URL of the paper.
        metrics: Measured or published figures.
        notes: What a user must know before choosing it.
        md5_prefix: First characters of the official file's MD5, where the authors published them.
    """

    name: str
    method: str
    task: str
    modality: str
    parameters: int
    licence: str
    source: str
    base_model: str | None
    datasets: tuple[str, ...]
    paper: str
    metrics: tuple[Metric, ...] = ()
    notes: str = ""
    md5_prefix: str | None = None

    @property
    def is_packaged(self) -> bool:
        """Whether the weights ship inside the package (otherwise `source` is a URL)."""
        return "://" not in self.source

    @property
    def official_file(self) -> str:
        """What `hubmodels convert` takes: the name of the official file, or its path in the bucket (`gs://`)."""
        scheme, _, path = self.source.partition("://")
        return path.partition("/")[2] if scheme == "gs" else path.rpartition("/")[2]
