"""Co-training of two networks with SANM: each learns from the split of the data that the other one made."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hubmodels.data.collators import ImageCollator
from hubmodels.evaluation.label_quality import LabelQualityEstimator
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.modeling.sanm import (
    AdversarialNoisyMasking,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
)
from hubmodels.training.arguments import HubTrainingArguments
from hubmodels.training.callbacks import HubCallback
from hubmodels.training.cotraining_data import (
    WARM_UP_FACTOR,
    CoTrainingCollator,
    CoTrainingViews,
    PlannedStep,
    co_training_steps,
    share_of_process,
    step_loader,
    warm_up_steps,
)
from hubmodels.training.cotraining_step import (
    MIXED_VIEWS,
    CoTrainingSettings,
    StepRandomness,
    co_training_loss,
    warm_up_loss,
)
from hubmodels.training.labelled_split import labelled_mask, quality_metrics
from hubmodels.training.trainer import HubTrainer

DECAY_FACTOR = 0.1
LAST_EPOCHS = 10  # whose mean accuracy is reported beside the last and the best
_STEP_STREAM = 3
# What other trainers do with these, co-training does in its own way or not at all; the only values it accepts.
UNUSED_ARGUMENTS = {
    "max_steps": -1,
    "gradient_accumulation_steps": 1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "label_smoothing_factor": 0.0,
}

logger = logging.get_logger(__name__)


class CoTrainingState(HubCallback):
    """What co-training must remember besides weights and optimiser: past losses, last splits, accuracies.

    Args:
        history: Epochs whose losses are averaged.
    """

    def __init__(self, history: int):
        self.estimators = [LabelQualityEstimator(history) for _ in range(2)]
        self.clean_prob: torch.Tensor | None = None
        self.accuracies: list[float] = []

    def state_dict(self):
        return {
            "estimators": [estimator.state_dict() for estimator in self.estimators],
            "clean_prob": self.clean_prob,
            "accuracies": list(self.accuracies),
        }

    def load_state_dict(self, state):
        for estimator, past in zip(self.estimators, state["estimators"], strict=True):
            estimator.load_state_dict(past)
        self.clean_prob = None if state["clean_prob"] is None else state["clean_prob"].cpu()
        self.accuracies = list(state["accuracies"])


class SANMTrainer(HubTrainer):
    """Trains a [`SANMEnsembleForImageClassification`]: warm-up, then co-training with the other network's split.

    Every epoch after the warm-up, both networks estimate in one pass over the data which labels are right. Then each is
    trained for an epoch, on the split of the other, which guesses labels with it (DivideMix, with SANM's masked views
    and reconstruction). Checkpoints are written between epochs and hold everything, so that a resumed run ends in the
    same weights bit for bit. Both networks have their own gradients, momenta and steps in one optimiser object:
    parameters without a gradient are not touched by it, which equals two optimisers.

    Several processes (`accelerate launch`) share every step: losses of the quality estimate are joined by sample, all
    processes have the same split, and gradients are averaged.

    Args:
        model: The ensemble.
        args: The arguments; `per_device_train_batch_size` counts labelled images, which as many unlabelled ones join.
        settings: How the networks learn from each other.
        views: The augmentations.
        decay_epochs: Epochs at which the learning rate is divided by ten.
        save_every: Epochs from one checkpoint to the next; 0 writes none.
        evaluate_every: Epochs from one evaluation to the next; 0 measures never.
        **kwargs: As [`HubTrainer`]; `train_dataset` must have labels.

    A callback that stops the training inside of an epoch leaves the last checkpoint as it is: a run that resumes
    repeats that epoch.

    Raises:
        ValueError: If the model is no ensemble, its framework is the single-network one, it would be sharded, an
            argument is given that co-training does not use, or labels are out of range.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: SANMEnsembleForImageClassification,
        args: HubTrainingArguments,
        settings: CoTrainingSettings,
        views: CoTrainingViews,
        decay_epochs: Sequence[int] = (),
        save_every: int = 1,
        evaluate_every: int = 1,
        callbacks: Sequence[Any] = (),
        **kwargs: Any,
    ):
        if not isinstance(model, SANMEnsembleForImageClassification) or model.config.framework == "ce":
            raise ValueError(
                "model must be a SANMEnsembleForImageClassification with framework 'dividemix' or 'c2d' (a single "
                f"network with framework 'ce' runs in any Trainer), got {type(model).__name__} with "
                f"{model.config.framework!r}"
            )
        for name, value in (("save_every", save_every), ("evaluate_every", evaluate_every)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not args.num_train_epochs >= 1 or args.num_train_epochs != int(args.num_train_epochs):
            raise ValueError(f"co-training takes whole epochs, got num_train_epochs={args.num_train_epochs}")
        for name, unused in UNUSED_ARGUMENTS.items():
            if getattr(args, name) != unused:
                raise ValueError(
                    f"{name} must be {unused} for co-training, which has no use for it, got {getattr(args, name)}"
                )
        if settings.warm_up_epochs >= args.num_train_epochs:
            logger.warning(
                f"warm_up_epochs = {settings.warm_up_epochs} of {int(args.num_train_epochs)} epochs: no epoch of "
                "co-training follows"
            )
        _check_labels(kwargs.get("train_dataset"), model.config.num_labels)
        if "data_collator" not in kwargs:
            kwargs.setdefault("eval_data_collator", ImageCollator(views.evaluation, args.seed, train=False))
        self.settings = settings
        self.views = views
        self.decay_epochs = tuple(decay_epochs)
        self.save_every = save_every
        self.evaluate_every = evaluate_every
        self.progress = CoTrainingState(settings.history)
        super().__init__(model, args, callbacks=[self.progress, *callbacks], **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "co-training needs whole networks in every process: launch it with --multi_gpu, not with FSDP or "
                "DeepSpeed"
            )
        self.masking = AdversarialNoisyMasking.from_config(model.config)
        self._losses: list[torch.Tensor] = []
        self.steps_per_epoch = 1

    @property
    def networks(self) -> tuple[SANMForImageClassification, SANMForImageClassification]:
        """Both networks."""
        return self.model.net1, self.model.net2

    @property
    def writes_checkpoints(self) -> bool:
        return bool(self.save_every)

    def set_epoch(self, epoch: int) -> None:
        """Nothing to announce: views and order are made for each epoch when it begins."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Division by ten at `decay_epochs`; a step is an epoch."""
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda epoch: DECAY_FACTOR ** sum(epoch >= at for at in self.decay_epochs)
        )
        return self.lr_scheduler

    # The loop

    def _inner_training_loop(
        self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
    ):
        epochs = int(self.args.num_train_epochs)
        started = time.time()
        first = self._begin(epochs, resume_from_checkpoint, trial)
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self._load_rng_state(resume_from_checkpoint)
        for epoch in range(first, epochs):
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
            self._train_epoch(epoch, epochs)
            if self.state.epoch < epoch + 1:  # stopped inside; transformers itself stops at the last step of a run
                break
            self.lr_scheduler.step()
            self.state.epoch = float(epoch + 1)
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            is_last = epoch + 1 == epochs or self.control.should_training_stop
            measures = self.eval_dataset is not None and self.evaluate_every
            if measures and ((epoch + 1) % self.evaluate_every == 0 or is_last):
                self._measure()
            if self.save_every and ((epoch + 1) % self.save_every == 0 or is_last):
                self._save_checkpoint(self.model, trial)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            if self.control.should_training_stop:
                break
        return self._end(started)

    def _begin(self, epochs: int, checkpoint: str | None, trial: Any) -> int:
        """Optimiser, scheduler and state, new or from a checkpoint; the epoch to begin with."""
        images, batch = len(self.train_dataset), self.args.per_device_train_batch_size * self.args.world_size
        most = 2 * epochs * -(-images // batch)
        self._init_training_state(most, most, epochs, checkpoint, trial)
        self._broadcast(self.model.state_dict().values())
        self.create_optimizer()
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.create_scheduler(epochs)
        if checkpoint is not None:
            self._load_optimizer_and_scheduler(checkpoint)
            self._load_scaler(checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        return round(self.state.epoch or 0)

    def _end(self, started: float) -> TrainOutput:
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        train_loss = float(np.mean(losses)) if losses else float("nan")
        metrics = {"train_runtime": round(time.time() - started, 3), "train_loss": train_loss}
        accuracies = self.progress.accuracies
        if accuracies:
            last = accuracies[-LAST_EPOCHS:]
            metrics |= {"best_accuracy": max(accuracies), "last_epochs_accuracy": float(np.mean(last))}
        self.log(metrics)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, train_loss, metrics)

    def _measure(self) -> None:
        metrics = self.evaluate()
        if "eval_accuracy" in metrics:
            self.progress.accuracies.append(metrics["eval_accuracy"])

    def _train_epoch(self, epoch: int, epochs: int) -> None:
        """One epoch of both networks, one after the other."""
        batch = self.args.per_device_train_batch_size * self.args.world_size
        warms_up = epoch < self.settings.warm_up_epochs
        plans = []
        iterations = [1, 1]
        if warms_up:
            trust: list[torch.Tensor | None] = [None, None]
            for network in range(2):
                key = [self.args.seed, epoch, network]
                plans.append(warm_up_steps(len(self.train_dataset), WARM_UP_FACTOR * batch, key))
        else:
            qualities = self._label_qualities()
            trust = [torch.from_numpy(quality.astype(np.float32)) for quality in reversed(qualities)]
            masks = [labelled_mask(quality, self.settings, epoch) for quality in reversed(qualities)]
            self._log_quality(list(reversed(qualities)), masks)
            iterations = [int(mask.sum()) // batch + 1 for mask in masks]  # of the ramp, as the official code counts
            plans = [co_training_steps(mask, batch, [self.args.seed, epoch, i]) for i, mask in enumerate(masks)]
        shares = [share_of_process(plan, self.args.process_index, self.args.world_size) for plan in plans]
        steps = sum(map(len, shares))
        if not steps:
            raise ValueError(
                f"epoch {epoch} has no step: fewer images of a kind than the {self.args.world_size} processes"
            )
        self._announce(self.state.global_step + steps * (epochs - epoch))
        done = 0
        for number, share in enumerate(shares):
            self._train_network(number, share, epoch, iterations[number], trust[number], (done, steps))
            done += len(share)
            if self.control.should_training_stop:
                break
        self._broadcast(self.model.buffers())

    def _train_network(
        self,
        number: int,
        steps: Sequence[PlannedStep],
        epoch: int,
        iterations: int,
        trust: torch.Tensor | None,
        done_of: tuple[int, int],
    ) -> None:
        """One epoch of one network, `trust` being what the other one found."""
        network, peer = self.networks[number], self.networks[1 - number]
        network.train()
        peer.eval()
        names = (*MIXED_VIEWS[self.settings.mixing], "guess1", "guess2") if trust is not None else ()
        collator = CoTrainingCollator(
            self.views, tuple(dict.fromkeys(names)), self.args.seed, 2 * epoch + number, trust
        )
        loader = step_loader(
            self.train_dataset, steps, collator, self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        )
        for index, batch in enumerate(loader):
            self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
            batch = self._prepare_inputs(batch)
            key = [self.args.seed, epoch, number, index, self.args.process_index, _STEP_STREAM]
            with self.accelerator.autocast():
                loss, parts = self._loss(network, peer, batch, key, epoch + index / iterations)
            self._update(network, loss, clips=trust is None)
            self.state.global_step += 1
            self.state.epoch = epoch + (done_of[0] + index + 1) / done_of[1]
            self._log_step(loss.detach(), parts)
            if self.control.should_training_stop:
                break

    def _loss(
        self,
        network: SANMForImageClassification,
        peer: SANMForImageClassification,
        batch: Any,
        key: list[int],
        at: float,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a step and its parts."""
        labelled = batch["labelled"]
        if "warm_up" in labelled:
            return warm_up_loss(network, labelled["warm_up"], labelled["labels"], self.settings), {}
        images = len(labelled["labels"]) + len(batch["unlabelled"]["labels"])
        channels = labelled["guess1"].shape[1]
        randomness = StepRandomness.draw(key, self.settings.alpha, self.masking, images, channels)
        output = co_training_loss(
            network, peer, labelled, batch["unlabelled"], self.masking, self.settings, at, randomness
        )
        names = ("labelled_loss", "unlabelled_loss", "penalty", "reconstruction_loss")
        return output.loss, {name: getattr(output, name).detach() for name in names} | {"lambda_u": output.lambda_u}

    def _update(self, network: nn.Module, loss: torch.Tensor, clips: bool) -> None:
        """Gradients of one network, averaged over processes, and its step."""
        for callback in self.hub_callbacks:
            callback.on_loss(loss.detach(), {})
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self._average_gradients(network)
        limit = self.settings.warm_up_clip if clips else self.args.max_grad_norm
        if limit:
            self.accelerator.clip_grad_norm_(network.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    # Label quality

    def _label_qualities(self) -> list[np.ndarray]:
        """Probability that each label is right, by each network, from one pass over the data."""
        with self.accelerator.autocast():
            predictions = predict_samples(self.networks, self.train_dataset, self.views.evaluation)
        estimates = zip(self.progress.estimators, predictions.losses, strict=True)
        qualities = [estimator(losses).clean_prob for estimator, losses in estimates]
        if self.args.world_size > 1:
            dist.broadcast_object_list(qualities, src=0)
        self.progress.clean_prob = torch.from_numpy(np.stack(qualities))
        return qualities

    def _log_quality(self, qualities: list[np.ndarray], masks: list[np.ndarray]) -> None:
        """Figures of the splits that the networks are trained on."""
        metrics: dict[str, float] = {}
        for number, (quality, mask) in enumerate(zip(qualities, masks, strict=True), start=1):
            figures = quality_metrics(quality, mask, self.train_dataset)
            metrics |= {f"{name}_net{number}": value for name, value in figures.items()}
        self.log(metrics)

    # Processes

    def _average_gradients(self, network: nn.Module) -> None:
        if self.args.world_size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.args.world_size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives all processes what the first one has."""
        if self.args.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    # Logs

    def _announce(self, total: int) -> None:
        """Tells the progress bar how many steps there will be, as far as the present split says."""
        self.state.max_steps = total
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.total = total
                callback.training_bar.refresh()

    def _log_step(self, loss: torch.Tensor, parts: dict[str, Any]) -> None:
        self._losses.append(loss)
        for name, value in parts.items():
            self._logged_outputs[name].append(torch.as_tensor(value).float())
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.state.global_step % max(int(self.state.logging_steps), 1) == 0:
            logs = {"loss": float(torch.stack(self._losses).mean())}
            self._losses.clear()
            self.log(logs | {"learning_rate": self.lr_scheduler.get_last_lr()[0]})


def _check_labels(data: Any, num_labels: int) -> None:
    """Refuses labels that the model has no class for, before an epoch is spent."""
    labels = getattr(data, "labels", None)
    if labels is None or not len(labels):
        return
    labels = torch.as_tensor(labels)
    outside = ((labels < 0) | (labels >= num_labels)).nonzero().flatten()
    if len(outside):
        index = int(outside[0])
        raise ValueError(
            f"labels of train_dataset must be in 0..{num_labels - 1} (config.num_labels), got {int(labels[index])} at "
            f"index {index}"
        )
