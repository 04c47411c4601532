"""The DenseCL checkpoints: a small packaged one, and the released backbones with the figures of their authors."""

from __future__ import annotations

from hubmodels.catalog_records import SMALL_CHECKPOINTS_COMMAND, Checkpoint, Metric

_PAPER = "https://arxiv.org/abs/2011.09157"
_AUTHORS = "published by the authors"
_FILES = "https://huggingface.co/xinlongwang/DenseCL/resolve/main"


def _backbone(
    name: str, parameters: int, dataset: str, epochs: int, detection: float, segmentation: float
) -> Checkpoint:
    """One file; the figures are AP (mean of 5 trials) of Faster R-CNN R50-C4 and mean IoU of FCN."""
    return Checkpoint(
        name=name,
        method="densecl",
        task="image-feature-extraction",
        modality="image",
        parameters=parameters,
        licence="unknown",
        source=f"{_FILES}/{name}.pth",
        base_model=None,
        datasets=(dataset,),
        paper=_PAPER,
        metrics=(
            Metric("detection AP", detection, "pascal voc 2007 test", source=_AUTHORS),
            Metric("segmentation mIoU", segmentation, "pascal voc 2012 validation", source=_AUTHORS),
        ),
        notes=(
            f"Backbone only, {epochs} epochs: neither projection heads nor queues were published. The weights have no "
            "licence text of their own; the authors' code is GPL-3.0."
        ),
    )


DENSECL_SMALL_64 = Checkpoint(
    name="densecl-small-64",
    method="densecl",
    task="image-feature-extraction",
    modality="image",
    parameters=836_356,
    licence="apache-2.0",
    source="densecl-small-64",
    base_model=None,
    datasets=("cifar10", "clothing-dataset-small", "tiny-imagenet"),
    paper=_PAPER,
    metrics=(
        Metric("linear probe accuracy", 45.3, "cifar10 test, 2,000 images", SMALL_CHECKPOINTS_COMMAND),
        Metric("k-NN accuracy", 39.0, "cifar10 test, 2,000 images", SMALL_CHECKPOINTS_COMMAND),
        Metric("dense probe mean IoU", 41.9, "blood cells (BCCD) validation", SMALL_CHECKPOINTS_COMMAND),
    ),
    notes="Small ResNet-18 with heads, no momentum encoder; maps of stride 8 for images of 64 pixels. CPU-trained.",
)

DENSECL_CHECKPOINTS: tuple[Checkpoint, ...] = (
    DENSECL_SMALL_64,
    _backbone("densecl_r50_coco_800ep", 23_561_205, "coco", 800, 56.7, 67.5),
    _backbone("densecl_r50_coco_1600ep", 23_561_205, "coco", 1600, 57.2, 68.0),
    _backbone("densecl_r50_imagenet_200ep", 23_561_205, "imagenet-1k", 200, 58.7, 69.4),
    _backbone("densecl_r101_imagenet_200ep", 42_605_608, "imagenet-1k", 200, 61.3, 74.1),
)
