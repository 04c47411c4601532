"""Collators: from lists of dataset items to model inputs."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from hubmodels.data.randomness import uniforms, uniforms_float32


class BatchTransform(Protocol):
    """What turns uint8 images into pixel values: an [`ImageTransform`], or a function with the attribute `draws`."""

    draws: int

    def __call__(self, images: Sequence[torch.Tensor], uniforms: np.ndarray, /) -> torch.Tensor:
        """Pixel values float32 [B, C, H, W] of images [C, H, W] and uniforms [B, draws]."""
        ...


_AUGMENTATION_STREAM = 0
_NOISE_STREAM = 1


class EpochCollator:
    """Base of collators whose random numbers depend on (seed, epoch, sample index) alone.

    So a batch's contents do not depend on the number of workers or processes, or on where a run was resumed.
    Evaluation uses epoch 0 always: fixed draws make the losses of different epochs comparable.

    Args:
        seed: Seed of the run.
        train: Whether the epoch counts.
    """

    def __init__(self, seed: int, train: bool):
        self.seed = seed
        self.train = train
        # In shared memory, so that workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose random numbers are drawn: the one set last in training, 0 in evaluation."""
        return int(self._epoch) if self.train else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also in workers that are running.

        Args:
            epoch: Epoch number, >= 0.
        """
        self._epoch.fill_(epoch)


class ImageCollator(EpochCollator):
    """Turn items of an [`ImageDataset`] into a batch, with random numbers that depend on the sample alone.

    Args:
        transform: Turns uint8 images and a table of uniforms into pixel values.
        seed: Seed of the run.
        train: Whether the epoch counts.
        noise_length: Number of patches L; when given, the batch carries the masking noise.

    Raises:
        ValueError: `noise_length` is not positive.

    Example:

    ```python
    >>> from torch.utils.data import DataLoader
    >>> from hubmodels.data import ImageCollator, PretrainTransform, load_image_dataset
    >>> dataset = load_image_dataset("fashion-mnist-small", split="train")
    >>> collator = ImageCollator(PretrainTransform(32), seed=0, train=True, noise_length=64)
    >>> batch = next(iter(DataLoader(dataset, batch_size=8, collate_fn=collator)))
    >>> batch["pixel_values"].shape
    torch.Size([8, 3, 32, 32])
    ```
    """

    def __init__(self, transform: BatchTransform, seed: int, train: bool, noise_length: int | None = None):
        if noise_length is not None and noise_length < 1:
            raise ValueError(f"noise_length must be >= 1 or None, got {noise_length}")
        super().__init__(seed, train)
        self.transform = transform
        self.noise_length = noise_length

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            items: Items with "image" (uint8 [C, H, W]), "index" and, for labelled data, "label".

        Returns:
            "pixel_values" float32 [B, C, H, W]; "labels" int64 [B] when every item has one; "noise" float32 [B, L]
            when `noise_length` is given.
        """
        indices = [item["index"] for item in items]
        table = uniforms(self.seed, self.epoch, indices, self.transform.draws, _AUGMENTATION_STREAM)
        batch = {"pixel_values": self.transform([item["image"] for item in items], table)}
        if all("label" in item for item in items):
            batch["labels"] = torch.tensor([item["label"] for item in items], dtype=torch.int64)
        if self.noise_length is not None:
            noise = uniforms_float32(self.seed, self.epoch, indices, self.noise_length, _NOISE_STREAM)
            batch["noise"] = torch.from_numpy(noise)
        return batch
