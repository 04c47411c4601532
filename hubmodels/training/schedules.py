"""Learning-rate schedules of the published recipes."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine_lr(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up from exactly 0, then half a cosine down to `min_lr`.

    The warm-up ignores `min_lr` (`adjust_learning_rate` of the official MAE code).

    Args:
        epoch: Position in the run, in epochs, fractional.
        lr: Peak learning rate, reached at the end of the warm-up.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Length of the warm-up in epochs.
        epochs: Length of the whole run in epochs, warm-up included.

    Returns:
        The learning rate.

    Raises:
        ValueError: If the warm-up is negative or longer than the run.
    """
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"warmup_epochs must be in [0, epochs = {epochs}], got {warmup_epochs}")
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if warmup_epochs == epochs:
        return lr
    progress = min((epoch - warmup_epochs) / (epochs - warmup_epochs), 1.0)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def fractional_epoch(step: int, steps_per_epoch: int, batches_per_epoch: int, accumulation: int) -> float:
    """Epoch at which an optimiser step begins, counted in micro-batches as the official code counts them.

    Args:
        step: Optimiser steps done so far.
        steps_per_epoch: Optimiser steps in an epoch.
        batches_per_epoch: Micro-batches in an epoch, on one process.
        accumulation: Micro-batches in an optimiser step.

    Returns:
        The fractional epoch.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    return epoch + step_in_epoch * accumulation / batches_per_epoch


def warmup_cosine_scheduler(
    optimizer: Optimizer,
    lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: int,
    batches_per_epoch: int | None = None,
    accumulation: int = 1,
) -> LambdaLR:
    """Schedule that sets `warmup_cosine_lr` before every optimiser step.

    A group keeps its own factor: its learning rate is the one it was built with, `lr * lr_scale`, times the schedule.

    Args:
        optimizer: Optimiser whose groups were built with their peak learning rates.
        lr: Peak learning rate of a group without a factor of its own, greater than 0.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Length of the warm-up in epochs.
        epochs: Length of the run in epochs.
        steps_per_epoch: Optimiser steps in an epoch.
        batches_per_epoch: Micro-batches in an epoch; default `steps_per_epoch * accumulation`.
        accumulation: Micro-batches in an optimiser step.

    Returns:
        The scheduler, to be stepped once after every optimiser step.

    Raises:
        ValueError: If `lr` is not greater than 0, or the warm-up is longer than the run.
    """
    if lr <= 0:
        raise ValueError(f"learning_rate must be greater than 0, got {lr}")
    batches = batches_per_epoch or steps_per_epoch * accumulation

    def factor(step: int) -> float:
        epoch = fractional_epoch(step, steps_per_epoch, batches, accumulation)
        return warmup_cosine_lr(epoch, lr, min_lr, warmup_epochs, epochs) / lr

    return LambdaLR(optimizer, factor)
