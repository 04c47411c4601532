"""Which labels of a data set are probably right, by the losses of a network."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from transformers.utils import logging

logger = logging.get_logger(__name__)

HISTORY_NOISE_RATE = 0.9  # at this noise rate the official code averages the losses of five epochs
HISTORY_LENGTH = 5


@dataclass(frozen=True)
class LabelQuality:
    """
    What [`LabelQualityEstimator`] found.

    Attributes:
        clean_prob (`np.ndarray`): float64 `[N]`, probability that each label is right.
        scaled_losses (`np.ndarray`): `[N]`, the losses in [0, 1] that the mixture was fitted to; float64 if the losses
            are, else float32.
        means, weights, variances (`np.ndarray`): float64 `[2]`, of the components, smaller mean first; empty if all
            losses are equal.
        iterations (`int`): of expectation maximisation.
        converged (`bool`): whether it came to rest.
    """

    clean_prob: np.ndarray
    scaled_losses: np.ndarray
    means: np.ndarray
    weights: np.ndarray
    variances: np.ndarray
    iterations: int
    converged: bool


class LabelQualityEstimator:
    """
    Probability that each label is right, from the cross entropy of each sample (section 3 of the paper; DivideMix).

    The losses are scaled to [0, 1] and a mixture of two normal distributions is fitted; right labels are those of the
    component with the smaller mean. The result depends on the losses alone: the fit starts from 2-means clusters, which
    start from the smallest and the largest loss (the official code starts them at random).

    Args:
        history (`int`, defaults to 1): average the scaled losses of so many calls (official: 5 at 90 % noise, else 1).
        max_iter (`int`, defaults to 10): iterations at most.
        tol (`float`, defaults to 1e-2): stop when the mean log-likelihood changes by less.
        reg_covar (`float`, defaults to 5e-4): added to the variances.

    Raises:
        ValueError: for a history or `max_iter` below 1, or a negative `tol` or `reg_covar`.

    Example:

    ```python
    >>> import torch
    >>> from hubmodels import LabelQualityEstimator

    >>> losses = torch.cat([torch.rand(90) * 0.1, 2 + torch.rand(10)])
    >>> (LabelQualityEstimator()(losses).clean_prob > 0.5).sum()
    np.int64(90)
    ```
    """

    def __init__(self, history: int = 1, max_iter: int = 10, tol: float = 1e-2, reg_covar: float = 5e-4):
        for name, value, least in (("history", history, 1), ("max_iter", max_iter, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, bound in (("tol", tol), ("reg_covar", reg_covar)):
            if not bound >= 0:
                raise ValueError(f"{name} must be at least 0, got {bound}")
        self.history = history
        self.max_iter = max_iter
        self.tol = tol
        self.reg_covar = reg_covar
        self.past: list[np.ndarray] = []

    @classmethod
    def for_noise_rate(cls, noise_rate: float | None, **kwargs: Any) -> "LabelQualityEstimator":
        """
        The official choice of the history: five epochs at 90 % noise, one otherwise.

        Args:
            noise_rate (`float`, *optional*): share of wrong labels, if it is known.
            kwargs: further arguments.
        """
        many = noise_rate is not None and round(noise_rate, 6) == HISTORY_NOISE_RATE
        return cls(history=HISTORY_LENGTH if many else 1, **kwargs)

    def __call__(self, losses: torch.Tensor | np.ndarray | Sequence[float]) -> LabelQuality:
        """
        Args:
            losses: cross entropy of every sample with its given label, `[N]`, always in the same order.

        Returns:
            [`LabelQuality`]. Where all losses are equal, in this call or in the mean of the past ones, every label
            counts as right, with a warning.

        Raises:
            ValueError: for losses that are negative, infinite or not a number, of another shape, or of another number
                than before.
        """
        values = self._checked(losses)
        low, high = values.min(), values.max()
        if low == high:
            return _all_right(np.zeros_like(values), f"losses are {low:.4g}")
        self.past = [*self.past, (values - low) / (high - low)][-self.history :]
        scaled = np.stack(self.past).mean(axis=0)
        if scaled.min() == scaled.max():
            return _all_right(scaled, f"losses have the same mean over {len(self.past)} calls")
        return self._fit(scaled)

    def state_dict(self) -> dict[str, Any]:
        """The losses of past epochs, for a checkpoint."""
        return {"past": [torch.from_numpy(losses) for losses in self.past]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Takes up what `state_dict` returned.

        Args:
            state (`dict`): the state.
        """
        self.past = [losses.cpu().numpy() for losses in state["past"]]

    def _checked(self, losses: Any) -> np.ndarray:
        if isinstance(losses, torch.Tensor):
            losses = losses.detach().cpu()
            losses = losses.float().numpy() if losses.dtype.itemsize < 8 else losses.numpy()
        values = np.asarray(losses)
        values = values.astype(np.float32 if values.dtype.itemsize < 8 else np.float64)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"losses must have shape [N] with at least 1 sample, got {list(values.shape)}")
        bad = ~np.isfinite(values) | (values < 0)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"losses must be finite and at least 0, got {values[first]} at index {first} ({int(bad.sum())} such)"
            )
        if self.past and len(self.past[-1]) != len(values):
            raise ValueError(
                f"expected the losses of the same {len(self.past[-1])} samples as before, got {len(values)}"
            )
        return values

    def _fit(self, scaled: np.ndarray) -> LabelQuality:
        """Expectation maximisation in float64, from 2-means clusters that start from the extremes."""
        x = scaled.astype(np.float64)[:, None]
        is_second = KMeans(2, init=[x.min(axis=0), x.max(axis=0)], n_init=1, tol=0.0).fit(x).labels_ == 1
        groups = [x[~is_second], x[is_second]]
        mixture = GaussianMixture(
            2,
            max_iter=self.max_iter,
            tol=self.tol,
            reg_covar=self.reg_covar,
            weights_init=[len(group) / len(x) for group in groups],
            means_init=[group.mean(axis=0) for group in groups],
            precisions_init=[[[1 / (group.var() + self.reg_covar)]] for group in groups],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
            mixture.fit(x)
        means, variances = mixture.means_.flatten(), mixture.covariances_.flatten()
        order = np.argsort(means, kind="stable")
        return LabelQuality(
            mixture.predict_proba(x)[:, order[0]],
            scaled,
            means[order],
            mixture.weights_[order],
            variances[order],
            mixture.n_iter_,
            bool(mixture.converged_),
        )


def _all_right(scaled: np.ndarray, what: str) -> LabelQuality:
    logger.warning(f"all {len(scaled)} {what}: nothing tells labels apart, all count as right")
    nothing = np.empty(0)
    return LabelQuality(np.ones(len(scaled)), scaled, nothing, nothing, nothing, 0, True)
