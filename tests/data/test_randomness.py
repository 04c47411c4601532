"""Counter-based random numbers."""

import numpy as np
import pytest
from scipy import stats

from hubmodels.data.randomness import random_bits, random_permutation, uniforms, uniforms_float32


def test_a_sample_does_not_depend_on_its_batch():
    table = uniforms(3, 5, np.arange(100), 7)
    np.testing.assert_array_equal(uniforms(3, 5, [42], 7)[0], table[42])
    np.testing.assert_array_equal(uniforms(3, 5, [9, 4], 7), table[[9, 4]])


def test_more_draws_extend_the_fewer():
    np.testing.assert_array_equal(uniforms(1, 0, [0, 8], 20)[:, :5], uniforms(1, 0, [0, 8], 5))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"indices": [1]}, {"stream": 1}])
def test_every_part_of_the_key_matters(change):
    key = {"seed": 0, "epoch": 0, "indices": [0], "draws": 4, "stream": 0}
    assert not np.any(uniforms(**key) == uniforms(**{**key, **change}))


def test_the_values_are_frozen():
    # Splitmix64 is integer arithmetic: any change here changes every run that can be resumed.
    assert random_bits(0, 0, [0], 2).tolist() == [[8695987549771912286, 13369316111306796529]]


def test_values_are_uniform():
    table = uniforms(seed=0, epoch=0, indices=np.arange(20000), draws=5)
    assert table.min() >= 0.0 and table.max() < 1.0
    for column in table.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(table.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.03


def test_neighbouring_samples_and_seeds_are_independent():
    first, second = (uniforms(seed, 0, np.arange(20000), 1)[:, 0] for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03


def test_float32_never_reaches_one():
    table = uniforms_float32(0, 0, np.arange(4000), 256)
    assert table.dtype == np.float32
    assert 0.0 <= table.min() < 1e-5
    assert 1 - 1e-5 < table.max() < 1.0


def test_permutation():
    order = random_permutation(1000, seed=4)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, random_permutation(1000, seed=5))
    assert random_permutation(0, seed=0).shape == (0,)


def test_negative_seeds_are_accepted():
    assert uniforms(-1, 0, [0], 1) != uniforms(1, 0, [0], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, -1, [0], 1), "epoch must be >= 0, got -1"),
        ((0, 0, [3, -2], 1), "indices must be >= 0, got -2"),
        ((0, 0, [0], -1), "draws must be >= 0, got -1"),
    ],
)
def test_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        uniforms(*arguments)
