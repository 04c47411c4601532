"""The trainer: `transformers.Trainer` with the published optimisers and schedules, mixing and exact resume."""

import atexit
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.data.mixup import Mixup, mixup_target
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput, has_length, suppress_progress_bars

from hubmodels.modeling.mae.onednn_mae import float32_products_in_onednn
from hubmodels.optimization.schedules import simclr_scheduler, timm_cosine_scheduler, warmup_cosine_scheduler
from hubmodels.training.arguments import OWN_SCHEDULES, HubTrainingArguments
from hubmodels.training.callbacks import (
    ExponentialMovingAverage,
    HubCallback,
    JsonlLogger,
    NonFiniteGuard,
)
from hubmodels.training.checkpoints import (
    checkpoint_defect,
    clean_leftovers,
    commit_checkpoint,
    complete_checkpoints,
    defective_checkpoints,
    last_complete_checkpoint,
    rotate_checkpoints,
    staging_folder,
)
from hubmodels.training.parameter_groups import create_optimizer, layer_adaptation_groups, parameter_groups
from hubmodels.training.process_group import leave_process_group
from hubmodels.training.random_state import EpochSampler, preserved_random_state

CALLBACK_STATES_NAME = "callbacks.pt"


class HubTrainer(Trainer):
    """Trains any model whose forward returns its loss.

    Beside what `transformers.Trainer` does (so Accelerate: one process, DDP, FSDP) it builds optimiser groups and
    schedule from `HubTrainingArguments`, mixes batches, tells the collator the epoch, writes checkpoints that are
    complete or absent and resumes to the same weights bit for bit. The order of samples is a function of seed and
    epoch, whatever the number of processes.

    Args:
        model: The model.
        args: The arguments.
        data_collator: Makes a batch of a list of samples. Its `set_epoch(epoch)`, if any, is called before every epoch
            (with persistent workers it must reach the workers, as that of `ImageCollator` does). Its
            `set_batches(sampler, size)`, if any, is told how the samples are divided: a batch of `size` goes to all
            processes together.
        eval_data_collator: The same for evaluation; default `data_collator`.
        callbacks: Further callbacks; a `HubCallback` also sees losses and keeps state in the checkpoints.
        **kwargs: Further arguments of `transformers.Trainer`.

    Raises:
        ValueError: If the arguments contradict each other or the data; the message names them.

    Example:

        >>> trainer = HubTrainer(model, HubTrainingArguments("run"), train_dataset=images, data_collator=collator)
        >>> trainer.train(resume_from_checkpoint=trainer.can_resume())
    """

    args: HubTrainingArguments
    model: PreTrainedModel
    train_dataset: Any

    def __init__(
        self,
        model: nn.Module,
        args: HubTrainingArguments,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        eval_data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, HubTrainingArguments):
            raise ValueError(f"args must be HubTrainingArguments, got {type(args).__name__}")
        compares = getattr(model, "compares_images", False) and kwargs.get("train_dataset") is not None
        if compares and not args.dataloader_drop_last:
            raise ValueError(
                f"dataloader_drop_last must be True for {type(model).__name__}, whose loss compares the images of a "
                "batch with each other, got False"
            )
        self._train_sampler: EpochSampler | None = None
        self._logged_outputs: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            callbacks=[_RunDriver(), *_standard_callbacks(args), *(callbacks or [])],
            **kwargs,
        )
        if self.args.world_size > 1:
            atexit.register(leave_process_group)
        self.eval_data_collator = eval_data_collator or self.data_collator
        # Losses here are means over a batch made by the model; without these two lines the stock trainer believes
        # that a forward with **kwargs divides by the number of labels and leaves out the division by accumulation.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        for callback in self.hub_callbacks:
            callback.trainer = self
        self._mixup = self._make_mixup()

    @property
    def hub_callbacks(self) -> list[HubCallback]:
        """The callbacks that see losses and keep state in the checkpoints."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, HubCallback)]

    # Training

    def can_resume(self) -> bool:
        """Whether `output_dir` holds a complete checkpoint."""
        return last_complete_checkpoint(self.args.run_folder) is not None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or continue a run.

        Args:
            resume_from_checkpoint: True continues from the newest complete checkpoint of `output_dir`; a path continues
                from that one; None or False starts anew.
            trial, ignore_keys_for_eval: As in `transformers.Trainer.train`.

        Returns:
            `transformers.trainer_utils.TrainOutput`.

        Raises:
            ValueError: If there is no complete checkpoint to resume from; the message says what is wrong with each. Or
                if `output_dir` holds complete checkpoints of later steps than the one to begin at: they would pass for
                the newest of this run, which would keep and resume them in place of its own.
        """
        if self.args.should_save:
            clean_leftovers(self.args.run_folder)
        self._wait_for_everyone()
        continues = resume_from_checkpoint is True
        if resume_from_checkpoint:
            resume_from_checkpoint = str(self._checkpoint_to_resume(resume_from_checkpoint))
        if not continues and trial is None and self.writes_checkpoints:
            self._refuse_later_checkpoints(resume_from_checkpoint or None)
        with float32_products_in_onednn():
            return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler and the collator which epoch begins.

        Args:
            epoch: Epoch from 0.
        """
        if self._train_sampler is not None:
            self._train_sampler.set_epoch(epoch)
        if hasattr(self.data_collator, "set_epoch"):
            self.data_collator.set_epoch(epoch)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        self.steps_per_epoch, self.batches_per_epoch = values[1], values[5]
        return values

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, self._mixed(self._prepare_inputs(inputs)), num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            self._keep_logged_outputs(outputs)
            for callback in self.hub_callbacks:
                callback.on_loss(loss.detach(), outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        """As in transformers; with a training loss also the means of what the model names in `logged_outputs`."""
        if "loss" in logs and self._logged_outputs:
            means = torch.stack([torch.stack(values).mean() for values in self._logged_outputs.values()])
            if self.args.world_size > 1:
                means = self.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip(self._logged_outputs, means.tolist(), strict=True))
            self._logged_outputs.clear()
        super().log(logs, start_time)

    def _keep_logged_outputs(self, outputs: Any) -> None:
        for name in getattr(self.model, "logged_outputs", ()):
            if outputs.get(name) is not None:
                self._logged_outputs[name].append(outputs[name].detach().float())

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args = self.args
            model = self.model if model is None else model
            lars = args.optimizer == "lars"
            groups = parameter_groups(
                model, args.learning_rate, args.weight_decay, args.layer_decay, args.decay_vectors, lars
            )
            if lars:
                groups = layer_adaptation_groups(model, groups)
            self.optimizer = create_optimizer(
                args.optimizer, groups, args.learning_rate, args.weight_decay, args.optimizer_kwargs
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        args = self.args
        if self.lr_scheduler is not None or args.lr_schedule not in OWN_SCHEDULES:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        builders = {
            "warmup_cosine": self._warmup_cosine_scheduler,
            "simclr": self._simclr_scheduler,
            "timm_cosine": self._timm_cosine_scheduler,
        }
        self.lr_scheduler = builders[args.lr_schedule](num_training_steps, optimizer)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _warmup_cosine_scheduler(self, num_training_steps: int, optimizer: Any) -> LambdaLR:
        args = self.args
        epochs = num_training_steps / self.steps_per_epoch if args.max_steps > 0 else args.num_train_epochs
        warmup = args.warmup_epochs or args.get_warmup_steps(num_training_steps) / self.steps_per_epoch
        return warmup_cosine_scheduler(
            optimizer,
            args.learning_rate,
            args.min_lr,
            warmup,
            epochs,
            self.steps_per_epoch,
            self.batches_per_epoch,
            args.gradient_accumulation_steps,
            args.lr_by_epoch,
        )

    def _timm_cosine_scheduler(self, num_training_steps: int, optimizer: Any) -> LambdaLR:
        args = self.args
        warmup = round(args.warmup_epochs * self.steps_per_epoch) or args.get_warmup_steps(num_training_steps)
        return timm_cosine_scheduler(
            optimizer, args.learning_rate, args.min_lr, args.warmup_lr, warmup, num_training_steps
        )

    def _simclr_scheduler(self, num_training_steps: int, optimizer: Any) -> LambdaLR:
        """Counts the images that the last batch of an epoch drops too; without a length, those of the steps."""
        args = self.args
        assert args.base_learning_rate is not None  # the arguments have checked it
        counted = has_length(self.train_dataset)
        return simclr_scheduler(
            optimizer,
            args.base_learning_rate,
            len(self.train_dataset) if counted else num_training_steps * args.effective_batch_size,
            args.effective_batch_size,
            args.num_train_epochs if counted else 1,
            args.warmup_epochs,
            args.lr_scaling,
            args.max_steps if counted and args.max_steps > 0 else None,
        )

    # Data

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            raise ValueError(
                f"per_device_train_batch_size = {self.args.per_device_train_batch_size} on {self.args.world_size} "
                f"process(es) is more than the {len(self.train_dataset)} training samples: not one whole batch"
            )
        if self._train_sampler is not None and hasattr(self.data_collator, "set_batches"):
            self.data_collator.set_batches(self._train_sampler, self._train_batch_size * self.args.world_size)
        return loader

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        with self._evaluation_loading():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        with self._evaluation_loading():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_loading(self) -> Iterator[None]:
        """The collator of evaluation, and its last batch too, which the stock trainer drops with that of training."""
        training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_data_collator, self.args.eval_drop_last
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = training

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or not has_length(dataset):
            return None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._train_sampler = EpochSampler(dataset, seed)
        return self._train_sampler

    def _make_mixup(self) -> Mixup | None:
        args = self.args
        if not args.mixes and not args.label_smoothing:
            return None
        classes = getattr(self.model.config, "num_labels", 0)
        if classes < 2:
            raise ValueError(f"mixup, cutmix and label_smoothing need a model with 2 or more labels, got {classes}")
        return Mixup(
            args.mixup,
            args.cutmix,
            prob=args.mix_probability,
            switch_prob=args.mix_switch_probability,
            label_smoothing=args.label_smoothing,
            num_classes=classes,
        )

    def _mixed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mix images and soften labels of a training batch; labels become [B, num_labels] probabilities."""
        if self._mixup is None:
            return inputs
        images, labels = inputs["pixel_values"], inputs["labels"]
        if not self.args.mixes:
            soft = mixup_target(labels, self._mixup.num_classes, smoothing=self.args.label_smoothing)
            return {**inputs, "labels": soft}
        if len(images) % 2 or images.ndim != 4:
            raise ValueError(
                "mixup and cutmix need an even number of images, pixel_values of shape [B, C, H, W], "
                f"got shape {tuple(images.shape)}"
            )
        images, soft = self._mixup(images.clone(), labels)
        return {**inputs, "pixel_values": images, "labels": soft}

    # Evaluation

    def evaluate(self, *args, **kwargs):
        with preserved_random_state(), self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with preserved_random_state(), self.averaged_weights():
            return super().predict(*args, **kwargs)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the model its moving average for the length of a `with` block; does nothing without `ema_decay`."""
        average = self._moving_average()
        if average is None:
            yield
            return
        with average.applied(self.model):
            yield

    def _moving_average(self) -> ExponentialMovingAverage | None:
        averages = [callback for callback in self.hub_callbacks if isinstance(callback, ExponentialMovingAverage)]
        return averages[0] if averages else None

    # Checkpoints

    def save_model(self, output_dir=None, _internal_call=False):
        """As in transformers, the moving average if there is one; checkpoints hold the weights that are trained."""
        with nullcontext() if _internal_call else self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def push_to_hub(self, *args, **kwargs):
        with self.averaged_weights():
            return super().push_to_hub(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        if trial is None:
            self.store_flos()
        run_folder = Path(self._get_output_dir(trial=trial))
        checkpoint = run_folder / f"checkpoint-{self.state.global_step}"
        staging = staging_folder(checkpoint)
        if self.args.should_save:
            staging.mkdir(parents=True)
        self._wait_for_everyone()
        with suppress_progress_bars():
            self.save_model(str(staging), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
        if self.state.best_global_step is not None:
            self.state.best_model_checkpoint = str(run_folder / f"checkpoint-{self.state.best_global_step}")
        if self.args.should_save:
            self._save_callback_states(staging)
        self._wait_for_everyone()
        if self.args.should_save:
            commit_checkpoint(checkpoint)
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(checkpoint))
            rotate_checkpoints(run_folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self._wait_for_everyone()

    def _save_callback_states(self, folder: Path) -> None:
        exportable: list[Any] = [
            callback
            for callback in [*self.callback_handler.callbacks, self.control]
            if isinstance(callback, ExportableState)
        ]
        # TrainerState turns a list of callbacks into their states by class name.
        self.state.stateful_callbacks = type(self.state)(stateful_callbacks=exportable).stateful_callbacks
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        torch.save([callback.state_dict() for callback in self.hub_callbacks], folder / CALLBACK_STATES_NAME)

    def _checkpoint_to_resume(self, requested: str | bool) -> Path:
        if requested is not True:
            folder = Path(str(requested))
            defect = checkpoint_defect(folder)
            if defect is not None:
                raise ValueError(f"cannot resume from {requested}: {defect}")
            return folder
        checkpoint = last_complete_checkpoint(self.args.run_folder)
        if checkpoint is None:
            defects = defective_checkpoints(self.args.run_folder)
            found = "; ".join(f"{path.name}: {defect}" for path, defect in defects.items()) or "there is none"
            raise ValueError(f"no complete checkpoint in {self.args.run_folder} to resume from ({found})")
        return checkpoint

    @property
    def writes_checkpoints(self) -> bool:
        """Whether training writes checkpoints."""
        return self.args.save_strategy != SaveStrategy.NO

    def _refuse_later_checkpoints(self, start: str | None) -> None:
        folder = self.args.run_folder
        later = [path for path in complete_checkpoints(folder) if checkpoint_defect(path) is None]
        places = [path.resolve() for path in later]
        if start is not None and Path(start).resolve() in places:
            later = later[places.index(Path(start).resolve()) + 1 :]
        if later:
            raise ValueError(
                f"output_dir {folder} holds checkpoints of an earlier training ({', '.join(p.name for p in later)}): "
                "continue it with resume_from_checkpoint=True, give another output_dir, or move them away"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.model if model is None else model
        if not isinstance(model, PreTrainedModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # The stock trainer reads the file without the name conversions that save_pretrained applied, and only warns
        # about what it could not place: a model with converted names would resume with untrained parts.
        with suppress_progress_bars():
            loaded: Any = type(model).from_pretrained(
                resume_from_checkpoint, config=model.config, dtype=model.dtype, output_loading_info=True
            )
        restored, report = loaded
        absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if absent:
            raise ValueError(f"cannot resume from {resume_from_checkpoint}: it lacks the weights {absent}")
        model.load_state_dict(restored.state_dict())

    def _load_best_model(self):
        if isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
        average = self._moving_average()
        if average is not None:
            states = _callback_states(Path(str(self.state.best_model_checkpoint)))
            average.load_state_dict(states[self.hub_callbacks.index(average)])

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not Path(checkpoint, CALLBACK_STATES_NAME).exists():
            return
        states = _callback_states(Path(checkpoint))
        if len(states) != len(self.hub_callbacks):
            raise ValueError(
                f"cannot resume from {checkpoint}: it was written with {len(states)} callbacks, this run has "
                f"{len(self.hub_callbacks)}"
            )
        for callback, state in zip(self.hub_callbacks, states, strict=True):
            callback.load_state_dict(state)

    def _wait_for_everyone(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()


class _RunDriver(HubCallback):
    """Seeds every process on its own and announces the epochs."""

    def on_train_begin(self, args, state, control, **kwargs):
        # Equal seeds would give every process the same drop path and mixing; the data do not depend on this seed.
        set_seed(args.seed + args.process_index)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.set_epoch(state.global_step // self.trainer.steps_per_epoch)


def _callback_states(checkpoint: Path) -> list[dict[str, Any]]:
    # On the CPU, as torch knows no "cpu:0" of several processes.
    return torch.load(checkpoint / CALLBACK_STATES_NAME, map_location="cpu", weights_only=True)


def _standard_callbacks(args: HubTrainingArguments) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if args.ema_decay is not None:
        callbacks.append(ExponentialMovingAverage(args.ema_decay))
    if args.stop_on_nonfinite:
        callbacks.append(NonFiniteGuard())
    if args.jsonl_log:
        callbacks.append(JsonlLogger(args.run_folder / "log.jsonl"))
    if args.tensorboard:
        tensorboard = TensorBoardCallback()
        tensorboard.logging_dir = str(args.run_folder / "tensorboard")
        callbacks.append(tensorboard)
    return callbacks
