"""The whole way on real images in about two minutes: load, fine-tune, compare, draw, publish, load back elsewhere.

Everything it needs is in the package: a checkpoint that was pre-trained with MAE, and a labelled set of 2,000 + 2,000
Fashion-MNIST images. Nothing is downloaded.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hubmodels.catalog import packaged_path
from hubmodels.data import EvalTransform, ImageCollator, ImageDataset, PretrainTransform, load_image_dataset
from hubmodels.evaluation import evaluate_classifier
from hubmodels.model_card import CARD_NAME, CardFacts
from hubmodels.publishing import prepare_repository
from hubmodels.visualization import reconstruction_sheet

CHECKPOINT = "mae-small-32"
DATASET = "fashion-mnist-small"
TRAIN_IMAGES = 500
TEST_IMAGES = 1000
EPOCHS = 8
BATCH_SIZE = 25
LEARNING_RATE = 1e-3

# Runs where hubmodels cannot be imported: what is published must stand on its own.
_LOAD_ELSEWHERE = """
import sys
sys.modules["hubmodels"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
folder, images, logits = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
inputs = processor(list(torch.load(images, weights_only=True)), return_tensors="pt")
with torch.no_grad():
    torch.save(model(**inputs).logits, logits)
"""


def main(output: str | os.PathLike[str] = "quickstart-output", seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """
    Runs the tour and prints what it finds.

    Args:
        output: folder for the pictures, the fine-tuned model and its publishable repository. It must not exist yet; it
            appears when everything is in it.
        seeds: seeds of the fine-tuning runs; each is run from the pre-trained weights and from scratch.

    Returns:
        The folder.

    Raises:
        FileExistsError: if `output` exists.
        RuntimeError: if the published model computes something else than the original where hubmodels is missing.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another folder with --out")
    console, start = Console(), time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent.resolve(), prefix=f".{output.name}-") as temporary:
        work = Path(temporary) / "output"
        work.mkdir()
        source = packaged_path(CHECKPOINT)
        train = load_image_dataset(DATASET, split="train").subset(TRAIN_IMAGES, seed=0)
        test = load_image_dataset(DATASET, split="test").subset(TEST_IMAGES, seed=0)

        console.rule("1. Reconstructions of the pre-trained model")
        draw_reconstructions(source, test, work / "reconstructions.png")
        console.print(f"loaded {CHECKPOINT} with from_pretrained and drew {output / 'reconstructions.png'}")

        console.rule(f"2. Fine-tuning on {len(train)} labelled images with transformers.Trainer")
        best = compare(source, train, test, seeds, Path(temporary) / "runs", console)

        console.rule("3. Publishing and loading back without hubmodels")
        save(best, source, work / "model")
        repository = prepare_repository(work / "model", work / "repository", name="mae-small-fashion-mnist")
        difference = load_elsewhere(best, repository, test, Path(temporary))
        console.print(
            f"a process that cannot import hubmodels loaded the repository: outputs agree (difference {difference:.1e})"
        )
        os.replace(work, output)
    console.rule("Done")
    for name, what in (
        ("reconstructions.png", "what the model sees, and what it imagines"),
        ("model/", "the fine-tuned classifier: AutoModelForImageClassification.from_pretrained(...)"),
        ("repository/", "the same with code and card, ready for the Hub"),
    ):
        console.print(f"{output / name}  [dim]{what}[/dim]", soft_wrap=True)
    console.print(f"next: hubmodels publish {output / 'model'} YOUR_NAME/mae-small-fashion-mnist", soft_wrap=True)
    console.print(f"all this took {time.perf_counter() - start:.0f} s on {torch.get_num_threads()} threads")
    return output


def draw_reconstructions(source: Path, dataset: ImageDataset, path: Path) -> None:
    """Draws reconstructions of the first six images of `dataset` with the packaged checkpoint `source` to `path`."""
    model = AutoModelForPreTraining.from_pretrained(source)
    transform = EvalTransform(model.config.image_size, crop_fraction=1.0)
    pixel_values = transform([dataset[index]["image"] for index in range(6)])
    reconstruction_sheet(model, pixel_values, path, generator=torch.Generator().manual_seed(0))


def compare(
    source: Path, train: ImageDataset, test: ImageDataset, seeds: Sequence[int], runs: Path, console: Console
) -> PreTrainedModel:
    """Fine-tunes from `source` and from scratch under the same budget; prints a table, returns the best model."""
    accuracies: dict[str, list[float]] = {"from scratch": [], "pre-trained": []}
    best, best_accuracy = None, -1.0
    for seed in seeds:
        for start, values in accuracies.items():
            model = new_classifier(source, train, seed, pretrained=start == "pre-trained")
            values.append(finetune(model, train, test, seed, runs))
            console.print(f"seed {seed}, {start:<12}: test accuracy {values[-1]:.1f} %")
            if start == "pre-trained" and values[-1] > best_accuracy:
                best, best_accuracy = model, values[-1]
    table = Table("start", "test accuracy (mean)", "of each seed", title=f"{len(test)} test images, {EPOCHS} epochs")
    for start, values in accuracies.items():
        table.add_row(start, f"{statistics.mean(values):.1f} %", ", ".join(f"{value:.1f}" for value in values))
    console.print(table)
    assert best is not None  # one per seed was trained
    return best


def new_classifier(source: Path, dataset: ImageDataset, seed: int, pretrained: bool) -> PreTrainedModel:
    """A classifier for the classes of `dataset`, with the weights of `source` or the method's own initialisation."""
    torch.manual_seed(seed)
    names = dict(enumerate(dataset.class_names))
    options = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = AutoModelForImageClassification.from_pretrained(source, **options)
    return model if pretrained else type(model)(model.config)


def finetune(
    model: PreTrainedModel, train: ImageDataset, test: ImageDataset, seed: int, run: Path, epochs: int = EPOCHS
) -> float:
    """Trains `model` with the plain Trainer of transformers; returns the test accuracy in per cent."""
    size = model.config.image_size
    augment = PretrainTransform(size, scale=(0.8, 1.0))
    arguments = TrainingArguments(
        output_dir=str(run),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        remove_unused_columns=False,
    )
    collator = ImageCollator(augment, seed=seed, train=True)
    Trainer(model=model, args=arguments, train_dataset=train, data_collator=collator).train()
    report = evaluate_classifier(model.eval(), test, EvalTransform(size, crop_fraction=1.0))
    return 100 * report.accuracy


def save(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Saves the classifier with the image processor of `source`, and says where it comes from."""
    model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(source).save_pretrained(folder)
    (folder / CARD_NAME).write_text(CardFacts.of_descendant(source, [DATASET]).metadata(), encoding="utf-8")


def load_elsewhere(model: PreTrainedModel, repository: Path, dataset: ImageDataset, scratch: Path) -> float:
    """
    Loads `repository` in a fresh process without hubmodels and compares its outputs with those of `model`.

    Returns:
        The largest absolute difference of the logits.

    Raises:
        RuntimeError: if the process fails or the outputs differ.
    """
    images = torch.stack([dataset[index]["image"].expand(3, -1, -1) for index in range(8)])
    torch.save(images, scratch / "images.pt")
    inputs = AutoImageProcessor.from_pretrained(repository)(list(images), return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    command = [sys.executable, "-c", _LOAD_ELSEWHERE]
    paths = [str(repository), str(scratch / "images.pt"), str(scratch / "logits.pt")]
    result = subprocess.run([*command, *paths], env=environment, cwd=scratch, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the published folder does not load without hubmodels:\n{result.stderr}")
    difference = float((torch.load(scratch / "logits.pt", weights_only=True) - expected).abs().max())
    if difference > 1e-5:
        raise RuntimeError(f"the published model computes something else: logits differ by {difference}")
    return difference
