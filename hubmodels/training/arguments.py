"""Training arguments: what the published recipes need beyond `transformers.TrainingArguments`."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import SchedulerType, TrainingArguments

from hubmodels.optimization.schedules import LR_SCALINGS, scaled_learning_rate
from hubmodels.training.parameter_groups import optimizer_class_of

OWN_SCHEDULES = ("warmup_cosine", "simclr", "timm_cosine")
SCHEDULES = (*OWN_SCHEDULES, *(kind.value for kind in SchedulerType))


@dataclass
class HubTrainingArguments(TrainingArguments):
    """Arguments of `HubTrainer`.

    Everything of `transformers.TrainingArguments` holds; these are added, and a few defaults differ (below).

    Args:
        optimizer: "lars" or a name of `timm.optim.list_optimizers()`: "adamw", "lamb", "sgd" (Nesterov momentum, what
            the official SimCLR code calls momentum), "momentum" (the plain one) ... (`optim` is unused).
        optimizer_kwargs: Further arguments of the optimiser, e.g. `{"betas": [0.9, 0.95]}`. Where the optimiser takes
            betas, they default to (`adam_beta1`, `adam_beta2`).
        base_learning_rate: Sets `learning_rate` by the batch size, as `lr_scaling` says.
        lr_scaling: "linear": `base_learning_rate * effective_batch_size / 256`; "sqrt": `base_learning_rate *
            sqrt(effective_batch_size)` (SimCLR).
        layer_decay: Learning-rate factor from a layer to the one before it, in (0, 1].
        lr_schedule: "warmup_cosine" (published MAE schedule, per step at a fractional epoch), "simclr" (the official
            SimCLR schedule, which counts steps its own way, see `simclr_steps`; needs `base_learning_rate`),
            "timm_cosine" (that of the official Swin and Positional Label, see `timm_cosine_scheduler`), or a name
            of `transformers.SchedulerType`.
        min_lr: Learning rate at the end of "warmup_cosine" and "timm_cosine".
        warmup_lr: Learning rate of the first step with "timm_cosine"; the other schedules begin at 0.
        lr_by_epoch: Keep the rate of "warmup_cosine" constant inside of an epoch.
        decay_vectors: Also decay biases and normalisation, and what the model excludes.
        warmup_epochs: Warm-up of these schedules, in epochs, fractional. With "warmup_cosine", 0 and
            `warmup_steps` set: those steps.
        mixup: Beta parameter of mixup; 0 turns it off.
        cutmix: Beta parameter of cutmix; 0 turns it off.
        mix_probability: Probability that a batch is mixed, in [0, 1].
        mix_switch_probability: With both mixup and cutmix on, probability of cutmix.
        label_smoothing: Label smoothing in [0, 1), with or without mixing.
        ema_decay: Decay of the exponential moving average of the weights, in (0, 1). The average is what `evaluate`,
            `predict`, `save_model` and `push_to_hub` use, and what `load_best_model_at_end` loads; `trainer.model`
            keeps the weights that are trained. None keeps none.
        stop_on_nonfinite: Stop with an error at the first loss that is not finite.
        jsonl_log: Write every log line to `log.jsonl` in `output_dir`.
        tensorboard: Write TensorBoard events to `tensorboard/` in `output_dir`.
        eval_drop_last: Leave out the last, smaller batch of an evaluation too, for losses that compare the images of a
            batch. (`dataloader_drop_last` is about training alone.)

    The defaults that differ: no gradient clipping, losses that are not finite are not hidden, whole batches only in
    training, dataset columns are left to the collator, no search for unused parameters under DDP, callback states are
    restored.

    Raises:
        ValueError: If a value is out of range; the message names the argument and what it accepts.
    """

    optimizer: str = "adamw"
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    base_learning_rate: float | None = None
    lr_scaling: str = "linear"
    layer_decay: float | None = None
    lr_schedule: str = "warmup_cosine"
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    lr_by_epoch: bool = False
    decay_vectors: bool = False
    warmup_epochs: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch_probability: float = 0.5
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    stop_on_nonfinite: bool = True
    jsonl_log: bool = True
    tensorboard: bool = False
    max_grad_norm: float = 0.0
    logging_nan_inf_filter: bool = False
    dataloader_drop_last: bool = True
    eval_drop_last: bool = False
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool | None = False
    restore_callback_states_from_checkpoint: bool = True

    def __post_init__(self):
        self._check_ranges()
        if "betas" in inspect.signature(optimizer_class_of(self.optimizer)).parameters:
            betas = [self.adam_beta1, self.adam_beta2]
            self.optimizer_kwargs = {"betas": betas, **self.optimizer_kwargs}
        if self.lr_schedule not in OWN_SCHEDULES:
            self.lr_scheduler_type = self.lr_schedule
        super().__post_init__()
        if self.base_learning_rate is not None:
            self.learning_rate = scaled_learning_rate(
                self.base_learning_rate, self.effective_batch_size, self.lr_scaling
            )

    @property
    def run_folder(self) -> Path:
        """`output_dir` as a path."""
        assert self.output_dir is not None  # TrainingArguments has set it
        return Path(self.output_dir)

    @property
    def effective_batch_size(self) -> int:
        """Samples in an optimiser step: per device x accumulation x processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed (mixup or cutmix)."""
        return self.mixup > 0 or self.cutmix > 0

    def _check_ranges(self) -> None:
        def check(name: str, valid: bool, accepted: str) -> None:
            if not valid:
                raise ValueError(f"{name} must be {accepted}, got {getattr(self, name)!r}")

        for name in ("mixup", "cutmix", "warmup_epochs", "min_lr", "warmup_lr"):
            check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("mix_probability", "mix_switch_probability"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        check("layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "None or in (0, 1]")
        check("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "None or in (0, 1)")
        check("train_sampling_strategy", self.train_sampling_strategy == "random", "'random': the order is by epoch")
        if self.base_learning_rate is not None:
            check(
                "auto_find_batch_size", not self.auto_find_batch_size, "False with base_learning_rate, which is scaled"
            )
        check("lr_scaling", self.lr_scaling in LR_SCALINGS, f"one of {LR_SCALINGS}")
        check("lr_schedule", self.lr_schedule in SCHEDULES, f"one of {SCHEDULES}")
        check("base_learning_rate", self.base_learning_rate is None or self.base_learning_rate > 0, "greater than 0")
        if self.lr_schedule == "simclr":
            check("base_learning_rate", self.base_learning_rate is not None, "given with lr_schedule 'simclr'")
            check("min_lr", self.min_lr == 0, "0 with lr_schedule 'simclr'")
        if self.lr_schedule != "warmup_cosine":
            check("lr_by_epoch", not self.lr_by_epoch, "False with every lr_schedule but 'warmup_cosine'")
        if self.lr_schedule != "timm_cosine":
            check("warmup_lr", self.warmup_lr == 0, "0 with every lr_schedule but 'timm_cosine'")
        if self.mixes and self.per_device_train_batch_size % 2:
            raise ValueError(
                "per_device_train_batch_size must be even with mixup or cutmix (an image is mixed with its mirror in "
                f"the batch), got {self.per_device_train_batch_size}"
            )
        if self.mixes and not self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last must be True with mixup or cutmix: the last batch may be odd")
