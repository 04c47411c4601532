"""What SANM claims, at small scale, on real images with wrong labels, three seeds each.

python -m benchmarks.sanm_claims OUT [clothes] [longer] [whole] [controls] [cifar10] [cifar10n] [--images CIFAR10]

clothes:  20, 50 and 80 % symmetric and 40 % asymmetric noise on 1,000 images of the packaged Fashion-MNIST.
longer:   the same noise again with twice the epochs of co-training and without the loss of unlabelled images
          (an epoch of it has only as many steps as the images with credible labels make).
whole:    20 % symmetric noise for 200 epochs of every arm: cross entropy has learned the wrong labels by heart then.
controls: 50 % symmetric noise, one network in all arms, which add the parts of SANM one by one: refined labels, masks
          at random places, masks placed by the activation maps, masked labels, reconstruction.
cifar10:  as clothes on 1,000 training images of CIFAR10 (a local copy with the splits train and test).
cifar10n: the labels of CIFAR-10N on the same images: aggre (9 % wrong), random1 (17 %) and worse (41 %).

Arms with the same network and as many epochs: plain cross entropy (crop and flip); co-training without SANM
(DivideMix: no masks, no masked labels, no reconstruction); co-training with SANM; cross entropy with the AutoAugment
that co-training has; the light mode of SANM (one network); and cross entropy for 200 epochs. All are
measured on all test images by the network of the last epoch (for pairs: the sum of both), by how well the report of
suspicious labels finds the wrong ones (average precision and area under the ROC curve), and by the share of the wrong
labels that the network has learned by heart. Every run is stored in
OUT/results.json when it ends, and is not repeated, also by other processes with the same OUT (of other --seeds);
--tables writes the tables of what is there.
"""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, SeededResults, begin, experiment_parser
from hubmodels.data import inject_label_noise, load_image_dataset
from hubmodels.evaluation import NoisyLabelReport, evaluate_classifier
from hubmodels.evaluation.evaluate import classifier_and_transform

COMMON = (
    "model.widths=[16,32,64,128]",
    "run.precision=bf16",
    "run.checkpoints=0",
    "run.tensorboard=false",
    "run.workers=0",
    "noisy_labels.report_images=0",
    "noisy_labels.evaluate_every=100",
)
EPOCHS = 40
WARM_UP_EPOCHS = 20
MORE_EPOCHS = 60  # of the experiment `longer`
LONG_EPOCHS = 200  # of cross entropy: it has learned wrong labels by heart by then
PAIR = (
    "schedule.batch_size=16",
    "optimizer.base_learning_rate=0.4",
    f"schedule.epochs={EPOCHS}",
    f"noisy_labels.warm_up_epochs={WARM_UP_EPOCHS}",
    f"noisy_labels.decay_epochs=[{EPOCHS - 6}]",
)
SINGLE = ("schedule.batch_size=32", f"schedule.epochs={EPOCHS}")
OFF = ("model.mask=none", "model.mask_labels=false", "model.recon_weight=0.0")
PLAIN = (*SINGLE, *OFF, f"noisy_labels.warm_up_epochs={LONG_EPOCHS}")
CROP_AND_FLIP = ("noisy_labels.mixing=weak",)
ARMS = {
    "cross entropy": ("sanm/small_light", (*PLAIN, *CROP_AND_FLIP)),
    f"cross entropy, {LONG_EPOCHS} epochs": (
        "sanm/small_light",
        (*PLAIN, *CROP_AND_FLIP, f"schedule.epochs={LONG_EPOCHS}"),
    ),
    "DivideMix without SANM": ("sanm/small_cotrain", (*PAIR, *OFF)),
    "SANM": ("sanm/small_cotrain", PAIR),
    "cross entropy, AutoAugment": ("sanm/small_light", PLAIN),
    "SANM, one network": ("sanm/small_light", (*SINGLE, f"noisy_labels.warm_up_epochs={WARM_UP_EPOCHS}")),
}
PARTS = {  # of the light mode, each with all that stand above it
    "refined labels": OFF,
    "random masks": ("model.mask=random", *OFF[1:]),
    "masks by activation": OFF[1:],
    "masked labels": OFF[2:],
    "reconstruction": (),
}
LIGHT = (*SINGLE, *CROP_AND_FLIP, f"noisy_labels.warm_up_epochs={WARM_UP_EPOCHS}")
ARMS |= {f"one network, {part}": ("sanm/small_light", (*LIGHT, *settings)) for part, settings in PARTS.items()}
COUNT = 1000
CLOTHES = ("transform.mean=[0.286]", "transform.std=[0.353]")
FIRST_ARMS = 4  # the comparison of the paper, which is run first
NOISE = {
    "50 % symmetric": ("sym", 0.5),
    "20 % symmetric": ("sym", 0.2),
    "80 % symmetric": ("sym", 0.8),
    "40 % asymmetric": ("asym", 0.4),
}
COLUMNS = {
    "accuracy": "test accuracy",
    "ap": "wrong labels found: average precision",
    "auc": "AUC",
    "memorised": "wrong labels learned by heart",
}
HUMAN = {
    "worse": ("noisy_worse", 0.41, "asym"),
    "random1": ("noisy_random1", 0.17, "sym"),
    "aggre": ("noisy_aggre", 0.09, "sym"),
}


@dataclass(frozen=True)
class Experiment:
    """Images, what is done to their labels, the settings of all arms, the arms and their epochs."""

    title: str
    settings: dict[str, tuple]
    common: tuple[str, ...] = ()
    source: str | None = None
    arms: tuple[str, ...] = tuple(ARMS)[: -len(PARTS)]
    epochs: int = EPOCHS


def _longer(title: str, noise: dict[str, tuple], epochs: int) -> Experiment:
    """Fashion-MNIST with more epochs and without the loss of unlabelled images."""
    settings = (
        *CLOTHES,
        "noisy_labels.lambda_u=0.0",
        f"schedule.epochs={epochs}",
        f"noisy_labels.decay_epochs=[{epochs - 6}]",
    )
    arms = ("cross entropy", "SANM", "DivideMix without SANM")
    return Experiment(title, noise, settings, "fashion-mnist-small", arms, epochs)


EXPERIMENTS = {
    "clothes": Experiment(
        "SANM claim: injected wrong labels, Fashion-MNIST",
        NOISE,
        CLOTHES,
        "fashion-mnist-small",
    ),
    "longer": _longer(
        "SANM claim: wrong labels, longer co-training, no unlabelled loss, Fashion-MNIST", NOISE, MORE_EPOCHS
    ),
    "whole": _longer(
        "SANM claim: 20 % wrong labels, 200 epochs, no unlabelled loss, Fashion-MNIST",
        {"20 % symmetric": NOISE["20 % symmetric"]},
        LONG_EPOCHS,
    ),
    "controls": Experiment(
        "SANM claim: its parts one by one, Fashion-MNIST",
        {"50 % symmetric": NOISE["50 % symmetric"]},
        (*CLOTHES, f"schedule.epochs={MORE_EPOCHS}"),
        "fashion-mnist-small",
        ("cross entropy", *tuple(ARMS)[-len(PARTS) :]),
        MORE_EPOCHS,
    ),
    "cifar10": Experiment("SANM claim: injected wrong labels, CIFAR-10", NOISE),
    "cifar10n": Experiment("SANM claim: human labels, CIFAR-10N", HUMAN),
}


def noisy_training_images(source: str, value: tuple, count: int, seed: int):
    """The training images of a run with their wrong labels, as the run itself makes them."""
    train = load_image_dataset(source, "train")
    if len(value) == 3:
        noisy = load_image_dataset(source, "train", label_column=value[0]).labels
    else:
        noisy = inject_label_noise(train.labels, *value, train.num_classes, seed).labels
    return train.with_noisy_labels(noisy).subset(count, seed)


def measure(experiment: Experiment, arm: str, value: tuple, source: str, seed: int) -> dict[str, float]:
    """Trains one arm and measures accuracy and report, in per cent."""
    recipe, settings = ARMS[arm]
    overrides = [*COMMON, *settings, *experiment.common, f"data.size={COUNT}", f"run.seed={seed}"]
    if len(value) == 3:
        column, rate, kind = value
        overrides += [f"data.noisy_label_column={column}", f"noisy_labels.rate={rate}", f"noisy_labels.kind={kind}"]
    else:
        overrides += [f"data.noise_mode={value[0]}", f"data.noise_rate={value[1]}", f"data.noise_seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        run = hubmodels.train("sanm", source, Path(folder) / "run", recipe=recipe, overrides=overrides)
        model, transform = classifier_and_transform(run.folder)
    train = noisy_training_images(source, value, COUNT, seed)
    report = NoisyLabelReport.from_model(model, train, transform=transform, progress=False)
    quality = report.detection_quality()
    test = load_image_dataset(source, "test")
    accuracy = evaluate_classifier(model, test, transform, test.class_names, progress=False).accuracy
    is_wrong = (train.clean_labels != train.labels).numpy()
    learned = report.probabilities.argmax(axis=1) == report.labels
    figures = {
        "accuracy": accuracy,
        "ap": quality.average_precision,
        "auc": quality.auc,
        "wrong": is_wrong.mean(),
        "memorised": learned[is_wrong].mean(),
    }
    return {name: 100 * float(figure) for name, figure in figures.items()}


def run_experiment(results: SeededResults, name: str, images: str | None, seed: int) -> None:
    """All arms of an experiment with one seed."""
    experiment = EXPERIMENTS[name]
    source = experiment.source or images
    if source is None:
        raise SystemExit(f"{name} needs --images")
    for arms in (experiment.arms[:FIRST_ARMS], experiment.arms[FIRST_ARMS:]):
        for (setting, value), arm in itertools.product(experiment.settings.items(), arms):
            results.once(
                f"{name}/{setting}/{arm}/{seed}", lambda a=arm, v=value: measure(experiment, a, v, source, seed)
            )


def write_table(results: SeededResults, name: str, seeds: list[int]) -> None:
    """Writes the table of an experiment."""
    experiment = EXPERIMENTS[name]
    rows = [
        (setting, arm, done)
        for setting, arm in itertools.product(experiment.settings, ARMS)
        if (done := [seed for seed in seeds if f"{name}/{setting}/{arm}/{seed}/accuracy" in results.values])
    ]
    runs = [f"{name}/{setting}/{arm}/{seed}" for setting, arm, done in rows for seed in done]
    columns = {  # the figures that every run has
        figure: title for figure, title in COLUMNS.items() if all(f"{run}/{figure}" in results.values for run in runs)
    }
    lines = [
        "PreAct ResNet of widths 16 to 128 with one block a stage, "
        f"{experiment.epochs} epochs, {WARM_UP_EPOCHS} of them warm-up,",
        f"{COUNT:,} training images; per cent: mean (lowest to highest) of the seeds that were run. Wrong labels are",
        "found by the report of the trained model; their share is the average precision of a list in random order.",
        "",
        f"| noise | wrong labels | arm | seeds | {' | '.join(columns.values())} |",
        "| --- " * (4 + len(columns)) + "|",
    ]
    for setting, arm, done in rows:
        wrong, *cells = (
            results.cell(f"{name}/{setting}/{arm}/{{seed}}/{figure}", done) for figure in ("wrong", *columns)
        )
        lines.append(f"| {setting} | {wrong} | {arm} | {len(done)} | {' | '.join(cells)} |")
    command = f"python -m benchmarks.sanm_claims OUT {name}" + ("" if experiment.source else " --images CIFAR10")
    write_section(experiment.title, command, [*lines, "", machine_line("torch", "transformers")])


def main() -> None:
    """Runs the experiments that are named, by default the one on packaged images."""
    parser = experiment_parser(__doc__)
    parser.add_argument("experiments", nargs="*", default=["clothes"])
    parser.add_argument("--images", help="CIFAR-10 with the splits train and test, and the noisy columns for cifar10n")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tables", action="store_true", help="only write the tables of the runs that are there")
    arguments, results = begin(parser)
    torch.set_num_threads(1)
    for seed in () if arguments.tables else arguments.seeds:
        for name in arguments.experiments:
            run_experiment(results, name, arguments.images, seed)
    for name in arguments.experiments:
        write_table(results, name, arguments.seeds)


if __name__ == "__main__":
    main()
