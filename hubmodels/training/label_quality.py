"""Which labels of a data set are right: losses of every image, gathered over processes, and the split they give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import nn

from hubmodels.data.transforms import ImageTransform
from hubmodels.training.cotraining_step import CoTrainingSettings

BATCH_SIZE = 256


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
    networks: Sequence[nn.Module], dataset: Any, transform: ImageTransform, progress: Any = None
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
    modes = [network.training for network in networks]
    losses, probabilities = [], []
    for network in networks:
        network.eval()
    device = next(networks[0].parameters()).device
    for batch in batches if progress is None else progress(batches):
        items = [dataset[int(position)] for position in batch]
        pixel_values = transform([item["image"] for item in items]).to(device)
        labels = torch.tensor([item["label"] for item in items], device=device)
        scores = [network(pixel_values=pixel_values).logits.float() for network in networks]
        losses.append(torch.stack([nn.functional.cross_entropy(s, labels, reduction="none") for s in scores]).cpu())
        probabilities.append(torch.stack(scores).sum(dim=0).softmax(dim=1).cpu())
    for network, mode in zip(networks, modes, strict=True):
        network.train(mode)
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


def labelled_mask(clean_prob: np.ndarray, settings: CoTrainingSettings, epoch: int) -> np.ndarray:
    """The labels that are trusted.

    Args:
        clean_prob: [N], probability that each label is right.
        settings: `p_threshold` and `min_labelled`.
        epoch: Epoch from 0, for the error.

    Returns:
        bool [N].

    Raises:
        ValueError: If all labels are trusted, or none, and `min_labelled` is 0.
    """
    trusted = clean_prob > settings.p_threshold
    order = np.argsort(clean_prob, kind="stable")
    least = min(settings.min_labelled, len(clean_prob) // 2)
    if trusted.sum() < least:
        trusted[order[len(order) - least :]] = True
    elif (~trusted).sum() < least:
        trusted[order[:least]] = False
    if not trusted.any():
        raise ValueError(
            f"no sample above threshold {settings.p_threshold} in epoch {epoch}: lower p_threshold or lengthen warm-up "
            "(warm_up_epochs), or set min_labelled to train on the best samples"
        )
    if trusted.all():
        raise ValueError(
            f"all samples are above threshold {settings.p_threshold} in epoch {epoch}, so none is unlabelled: raise "
            "p_threshold or shorten warm-up (warm_up_epochs), or set min_labelled"
        )
    return trusted


def quality_metrics(clean_prob: np.ndarray, is_labelled: np.ndarray, is_right: np.ndarray | None) -> dict[str, float]:
    """Figures of a split for the log.

    Args:
        clean_prob: [N].
        is_labelled: bool [N].
        is_right: bool [N], whether each label is right, where that is known.

    Returns:
        "labelled_share"; where it is known what is right, "labelled_purity" (share of right labels among the trusted)
        and "quality_auc" (area under the ROC curve of `clean_prob`).
    """
    metrics = {"labelled_share": float(is_labelled.mean())}
    if is_right is not None and 0 < is_right.sum() < len(is_right):
        metrics["labelled_purity"] = float(is_right[is_labelled].mean()) if is_labelled.any() else 0.0
        metrics["quality_auc"] = float(roc_auc_score(is_right, clean_prob))
    return metrics
