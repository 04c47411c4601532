"""Learning-rate schedules of the published recipes."""

import math

import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LR_SCALINGS = ("linear", "sqrt")


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
    by_epoch: bool = False,
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
        by_epoch: Keep the learning rate constant inside of an epoch (DenseCL).

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
        return warmup_cosine_lr(math.floor(epoch) if by_epoch else epoch, lr, min_lr, warmup_epochs, epochs) / lr

    return LambdaLR(optimizer, factor)


def timm_cosine_scheduler(
    optimizer: Optimizer, lr: float, min_lr: float, warmup_lr: float, warmup_steps: int, train_steps: int
) -> LambdaLR:
    """Schedule of timm's `CosineLRScheduler` without warm-up prefix (official Swin, Positional Label), for the trainer.

    Linear warm-up from `warmup_lr`, then half a cosine to `min_lr` that is read at the step of the whole run: after the
    warm-up the rate jumps from `lr` to where the cosine already is. A group keeps its own factor.

    Args:
        optimizer: Optimiser whose groups were built with their peak learning rates.
        lr: Peak learning rate of a group without a factor of its own, greater than 0.
        min_lr: Learning rate at the end.
        warmup_lr: Learning rate of the first step.
        warmup_steps: Steps of warm-up.
        train_steps: Steps in all, at least `warmup_steps`.

    Returns:
        The scheduler, to be stepped once after every optimiser step.

    Raises:
        ValueError: If `lr` is not greater than 0, or the warm-up is negative or longer than the run.
    """
    if lr <= 0:
        raise ValueError(f"learning_rate must be greater than 0, got {lr}")
    if not 0 <= warmup_steps <= train_steps:
        raise ValueError(f"warmup_steps must be in [0, train_steps = {train_steps}], got {warmup_steps}")
    rates = torch.optim.SGD([torch.zeros(1)], lr=lr)
    theirs = CosineLRScheduler(
        rates, train_steps, lr_min=min_lr, warmup_t=warmup_steps, warmup_lr_init=warmup_lr, t_in_epochs=False
    )

    def factor(step: int) -> float:
        theirs.step_update(step)
        return rates.param_groups[0]["lr"] / lr

    return LambdaLR(optimizer, factor)


def scaled_learning_rate(base_learning_rate: float, batch_size: int, scaling: str = "linear") -> float:
    """Peak learning rate for a batch size (SimCLR, section 2.2 and appendix B.1).

    Args:
        base_learning_rate: The learning rate that a recipe states.
        batch_size: Images in an optimiser step, over all processes; two views of an image count once.
        scaling: "linear": `base_learning_rate * batch_size / 256`; "sqrt": `base_learning_rate * sqrt(batch_size)`.

    Returns:
        The learning rate.

    Raises:
        ValueError: If `scaling` is neither.
    """
    if scaling == "linear":
        return base_learning_rate * batch_size / 256
    if scaling == "sqrt":
        return base_learning_rate * math.sqrt(batch_size)
    raise ValueError(f"lr_scaling must be one of {LR_SCALINGS}, got {scaling!r}")


def simclr_steps(num_images: int, batch_size: int, epochs: float, warmup_epochs: float) -> tuple[int, int]:
    """Warm-up and total optimiser steps as the official SimCLR code counts them, not in whole epochs.

    Args:
        num_images: Images in an epoch.
        batch_size: Images in an optimiser step, over all processes.
        epochs: Passes over the images, fractional.
        warmup_epochs: Epochs of warm-up, fractional.

    Returns:
        Steps of warm-up and steps in all.
    """
    return int(warmup_epochs * num_images // batch_size), int(num_images * epochs // batch_size) + 1


def simclr_learning_rate(step: int, peak: float, warmup_steps: int, train_steps: int) -> float:
    """Learning rate of an optimiser step: linear warm-up from 0 in the first one, then half a cosine to 0.

    Computed in float32, as the official SimCLR code does: near the end of a run, where `1 + cos` cancels, the digits
    are those of the official run.

    Args:
        step: Optimiser steps done so far.
        peak: Learning rate at the end of the warm-up.
        warmup_steps: Steps of warm-up; a shorter run ends in it.
        train_steps: Steps in all.

    Returns:
        The learning rate.

    Raises:
        ValueError: If a number of steps is negative.
    """
    for name, steps in (("warmup_steps", warmup_steps), ("train_steps", train_steps)):
        if steps < 0:
            raise ValueError(f"{name} must be at least 0, got {steps}")
    if step < warmup_steps:
        return float(np.float32(step) / np.float32(warmup_steps) * np.float32(peak))
    if warmup_steps == train_steps:
        return float(np.float32(peak))
    decay_steps = train_steps - warmup_steps
    progress = np.float32(min(step - warmup_steps, decay_steps)) / np.float32(decay_steps)
    cosine = np.float32(0.5) * (np.float32(1.0) + np.cos(np.float32(math.pi) * progress))
    return float(np.float32(peak) * cosine)


def simclr_scheduler(
    optimizer: Optimizer,
    base_learning_rate: float,
    num_images: int,
    batch_size: int,
    epochs: float,
    warmup_epochs: float,
    scaling: str = "linear",
    train_steps: int | None = None,
) -> LambdaLR:
    """Schedule of the official SimCLR code: linear warm-up from 0 in the first step, then half a cosine to 0.

    Sizes are arguments because a trainer that drops the last batch counts other steps than the official code.

    Args:
        optimizer: Optimiser whose groups were built with their peak learning rates.
        base_learning_rate: Learning rate before scaling, greater than 0.
        num_images: Images in an epoch.
        batch_size: Images in an optimiser step, over all processes.
        epochs: Passes over the images.
        warmup_epochs: Epochs of warm-up.
        scaling: As in `scaled_learning_rate`.
        train_steps: Steps in all, in place of what `epochs` gives.

    Returns:
        The scheduler, to be stepped once after every optimiser step.

    Raises:
        ValueError: If the learning rate is not greater than 0, the scaling unknown or a number of steps negative.
    """
    warmup, total = simclr_steps(num_images, batch_size, epochs, warmup_epochs)
    peak = scaled_learning_rate(base_learning_rate, batch_size, scaling)
    if peak <= 0:
        raise ValueError(f"base_learning_rate must be greater than 0, got {base_learning_rate}")
    return LambdaLR(optimizer, lambda step: simclr_learning_rate(step, peak, warmup, train_steps or total) / peak)
