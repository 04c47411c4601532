"""The light mode of SANM in a run of the common trainer: the label quality as a column of the batches."""

from collections.abc import Sequence
from typing import Any

import torch

from hubmodels.data.collators import BatchTransform, ImageCollator
from hubmodels.data.transforms import ImageTransform
from hubmodels.evaluation.label_quality import LabelQualityEstimator
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.training.callbacks import HubCallback
from hubmodels.training.labelled_split import quality_metrics


class QualityCollator(ImageCollator):
    """An [`ImageCollator`] whose batches carry `clean_prob`, the probability that each label is right.

    Args:
        transform, seed, train: As [`ImageCollator`].
    """

    def __init__(self, transform: BatchTransform, seed: int, train: bool):
        super().__init__(transform, seed, train)
        self._clean_prob: torch.Tensor | None = None

    def set_clean_prob(self, indices: torch.Tensor, clean_prob: torch.Tensor) -> None:
        """Set the probabilities, also in workers that are running.

        Args:
            indices: "index" of the images [N].
            clean_prob: [N].
        """
        if self._clean_prob is None:
            self._clean_prob = torch.ones(int(indices.max()) + 1).share_memory_()
        self._clean_prob[indices] = clean_prob.float()

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            items: As [`ImageCollator`].

        Returns:
            "pixel_values", "labels", and "clean_prob" once it is set.
        """
        batch = super().__call__(items)
        if self._clean_prob is not None:
            batch["clean_prob"] = self._clean_prob[[item["index"] for item in items]]
        return batch


class LabelQualityCallback(HubCallback):
    """Estimates before every epoch after the warm-up which labels are right; a stopped run continues with the estimate.

    Args:
        dataset: The training images.
        transform: Transform of the evaluation.
        collator: Gets the probabilities.
        warm_up_epochs: Epochs in which all labels are trusted.
        history: Epochs whose losses are averaged.
        p_threshold: Probability above which a label counts as trusted in the log.
    """

    def __init__(
        self,
        dataset: Any,
        transform: ImageTransform,
        collator: QualityCollator,
        warm_up_epochs: int,
        history: int = 1,
        p_threshold: float = 0.5,
    ):
        self.dataset = dataset
        self.transform = transform
        self.collator = collator
        self.warm_up_epochs = warm_up_epochs
        self.p_threshold = p_threshold
        self.estimator = LabelQualityEstimator(history)
        self.clean_prob = torch.ones(len(dataset), dtype=torch.float64)
        self.epoch = -1

    def on_train_begin(self, args, state, control, **kwargs):
        self._publish()

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        epoch = state.global_step // self.trainer.steps_per_epoch
        if epoch < self.warm_up_epochs or epoch == self.epoch:
            return
        losses = predict_samples([self.trainer.model], self.dataset, self.transform).losses[0]
        self.clean_prob, self.epoch = torch.from_numpy(self.estimator(losses).clean_prob), epoch
        self._publish()
        quality = self.clean_prob.numpy()
        self.trainer.log(quality_metrics(quality, quality > self.p_threshold, self.dataset))

    def state_dict(self):
        return {"epoch": self.epoch, "clean_prob": self.clean_prob, "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state):
        self.epoch, self.clean_prob = state["epoch"], state["clean_prob"].cpu()
        self.estimator.load_state_dict(state["estimator"])

    def _publish(self) -> None:
        self.collator.set_clean_prob(torch.from_numpy(self.dataset.indices), self.clean_prob)
