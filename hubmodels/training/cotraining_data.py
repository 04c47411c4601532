"""Batches of co-training: which images a step sees, and their augmented views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hubmodels.data.noisy_label_views import PlainView, StrongView, WarmUpView, WeakView
from hubmodels.data.randomness import uniforms
from hubmodels.data.transforms import ImageTransform
from hubmodels.training.cotraining_step import VIEWS

WARM_UP_FACTOR = 2  # the warm-up takes twice the batch (official code)
_ORDER_STREAM, _UNLABELLED_STREAM = 1, 2
_VIEW_STREAM = 16
_WARM_UP_STREAM = 8


@dataclass(frozen=True)
class CoTrainingViews:
    """The transforms of co-training.

    Args:
        weak: Two views for the loss.
        strong: Two more views for the loss.
        guess: Two views that labels are guessed from, and that are masked.
        warm_up: The view of the warm-up.
        evaluation: The transform of the evaluation.
    """

    weak: ImageTransform
    strong: ImageTransform
    guess: ImageTransform
    warm_up: ImageTransform
    evaluation: ImageTransform

    @classmethod
    def for_mixing(cls, mixing: str, evaluation: ImageTransform, size: Any, **options: Any) -> "CoTrainingViews":
        """The views of the official scripts.

        Args:
            mixing: "all": those of the CIFAR script; "weak": crop and flip only, as the Clothing1M script.
            evaluation: Transform of the evaluation.
            size: Output size in pixels.
            **options: Arguments of [`WeakView`].

        Returns:
            The transforms.
        """
        if mixing == "weak":
            plain = PlainView(size, **options)
            return cls(plain, plain, plain, plain, evaluation)
        weak = WeakView(size, **options)
        return cls(weak, StrongView(size, **options), weak, WarmUpView(size, **options), evaluation)

    def of(self, name: str) -> ImageTransform:
        """The transform of one of `VIEWS`.

        Args:
            name: Name of the view.

        Returns:
            The transform.
        """
        return getattr(self, name.rstrip("12"))


@dataclass(frozen=True)
class PlannedStep:
    """Positions of the images of a step: labelled ones, unlabelled ones, and how often each was planned before."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    turn: int


def warm_up_steps(count: int, batch: int, key: Sequence[int]) -> list[PlannedStep]:
    """All images in random order, the last batch as large as it gets.

    Args:
        count: Number of images.
        batch: Images of a step.
        key: Numbers that name the epoch and the network.

    Returns:
        The steps.
    """
    order = np.random.default_rng([*key, _ORDER_STREAM]).permutation(count)
    return [PlannedStep(part, np.empty(0, np.int64), 0) for part in _batches(order, batch)]


def co_training_steps(is_labelled: np.ndarray, batch: int, key: Sequence[int]) -> list[PlannedStep]:
    """One pass over the labelled images beside as many batches of unlabelled ones, which begin again where they end.

    Args:
        is_labelled: bool [N].
        batch: Images of each kind in a step.
        key: Numbers that name the epoch and the network.

    Returns:
        The steps. Last batches are as large as they get, as in the official code, but not of a single image.
    """
    labelled, unlabelled = np.flatnonzero(is_labelled), np.flatnonzero(~is_labelled)
    order = np.random.default_rng([*key, _ORDER_STREAM]).permutation(labelled)
    endless = _repeated_batches(unlabelled, batch, key)
    return [PlannedStep(part, *next(endless)) for part in _batches(order, batch)]


def _batches(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """Consecutive parts; a last one of a single image, which has no statistics, is left out where there are others."""
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


def _repeated_batches(positions: np.ndarray, batch: int, key: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    turn = 0
    while True:
        order = np.random.default_rng([*key, _UNLABELLED_STREAM, turn]).permutation(positions)
        yield from ((part, turn) for part in _batches(order, batch))
        turn += 1


def share_of_process(steps: Sequence[PlannedStep], process: int, processes: int) -> list[PlannedStep]:
    """What one of several processes does of every step; steps with less images than processes are left out.

    Args:
        steps: The steps of all.
        process: Number of the process.
        processes: How many there are.

    Returns:
        As many steps in every process.
    """
    if processes == 1:
        return list(steps)
    return [
        PlannedStep(step.labelled[process::processes], step.unlabelled[process::processes], step.turn)
        for step in steps
        if len(step.labelled) >= processes and (len(step.unlabelled) == 0 or len(step.unlabelled) >= processes)
    ]


class _Items(Dataset):
    """Items of a data set with their positions, for batches that are asked for as (kind, position, turn)."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: tuple[str, int, int]) -> dict[str, Any]:
        kind, position, turn = request
        return {**self.dataset[position], "kind": kind, "position": position, "turn": turn}


class CoTrainingCollator:
    """Makes the views of a step. Every draw depends on seed, epoch, network, image, view and turn alone.

    Args:
        views: The transforms.
        names: Which of `VIEWS` to make; empty for the warm-up view alone.
        seed: Seed of the run.
        phase: Number of the epoch and the network.
        clean_prob: float32 [N], by position; None for the warm-up.
    """

    def __init__(
        self,
        views: CoTrainingViews,
        names: Sequence[str],
        seed: int,
        phase: int,
        clean_prob: torch.Tensor | None = None,
    ):
        self.views = views
        self.names = tuple(names)
        self.seed = seed
        self.phase = phase
        self.clean_prob = clean_prob

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
        """Make a batch.

        Args:
            items: Items with "image", "index", "label", "kind", "position" and "turn".

        Returns:
            "labelled" and "unlabelled": views by name ("warm_up" in the warm-up), "labels", "clean_prob".
        """
        kinds = ("labelled", "unlabelled")
        parts = {kind: [item for item in items if item["kind"] == kind] for kind in kinds}
        return {kind: self._batch(part) for kind, part in parts.items() if part}

    def _batch(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.tensor([item["label"] for item in items], dtype=torch.int64)}
        if not self.names:
            batch["warm_up"] = self._view(items, self.views.warm_up, _WARM_UP_STREAM)
        for name in self.names:
            batch[name] = self._view(items, self.views.of(name), _VIEW_STREAM + VIEWS.index(name))
        if self.clean_prob is not None:
            batch["clean_prob"] = self.clean_prob[[item["position"] for item in items]]
        return batch

    def _view(self, items: list[dict[str, Any]], transform: ImageTransform, stream: int) -> torch.Tensor:
        indices = [item["index"] for item in items]
        table = uniforms(self.seed, self.phase, indices, transform.draws, stream + _VIEW_STREAM * items[0]["turn"])
        return transform([item["image"] for item in items], table)


def step_loader(
    dataset: Any, steps: Sequence[PlannedStep], collator: CoTrainingCollator, workers: int, pin_memory: bool
) -> DataLoader:
    """A loader of planned steps.

    Args:
        dataset: The training images.
        steps: The steps of this process.
        collator: Makes the views.
        workers: Processes that load images.
        pin_memory: Whether batches go to page-locked memory.

    Returns:
        The loader; one batch a step.
    """
    requests = [
        [("labelled", int(position), 0) for position in step.labelled]
        + [("unlabelled", int(position), step.turn) for position in step.unlabelled]
        for step in steps
    ]
    items = _Items(dataset)
    return DataLoader(items, batch_sampler=requests, collate_fn=collator, num_workers=workers, pin_memory=pin_memory)
