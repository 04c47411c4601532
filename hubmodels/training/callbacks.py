"""Callbacks of the trainer: moving averages, guards, logs and online probes."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback

from hubmodels.evaluation_mode import evaluation_mode
from hubmodels.files import write_text
from hubmodels.training.random_state import preserved_random_state


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


class CollapseError(RuntimeError):
    """The features of different images became equal."""


class HubCallback(TrainerCallback):
    """A callback that knows its trainer, sees every loss, and whose state goes into the checkpoints.

    Attributes:
        trainer: The `HubTrainer` it belongs to, set when the trainer is built.
    """

    trainer: Any = None

    def on_loss(self, loss: torch.Tensor, outputs: Any) -> None:
        """Called after every forward in training, before the backward.

        Args:
            loss: The loss, a scalar.
            outputs: The model's output.
        """

    def state_dict(self) -> dict[str, Any]:
        """State to be saved in a checkpoint: tensors, numbers and strings, nested.

        Returns:
            The state; empty for a callback without one.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, when training resumes.

        Args:
            state: What `state_dict` returned.
        """


class ExponentialMovingAverage(HubCallback):
    """Keeps an exponential moving average of weights and buffers (timm's `ModelEmaV3`).

    The first step copies the model; after that `average = decay * average + (1 - decay) * weights` at every step.

    Args:
        decay: Decay per step, in (0, 1).
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay must be in (0, 1), got {decay}")
        self.decay = decay
        self.average: ModelEmaV3 | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.average is None or state.global_step == 0:
            self.average = ModelEmaV3(model, decay=self.decay)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert self.average is not None  # made when training began
        self.average.update(model, step=state.global_step)

    def state_dict(self):
        assert self.average is not None
        return {"average": self.average.module.state_dict()}

    def load_state_dict(self, state):
        self.average = ModelEmaV3(self.trainer.model, decay=self.decay)
        self.average.module.load_state_dict(state["average"])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights for the length of a `with` block.

        Args:
            model: The model that is trained.
        """
        if self.average is None:
            yield
            return
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(trained)


class NonFiniteGuard(HubCallback):
    """Stops the run at the first loss that is infinite or not a number, before it reaches the weights."""

    def on_loss(self, loss, outputs):
        if not torch.isfinite(loss):
            step = self.trainer.state.global_step + 1
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {step}. Resume from the last checkpoint with a lower learning "
                "rate, a longer warm-up, or bf16/fp32 instead of fp16"
            )


class CollapseGuard(HubCallback):
    """Stops the run when the features of different images have become equal.

    It reads `feature_std` from the log, the standard deviation over images of L2-normalised features, times the square
    root of their width: near 1 for features spread over the sphere, 0 for collapsed ones (SimSiam, section 4.1).
    `OnlineProbe` writes it, and a method may.

    Args:
        threshold: Smallest accepted value. Averaged maps of a ResNet that has hardly been trained can lie near 0.01.
    """

    def __init__(self, threshold: float = 1e-3):
        self.threshold = threshold

    def on_log(self, args, state, control, logs=None, **kwargs):
        value = (logs or {}).get("feature_std")
        if value is not None and not value >= self.threshold:
            raise CollapseError(
                f"feature_std is {value:.3g} at step {state.global_step}, below {self.threshold}: "
                "the features of different images have become equal"
            )


class JsonlLogger(HubCallback):
    """Writes every log line as one JSON object a line, flushed at once.

    A resumed run drops the lines of steps it does again, and a line a killed run did not finish. A new run moves the
    file of an earlier one to `NAME.previous`.

    Args:
        path: The file; its folder is created.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.started = time.time()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started = time.time()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step == 0 and self.path.exists():
            os.replace(self.path, self.path.with_name(self.path.name + ".previous"))
        kept = [line for line in read_jsonl(self.path) if line.get("step", 0) <= state.global_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        line = {"step": state.global_step, "seconds": round(time.time() - self.started, 3), **(logs or {})}
        line = {key: _json_value(value) for key, value in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class OnlineProbe(HubCallback):
    """Measures the frozen features on a labelled split during pre-training, so that a bad run is seen early.

    Logs `knn_accuracy` and `linear_accuracy` (in [0, 1]) and `feature_std` (see `CollapseGuard`). The random numbers of
    the training are left as they were. An epoch is measured before the checkpoint of its last step is written, so that
    a run that is stopped in between repeats the step and its measurement.

    Args:
        train_dataset: Labelled images to fit on.
        test_dataset: Labelled images to measure on.
        transform: Evaluation transform of the images.
        every_epochs: Epochs from one measurement to the next; the last epoch is always measured.
        k: Neighbours of the k-NN classifier.
        linear_epochs: Epochs of the linear probe; 0 leaves it out.
        batch_size: Images a forward pass.
    """

    def __init__(
        self,
        train_dataset: Any,
        test_dataset: Any,
        transform: Any,
        every_epochs: int = 1,
        k: int = 20,
        linear_epochs: int = 20,
        batch_size: int = 256,
    ):
        if every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1, got {every_epochs}")
        self.train_dataset = train_dataset
        self.test_dataset = test_dataset
        self.transform = transform
        self.every_epochs = every_epochs
        self.k = k
        self.linear_epochs = linear_epochs
        self.batch_size = batch_size
        self.measured_step = 0

    def state_dict(self):
        return {"measured_step": self.measured_step}

    def load_state_dict(self, state):
        self.measured_step = state.get("measured_step", 0)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measured_step = 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        epoch, steps_left = divmod(state.global_step, self.trainer.steps_per_epoch)
        if (steps_left == 0 and epoch % self.every_epochs == 0) or state.global_step == state.max_steps:
            self._log_measurement(state, control, model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.measured_step != state.global_step:  # the training was stopped, or the data ended
            self._log_measurement(state, control, model)

    def _log_measurement(self, state, control, model):
        self.measured_step = state.global_step
        if state.is_world_process_zero:
            with self.trainer.averaged_weights():
                figures = self.measure(model)
            logs_loss = control.should_log
            self.trainer.log(figures)
            control.should_log = logs_loss  # which the logging of figures takes for done

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Probe a model.

        Args:
            model: Model in any mode; it is left in that mode.

        Returns:
            `knn_accuracy`, `feature_std` and, if asked for, `linear_accuracy`.
        """
        from hubmodels.evaluation import extract_features, knn_accuracy, linear_probe

        with preserved_random_state(), evaluation_mode(model):
            train, test = (
                cast(
                    tuple[torch.Tensor, torch.Tensor],
                    extract_features(model, dataset, self.transform, batch_size=self.batch_size, progress=False),
                )
                for dataset in (self.train_dataset, self.test_dataset)
            )
            logs = {"knn_accuracy": knn_accuracy(*train, *test, k=self.k), "feature_std": feature_std(test[0])}
            if self.linear_epochs:
                logs["linear_accuracy"] = linear_probe(*train, *test, epochs=self.linear_epochs).accuracy
        return logs


def feature_std(features: torch.Tensor) -> float:
    """Spread of features over the unit sphere.

    Args:
        features: [N, D].

    Returns:
        Standard deviation over images of the L2-normalised features, mean over dimensions, times sqrt(D).
    """
    normalised = nn.functional.normalize(features.float(), dim=-1)
    return (normalised.std(dim=0, correction=0).mean() * features.shape[-1] ** 0.5).item()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a log written by `JsonlLogger`.

    Args:
        path: The file; a missing one reads as empty.

    Returns:
        One dictionary a line. An unfinished last line is left out.
    """
    path = Path(path)
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _json_value(value: Any) -> Any:
    """JSON knows no infinity and no NaN: they are written as text."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
