"""Losses and predictions of every image of a data set, gathered over processes by sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hubmodels.data.collators import BatchTransform
from hubmodels.evaluation.features import input_placement
from hubmodels.evaluation_mode import evaluation_mode

BATCH_SIZE = 256
NO_DRAWS = np.empty((BATCH_SIZE, 0))  # what transforms of the evaluation draw


@dataclass(frozen=True)
class SamplePredictions:
    """What networks say of every image, by position in the data set.

    Attributes:
        losses: float32 [networks, N], cross entropy with the given label.
        probabilities: float32 [N, K], softmax of the sum of the scores.
    """

    losses: torch.Tensor
    probabilities: torch.Tensor


@torch.no_grad()
def predict_samples(
    networks: Sequence[nn.Module], dataset: Any, transform: BatchTransform, progress: Any = None
) -> SamplePredictions:
    """Run networks over a data set once, each process over its part; all processes get everything.

    Args:
        networks: Networks in any mode; they are evaluated and left in that mode.
        dataset: Labelled images.
        transform: Transform of the evaluation.
        progress: Wraps the batches, such as `tqdm`; None shows nothing.

    Returns:
        The predictions, on the CPU, joined by position: no image counts twice.
    """
    process, processes = _process()
    positions = np.arange(process, len(dataset), processes)
    batches = [positions[start : start + BATCH_SIZE] for start in range(0, len(positions), BATCH_SIZE)]
    losses, probabilities = [], []
    placement = input_placement(networks[0])
    with evaluation_mode(*networks):
        for batch in batches if progress is None else progress(batches):
            items = [dataset[int(position)] for position in batch]
            pixel_values = transform([item["image"] for item in items], NO_DRAWS[: len(items)]).to(**placement)
            labels = torch.tensor([item["label"] for item in items], device=pixel_values.device)
            scores = [network(pixel_values=pixel_values).logits.float() for network in networks]
            losses.append(torch.stack([nn.functional.cross_entropy(s, labels, reduction="none") for s in scores]).cpu())
            probabilities.append(torch.stack(scores).sum(dim=0).softmax(dim=1).cpu())
    own = (torch.from_numpy(positions), torch.cat(losses, dim=1), torch.cat(probabilities))
    return _joined(own, len(dataset), processes)


def _process() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _joined(own: tuple[torch.Tensor, ...], count: int, processes: int) -> SamplePredictions:
    parts: list[Any] = [own]
    if processes > 1:
        parts = [None] * processes
        dist.all_gather_object(parts, own)
    losses = torch.empty(len(own[1]), count)
    probabilities = torch.empty(count, own[2].shape[1])
    for positions, part_losses, part_probabilities in parts:
        losses[:, positions] = part_losses
        probabilities[positions] = part_probabilities
    return SamplePredictions(losses, probabilities)
