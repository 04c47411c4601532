"""Model cards: a README.md with the metadata that the Hub reads, from the catalog, a config and measured figures.

A card says where the weights come from (`CardFacts`); everything else follows from the config. Text that a user has
written is kept: `complete_card` only adds the metadata it lacks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .catalog import CHECKPOINT_ROOT, CHECKPOINTS, Checkpoint, Method
from .catalog_records import Metric

CARD_NAME = "README.md"
EVALUATION_FILE = "eval_results.json"  # what transformers' `Trainer.save_metrics("eval", ...)` writes
OWN_LICENCE = "apache-2.0"

FEATURE_TAGS = {"image": "image-feature-extraction", "text": "feature-extraction", "audio": "feature-extraction"}
PIPELINE_TAGS = {
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}
PROCESSOR_CLASSES = ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoTokenizer")
NOT_A_FIGURE = ("runtime", "per_second", "epoch", "model_preparation_time")


@dataclass(frozen=True)
class CardFacts:
    """What a card states beyond what the config says.

    Args:
        licence: SPDX identifier of the weights, in lower case. None: the licence of `base_model` if the catalog knows
            it, otherwise `apache-2.0`.
        base_model: Hub id or catalog name of the model that these weights were made from.
        datasets: Names of the data sets they were trained on.
        metrics: Figures, for the results table and the `model-index`.
        notes: Text that goes under the summary.
    """

    licence: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    notes: str = ""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> CardFacts:
        """Facts of a released checkpoint, from its catalog record."""
        return cls(
            checkpoint.licence, checkpoint.base_model, checkpoint.datasets, checkpoint.metrics, notes=checkpoint.notes
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> CardFacts:
        """Facts that a saved folder carries.

        A folder shipped with the package has its catalog record. In any other, the metadata of its README.md names
        licence, base model and data sets, and `eval_results.json` (written by `Trainer.save_metrics`) gives the
        figures; its key `eval_dataset`, if it is there, names the data.

        Raises:
            ValueError: If `eval_results.json` is not a JSON object.
        """
        folder = Path(folder).resolve()
        checkpoint = _packaged_in(folder)
        if checkpoint is not None:
            return cls.from_checkpoint(checkpoint)
        card, results = folder / CARD_NAME, folder / EVALUATION_FILE
        data = _parse_card(card.read_text(encoding="utf-8-sig")).data if card.is_file() else ModelCardData()
        base_model, licence, datasets = (data.get(key) for key in ("base_model", "license", "datasets"))
        return cls(
            licence=licence if isinstance(licence, str) else None,
            base_model=base_model if isinstance(base_model, str) else None,
            datasets=tuple(datasets) if isinstance(datasets, list) else (),
            metrics=_evaluation_metrics(results) if results.is_file() else (),
        )

    @classmethod
    def of_descendant(cls, base: str | Path | None, datasets: Sequence[str] = ()) -> CardFacts:
        """Facts of a model that was trained from the weights of another and has their licence.

        Args:
            base: Folder, Hub id or catalog name of the weights it started from; None for random weights.
            datasets: Names of the data sets it was trained on.

        Returns:
            The facts; the licence is `unknown` where neither the catalog nor a card tells that of the base.
        """
        if base is None:
            return cls(licence=OWN_LICENCE, datasets=tuple(datasets))
        folder = Path(base)
        if not folder.is_dir():
            known = {checkpoint.name: checkpoint.licence for checkpoint in CHECKPOINTS}
            return cls(known.get(str(base), "unknown"), str(base), tuple(datasets))
        checkpoint = _packaged_in(folder.resolve())
        if checkpoint is not None:
            return cls(checkpoint.licence, checkpoint.name, tuple(datasets))
        return cls(cls.from_folder(folder).licence or "unknown", folder.resolve().name, tuple(datasets))

    def metadata(self) -> str:
        """These facts as the text of a README.md without words of its own; publishing adds the rest."""
        data = ModelCardData(license=self.licence, base_model=self.base_model, datasets=list(self.datasets) or None)
        return f"---\n{data.to_yaml()}\n---\n"

    def resolved_licence(self) -> str:
        """Licence of the weights: the stated one, else the base model's, else our own."""
        if self.licence is not None:
            return self.licence
        known = {checkpoint.name: checkpoint.licence for checkpoint in CHECKPOINTS}
        return known.get(self.base_model or "", OWN_LICENCE)


def _packaged_in(folder: Path) -> Checkpoint | None:
    """The record of the packaged checkpoint that lies in `folder`."""
    packaged = (checkpoint for checkpoint in CHECKPOINTS if checkpoint.is_packaged)
    return next((checkpoint for checkpoint in packaged if folder == CHECKPOINT_ROOT / checkpoint.source), None)


def _evaluation_metrics(path: Path) -> tuple[Metric, ...]:
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict):
        raise ValueError(
            f"{path}: expected a JSON object with the figures of an evaluation, got {type(results).__name__}"
        )
    dataset = str(results.get("eval_dataset", "evaluation split"))
    figures = {key.removeprefix("eval_"): value for key, value in results.items() if key.startswith("eval_")}
    return tuple(
        Metric(name.replace("_", " "), value, dataset, command="")
        for name, value in figures.items()
        if isinstance(value, (int, float)) and math.isfinite(value) and not name.endswith(NOT_A_FIGURE)
    )


def auto_class_of(config: Mapping[str, Any], method: Method | None) -> str:
    """Name of the Auto class that loads the architecture a config names; `AutoModel` where there is no other."""
    architecture = (config.get("architectures") or [""])[0]
    if method is not None:
        for auto_class, name in method.classes_for([architecture]).items():
            if name == architecture:
                return auto_class
    return next((auto for auto in PIPELINE_TAGS if architecture.endswith(auto.removeprefix("AutoModel"))), "AutoModel")


def pipeline_tag_of(config: Mapping[str, Any], method: Method | None) -> str | None:
    """Hub task of the architecture a config names; None where it cannot be told."""
    tag = PIPELINE_TAGS.get(auto_class_of(config, method))
    if tag is None and method is not None:
        tag = FEATURE_TAGS.get(method.modality)
    return tag


def build_card(
    name: str,
    config: Mapping[str, Any],
    method: Method | None = None,
    facts: CardFacts | None = None,
    parameters: int | None = None,
) -> ModelCard:
    """Write the card of a model.

    Args:
        name: Repository id or folder name that users load it by.
        config: Content of its config.json.
        method: Catalog record of its method; None for an architecture of transformers itself.
        facts: Where the weights come from and what was measured on them.
        parameters: Number of weights.

    Returns:
        The card; `str(card)` is the text of README.md.
    """
    facts = facts or CardFacts()
    tag = pipeline_tag_of(config, method)
    metadata = ModelCardData(
        library_name="transformers",
        license=facts.resolved_licence(),
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        pipeline_tag=tag,
        tags=["hubmodels", method.name, "custom_code", f"arxiv:{method.arxiv}"] if method else ["hubmodels"],
        model_name=name.split("/")[-1],
        eval_results=[_eval_result(metric, tag) for metric in facts.metrics] or None,
    )
    if not facts.metrics:
        metadata.pop("model_name")  # it names the model-index only
    sections = [
        f"# {name.split('/')[-1]}",
        _introduction(config, method, facts, parameters),
        _usage(name, config, method),
        _results(facts),
        _origin(facts, method),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def complete_card(text: str, generated: ModelCard) -> str:
    """Add to a user's card the metadata it lacks; its text and the metadata it has stay as they are.

    A card without any text gets the generated one.

    Args:
        text: Content of the user's README.md.
        generated: The card to take missing metadata from.

    Raises:
        ValueError: If the metadata block of `text` is not a YAML mapping.
    """
    card, defaults = _parse_card(text), vars(generated.data)
    if not card.text.strip():
        card.text = f"\n{generated.text.strip()}\n"
    for key, value in defaults.items():
        if value is not None and key not in ("tags", "eval_results", "model_name") and card.data.get(key) is None:
            card.data[key] = value
    own_tags = card.data.get("tags") or []
    card.data["tags"] = [*own_tags, *(tag for tag in defaults["tags"] if tag not in own_tags)]
    if card.data.get("eval_results") is None and defaults.get("eval_results") is not None:
        card.data["eval_results"], card.data["model_name"] = defaults["eval_results"], defaults["model_name"]
    return str(card)


def _parse_card(text: str) -> ModelCard:
    """The card in a README.md, which may lack a metadata block."""
    has_metadata = re.match(r"\s*---\r?\n", text)
    return ModelCard(text if has_metadata else f"---\n{{}}\n---\n\n{text.lstrip()}")


def _eval_result(metric: Metric, tag: str | None) -> EvalResult:
    slug = re.sub(r"[^a-z0-9]+", "-", metric.dataset.lower()).strip("-")
    kind = "accuracy" if metric.name.endswith("accuracy") else metric.name.replace(" ", "_")
    return EvalResult(
        task_type=tag or "other",
        dataset_type=slug,
        dataset_name=metric.dataset,
        metric_type=kind,
        metric_name=metric.name,
        metric_value=metric.value,
    )


def _introduction(config: Mapping[str, Any], method: Method | None, facts: CardFacts, parameters: int | None) -> str:
    architecture = (config.get("architectures") or ["model"])[0]
    size = f", {parameters / 1e6:.1f} M parameters" if parameters else ""
    lines = [f"`{architecture}`{size}."]
    if method is not None:
        lines.append(f"Method: [{method.title}]({method.paper}). {method.summary}")
    if facts.notes:
        lines.append(facts.notes)
    return "\n\n".join(lines)


def _usage(name: str, config: Mapping[str, Any], method: Method | None) -> str:
    auto_class = auto_class_of(config, method)
    processors = [auto for auto in PROCESSOR_CLASSES if method is not None and auto in method.auto_classes]
    trust = ", trust_remote_code=True" if method is not None else ""
    lines = [f"from transformers import {', '.join([*processors[:1], auto_class])}", ""]
    lines += [f'processor = {auto}.from_pretrained("{name}"{trust})' for auto in processors[:1]]
    lines.append(f'model = {auto_class}.from_pretrained("{name}"{trust})')
    code = "\n".join(lines)
    note = "The code of the method lies next to the weights: transformers is enough, hubmodels need not be installed."
    return f"## Use\n\n```python\n{code}\n```" + (f"\n\n{note}" if method is not None else "")


def _results(facts: CardFacts) -> str:
    if not facts.metrics:
        return ""
    rows = []
    for metric in facts.metrics:
        how = f"`{metric.command}`" if metric.command else metric.source
        source = "" if metric.source == "measured" or not metric.command else f" ({metric.source})"
        rows.append(f"| {metric.dataset} | {metric.name} | {metric.value:g} | {how}{source} |")
    return "\n".join(["## Results", "", "| data | figure | value | how |", "| --- | --- | --- | --- |", *rows])


def _origin(facts: CardFacts, method: Method | None) -> str:
    lines = ["## Training data and licence", ""]
    if facts.datasets:
        lines.append(f"Trained on: {', '.join(facts.datasets)}.")
    if facts.base_model:
        lines.append(f"Made from: `{facts.base_model}`.")
    lines.append(f"Weights: {facts.resolved_licence()}." + (f" Code: {method.code_licence}." if method else ""))
    return "\n".join(lines)
