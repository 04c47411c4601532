"""Optimisers and learning-rate schedules, which training and the probes of the evaluation share."""

from hubmodels.optimization.lars import LARS
from hubmodels.optimization.schedules import (
    LR_SCALINGS,
    fractional_epoch,
    scaled_learning_rate,
    simclr_learning_rate,
    simclr_scheduler,
    simclr_steps,
    timm_cosine_scheduler,
    warmup_cosine_lr,
    warmup_cosine_scheduler,
)

__all__ = [
    "LARS",
    "LR_SCALINGS",
    "fractional_epoch",
    "scaled_learning_rate",
    "simclr_learning_rate",
    "simclr_scheduler",
    "simclr_steps",
    "timm_cosine_scheduler",
    "warmup_cosine_lr",
    "warmup_cosine_scheduler",
]
