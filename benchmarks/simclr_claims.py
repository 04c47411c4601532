"""The main claims of the SimCLR paper at small scale, on real images, three seeds each.

python -m benchmarks.simclr_claims OUT --images CIFAR10 [views] [head] [length] [longer] [wider] [stronger]

views:  random crops and colour distortion together against either alone (section 3.1, figure 5).
head:   no projection head, a linear and a nonlinear one, probed before the head (section 4.2, figure 8).
length: fewer epochs, and smaller batches (section 5.3, figure 9).
longer: the heads again, and a smaller batch, with three times the epochs.
wider:  a linear and a nonlinear head on a network of twice the width (256 features in place of 128).
stronger: the heads with colour distortion of twice the strength, as on ImageNet, so more to be forgotten (table 3);
        also with three times the epochs.

Every network is pre-trained from scratch on 5,000 unlabelled training images of CIFAR10 (a local copy of the data set
with a train and a test split), then frozen; a linear probe and k-NN learn from 5,000 labelled training images and are
measured on 2,000 test images. Every run is stored in OUT/results.json when it ends, and is not repeated.
"""

import tempfile
from pathlib import Path

import torch
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRModel
from transformers import AutoModel

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, begin, experiment_parser
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation import extract_features, knn_accuracy, linear_probe
from hubmodels.training import Recipe

RECIPE = "simclr/small_pretrain"
EPOCHS = 8
LONG_EPOCHS = 24
WIDE_STEM = 32
STRENGTH = 1.0
BUDGET = (
    "data.size=5000",
    "schedule.batch_size=128",
    f"schedule.epochs={EPOCHS}",
    "schedule.warmup_epochs=1",
    "probe.every_epochs=0",
)
RUN = ("run.precision=bf16", "run.checkpoints=1", "run.tensorboard=false")
PROBE_IMAGES, TEST_IMAGES = 5000, 2000
NO_COLOUR = ("transform.options.jitter_probability=0.0", "transform.options.grayscale_probability=0.0")
NO_CROP = ("transform.options.do_random_crop=false",)
NO_HEAD, LINEAR_HEAD = ("model.proj_head_mode=none",), ("model.proj_head_mode=linear",)
SMALL_BATCH = ("schedule.batch_size=32",)
FULL = "crop and colour, nonlinear head, batch 128, 8 epochs"
EXPERIMENTS = {
    "views": {"random weights": None, "colour only": NO_CROP, "crop only": NO_COLOUR, FULL: ()},
    "head": {"no head": NO_HEAD, "linear head": LINEAR_HEAD, FULL: ()},
    "length": {
        "3 epochs": ("schedule.epochs=3",),
        "batch 8": ("schedule.batch_size=8",),
        "batch 32": SMALL_BATCH,
        FULL: (),
    },
    "longer": {
        f"{setting}, {LONG_EPOCHS} epochs": (*overrides, f"schedule.epochs={LONG_EPOCHS}")
        for setting, overrides in {
            "no head": NO_HEAD,
            "linear head": LINEAR_HEAD,
            "nonlinear head": (),
            "nonlinear head, batch 32": SMALL_BATCH,
        }.items()
    },
    "wider": {
        f"{setting}, stem width {WIDE_STEM}": (*overrides, f"model.stem_width={WIDE_STEM}")
        for setting, overrides in {"linear head": LINEAR_HEAD, "nonlinear head": ()}.items()
    },
    "stronger": {
        f"{setting}, strength {STRENGTH}{length}": (*overrides, f"transform.options.strength={STRENGTH}", *epochs)
        for length, epochs in {"": (), f", {LONG_EPOCHS} epochs": (f"schedule.epochs={LONG_EPOCHS}",)}.items()
        for setting, overrides in {"no head": NO_HEAD, "linear head": LINEAR_HEAD, "nonlinear head": ()}.items()
    },
}
TITLES = {
    "views": "SimCLR claim: crops and colours",
    "head": "SimCLR claim: projection head",
    "length": "SimCLR claim: epochs and batch",
    "longer": "SimCLR claim: projection head and batch with more epochs",
    "wider": "SimCLR claim: projection head of a wider network",
    "stronger": "SimCLR claim: projection head with stronger colour distortion",
}


def probes(model, images: str, seed: int) -> dict[str, float]:
    """Linear probe and k-NN accuracy of frozen features, in per cent."""
    transform = EvalTransform(model.config.image_size, crop_fraction=1.0, mean=0.0, std=1.0)
    train = load_image_dataset(images, "train").subset(PROBE_IMAGES, seed=0)
    test = load_image_dataset(images, "test").subset(TEST_IMAGES, seed=0)
    features = [
        part
        for data in (train, test)
        for part in (extract_features(model, data, transform, progress=False)[0], data.labels)
    ]
    return {
        "linear": 100 * linear_probe(*features, seed=seed).accuracy,
        "knn": 100 * knn_accuracy(*features),
    }


def measure(overrides: tuple[str, ...] | None, images: str, seed: int) -> dict[str, float]:
    """Pre-trains (or not, without overrides) and probes."""
    with tempfile.TemporaryDirectory() as folder:
        if overrides is None:
            torch.manual_seed(seed)
            return probes(SimCLRModel(SimCLRConfig(**Recipe.load(RECIPE).model)), images, seed)
        settings = [*BUDGET, *RUN, f"run.seed={seed}", *overrides]
        run = hubmodels.train("simclr", images, Path(folder) / "run", recipe=RECIPE, overrides=settings)
        return probes(AutoModel.from_pretrained(run.folder), images, seed)


def main() -> None:
    """Runs the experiments that are named, all by default."""
    parser = experiment_parser(__doc__)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--images", required=True, help="labelled images with the splits train and test")
    arguments, results = begin(parser)
    for name in arguments.experiments:
        for seed in SEEDS:
            for setting, overrides in EXPERIMENTS[name].items():
                results.once(f"{setting}/{seed}", lambda o=overrides, s=seed: measure(o, arguments.images, s))
        lines = [
            "ResNet-18 of stem width 16, or as named, 32 pixels, features before the head; accuracy in per cent on "
            f"{TEST_IMAGES:,}",
            "CIFAR-10 test images: mean (lowest to highest) of seeds 0, 1, 2.",
            "",
            "| pre-training | linear probe | k-NN |",
            "| --- | --- | --- |",
        ]
        for setting in EXPERIMENTS[name]:
            cells = [results.cell(f"{setting}/{{seed}}/{figure}") for figure in ("linear", "knn")]
            lines.append(f"| {setting} | " + " | ".join(cells) + " |")
        command = f"python -m benchmarks.simclr_claims OUT {name} --images CIFAR10"
        write_section(TITLES[name], command, [*lines, "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
