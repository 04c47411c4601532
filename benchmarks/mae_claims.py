"""The main claims of the MAE paper at small scale, on real images, three seeds each.

python -m benchmarks.mae_claims OUT [labels] [probe] [ratio --images SOURCE]

labels: fine-tuning from the packaged checkpoint against the same network from scratch, at 1 %, 10 % and 100 % of the
        2,000 labels of the packaged Fashion-MNIST set, equal budgets, tested on its 2,000 test images.
probe:  linear probe of the packaged checkpoint with and without BatchNorm, and k-NN, against random initialisation.
ratio:  pre-training at mask ratios 0.25, 0.5, 0.75, 0.9 on unlabelled images, then linear probe and fine-tuning.

Every run is stored in OUT/results.json when it ends, and is not repeated; the command can be stopped and started again.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForPreTraining

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, SeededResults, begin, experiment_parser
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation import extract_features, knn_accuracy, linear_probe
from hubmodels.quickstart import CHECKPOINT, DATASET, finetune, new_classifier

# Share of the labels -> epochs that a CPU affords; the same for both starts.
LABELS = {0.01: 60, 0.1: 20, 1.0: 6}
RATIOS = (0.25, 0.5, 0.75, 0.9)
RATIO_OVERRIDES = (
    "model.hidden_size=96",
    "model.num_hidden_layers=4",
    "model.num_attention_heads=3",
    "model.intermediate_size=384",
    "data.size=8000",
    "schedule.epochs=10",
    "schedule.warmup_epochs=1",
    "optimizer.base_learning_rate=1.5e-3",
    "probe.every_epochs=0",
    "run.precision=bf16",
    "run.checkpoints=1",
    "run.tensorboard=false",
)


def features(model, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean patch features and labels of a split of the packaged set."""
    transform = EvalTransform(model.config.image_size, crop_fraction=1.0)
    return extract_features(model, load_image_dataset(DATASET, split=split), transform, progress=False)


def probes(model, seed: int) -> dict[str, float]:
    """Linear probe with and without BatchNorm and k-NN accuracy of the encoder, in per cent."""
    train, test = features(model, "train"), features(model, "test")
    return {
        "linear": 100 * linear_probe(*train, *test, seed=seed).accuracy,
        "linear_without_bn": 100 * linear_probe(*train, *test, batch_norm=False, seed=seed).accuracy,
        "knn": 100 * knn_accuracy(*train, *test),
    }


def finetuned(source: Path, share: float, epochs: int, seed: int, pretrained: bool) -> dict[str, float]:
    """Test accuracy after fine-tuning on a share of the labels."""
    train = load_image_dataset(DATASET, split="train").subset(share, seed=seed)
    test = load_image_dataset(DATASET, split="test")
    model = new_classifier(source, train, seed, pretrained)
    with tempfile.TemporaryDirectory() as run:
        return {"accuracy": finetune(model, train, test, seed, Path(run), epochs)}


def run_labels(results: SeededResults) -> list[str]:
    """Fine-tuning against scratch at three numbers of labels."""
    source = hubmodels.packaged_path(CHECKPOINT)
    for share, epochs in LABELS.items():
        for seed in SEEDS:
            for start in ("pretrained", "scratch"):
                results.once(
                    f"labels/{share}/{start}/{seed}",
                    lambda s=share, e=epochs, r=seed, p=start: finetuned(source, s, e, r, p == "pretrained"),
                )
    lines = ["| labels | epochs | from scratch | pre-trained |", "| --- | --- | --- | --- |"]
    for share, epochs in LABELS.items():
        cells = [results.cell(f"labels/{share}/{start}/{{seed}}/accuracy") for start in ("scratch", "pretrained")]
        lines.append(f"| {round(2000 * share)} ({share:.0%}) | {epochs} | {cells[0]} | {cells[1]} |")
    return lines


def run_probe(results: SeededResults) -> list[str]:
    """Frozen features of the packaged checkpoint and of random weights."""
    source = hubmodels.packaged_path(CHECKPOINT)
    for seed in SEEDS:

        def random_model(seed=seed):
            torch.manual_seed(seed)
            model = AutoModel.from_pretrained(source)
            return type(model)(model.config)

        results.once(f"probe/pretrained/{seed}", lambda seed=seed: probes(AutoModel.from_pretrained(source), seed))
        results.once(f"probe/random/{seed}", lambda seed=seed: probes(random_model(seed), seed))
    lines = ["| features | linear with BN | linear without BN | k-NN |", "| --- | --- | --- | --- |"]
    for start in ("random", "pretrained"):
        names = ("linear", "linear_without_bn", "knn")
        lines.append(f"| {start} | " + " | ".join(results.cell(f"probe/{start}/{{seed}}/{n}") for n in names) + " |")
    return lines


def run_ratio(results: SeededResults, images: str) -> list[str]:
    """Pre-training at four mask ratios."""

    def measure(ratio: float, seed: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*RATIO_OVERRIDES, f"model.mask_ratio={ratio}", f"run.seed={seed}"]
            run = hubmodels.train("mae", images, Path(folder) / "run", recipe="small_pretrain", overrides=overrides)
            encoder = AutoModelForPreTraining.from_pretrained(run.folder).vit
            return probes(encoder, seed) | finetuned(run.folder, 0.1, LABELS[0.1], seed, True)

    for seed in SEEDS:
        for ratio in RATIOS:
            results.once(f"ratio/{ratio}/{seed}", lambda r=ratio, s=seed: measure(r, s))
    names = ("linear", "linear_without_bn", "knn", "accuracy")
    lines = [
        "| mask ratio | linear with BN | linear without BN | k-NN | fine-tuned, 200 labels |",
        "| --- | --- | --- | --- | --- |",
    ]
    for ratio in RATIOS:
        cells = (results.cell(f"ratio/{ratio}/{{seed}}/{name}") for name in names)
        lines.append(f"| {ratio} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Runs the experiments that are named, all by default."""
    parser = experiment_parser(__doc__)
    parser.add_argument("experiments", nargs="*", default=["labels", "probe", "ratio"])
    parser.add_argument("--images", default=DATASET, help="unlabelled images for `ratio`")
    arguments, results = begin(parser)
    runs = {
        "labels": ("MAE claim: fewer labels", lambda: run_labels(results)),
        "probe": ("MAE claim: frozen features", lambda: run_probe(results)),
        "ratio": ("MAE claim: mask ratio", lambda: run_ratio(results, arguments.images)),
    }
    for name in arguments.experiments:
        title, run = runs[name]
        note = "Test accuracy in per cent on 2,000 Fashion-MNIST images: mean (lowest to highest) of seeds 0, 1, 2."
        command = f"python -m benchmarks.mae_claims OUT {name}" + (" --images IMAGES" if name == "ratio" else "")
        write_section(title, command, [note, "", *run(), "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
