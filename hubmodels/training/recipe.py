"""Recipes: YAML files that fully describe a run."""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from hubmodels.repository import RECIPE_PLACES

Task = Literal["pretrain", "finetune", "partial_finetune", "linear_probe"]


NOISE_OPTIONS = ("sym_exclusive", "class_map", "transition")  # of `inject_label_noise`
NOISES = ("noisy_label_column", "noise_file", "noise_mode")  # keys of `data` that make labels wrong


class RecipeError(ValueError):
    """A recipe or an override that is not understood; the message names the key and what it accepts."""


@dataclass
class DataSection:
    """What to train on.

    Args:
        source: Image folder, local data set, Hub data set id or packaged data set; see `load_image_dataset`.
        train_split: Split to train on; None takes "train", or the only one.
        test_split: Labelled split to measure on; None takes "test" or "validation", the first that has labels.
        size: A part of the training split: a fraction (0.1) or a number of images (500); None takes all.
        fraction: A part with as many images of every class, see `subset_indices`; labelled data only.
        file_list: Text file with the names of the training images to take, one a line, in place of `fraction`.
        streaming: Read the images one after the other; `size` then says how many make an epoch.
        image_column: Column of the images, where its name does not tell.
        label_column: Column of the labels, likewise.
        noisy_label_column: Column of labels to train on that are partly wrong; those of `label_column` are then the
            true ones, which only measure.
        noise_file: The same as a JSON list of class numbers, one per training image in its order; or the published file
            of CIFAR-10N or CIFAR-100N (.pt) with the name of its labels in `noise_options.name`, such as "worse_label".
        noise_mode: Inject wrong labels into the training images, see `inject_label_noise`: "sym", "asym", "transition"
            or "instance" (whose features are the pixels at 32 x 32).
        noise_rate: Rate of these; "transition" has none.
        noise_seed: Seed of these.
        noise_options: Further arguments of `inject_label_noise`: `sym_exclusive`, `class_map`, `transition`; or `name`.
    """

    source: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    size: int | float | None = None
    fraction: float | None = None
    file_list: str | None = None
    streaming: bool = False
    image_column: str | None = None
    label_column: str | None = None
    noisy_label_column: str | None = None
    noise_file: str | None = None
    noise_mode: Literal["sym", "asym", "transition", "instance"] | None = None
    noise_rate: float | None = None
    noise_seed: int = 123
    noise_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TransformSection:
    """How images become pixel values.

    Args:
        size: Pixels of a side, for models that take images of any size; the others have an `image_size` of their own.
        crop_scale: Smallest and largest area of a random crop as a fraction of the image.
        crop_padding: Pixels of zero padding of a fixed-size crop, instead of resized crops (fine-tuning only); images
            of another size are resized as for evaluation first.
        flip: Probability of a horizontal flip.
        auto_augment: RandAugment string of timm (fine-tuning only).
        random_erasing: Probability of erasing a rectangle with pixel noise (fine-tuning only).
        eval_crop_fraction: Side of the evaluation crop as a fraction of the resized short side; None takes the
            published 224 / 256 up to 224 pixels.
        mean: Mean per channel of pixels in [0, 1]; None takes ImageNet's.
        std: Deviation per channel, likewise.
        options: Arguments of the method's image processor, for methods whose processor makes the views of pre-training.
    """

    size: int | None = None
    crop_scale: list[float] = field(default_factory=lambda: [0.2, 1.0])
    crop_padding: int | None = None
    flip: float = 0.5
    auto_augment: str | None = None
    random_erasing: float = 0.0
    eval_crop_fraction: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerSection:
    """The optimiser.

    Args:
        name: "lars" or a name of timm: "adamw", "lamb", "sgd" ... In timm "sgd" has Nesterov momentum, which the
            official SimCLR code calls momentum; "momentum" is the plain one (heavy ball).
        base_learning_rate: Learning rate that is scaled with `schedule.batch_size`.
        lr_scaling: "linear": `base_learning_rate * batch_size / 256`; "sqrt": `base_learning_rate * sqrt(batch_size)`.
        weight_decay: Weight decay of matrices; vectors are not decayed. With "lars" that of SimCLR's classifier goes
            into the loss (`model.weight_decay`).
        decay_vectors: Decay biases and normalisation too.
        layer_decay: Learning-rate factor from a layer to the one before it; None: the same rate everywhere.
        options: Further arguments of the optimiser, such as `betas: [0.9, 0.95]`.
        clip_grad_norm: Largest norm of the gradient; 0 does not clip.
    """

    name: str = "adamw"
    base_learning_rate: float = 1.5e-4
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    weight_decay: float = 0.05
    decay_vectors: bool = False
    layer_decay: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    clip_grad_norm: float = 0.0


@dataclass
class ScheduleSection:
    """How long, and in which steps.

    Args:
        name: "warmup_cosine"; "simclr": the same curve, warm-up and total counted in steps as the official SimCLR code
            counts them; "timm_cosine": that of the official Swin and Positional Label, whose cosine does not wait for
            the end of the warm-up.
        epochs: Passes over the training images.
        batch_size: Images in an optimiser step, over all processes; it is divided among processes and micro-batches.
        warmup_epochs: Epochs of linear warm-up.
        warmup_learning_rate: Learning rate of the first step, 0 for every schedule but "timm_cosine".
        min_learning_rate: Learning rate at the end.
        by_epoch: Keep the learning rate constant inside of an epoch.
    """

    name: Literal["warmup_cosine", "simclr", "timm_cosine"] = "warmup_cosine"
    epochs: int = 100
    batch_size: int = 256
    warmup_epochs: float = 5.0
    warmup_learning_rate: float = 0.0
    min_learning_rate: float = 0.0
    by_epoch: bool = False


@dataclass
class RegularizationSection:
    """Regularisation besides weight decay; `drop_path_rate` belongs to the model.

    Args:
        mixup: Beta parameter of mixup; 0 is off.
        cutmix: Beta parameter of cutmix; 0 is off.
        label_smoothing: Label smoothing, in [0, 1).
        ema_decay: Decay of the moving average of the weights; None keeps none.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float | None = None


@dataclass
class ProbeSection:
    """Online probes of pre-training, on labelled data.

    Args:
        every_epochs: Epochs from one measurement to the next; 0 measures never.
        images: Most labelled images to fit on, and most to measure on.
        k: Neighbours of the k-NN classifier.
        linear_epochs: Epochs of the linear probe; 0 leaves it out.
    """

    every_epochs: int = 10
    images: int = 5000
    k: int = 20
    linear_epochs: int = 30


@dataclass
class NoisyLabelsSection:
    """How SANM trains with wrong labels; with `model.framework: ce` only the warm-up and the history are used, and
    `p_threshold` for the log.

    Args:
        warm_up_epochs: Epochs of training on the given labels first.
        kind: Kind of the noise, "sym" or "asym"; None takes `data.noise_mode`, for other modes "sym".
        rate: Share of wrong labels, if known; None takes `data.noise_rate`.
        lambda_u: Weight of the unlabelled loss; None takes the published one for the noise.
        alpha: Beta parameter of the mixing.
        mixing: "all" (CIFAR script) or "weak" (Clothing1M script).
        warm_up_penalty: Negative entropy in the warm-up; None: for asymmetric noise.
        warm_up_clip: Largest norm of the gradient in the warm-up; 0 does not clip.
        p_threshold: Probability above which a label is trusted.
        min_labelled: Least number of trusted, and of other images; 0 stops with an error where the threshold leaves
            none.
        co_guess, co_refine, guess_in_train_mode: See `CoTrainingSettings`.
        decay_epochs: Epochs at which the learning rate is divided by ten.
        evaluate_every: Epochs from one evaluation to the next; 0 measures never.
        report_images: Suspicious images in the report that ends a run; 0 writes none.
    """

    warm_up_epochs: int = 10
    kind: Literal["sym", "asym"] | None = None
    rate: float | None = None
    lambda_u: float | None = None
    alpha: float = 4.0
    mixing: Literal["all", "weak"] = "all"
    warm_up_penalty: bool | None = None
    warm_up_clip: float = 1.0
    p_threshold: float = 0.5
    min_labelled: int = 0
    co_guess: bool = True
    co_refine: bool = True
    guess_in_train_mode: bool = True
    decay_epochs: list[int] = field(default_factory=list)
    evaluate_every: int = 1
    report_images: int = 100


@dataclass
class RunSection:
    """How the run is carried out; the result does not depend on it but for rounding, apart from the seed and from
    `device_batch_size` where batch normalisation trains.

    Args:
        seed: Seed of the weights, the order, the augmentations and the masks.
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".
        device_batch_size: Most images in a forward pass; None fits it to the memory, but never divides a batch whose
            images are normalised by its own statistics (linear probes of MAE, fine-tuning of SimCLR). Pre-training
            that compares images, and SANM, never divide one.
        workers: Processes that load images; None fits it to the machine.
        checkpoints: Checkpoints over the run; 0 writes none.
        keep_checkpoints: Newest checkpoints to keep; 0 keeps all.
        tensorboard: Write TensorBoard events.
    """

    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device_batch_size: int | None = None
    workers: int | None = None
    checkpoints: int = 20
    keep_checkpoints: int = 2
    tensorboard: bool = True


@dataclass
class Recipe:
    """A run, fully described.

    Args:
        method: Name of the method.
        task: "pretrain", "finetune", "partial_finetune" (the last `trainable_blocks` blocks and the head) or
            "linear_probe".
        model: Arguments of the method's config class. With `init_from` they override those of the given model.
        init_from: Model to start from, a folder, packaged checkpoint or Hub id; None starts from random weights.
        trainable_blocks: Blocks that partial fine-tuning trains.
        data, transform, optimizer, schedule, regularization, probe, noisy_labels, run: The sections.

    Raises:
        RecipeError: If values contradict each other.

    Example:

        >>> from hubmodels.training import Recipe
        >>> recipe = Recipe.load("paper_pretrain_base", overrides=["schedule.epochs=10"])
        >>> recipe.schedule.epochs
        10
    """

    method: str
    task: Task
    model: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    trainable_blocks: int | None = None
    data: DataSection = field(default_factory=DataSection)
    transform: TransformSection = field(default_factory=TransformSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    regularization: RegularizationSection = field(default_factory=RegularizationSection)
    probe: ProbeSection = field(default_factory=ProbeSection)
    noisy_labels: NoisyLabelsSection = field(default_factory=NoisyLabelsSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self):
        if (self.task == "partial_finetune") != (self.trainable_blocks is not None):
            raise RecipeError("trainable_blocks goes with the task partial_finetune, and only with it")
        if self.data.streaming and not isinstance(self.data.size, int):
            raise RecipeError(f"data.streaming needs the number of images in data.size, got {self.data.size!r}")
        parts = [name for name in ("size", "fraction", "file_list") if getattr(self.data, name) is not None]
        if len(parts) > 1 and (parts[0] == "size" or self.data.streaming):
            raise RecipeError(f"only one of data.size and data.fraction or data.file_list can be given, got {parts}")
        noises = [name for name in NOISES if getattr(self.data, name) is not None]
        if len(noises) > 1 or (noises and self.data.streaming):
            raise RecipeError(
                f"only one of data.{', data.'.join(NOISES)} can be given, for images that are not streamed, "
                f"got {noises}"
            )
        if self.data.noise_mode not in (None, "transition") and not 0 <= (self.data.noise_rate or -1) <= 1:
            raise RecipeError(f"data.noise_mode needs data.noise_rate in (0, 1], got {self.data.noise_rate}")
        self._check_noise_options()
        rate = self.noisy_labels.rate
        if rate is not None and not 0 <= rate <= 1:
            raise RecipeError(f"noisy_labels.rate must be in [0, 1], got {rate}")
        for key in ("epochs", "batch_size"):
            if getattr(self.schedule, key) < 1:
                raise RecipeError(f"schedule.{key} must be at least 1, got {getattr(self.schedule, key)}")
        if self.run.device_batch_size is not None and self.run.device_batch_size < 1:
            raise RecipeError(f"run.device_batch_size must be at least 1, got {self.run.device_batch_size}")
        for key in ("checkpoints", "keep_checkpoints"):
            if getattr(self.run, key) < 0:
                raise RecipeError(f"run.{key} must be at least 0, got {getattr(self.run, key)}")
        if not 0 <= self.schedule.warmup_epochs <= self.schedule.epochs:
            raise RecipeError(
                f"schedule.warmup_epochs must be in [0, schedule.epochs = {self.schedule.epochs}], "
                f"got {self.schedule.warmup_epochs}"
            )

    def _check_noise_options(self) -> None:
        data = self.data
        is_cifar_n = data.noise_file is not None and Path(data.noise_file).suffix == ".pt"
        accepted = NOISE_OPTIONS if data.noise_mode is not None else ("name",) if is_cifar_n else ()
        unknown = sorted(set(data.noise_options) - set(accepted))
        if unknown:
            raise RecipeError(f"data.noise_options must be of {accepted} here, got {unknown}")
        if is_cifar_n and "name" not in data.noise_options:
            raise RecipeError("data.noise_file of CIFAR-N needs data.noise_options.name, such as worse_label")

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = (), method: str = "mae") -> "Recipe":
        """Read a recipe.

        Args:
            name_or_path: A YAML file, or the name of a recipe of the package: "small_pretrain", "mae/small_pretrain".
            overrides: Values to change, `section.key=value`, the value in YAML.
            method: Method that a bare name belongs to.

        Returns:
            The recipe.

        Raises:
            RecipeError: If there is no such recipe, a key is unknown (the nearest ones are listed), or a value has the
                wrong type.
        """
        path = Path(name_or_path)
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                raise RecipeError(f"there is no recipe file {path}")
            text, title = path.read_text(encoding="utf-8"), str(path)
        else:
            text, title = _packaged_text(str(name_or_path), method), str(name_or_path)
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{title} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"{title} must hold keys and values, got {type(values).__name__}")
        return cls.from_dict(values, overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> "Recipe":
        """Make a recipe of nested dictionaries.

        Args:
            values: Keys and values as in a YAML file.
            overrides: Values to change, `section.key=value`.

        Returns:
            The recipe.

        Raises:
            RecipeError: As in `load`.
        """
        values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
        for override in overrides:
            _apply_override(values, override)
        return _build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries.

        Returns:
            Every key with its value, defaults included.
        """
        return asdict(self)

    def to_yaml(self) -> str:
        """The recipe as YAML; `Recipe.load` reads it back.

        Returns:
            The text.
        """
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Keys in which two recipes differ, but for how a run is carried out.

        Args:
            other: The other recipe.

        Returns:
            Both values by dotted key; without `run`, of which only the seed and the precision count. Spellings of one
            existing path, such as `photos` and `photos/`, do not differ.
        """
        first, second = _flat(self.to_dict()), _flat(other.to_dict())
        for values in (first, second):
            values |= {key: local_path(values[key]) for key in RECIPE_PLACES}
        keys = [key for key in first | second if not key.startswith("run.") or key in ("run.seed", "run.precision")]
        return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def recipe_names(method: str | None = None) -> list[str]:
    """Names of the packaged recipes.

    Args:
        method: Only those of this method.

    Returns:
        `METHOD/NAME`, sorted.
    """
    root = resources.files("hubmodels.recipes")
    folders = [folder for folder in root.iterdir() if folder.is_dir() and method in (None, folder.name)]
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def _packaged_text(name: str, method: str) -> str:
    full = name if "/" in name else f"{method}/{name}"
    if full not in recipe_names():
        known = ", ".join(recipe_names())
        raise RecipeError(f"there is no recipe {name!r}{nearest(full, recipe_names())}; packaged recipes: {known}")
    return (resources.files("hubmodels.recipes") / f"{full}.yaml").read_text(encoding="utf-8")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message about a misspelt name.

    Args:
        name: What was given.
        known: What is accepted.

    Returns:
        ", did you mean ...?", or nothing where no accepted name is near.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f", did you mean {' or '.join(near)}?" if near else ""


def local_path(name: str | None) -> str | None:
    """One spelling for all that name the same existing file or folder.

    Args:
        name: A path, or a name of something that is not on this machine.

    Returns:
        The absolute path of what exists; other names as they are.
    """
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"an override has the form key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {override!r} is not valid YAML: {error}") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{key}: {section} is a value, not a section")
    values[last] = value


def _build(kind: type, values: Any, prefix: str) -> Any:
    """Make a dataclass of a dictionary, with checks; `prefix` is the dotted key of the section."""
    if not isinstance(values, dict):
        raise RecipeError(f"{prefix.rstrip('.')} is a section with keys of its own, got {values!r}")
    known = {entry.name: entry for entry in fields(kind)}
    for key in values:
        if key not in known:
            raise RecipeError(
                f"unknown key {prefix}{key}{nearest(str(key), list(known))} (keys here: {', '.join(known)})"
            )
    required = [n for n, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING]
    missing = [prefix + name for name in required if name not in values]
    if missing:
        raise RecipeError(f"missing key {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Check a value against a type; whole numbers become floats where those are asked for."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _build(annotation, value, f"{key}.")
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for choice in arguments:
            if type(value) in (choice, typing.get_origin(choice)):
                return _convert(value, choice, key)
        return _convert(value, next(choice for choice in reversed(arguments) if choice is not type(None)), key)
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{key} must be a list, got {value!r}")
        return [_convert(entry, arguments[0], f"{key}[{index}]") for index, entry in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{key} must hold keys and values, got {value!r}")
        return {name: _number(entry) for name, entry in value.items()} if key.endswith(".options") else dict(value)
    return _convert_plain(value, annotation, key)


def _convert_plain(value: Any, kind: type, key: str) -> Any:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind is float:
        value = _number(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"{key} must be {names[kind]}, got {value!r}")
    return value


def _number(value: Any) -> Any:
    """Text that is a number as that number, also inside of a list: YAML 1.1 reads 1e-3 as text, it wants 1.0e-3."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
