"""Dense linear probe: which class lies at every position of a frozen feature map."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index

from hubmodels.evaluation.knn import check_finite

BACKGROUND = 0
BATCH_POSITIONS = 4096
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class DenseProbeResult:
    """Outcome of a dense probe.

    Attributes:
        mean_iou: Mean over the classes that occur of intersection over union, in [0, 1].
        class_iou: The same of each class; NaN for a class that neither occurs nor is predicted.
        predictions: Classes predicted at the test positions, int64 [M, h, w].
    """

    mean_iou: float
    class_iou: tuple[float, ...]
    predictions: torch.Tensor


def box_masks(
    boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], image_size: int, grid: tuple[int, int]
) -> torch.Tensor:
    """Classes at the positions of a feature map, from boxes.

    A position belongs to a box that holds its centre; of several the smallest.

    Args:
        boxes: Boxes [n, 4] of every image, (x0, y0, x1, y1) in pixels of the square network input.
        labels: Classes [n] of the boxes, from 1; 0 is the background.
        image_size: Side of the network input in pixels.
        grid: Rows and columns of the feature map.

    Returns:
        int64 [N, rows, columns].

    Raises:
        ValueError: If the numbers of boxes and labels of an image differ, or a label is below 1.
    """
    rows, columns = grid
    y = (torch.arange(rows) + 0.5) * image_size / rows
    x = (torch.arange(columns) + 0.5) * image_size / columns
    masks = torch.full((len(boxes), rows, columns), BACKGROUND)
    for mask, image_boxes, image_labels in zip(masks, boxes, labels, strict=True):
        if len(image_boxes) != len(image_labels) or (len(image_labels) and int(image_labels.min()) <= BACKGROUND):
            raise ValueError(
                f"every box needs a label of 1 or more, got {len(image_boxes)} boxes and labels {image_labels.tolist()}"
            )
        areas = (image_boxes[:, 2:] - image_boxes[:, :2]).prod(dim=1)
        for index in areas.argsort(descending=True).tolist():
            left, top, right, bottom = image_boxes[index].tolist()
            inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
            mask[inside] = int(image_labels[index])
    return masks


def dense_probe(
    train_maps: torch.Tensor,
    train_masks: torch.Tensor,
    test_maps: torch.Tensor,
    test_masks: torch.Tensor,
    num_classes: int,
    epochs: int = 10,
    seed: int = 0,
) -> DenseProbeResult:
    """Train a linear classifier of the positions of frozen feature maps (a 1x1 convolution) and measure it.

    Channels are standardised with the statistics of the training maps; AdamW with a cosine schedule, batches of 4,096
    positions.

    Args:
        train_maps: Floats [N, D, h, w].
        train_masks: Classes int64 [N, h, w], 0 for the background.
        test_maps: Floats [M, D, h, w].
        test_masks: Classes int64 [M, h, w].
        num_classes: Number of classes with the background.
        epochs: Passes over the training positions.
        seed: Seed of the order.

    Returns:
        The outcome.

    Raises:
        ValueError: If maps and masks do not fit, maps are not finite, a class is out of range, or there is but one.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, the background and one more, got {num_classes}")
    for name, maps, masks in (("train", train_maps, train_masks), ("test", test_maps, test_masks)):
        if maps.ndim != 4 or masks.shape != (maps.shape[0], *maps.shape[2:]):
            raise ValueError(
                f"{name}_maps must be [N, D, h, w] and {name}_masks [N, h, w], got {tuple(maps.shape)} "
                f"and {tuple(masks.shape)}"
            )
        if masks.numel() and not 0 <= int(masks.min()) <= int(masks.max()) < num_classes:
            raise ValueError(f"{name}_masks must hold classes in [0, {num_classes}), got {int(masks.max())}")
        check_finite(maps, f"{name}_maps")
    train_maps, test_maps = train_maps.float(), test_maps.float()
    mean = train_maps.mean(dim=(0, 2, 3))
    deviation = train_maps.std(dim=(0, 2, 3)) + 1e-6
    features, labels = _positions(train_maps, mean, deviation), train_masks.flatten()
    head = nn.Linear(features.shape[1], num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    steps = max(1, len(features) // BATCH_POSITIONS)
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for batch in order.tensor_split(steps):
            optimizer.zero_grad()
            F.cross_entropy(head(features[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        predictions = head(_positions(test_maps, mean, deviation)).argmax(dim=1).view(test_masks.shape)
    return _result(predictions, test_masks, num_classes)


def _positions(maps: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Standardised features [N * h * w, D]."""
    return (maps.permute(0, 2, 3, 1).flatten(0, 2) - mean) / deviation


def _result(predictions: torch.Tensor, masks: torch.Tensor, num_classes: int) -> DenseProbeResult:
    present = torch.zeros(num_classes, dtype=torch.bool)
    present[masks.unique()] = True
    iou = multiclass_jaccard_index(predictions, masks, num_classes, average="none")
    predicted = torch.zeros_like(present)
    predicted[predictions.unique()] = True
    iou[~(present | predicted)] = float("nan")
    return DenseProbeResult(float(iou[present].mean()), tuple(iou.tolist()), predictions.clone())
