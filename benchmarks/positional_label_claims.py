"""The main claims of the Positional Label paper at small scale, on real images, three seeds each.

python -m benchmarks.positional_label_claims OUT --images CIFAR10 [vit] [swin] [sizes] [mae]

vit, swin: classifiers from scratch on 1,000 labelled images, with and without positional labels (tables 1 and 2).
sizes:     the same ViT on fewer and more labelled images: the gain should shrink as data grows.
mae:       masked autoencoders with and without positional labels of the visible patches, then a linear probe of the
           frozen encoder and fine-tuning. (The paper proposes the combination without giving figures.)

All learn from a part of the training images of CIFAR10 (a local copy of the data set with a train and a test split) and
are measured on its test images. Every run is stored in OUT/results.json when it ends, and is not repeated.
"""

import tempfile
from pathlib import Path

from transformers import AutoModelForPreTraining

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, SeededResults, begin, experiment_parser
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation import extract_features, linear_probe
from hubmodels.training import read_jsonl

RUN = ("run.checkpoints=1", "run.tensorboard=false", "run.precision=fp32")
SMALL_VIT = tuple(
    f"model.backbone_config.{key}={value}"
    for key, value in {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 192,
    }.items()
)
SUPERVISED = ("schedule.batch_size=50", "optimizer.base_learning_rate=5.0e-3", "schedule.warmup_epochs=3")
TUNING = (*SUPERVISED, "schedule.epochs=25")
VIT = (*SMALL_VIT, *TUNING)
SWIN_EPOCHS = 60
SWIN = (*SUPERVISED, "model.backbone_config.embed_dim=24", "model.backbone_config.depths=[1, 2]")
SWIN = (*SWIN, "model.backbone_config.num_heads=[2, 4]", "model.backbone_config.patch_size=4")
SWIN = (*SWIN, f"schedule.epochs={SWIN_EPOCHS}", "model.backbone_variant=authors")
NONE = ("model.position_label=null",)
ABSOLUTE = ("model.position_label=absolute", "model.num_anchors=null")
RELATIVE = ("model.position_label=relative", "model.num_anchors=8")
HIDDEN = ("model.position_dropout=0.5",)
ALL_HIDDEN = ("model.position_dropout=1.0",)
LIGHT = ("model.position_loss_weight=0.05",)
LABELS = {"none": NONE, "absolute": ABSOLUTE, "relative": RELATIVE}
TEST_IMAGES = 10_000
MAE = (*SMALL_VIT, "schedule.epochs=15", "schedule.batch_size=64", "data.size=3000", "probe.every_epochs=0")
MAE = (*MAE, "model.position_dropout=0.0", "model.backbone_config.decoder_hidden_size=32", "schedule.warmup_epochs=3")
MAE = (*MAE, "model.backbone_config.decoder_intermediate_size=128", "optimizer.base_learning_rate=8.0e-3")
PROBE_IMAGES, PROBE_TEST_IMAGES = 2000, 5000


def supervised(recipe: str, settings: tuple[str, ...], images: str, size: int, seed: int) -> dict[str, float]:
    """Test accuracy of a classifier from scratch, and how well it tells positions at the end, in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*RUN, *settings, f"data.size={size}", f"run.seed={seed}"]
        run = hubmodels.train("positional_label", images, Path(folder) / "run", recipe=recipe, overrides=overrides)
        log = read_jsonl(run.folder / "log.jsonl")
        positions = [line["position_accuracy"] for line in log if "position_accuracy" in line]
    return {
        "accuracy": 100 * run.metrics["eval_accuracy"],
        "position accuracy": 100 * positions[-1] if positions else 0.0,
    }


def pretrained(settings: tuple[str, ...], images: str, seed: int) -> dict[str, float]:
    """Linear probe of the frozen encoder of an autoencoder and accuracy of it fine-tuned, in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*RUN, *MAE, *settings, f"run.seed={seed}"]
        recipe = "positional_label/small_pretrain"
        run = hubmodels.train("positional_label", images, Path(folder) / "run", recipe=recipe, overrides=overrides)
        model = AutoModelForPreTraining.from_pretrained(run.folder)
        log = read_jsonl(run.folder / "log.jsonl")
        positions = [line["position_accuracy"] for line in log if "position_accuracy" in line]
        tuned = hubmodels.train(
            "positional_label",
            images,
            Path(folder) / "tuned",
            backbone=str(run.folder),
            recipe="positional_label/small_finetune",
            overrides=[*RUN, *TUNING, *NONE, "data.size=1000", f"run.seed={seed}"],
        )
    transform = EvalTransform(model.config.image_size, crop_fraction=1.0)
    train = load_image_dataset(images, "train").subset(PROBE_IMAGES, seed=0)
    test = load_image_dataset(images, "test").subset(PROBE_TEST_IMAGES, seed=0)
    features = [
        part
        for data in (train, test)
        for part in (extract_features(model, data, transform, progress=False)[0], data.labels)
    ]
    return {
        "linear": 100 * linear_probe(*features, seed=seed).accuracy,
        "fine-tuned": 100 * tuned.metrics["eval_accuracy"],
        "position accuracy": 100 * positions[-1] if positions else 0.0,
    }


def measure_classifiers(results: SeededResults, name: str, images: str) -> list[str]:
    """Runs (or reads) one table of classifiers."""
    recipe, base, network = {
        "vit": ("positional_label/small_finetune", VIT, "ViT (48 wide, 3 layers), 32 pixels, 25 epochs"),
        "swin": (
            "positional_label/small_finetune_swin",
            SWIN,
            f"The authors' Swin without position biases (24 wide, stages of 1 and 2), 32 pixels, {SWIN_EPOCHS} epochs",
        ),
    }[name]
    rows = dict(LABELS)
    for seed in SEEDS:
        for row, settings in rows.items():
            results.once(
                f"{name}/{row}/{seed}",
                lambda s=(*base, *settings), i=seed: supervised(recipe, s, images, 1000, i),
            )
    lines = [
        f"{network} of batch 50 from scratch on 1,000 labelled CIFAR-10 images; accuracy in per cent on "
        f"{TEST_IMAGES:,} test images: mean (lowest to highest) of seeds 0, 1, 2.",
        "",
        "| positional labels | test accuracy | positions told at the end |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        told = results.cell(f"{name}/{row}/{{seed}}/position accuracy") if row != "none" else ""
        lines.append(f"| {row} | {results.cell(f'{name}/{row}/{{seed}}/accuracy')} | {told} |")
    return lines


def measure_sizes(results: SeededResults, images: str) -> list[str]:
    """Runs (or reads) the table of data sizes; the number of steps is the same."""
    sizes = {250: 100, 4000: 6}
    lines = [
        "The ViT of the table above with the same number of steps on other numbers of labelled images; accuracy in",
        "per cent, mean (lowest to highest) of seeds 0, 1, 2.",
        "",
        "| labelled images | none | absolute | relative |",
        "| --- | --- | --- | --- |",
    ]
    for size, epochs in sizes.items():
        for seed in SEEDS:
            for row, settings in LABELS.items():
                results.once(
                    f"sizes {size}/{row}/{seed}",
                    lambda s=(*VIT, *settings, f"schedule.epochs={epochs}"), i=seed, n=size: supervised(
                        "positional_label/small_finetune", s, images, n, i
                    ),
                )
        cells = [results.cell(f"sizes {size}/{row}/{{seed}}/accuracy") for row in LABELS]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    return lines


def measure_autoencoders(results: SeededResults, images: str) -> list[str]:
    """Runs (or reads) the table of autoencoders."""
    rows = {
        "none": NONE,
        "absolute": ABSOLUTE,
        "absolute, half of the positions hidden": (*ABSOLUTE, *HIDDEN),
        "absolute, all positions hidden": (*ABSOLUTE, *ALL_HIDDEN),
        "absolute, a tenth of the weight": (*ABSOLUTE, *LIGHT),
        "relative, half of the positions hidden": (*RELATIVE, *HIDDEN),
    }
    for seed in SEEDS:
        for row, settings in rows.items():
            results.once(f"mae/{row}/{seed}", lambda s=settings, i=seed: pretrained(s, images, i))
    lines = [
        "Masked autoencoder (48 wide, 3 layers), pre-trained for 15 epochs on 3,000 unlabelled CIFAR-10 images, then "
        f"frozen (a linear probe learns from {PROBE_IMAGES:,} labelled images) or fine-tuned without positional labels "
        "for 25 epochs on 1,000; accuracy in per cent on test images: mean (lowest to highest) of seeds 0, 1, 2.",
        "",
        "| positional labels | linear probe | fine-tuned | positions told at the end |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [results.cell(f"mae/{row}/{{seed}}/{figure}") for figure in ("linear", "fine-tuned")]
        told = results.cell(f"mae/{row}/{{seed}}/position accuracy") if row != "none" else ""
        lines.append(f"| {row} | " + " | ".join([*cells, told]) + " |")
    return lines


TITLES = {
    "vit": "Positional Label claim: ViT from scratch",
    "swin": "Positional Label claim: Swin from scratch",
    "mae": "Positional Label: masked autoencoders",
    "sizes": "Positional Label claim: more and fewer labels",
}


def main() -> None:
    """Runs the experiments that are named, all by default."""
    parser = experiment_parser(__doc__)
    parser.add_argument("experiments", nargs="*", default=list(TITLES))
    parser.add_argument("--images", required=True, help="labelled images with the splits train and test")
    arguments, results = begin(parser)
    for name in arguments.experiments:
        if name == "mae":
            lines = measure_autoencoders(results, arguments.images)
        elif name == "sizes":
            lines = measure_sizes(results, arguments.images)
        else:
            lines = measure_classifiers(results, name, arguments.images)
        command = f"python -m benchmarks.positional_label_claims OUT {name} --images CIFAR10"
        write_section(TITLES[name], command, [*lines, "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
