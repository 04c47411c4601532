"""Counter-based random numbers for data augmentation, and protection of the global generators.

Every number of the former is a pure function of (seed, epoch, sample index, stream, draw number). It therefore does not
depend on the batch size, the number of workers or processes, the order of the samples, or on where a run was resumed.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

# splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UINT64_MASK = (1 << 64) - 1


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, a bijection of the 64-bit integers (arithmetic modulo 2**64)."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def random_bits(seed: int, epoch: int, indices: Sequence[int] | np.ndarray, draws: int, stream: int = 0) -> np.ndarray:
    """Draw 64 random bits per sample and draw.

    Args:
        seed: Seed of the run, any integer.
        epoch: Epoch number, >= 0.
        indices: Sample indices [B], >= 0.
        draws: Number of draws per sample.
        stream: Separates independent uses for the same sample (for example augmentation and masking noise).

    Returns:
        uint64 array [B, draws].

    Raises:
        ValueError: `draws`, `epoch` or an index is negative.
    """
    if draws < 0:
        raise ValueError(f"draws must be >= 0, got {draws}")
    if epoch < 0:
        raise ValueError(f"epoch must be >= 0, got {epoch}")
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    if index.size and index.min() < 0:
        raise ValueError(f"indices must be >= 0, got {index.min()}")
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, stream):
        key = _mix(key + np.array([part & _UINT64_MASK], dtype=np.uint64) + _GOLDEN_GAMMA)
    sample_key = _mix(key + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA)
    counter = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    return _mix(sample_key[:, None] + counter[None, :])


def uniforms(seed: int, epoch: int, indices: Sequence[int] | np.ndarray, draws: int, stream: int = 0) -> np.ndarray:
    """Draw uniform numbers in [0, 1) per sample and draw.

    Args:
        seed: Seed of the run, any integer.
        epoch: Epoch number, >= 0.
        indices: Sample indices [B], >= 0.
        draws: Number of draws per sample.
        stream: Separates independent uses for the same sample.

    Returns:
        float64 array [B, draws], multiples of 2**-53 in [0, 1).

    Raises:
        ValueError: `draws`, `epoch` or an index is negative.
    """
    return (random_bits(seed, epoch, indices, draws, stream) >> np.uint64(11)) * 2.0**-53


def uniforms_float32(
    seed: int, epoch: int, indices: Sequence[int] | np.ndarray, draws: int, stream: int = 0
) -> np.ndarray:
    """Like [`uniforms`], as float32 array [B, draws] of multiples of 2**-24 (never rounded up to 1)."""
    bits = random_bits(seed, epoch, indices, draws, stream) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def random_permutation(size: int, seed: int) -> np.ndarray:
    """Shuffle 0..size-1 with a seed, the same on every machine and numpy version.

    Args:
        size: Number of elements.
        seed: Any integer.

    Returns:
        int64 array [size].
    """
    return np.argsort(random_bits(seed, 0, np.arange(size), 1)[:, 0], kind="stable")


@contextmanager
def preserved_global_generators() -> Iterator[None]:
    """Restore the global generators, which timm's augmentations draw from, afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_global_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and, on the CPU, torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # of the CPU alone: `torch.manual_seed` takes a hundred times longer
