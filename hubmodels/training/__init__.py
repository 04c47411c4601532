"""Training: one trainer on `transformers.Trainer`, published optimisers and schedules, recipes."""

from hubmodels.training.arguments import HubTrainingArguments
from hubmodels.training.callbacks import (
    CollapseError,
    CollapseGuard,
    ExponentialMovingAverage,
    HubCallback,
    JsonlLogger,
    NonFiniteGuard,
    NonFiniteLossError,
    OnlineProbe,
    feature_std,
    read_jsonl,
)
from hubmodels.training.checkpoints import (
    checkpoint_defect,
    clean_leftovers,
    complete_checkpoints,
    last_complete_checkpoint,
    rotate_checkpoints,
)
from hubmodels.training.cotraining_data import CoTrainingViews
from hubmodels.training.cotraining_step import CoTrainingSettings
from hubmodels.training.label_quality import LabelQuality, LabelQualityEstimator
from hubmodels.training.lars import LARS
from hubmodels.training.parameter_groups import create_optimizer, layer_adaptation_groups, parameter_groups
from hubmodels.training.random_state import EpochSampler, preserved_random_state
from hubmodels.training.recipe import Recipe, RecipeError, recipe_names
from hubmodels.training.run import TrainingResult, train
from hubmodels.training.sanm_trainer import SANMTrainer
from hubmodels.training.schedules import (
    fractional_epoch,
    scaled_learning_rate,
    simclr_learning_rate,
    simclr_scheduler,
    simclr_steps,
    timm_cosine_scheduler,
    warmup_cosine_lr,
    warmup_cosine_scheduler,
)
from hubmodels.training.trainer import HubTrainer

__all__ = [
    "LARS",
    "CoTrainingSettings",
    "CoTrainingViews",
    "CollapseError",
    "CollapseGuard",
    "EpochSampler",
    "ExponentialMovingAverage",
    "HubCallback",
    "HubTrainer",
    "HubTrainingArguments",
    "JsonlLogger",
    "LabelQuality",
    "LabelQualityEstimator",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "OnlineProbe",
    "Recipe",
    "RecipeError",
    "SANMTrainer",
    "TrainingResult",
    "checkpoint_defect",
    "clean_leftovers",
    "complete_checkpoints",
    "create_optimizer",
    "feature_std",
    "fractional_epoch",
    "last_complete_checkpoint",
    "layer_adaptation_groups",
    "parameter_groups",
    "preserved_random_state",
    "read_jsonl",
    "recipe_names",
    "rotate_checkpoints",
    "scaled_learning_rate",
    "simclr_learning_rate",
    "simclr_scheduler",
    "simclr_steps",
    "timm_cosine_scheduler",
    "train",
    "warmup_cosine_lr",
    "warmup_cosine_scheduler",
]
