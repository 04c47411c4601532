"""Frozen features of the small packaged checkpoints, against random weights of the same networks.

python -m benchmarks.small_checkpoints OUT --images CIFAR10 --cells BCCD --animals RACCOON KANGAROO

A linear probe and k-NN learn from 5,000 labelled training images of CIFAR10 (a local copy of the data set with a train
and a test split), another part with every seed, and are measured on 2,000 test images, through each checkpoint's own
image processor. Convolutional networks also get the dense probes of `benchmarks.densecl_claims`, on blood cells and
animals at 128 pixels. A seed also means other random weights. Every result is stored in OUT/results.json.
"""

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import hubmodels
from benchmarks.densecl_claims import DetectionSet, detection_iou, detection_sets
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, begin, experiment_parser
from hubmodels.catalog_records import SMALL_CHECKPOINTS_COMMAND
from hubmodels.data import load_image_dataset
from hubmodels.data.processing import ProcessorTransform
from hubmodels.evaluation import extract_features, knn_accuracy, linear_probe

CHECKPOINTS = ("mae-small-32", "simclr-small-32", "densecl-small-64")
CONVOLUTIONAL = CHECKPOINTS[1:]
PROBE_IMAGES, TEST_IMAGES = 5000, 2000
FIGURES = {"linear": "linear probe", "knn": "k-NN"}
DENSE_FIGURES = {"cells": "blood cells, mean IoU", "animals": "animals, mean IoU"}
TITLE = "Small packaged checkpoints"


class Tasks:
    """The data of all tasks."""

    def __init__(self, images: str, cells: str, animals: list[str]):
        self.train = load_image_dataset(images, "train")
        self.test = load_image_dataset(images, "test").subset(TEST_IMAGES, seed=0)
        self.detection: dict[str, list[DetectionSet]] = {
            name: [detection_sets(folders, split) for split in ("train", "val")]
            for name, folders in (("cells", [cells]), ("animals", animals))
        }

    def measure(self, name: str, trained: bool, seed: int) -> dict[str, float]:
        """The figures of one checkpoint, or of random weights of its network, in per cent."""
        folder = hubmodels.packaged_path(name)
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder) if trained else AutoModel.from_config(config)
        transform = ProcessorTransform(AutoImageProcessor.from_pretrained(folder))
        features = []
        for data in (self.train.subset(PROBE_IMAGES, seed=seed), self.test):
            features += [extract_features(model, data, transform, progress=False)[0], data.labels]
        figures = {
            "linear": linear_probe(*features, seed=seed).accuracy,
            "knn": knn_accuracy(*features),
        }
        if name in CONVOLUTIONAL:
            for task, (train, test) in self.detection.items():
                figures[task] = detection_iou(model, train, test, seed)
        return {figure: 100 * value for figure, value in figures.items()}


def main() -> None:
    """Measures every checkpoint with every seed."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--images", required=True, help="labelled images with the splits train and test")
    parser.add_argument("--cells", required=True, help="blood cell detection set (BCCD)")
    parser.add_argument("--animals", required=True, nargs="+", help="detection sets of raccoons and kangaroos")
    arguments, results = begin(parser)
    tasks = Tasks(arguments.images, arguments.cells, arguments.animals)
    lines = [
        f"Frozen features, in per cent: mean (lowest to highest) of seeds 0, 1, 2. Accuracy on {TEST_IMAGES:,}",
        f"CIFAR-10 test images, learned from {PROBE_IMAGES:,} labelled ones; dense linear probe of box masks.",
        "",
        "| network | weights | " + " | ".join([*FIGURES.values(), *DENSE_FIGURES.values()]) + " |",
        "| --- " * (2 + len(FIGURES) + len(DENSE_FIGURES)) + "|",
    ]
    for name in CHECKPOINTS:
        for trained, weights in ((False, "random"), (True, "trained")):
            key = f"{name}/{weights}"
            for seed in SEEDS:
                results.once(f"{key}/{seed}", lambda n=name, t=trained, s=seed: tasks.measure(n, t, s))
            cells = [results.cell(f"{key}/{{seed}}/{figure}") for figure in FIGURES]
            for figure in DENSE_FIGURES:
                cells.append(results.cell(f"{key}/{{seed}}/{figure}") if name in CONVOLUTIONAL else "")
            lines.append(f"| {name} | {weights} | " + " | ".join(cells) + " |")
    write_section(TITLE, SMALL_CHECKPOINTS_COMMAND, [*lines, "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
