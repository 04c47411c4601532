"""The main claim of the DenseCL paper at small scale, on real images, three seeds: better dense features.

python -m benchmarks.densecl_claims OUT --images TINY_IMAGENET --cells BCCD --animals RACCOON KANGAROO
    [--methods NAME ...]

The same narrow network (three stages of ResNet-18, an 8 x 8 map at 64 pixels) is pre-trained without labels on the
7,500 training images of TINY_IMAGENET (a local copy of 50 classes of Tiny ImageNet with a column `box_xyxy`): by
DenseCL, by MoCo-v2 (the same code with loss_lambda 0) and by SimCLR. Then it is frozen, and a linear classifier of
every position of its last map (a dense probe, `hubmodels.evaluation.dense_probe`) learns the classes of box masks:
the 50 classes and background of the same images, tested on 2,500 validation images; and at 128 pixels, with
background, three kinds of blood cells, and raccoons and kangaroos in photographs (folders with images/, train.json and
val.json in COCO's format, the classes of one after those of the other). Besides, without any training: how often a
cell of one view finds the place that it shows in another view. Every run is stored in OUT/results.json. `--methods`
takes some of "random weights", SimCLR, MoCo-v2 and DenseCL in place of all.
"""

import json
import tempfile
from pathlib import Path

import datasets
import torch
from hubmodels.modeling.densecl import DenseCLConfig, DenseCLImageProcessor, DenseCLModel
from hubmodels.modeling.densecl.matching_densecl import match_accuracy, match_by_similarity, normalize_positions
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoModel

import hubmodels
from benchmarks.report import machine_line, write_section
from benchmarks.seeded_results import SEEDS, begin, experiment_parser
from hubmodels.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from hubmodels.evaluation import box_masks, dense_probe, knn_accuracy, linear_probe
from hubmodels.training import Recipe

EPOCHS = 20
IMAGE_SIZE, DETECTION_SIZE = 64, 128
MATCHED_IMAGES = 1000
NETWORK = Recipe.load("densecl/small_pretrain").model
BACKBONE = {key: NETWORK[key] for key in ("layer_type", "depths", "num_stages", "embedding_size", "strides")}
RUN = ("run.checkpoints=1", "run.tensorboard=false", "probe.every_epochs=0")
SIMCLR = (
    f"model.image_size={IMAGE_SIZE}",
    "model.backbone_config=" + json.dumps({"model_type": "densecl", **BACKBONE}),
    "schedule.batch_size=128",
)
METHODS = {
    "random weights": None,
    "SimCLR": ("simclr", "simclr/small_pretrain", SIMCLR),
    "MoCo-v2": ("densecl", "densecl/small_pretrain", ("model.loss_lambda=0.0",)),
    "DenseCL": ("densecl", "densecl/small_pretrain", ()),
}
FIGURES = {
    "tiny": "50 classes, mean IoU",
    "cells": "blood cells, mean IoU",
    "animals": "animals, mean IoU",
    "matches": "cells matched",
    "linear": "linear top-1",
    "knn": "k-NN",
}

Boxes = tuple[torch.Tensor, torch.Tensor]
DetectionSet = tuple[torch.Tensor, list[Boxes], int]


def tiny_imagenet(folder: str, split: str) -> tuple[torch.Tensor, list[Boxes], torch.Tensor]:
    """Images uint8 [N, 3, 64, 64], boxes with classes from 1, and labels from 0."""
    data = datasets.load_dataset("parquet", data_dir=folder, split=split)
    images = torch.stack([v2.functional.pil_to_tensor(image.convert("RGB")) for image in data["image"]])
    labels = torch.tensor(data["label"])
    boxes = [(torch.tensor(box)[None], label[None] + 1) for box, label in zip(data["box_xyxy"], labels, strict=True)]
    return images, boxes, labels


def detection_sets(folders: list[str], split: str) -> DetectionSet:
    """Images uint8 [N, 3, 128, 128], stretched; boxes, classes from 1; the number of classes with background."""
    images, boxes, num_classes = [], [], 1
    for folder in folders:
        records = json.loads((Path(folder) / f"{split}.json").read_text())
        classes = {category["id"]: num_classes + i for i, category in enumerate(records["categories"])}
        num_classes += len(classes)
        for record in records["images"]:
            with Image.open(Path(folder) / "images" / record["file_name"]) as image:
                resized = image.convert("RGB").resize((DETECTION_SIZE, DETECTION_SIZE), Image.Resampling.BILINEAR)
            images.append(v2.functional.pil_to_tensor(resized))
            scale = torch.tensor([DETECTION_SIZE / record["width"], DETECTION_SIZE / record["height"]]).repeat(2)
            own = [a for a in records["annotations"] if a["image_id"] == record["id"]]
            corners = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
            corners[:, 2:] += corners[:, :2]
            labels = torch.tensor([classes[a["category_id"]] for a in own], dtype=torch.int64)
            boxes.append((corners * scale, labels))
    return torch.stack(images), boxes, num_classes


@torch.inference_mode()
def feature_maps(model, images: torch.Tensor) -> torch.Tensor:
    """Last feature maps [N, D, h, w] of uint8 pixels, or of floats in [0, 1]; SimCLR's networks do not normalise."""
    model.eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    maps = []
    for batch in images.split(128):
        pixels = batch if batch.is_floating_point() else batch / 255
        if model.config.model_type != "simclr":
            pixels = (pixels - mean) / std
        maps.append(model(pixels).last_hidden_state)
    return torch.cat(maps).clone()


def matched_cells(model, images: torch.Tensor) -> float:
    """Share of the cells in the overlap of two views whose most similar cell lies within one cell of the true place."""
    processor = DenseCLImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_normalize=False)
    views = processor(list(images), mode="pretrain", generator=torch.Generator().manual_seed(0))
    queries, keys = (feature_maps(model, view) for view in views.pixel_values.unbind(dim=1))
    matches = match_by_similarity(normalize_positions(queries), normalize_positions(keys))
    return float(match_accuracy(matches, views.crop_boxes, views.flips, (queries.shape[2], queries.shape[3])))


def box_mask_iou(maps, boxes: list[list[Boxes]], size: int, num_classes: int, seed: int, epochs: int) -> float:
    """Mean IoU of a dense probe that learns box masks from the first of two sets of maps and predicts the second."""
    masks = [
        box_masks(*zip(*part, strict=True), size, tuple(part_maps.shape[2:]))
        for part, part_maps in zip(boxes, maps, strict=True)
    ]
    return dense_probe(maps[0], masks[0], maps[1], masks[1], num_classes, epochs=epochs, seed=seed).mean_iou


def detection_iou(model, train: DetectionSet, test: DetectionSet, seed: int) -> float:
    """Mean IoU of a dense probe on detection sets."""
    maps = [feature_maps(model, train[0]), feature_maps(model, test[0])]
    return box_mask_iou(maps, [train[1], test[1]], DETECTION_SIZE, train[2], seed, epochs=30)


class DenseTasks:
    """Images and masks of the dense tasks, read once."""

    def __init__(self, tiny: str, cells: str, animals: list[str]):
        self.tiny = {split: tiny_imagenet(tiny, split) for split in ("train", "validation")}
        self.detection = {
            name: [detection_sets(folders, split) for split in ("train", "val")]
            for name, folders in (("cells", [cells]), ("animals", animals))
        }

    def measure(self, model, seed: int) -> dict[str, float]:
        """The `FIGURES`, in per cent; linear and k-NN accuracy are those of the averaged map."""
        maps = [feature_maps(model, self.tiny[split][0]) for split in ("train", "validation")]
        labels = [self.tiny[split][2] for split in ("train", "validation")]
        vectors = [part.mean(dim=(2, 3)) for part in maps]
        boxes = [self.tiny[split][1] for split in ("train", "validation")]
        figures = {
            "tiny": box_mask_iou(maps, boxes, IMAGE_SIZE, 51, seed, epochs=10),
            "matches": matched_cells(model, self.tiny["validation"][0][:MATCHED_IMAGES]),
            "linear": linear_probe(vectors[0], labels[0], vectors[1], labels[1], epochs=30, seed=seed).accuracy,
            "knn": knn_accuracy(vectors[0], labels[0], vectors[1], labels[1]),
        }
        for name, (train, test) in self.detection.items():
            figures[name] = detection_iou(model, train, test, seed)
        return {name: 100 * value for name, value in figures.items()}


def pretrained(method: tuple | None, images: str, seed: int):
    """An encoder after pre-training, or with random weights."""
    if method is None:
        torch.manual_seed(seed)
        return DenseCLModel(DenseCLConfig(**NETWORK))
    name, recipe, overrides = method
    budget = (f"schedule.epochs={EPOCHS}", f"run.seed={seed}", "data.train_split=train")
    with tempfile.TemporaryDirectory() as folder:
        run = hubmodels.train(name, images, Path(folder) / "run", recipe=recipe, overrides=[*budget, *RUN, *overrides])
        return AutoModel.from_pretrained(run.folder)


def main() -> None:
    """Runs every method with every seed."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--images", required=True, help="Tiny ImageNet subset with boxes")
    parser.add_argument("--cells", required=True, help="blood cell detection set (BCCD)")
    parser.add_argument("--animals", required=True, nargs="+", help="detection sets of raccoons and kangaroos")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    arguments, results = begin(parser)
    tasks = DenseTasks(arguments.images, arguments.cells, arguments.animals)
    for seed in SEEDS:
        for name in arguments.methods:
            results.once(
                f"{name}/{seed}", lambda m=METHODS[name], s=seed: tasks.measure(pretrained(m, arguments.images, s), s)
            )
    lines = [
        f"Three stages of ResNet-18, width 16; {EPOCHS} epochs of 7,500 images at {IMAGE_SIZE} pixels. Frozen features",
        "of the last map, in per cent: mean (lowest to highest) of seeds 0, 1, 2. Masks are boxes, so that the best",
        "possible IoU is below 100.",
        "",
        "| pre-training | " + " | ".join(FIGURES.values()) + " |",
        "| --- " * (1 + len(FIGURES)) + "|",
    ]
    for name in arguments.methods:
        cells = (results.cell(f"{name}/{{seed}}/{figure}") for figure in FIGURES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    command = "python -m benchmarks.densecl_claims OUT --images TINY_IMAGENET --cells BCCD --animals RACCOON KANGAROO"
    if arguments.methods != list(METHODS):
        command += " --methods " + " ".join(f"'{name}'" if " " in name else name for name in arguments.methods)
    write_section("DenseCL claim: dense features", command, [*lines, "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
