"""The pieces of a run, made from a recipe: data, transforms, model, processor, arguments."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch.utils.data import DataLoader, IterableDataset
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed

from hubmodels.catalog import METHODS
from hubmodels.data import (
    EvalTransform,
    ImageCollator,
    ImageDataset,
    inject_label_noise,
    listed_indices,
    load_image_dataset,
    subset_indices,
)
from hubmodels.data.class_names import match_classes
from hubmodels.data.label_noise import load_cifar_n_labels, load_noisy_labels
from hubmodels.data.splits import MissingSplitError
from hubmodels.training.arguments import HubTrainingArguments
from hubmodels.training.methods import Collator, method_class, method_training
from hubmodels.training.recipe import NOISES, Recipe, RecipeError, nearest

HELD_OUT_FRACTION = 0.2
FEATURE_PIXELS = 32  # of a side, of the images on which instance-dependent noise depends
FEATURE_BATCH = 256


@dataclass(frozen=True)
class RunData:
    """Data of a run.

    Attributes:
        train: Training images.
        test: Labelled images to measure on, or None.
        images_per_epoch: Images in an epoch.
        note: Where `test` comes from, for the plan.
    """

    train: Any
    test: ImageDataset | None
    images_per_epoch: int
    note: str

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty for unlabelled data."""
        return self.train.class_names


class RepeatedStream(IterableDataset):
    """A stream read again and again; every pass has its own order and its own random numbers.

    Args:
        stream: A `StreamingImageDataset`.
        seed: Seed of the order.
        batch_size: Images in an optimiser step, over all processes; the index of the first of them is "first_of_batch"
            of all.
    """

    def __init__(self, stream: Any, seed: int, batch_size: int = 1):
        self.stream = stream.shuffle(seed)
        self.class_names = stream.class_names
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        place, first = 0, 0
        for reading in count():
            self.stream.set_epoch(reading)
            for item in self.stream:
                index = (reading << 32) + item["index"]
                first = index if place % self.batch_size == 0 else first
                place += 1
                yield {**item, "index": index, "first_of_batch": first}


def load_data(recipe: Recipe) -> RunData:
    """Load the images of a recipe.

    Args:
        recipe: The recipe; `data.source` must be given.

    Returns:
        The data. A labelled task on data without a test split holds out a seeded fifth of the training images.

    Raises:
        RecipeError: If there is no source, or a labelled task gets unlabelled data.
        ValueError: As in `load_image_dataset`.
    """
    data = recipe.data
    if data.source is None:
        raise RecipeError("there is no data: give data.source, on the command line --data FOLDER")
    columns: dict[str, Any] = {"image_column": data.image_column, "label_column": data.label_column}
    train: Any = load_image_dataset(data.source, data.train_split, streaming=data.streaming, **columns)
    if recipe.task != "pretrain" and not train.class_names:
        reason = getattr(train, "unlabelled_reason", "") or "one folder per class"
        raise RecipeError(f"the task {recipe.task} needs labels, and {data.source} has none: {reason}")
    train = _with_noise(recipe, train, columns)
    if data.file_list is not None:
        train = train.select(listed_indices(train, data.file_list))
    test, note = _test_split(recipe, columns, train.class_names), "test split"
    if data.streaming:
        assert isinstance(data.size, int)  # Recipe has checked it
        stream = RepeatedStream(train, recipe.run.seed, recipe.schedule.batch_size)
        return RunData(stream, test, data.size, note if test else "none")
    if test is None and recipe.task != "pretrain":
        test, train = _held_out(train, recipe.run.seed)
        note = f"{HELD_OUT_FRACTION:.0%} of the training images, held out"
    if data.size is not None:
        train = train.subset(data.size, recipe.run.seed)
    elif data.fraction is not None and data.file_list is None:
        if train.labels is None:
            raise RecipeError(f"data.fraction needs labelled data, one folder per class, got {data.source}")
        train = train.select(subset_indices(train.labels, data.fraction, recipe.run.seed))
    return RunData(train, test, len(train), note if test is not None else "none")


def _with_noise(recipe: Recipe, train: Any, columns: dict[str, Any]) -> Any:
    """The training images with wrong labels, read or injected, where the recipe asks for them."""
    data = recipe.data
    if all(getattr(data, name) is None for name in NOISES):
        return train
    if data.noise_file is not None and "name" in data.noise_options:
        labels = load_cifar_n_labels(data.noise_file, data.noise_options["name"], train.labels)
        return train.with_noisy_labels(labels)
    if data.noise_file is not None:
        return train.with_noisy_labels(
            load_noisy_labels(data.noise_file, len(train), train.num_classes, train.class_names)
        )
    if data.noise_mode is None:
        columns = columns | {"label_column": data.noisy_label_column}
        noisy = load_image_dataset(data.source, data.train_split, **columns)
        if not noisy.class_names:
            raise RecipeError(f"data.noisy_label_column: {data.source} has no such labels: {noisy.unlabelled_reason}")
        matched, _ = match_classes(noisy, train.class_names, f"the column {data.label_column or 'label'!r}")
        return train.with_noisy_labels(_in_order_of(train, matched))
    features = _pixels(train) if data.noise_mode == "instance" else None
    how = (data.noise_mode, data.noise_rate, train.num_classes, data.noise_seed)
    return train.with_noisy_labels(
        inject_label_noise(train.labels, *how, features=features, **data.noise_options).labels
    )


def _in_order_of(images: ImageDataset, labelled: ImageDataset) -> torch.Tensor:
    """The labels of `labelled`, in the order of `images`: class folders and a table list them differently."""
    places = {labelled.name(position): position for position in range(len(labelled))}
    names = [images.name(position) for position in range(len(images))]
    missing = [name for name in names if name not in places]
    if missing:
        raise RecipeError(f"data.noisy_label_column has no label of {len(missing)} images, such as {missing[0]}")
    return labelled.labels[[places[name] for name in names]]


def _held_out(train: ImageDataset, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """A part to measure on, with its true labels where they are known, and the rest, which has every class."""
    several = (train.labels.bincount(minlength=train.num_classes) > 1)[train.labels].nonzero().flatten()
    if not len(several):
        raise RecipeError("every class has a single image: nothing can be held out; give a test split, data.test_split")
    test, rest = train.select(several.numpy()).split(HELD_OUT_FRACTION, seed)
    if len(several) < len(train):
        alone = np.setdiff1d(np.arange(len(train)), several.numpy())
        rest = rest.together_with(train.select(alone))
    return test.with_true_labels(), rest


def _pixels(images: ImageDataset) -> np.ndarray:
    """Pixels of all images at 32 x 32, [N, 3072], what the noise of an image depends on."""
    transform = EvalTransform(FEATURE_PIXELS, crop_fraction=1.0, mean=0.0, std=1.0)
    batches = DataLoader(images, FEATURE_BATCH, collate_fn=ImageCollator(transform, seed=0, train=False))
    return torch.cat([batch["pixel_values"].flatten(1) for batch in batches]).numpy()


def _test_split(recipe: Recipe, columns: dict[str, Any], class_names: list[str]) -> ImageDataset | None:
    asked = recipe.data.test_split
    for split in (asked,) if asked is not None else ("test", "validation"):
        try:
            test = load_image_dataset(recipe.data.source, split, **columns)
        except MissingSplitError:
            if asked is not None:
                raise
            continue
        if not test.class_names:  # as the test split of ImageNet, whose labels are withheld
            if asked is None or recipe.task == "pretrain":
                continue
            raise RecipeError(f"data.test_split: {split!r} of {recipe.data.source} has no labels")
        if not class_names:
            return test
        try:
            return match_classes(test, class_names, "the training split")[0]
        except ValueError:
            if recipe.task == "pretrain":  # its probe is nothing to fail for
                return None
            raise
    return None


def build_model(recipe: Recipe, class_names: list[str]) -> PreTrainedModel:
    """Build, or load, the model of a recipe, and freeze what its task does not train.

    Args:
        recipe: The recipe.
        class_names: Classes of the data; empty if it is unlabelled.

    Returns:
        The model.

    Raises:
        RecipeError: If the method has no such task, the config does not take a key or value of `model`, `init_from`
            holds no encoder that fits, or a classifier has less than two classes.
    """
    set_seed(recipe.run.seed)
    method_parts = method_training(recipe.method)
    method_parts.check_task(recipe)
    model_class: Any = method_parts.model_class(recipe)
    settings = method_parts.implied_settings(recipe) | _checked_settings(recipe)
    if method_parts.needs_classes(recipe):
        if len(class_names) == 1:
            raise RecipeError(f"a classifier needs at least two classes, and {recipe.data.source} has {class_names}")
        if not class_names:
            raise RecipeError(
                "a model with a classifier (model.linear_probe in pre-training) needs labels, and "
                f"{recipe.data.source} has none: one folder per class"
            )
        settings |= {
            "num_labels": len(class_names),
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: index for index, name in enumerate(class_names)},
        }
    if recipe.init_from is None:
        model = model_class(method_class(recipe.method, "AutoConfig")(**settings))
    else:
        with _start(recipe) as start:
            model = method_parts.load_model(start, settings) or _load_model(start, model_class, settings)
    if recipe.task == "linear_probe":
        model.freeze_encoder()
    elif recipe.task == "partial_finetune":
        model.freeze_all_but_last_blocks(recipe.trainable_blocks)
    return model


@contextmanager
def _start(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe; where another method starts from a model that wraps a network, from a copy of that network."""
    source = str(recipe.init_from)
    config = AutoConfig.from_pretrained(source)
    is_of_another = config.model_type != recipe.method and any(m.name == config.model_type for m in METHODS)
    network = method_training(config.model_type).network_inside(config, source) if is_of_another else None
    if network is None:
        yield recipe
        return
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        try:
            yield replace(recipe, init_from=folder)
        except RecipeError as error:
            raise RecipeError(str(error).replace(folder, source)) from error


def _checked_settings(recipe: Recipe) -> dict[str, Any]:
    config = method_class(recipe.method, "AutoConfig")()
    known = config.to_dict()
    unknown = sorted(str(key) for key in recipe.model if key not in known)
    if unknown:
        hint = "; this model takes images of any size: set transform.size" if "image_size" in unknown else ""
        raise RecipeError(f"unknown key model.{', model.'.join(unknown)}{hint} (keys here: {', '.join(sorted(known))})")
    if recipe.model.get("backbone_config") is not None:
        _check_backbone(recipe.model["backbone_config"])
    return {key: _checked_setting(config, key, value) for key, value in recipe.model.items()}


def _checked_setting(config: PreTrainedConfig, key: str, value: Any) -> Any:
    """A value in the type that the config wants: YAML reads 1 as a whole number, and 1e-3 as text."""
    try:
        setattr(config, key, value)
        return value
    except StrictDataclassFieldValidationError as error:
        reason = str(error).splitlines()[-1].strip().removeprefix("TypeError: ")
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(StrictDataclassFieldValidationError, ValueError):
            setattr(config, key, float(value))
            return float(value)
    raise RecipeError(f"model.{key}: {reason}")


def _check_backbone(description: Any) -> None:
    """Refuse a `model.backbone_config` that names no network."""
    if not isinstance(description, dict) or description.get("model_type") is None:
        raise RecipeError(
            "model.backbone_config must be a mapping with the key model_type, such as {model_type: timm_backbone, "
            f"backbone: resnet18}}, got {description!r}"
        )
    kind, name = description["model_type"], description.get("backbone")
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"model.backbone_config.model_type must be a model type of transformers or hubmodels, got {kind!r}"
            f"{nearest(kind, list(CONFIG_MAPPING))}"
        )
    if kind == "timm_backbone" and not timm.is_model(str(name)):
        known = nearest(str(name), timm.list_models())
        raise RecipeError(f"model.backbone_config.backbone must be a name of timm.list_models(), got {name!r}{known}")


def _load_model(recipe: Recipe, model_class: Any, settings: dict[str, Any]) -> PreTrainedModel:
    source, size = recipe.init_from, settings.pop("image_size", None)
    try:
        model, report = model_class.from_pretrained(
            source, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    except ValueError as error:
        raise RecipeError(f"init_from = {source}: {str(error).splitlines()[0]}") from error
    encoder = method_training(recipe.method).encoder_prefixes or (f"{model.base_model_prefix}.",)
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]  # new heads are no loss
    lacking = [key for key in unfit if key.startswith(encoder)]
    if lacking:
        raise RecipeError(f"init_from = {source} holds no encoder that fits: {', '.join(sorted(lacking)[:6])}")
    size = tuple(size) if isinstance(size, list) else size
    if size is not None and size != model.config.image_size:
        method_training(recipe.method).resize(model, size)
    return model.float()


def take_shape_of(recipe: Recipe, model: PreTrainedModel) -> None:
    """Write the shape of a model into the `model` section of its recipe, so that the recipe tells it.

    Args:
        recipe: The recipe, changed in place.
        model: Its model.
    """
    config = model.config.to_dict()
    keys = method_training(recipe.method).shape_keys_of(recipe.task)
    shape = {key: config[key] for key in keys if config.get(key) is not None}
    shape = {key: list(value) if isinstance(value, tuple) else value for key, value in shape.items()}
    recipe.model = {**recipe.model, **shape}


def evaluation_transform(recipe: Recipe, config: PreTrainedConfig) -> EvalTransform:
    """Make the transform of evaluation and of probes.

    Args:
        recipe: The recipe.
        config: Config of the model.

    Returns:
        The transform.

    Raises:
        RecipeError: If neither the model nor the recipe says the size, or they differ.
    """
    section = recipe.transform
    size = getattr(config, "image_size", section.size)
    if size is None or section.size not in (None, size):
        raise RecipeError(
            f"transform.size must be the size of the images in pixels, got {section.size} (model: {size})"
        )
    channels = getattr(config, "num_channels", 3)
    return EvalTransform(
        size,
        crop_fraction=section.eval_crop_fraction,
        num_channels=channels,
        mean=section.mean,
        std=section.std,
        resample=method_training(recipe.method).eval_resample,
    )


def build_collators(recipe: Recipe, config: PreTrainedConfig) -> tuple[Collator, Collator]:
    """Make the collators of training and of evaluation.

    Args:
        recipe: The recipe.
        config: Config of the model.

    Returns:
        Both collators.
    """
    method, evaluation = method_training(recipe.method), evaluation_transform(recipe, config)
    make = method.pretrain_collators if recipe.task == "pretrain" else method.labelled_collators
    return make(recipe, config, evaluation)


def training_arguments(
    recipe: Recipe,
    data: RunData,
    output: Path,
    processes: int,
    device_batch_size: int,
    workers: int,
    finds_unused: bool,
) -> HubTrainingArguments:
    """Translate a recipe into arguments of the trainer.

    Args:
        recipe: The recipe.
        data: Its data.
        output: Folder of checkpoints and logs.
        processes: Processes that train together.
        device_batch_size: Images in a forward pass.
        workers: Processes that load images, for each process.
        finds_unused: Whether several processes must look for weights without gradient in every step.

    Returns:
        The arguments.
    """
    schedule, optimizer, regularization, run = recipe.schedule, recipe.optimizer, recipe.regularization, recipe.run
    steps_per_epoch = data.images_per_epoch // schedule.batch_size
    steps = schedule.epochs * steps_per_epoch
    # At least an epoch lies between two checkpoints, or 100 steps where epochs are long.
    cadence = max(1, steps // max(run.checkpoints, 1), min(steps_per_epoch, 100))
    precision = resolved_precision(run.precision)
    measures = recipe.task != "pretrain" or method_training(recipe.method).has_test_loss
    return HubTrainingArguments(
        output_dir=str(output),
        # A stream has no length: one long epoch, in which the warm-up takes the same share.
        max_steps=steps if recipe.data.streaming else -1,
        num_train_epochs=1 if recipe.data.streaming else schedule.epochs,
        warmup_epochs=schedule.warmup_epochs / (schedule.epochs if recipe.data.streaming else 1),
        lr_schedule=schedule.name,
        min_lr=schedule.min_learning_rate,
        warmup_lr=schedule.warmup_learning_rate,
        lr_by_epoch=schedule.by_epoch,
        per_device_train_batch_size=device_batch_size,
        per_device_eval_batch_size=max(device_batch_size, 1),
        gradient_accumulation_steps=schedule.batch_size // (device_batch_size * processes),
        optimizer=optimizer.name,
        optimizer_kwargs=dict(optimizer.options),
        base_learning_rate=optimizer.base_learning_rate,
        lr_scaling=optimizer.lr_scaling,
        weight_decay=optimizer.weight_decay,
        decay_vectors=optimizer.decay_vectors,
        layer_decay=optimizer.layer_decay,
        max_grad_norm=optimizer.clip_grad_norm,
        mixup=regularization.mixup,
        cutmix=regularization.cutmix,
        label_smoothing=regularization.label_smoothing,
        ema_decay=regularization.ema_decay,
        seed=run.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="steps" if run.checkpoints else "no",
        save_steps=cadence,
        save_total_limit=run.keep_checkpoints,
        eval_strategy="steps" if data.test is not None and measures else "no",
        eval_steps=cadence,
        logging_steps=max(1, min(steps_per_epoch // 5, 50)),
        tensorboard=run.tensorboard,
        report_to="none",
        accelerator_config={"dispatch_batches": False},
        ddp_find_unused_parameters=finds_unused,
    )


def resolved_precision(precision: str) -> str:
    """The precision that a recipe's stands for on this machine.

    Args:
        precision: "auto", or a precision.

    Returns:
        "fp32", "bf16" or "fp16"; without a GPU "fp32" for "fp16", whose scaled gradients only GPUs have.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        return "fp32"
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
