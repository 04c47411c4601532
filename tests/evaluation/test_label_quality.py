"""The estimate of which labels are right."""

import numpy as np
import pytest
import torch

from hubmodels.evaluation import LabelQualityEstimator


def two_groups(seed=0):
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.gamma(2, 0.1, 300), 2 + generator.gamma(2, 0.3, 100)]).astype(np.float32)


def test_quality_is_deterministic_and_separates():
    losses = two_groups()
    first, again = LabelQualityEstimator()(losses), LabelQualityEstimator()(torch.from_numpy(losses))
    assert np.array_equal(first.clean_prob, again.clean_prob)
    assert (first.clean_prob[:300] > 0.5).mean() > 0.99 and (first.clean_prob[300:] < 0.5).all()
    assert first.clean_prob.dtype == np.float64 and first.means[0] < first.means[1]


def test_history_averages_scaled_losses_and_can_be_saved():
    epochs = [two_groups(seed) * (seed + 1) for seed in range(7)]
    estimator = LabelQualityEstimator.for_noise_rate(0.9)
    assert (estimator.history, LabelQualityEstimator.for_noise_rate(0.8).history) == (5, 1)
    for losses in epochs[:6]:
        estimator(losses)
    restored = LabelQualityEstimator.for_noise_rate(0.9)
    restored.load_state_dict(estimator.state_dict())
    expected = np.mean([(e - e.min()) / (e.max() - e.min()) for e in epochs[2:]], axis=0)
    for each in (estimator, restored):
        np.testing.assert_allclose(each(epochs[6]).scaled_losses, expected, atol=1e-6)


@pytest.mark.parametrize("width", [1e-6, 1e-8])
@pytest.mark.parametrize("history", [1, 2])
def test_losses_in_float64_are_judged_in_float64(width, history):
    """Shift and scale of the losses make no difference, also where float32 holds few values of the band."""
    near = [2 + width * two_groups(seed).astype(np.float64) for seed in range(2)]
    estimator, plain = LabelQualityEstimator(history), LabelQualityEstimator(history)
    for losses in near:
        found = estimator(torch.from_numpy(losses))
        expected = plain((losses - losses.min()) / (losses.max() - losses.min()))
    assert found.scaled_losses.dtype == np.float64
    np.testing.assert_allclose(found.clean_prob, expected.clean_prob, rtol=0, atol=1e-9)
    assert all(past.dtype == torch.float64 for past in estimator.state_dict()["past"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shorter_losses_are_judged_in_float32(dtype):
    losses = torch.from_numpy(two_groups()).to(dtype)
    found, expected = LabelQualityEstimator()(losses), LabelQualityEstimator()(losses.float().numpy())
    assert found.scaled_losses.dtype == np.float32 and np.array_equal(found.clean_prob, expected.clean_prob)


def test_equal_losses_count_as_right_with_a_warning(messages):
    quality = LabelQualityEstimator()(np.full(5, 0.7, np.float32))
    assert quality.clean_prob.tolist() == [1.0] * 5
    assert "nothing tells labels apart, all count as right" in messages.text
    assert LabelQualityEstimator()([0.3]).clean_prob.tolist() == [1.0]


def test_past_losses_that_cancel_count_as_right_too():
    estimator = LabelQualityEstimator(history=5)
    estimator([0.0, 1.0, 0.0, 1.0])
    assert estimator([1.0, 0.0, 1.0, 0.0]).clean_prob.tolist() == [1.0] * 4


@pytest.mark.parametrize("setting", [{"max_iter": 0}, {"tol": -1.0}, {"reg_covar": -1.0}, {"reg_covar": float("nan")}])
def test_settings_of_the_fit_are_checked(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be at least"):
        LabelQualityEstimator(**setting)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([0.1, float("nan"), 0.2], r"finite and at least 0, got nan at index 1 \(1 such\)"),
        ([0.1, -0.5], r"got -0.5 at index 1"),
        ([[0.1, 0.2]], r"shape \[N\] with at least 1 sample, got \[1, 2\]"),
        ([], r"at least 1 sample, got \[0\]"),
    ],
)
def test_bad_losses_are_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        LabelQualityEstimator()(losses)


def test_another_number_of_losses_is_refused():
    estimator = LabelQualityEstimator(history=2)
    estimator([0.1, 0.2, 0.9])
    with pytest.raises(ValueError, match="the same 3 samples as before, got 2"):
        estimator([0.1, 0.2])
    with pytest.raises(ValueError, match="history must be at least 1"):
        LabelQualityEstimator(history=0)
