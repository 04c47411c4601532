"""Which labels of an epoch are trusted, and figures about the choice."""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from hubmodels.training.cotraining_step import CoTrainingSettings


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


def quality_metrics(clean_prob: np.ndarray, is_labelled: np.ndarray, dataset: Any) -> dict[str, float]:
    """Figures of a split for the log.

    Args:
        clean_prob: [N].
        is_labelled: bool [N].
        dataset: The images, with `labels`, and `clean_labels` where it is known which of them are right.

    Returns:
        "labelled_share"; where it is known what is right, "labelled_purity" (share of right labels among the trusted)
        and "quality_auc" (area under the ROC curve of `clean_prob`).
    """
    metrics = {"labelled_share": float(is_labelled.mean())}
    clean = getattr(dataset, "clean_labels", None)
    if clean is None:
        return metrics
    is_right = (clean == dataset.labels).numpy()
    if 0 < is_right.sum() < len(is_right):
        metrics["labelled_purity"] = float(is_right[is_labelled].mean()) if is_labelled.any() else 0.0
        metrics["quality_auc"] = float(roc_auc_score(is_right, clean_prob))
    return metrics
