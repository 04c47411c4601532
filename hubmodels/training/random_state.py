"""Random numbers of a run: an order of samples that depends on seed and epoch only, and protected generators."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler

from hubmodels.data.randomness import preserved_global_generators


class EpochSampler(Sampler[int]):
    """Shuffles a data set by a permutation that is a pure function of seed and epoch.

    So the order does not depend on the number of processes or workers, nor on whether the run was resumed.

    Args:
        dataset: Map-style data set.
        seed: Seed of the order.
    """

    def __init__(self, dataset: Sized, seed: int):
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation.

        Args:
            epoch: Epoch from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch.

        Args:
            epoch: Epoch from 0.

        Returns:
            Positions in the data set, int64 [N].
        """
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch).tolist()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch after a `with` block as they were before it."""
    with preserved_global_generators(), torch.random.fork_rng():  # the latter knows those of GPUs
        yield
