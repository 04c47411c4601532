"""What SANM claims, at small scale, on real images with wrong labels, three seeds each.

python -m benchmarks.sanm_claims OUT --images CIFAR10 [injected] [human]

injected: 20, 50 and 80 % symmetric and 40 % asymmetric noise on 2,000 training images of CIFAR10.
human:    the labels of CIFAR-10N on the same images: aggre (9 % wrong), random1 (17 %) and worse (41 %).

Four arms with the same network: plain cross entropy; co-training without SANM (DivideMix: no masks, no masked labels,
no reconstruction); co-training with SANM; the light mode of SANM (one network). All are measured on all 10,000 test
images by the network of the last epoch (for pairs: the sum of both), and by how well the report of suspicious labels
finds the wrong ones: average precision and area under the ROC curve. Every run is stored in OUT/results.json when it
ends, and is not repeated.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification
from transformers.utils import logging

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, SeededResults
from hubmodels.data import EvalTransform, inject_label_noise, load_image_dataset
from hubmodels.evaluation import NoisyLabelReport, evaluate_classifier
from hubmodels.training import Recipe

IMAGES = 2000
COMMON = (
    f"data.size={IMAGES}",
    "model.widths=[8,16,32,64]",
    "run.precision=bf16",
    "run.checkpoints=0",
    "run.tensorboard=false",
    "run.workers=0",
    "noisy_labels.report_images=0",
    "noisy_labels.evaluate_every=100",
)
PAIR = (
    "schedule.batch_size=16",
    "optimizer.base_learning_rate=0.4",
    "schedule.epochs=18",
    "noisy_labels.warm_up_epochs=12",
    "noisy_labels.decay_epochs=[16]",
)
SINGLE = ("schedule.batch_size=32",)
OFF = ("model.mask=none", "model.mask_labels=false", "model.recon_weight=0.0")
ARMS = {
    "cross entropy": ("sanm/small_light", (*SINGLE, *OFF, "schedule.epochs=30", "noisy_labels.warm_up_epochs=30")),
    "DivideMix without SANM": ("sanm/small_cotrain", (*PAIR, *OFF)),
    "SANM": ("sanm/small_cotrain", PAIR),
    "SANM, one network": ("sanm/small_light", (*SINGLE, "schedule.epochs=25", "noisy_labels.warm_up_epochs=10")),
}
INJECTED = {
    "50 % symmetric": ("sym", 0.5),
    "20 % symmetric": ("sym", 0.2),
    "80 % symmetric": ("sym", 0.8),
    "40 % asymmetric": ("asym", 0.4),
}
HUMAN = {
    "aggre": ("noisy_aggre", 0.09, "sym"),
    "random1": ("noisy_random1", 0.17, "sym"),
    "worse": ("noisy_worse", 0.41, "asym"),
}
FIGURES = {"accuracy": "test accuracy", "ap": "average precision", "auc": "AUC"}


def noisy_training_images(images: str, column: str | None, noise: tuple[str, float] | None, seed: int):
    """The training images of a run with their wrong labels, as the run itself makes them."""
    train = load_image_dataset(images, "train")
    if column is not None:
        noisy = load_image_dataset(images, "train", label_column=column).labels
    else:
        mode, rate = noise
        noisy = inject_label_noise(train.labels, mode, rate, train.num_classes, seed).labels
    return train.with_noisy_labels(noisy).subset(IMAGES, seed)


def measure(arm: str, images: str, seed: int, column: str | None = None, noise: tuple[str, float] | None = None):
    """Trains one arm and measures accuracy and report, in per cent."""
    recipe, settings = ARMS[arm]
    overrides = [*COMMON, *settings, f"run.seed={seed}"]
    if column is not None:
        rate, kind = {entry[0]: entry[1:] for entry in HUMAN.values()}[column]
        overrides += [f"data.noisy_label_column={column}", f"noisy_labels.rate={rate}", f"noisy_labels.kind={kind}"]
    else:
        overrides += [f"data.noise_mode={noise[0]}", f"data.noise_rate={noise[1]}", f"data.noise_seed={seed}"]
    section = Recipe.load(recipe).transform
    with tempfile.TemporaryDirectory() as folder:
        run = hubmodels.train("sanm", images, Path(folder) / "run", recipe=recipe, overrides=overrides)
        model = AutoModelForImageClassification.from_pretrained(run.folder)
    transform = EvalTransform(32, crop_fraction=1.0, mean=section.mean, std=section.std)
    train = noisy_training_images(images, column, noise, seed)
    report = NoisyLabelReport.from_model(model, train, transform=transform, progress=False)
    quality = report.detection_quality()
    test = load_image_dataset(images, "test")
    accuracy = evaluate_classifier(model, test, transform, test.class_names, progress=False).accuracy
    wrong = (train.clean_labels != train.labels).float().mean().item()
    return {
        "accuracy": 100 * accuracy,
        "ap": 100 * quality.average_precision,
        "auc": 100 * quality.auc,
        "wrong": 100 * wrong,
    }


def run_experiment(results: SeededResults, name: str, images: str, seed: int) -> None:
    """All arms of an experiment with one seed."""
    settings = INJECTED if name == "injected" else HUMAN
    for arms in (list(ARMS)[:3], list(ARMS)[3:]):  # the comparison of the paper first
        for setting, arm in itertools.product(settings, arms):
            value = settings[setting]
            given = {"noise": value} if name == "injected" else {"column": value[0]}
            results.once(f"{setting}/{arm}/{seed}", lambda a=arm, g=given: measure(a, images, seed, **g))


def report_section(results: SeededResults, name: str, seeds: tuple[int, ...]) -> None:
    """Writes the table of an experiment."""
    settings = INJECTED if name == "injected" else HUMAN
    lines = [
        f"PreAct ResNet of widths 8 to 64 with one block a stage, {IMAGES:,} training images of CIFAR-10, per cent:",
        "mean (lowest to highest) of the seeds that were run. Wrong labels are found by the report of the trained",
        "model; their share is the average precision of a list in random order.",
        "",
        "| noise | wrong labels | arm | seeds | test accuracy | wrong labels found: average precision | AUC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, arm in itertools.product(settings, ARMS):
        done = [seed for seed in seeds if f"{setting}/{arm}/{seed}/accuracy" in results.values]
        if done:
            cells = [results.cell(f"{setting}/{arm}/{{seed}}/{figure}", done) for figure in ("wrong", *FIGURES)]
            lines.append(f"| {setting} | {cells[0]} | {arm} | {len(done)} | {cells[1]} | {cells[2]} | {cells[3]} |")
    command = f"python -m benchmarks.sanm_claims OUT {name} --images CIFAR10"
    title = {"injected": "SANM claim: injected wrong labels", "human": "SANM claim: human labels (CIFAR-10N)"}[name]
    write_section(title, command, [*lines, "", machine_line("torch", "transformers")])


def main() -> None:
    """Runs the experiments that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("experiments", nargs="*", default=["injected", "human"])
    parser.add_argument("--images", required=True, help="CIFAR-10 with the splits train and test and the noisy columns")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tables", action="store_true", help="only write the tables of the runs that are there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = SeededResults(arguments.out / "results.json")
    for seed in () if arguments.tables else arguments.seeds:
        for name in arguments.experiments:
            run_experiment(results, name, arguments.images, seed)
    for name in arguments.experiments:
        report_section(results, name, tuple(arguments.seeds))


if __name__ == "__main__":
    main()
