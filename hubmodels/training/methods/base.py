"""What training must know of a method besides its recipe; each method has one small subclass."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_utils import PILImageResampling

from hubmodels.catalog import get_method
from hubmodels.data import (
    EvalTransform,
    FinetuneTransform,
    ImageCollator,
    ImageTransform,
    LinearProbeTransform,
    PretrainTransform,
)
from hubmodels.training.recipe import Recipe, RecipeError, nearest
from hubmodels.training.trainer import HubTrainer

Collator = Callable[[list[Any]], dict[str, Any]]
FREEZING = {"partial_finetune": "freeze_all_but_last_blocks", "linear_probe": "freeze_encoder"}  # methods of the model


class MethodTraining:
    """Pre-training of one method: its batches, its processor, its pictures.

    Attributes:
        shape_keys: Keys of the config that a run which starts from another model takes from that model.
        encoder_prefixes: How the names of the encoder's weights begin; empty where transformers' `base_model_prefix` of
            the model says it.
        divides_steps: Whether an optimiser step may be divided into micro-batches without changing the result. False
            for losses that compare the images of a batch with each other.
        has_test_loss: Whether the pre-training loss of the test images says something, so that it is worth its time.
        sheet_file: Name of the picture that `draw` makes.
        eval_resample: Pillow's filter that resizes images for evaluation.
        takes_statistics: Whether pixels are normalised as those of the model that a run starts from.
    """

    shape_keys: tuple[str, ...] = ("image_size", "num_channels")
    encoder_prefixes: tuple[str, ...] = ()
    divides_steps = True
    has_test_loss = True
    eval_resample = PILImageResampling.BICUBIC
    takes_statistics = True
    sheet_file: str

    def __init__(self, name: str):
        self.name = name

    def check_task(self, recipe: Recipe) -> None:
        """Refuse a task that the method does not have.

        Args:
            recipe: The recipe.

        Raises:
            RecipeError: If it has none; the message lists those that it has.
        """
        classes = get_method(self.name).auto_classes
        tasks = ["pretrain"] if "AutoModelForPreTraining" in classes else []
        if "AutoModelForImageClassification" in classes:
            classifier = method_class(self.name, "AutoModelForImageClassification")
            tasks += ["finetune", *(task for task, freezes in FREEZING.items() if hasattr(classifier, freezes))]
        if recipe.task not in tasks:
            raise RecipeError(f"task of {self.name} must be one of {', '.join(tasks)}, got {recipe.task!r}")

    def check_settings(self, recipe: Recipe) -> None:
        """Refuse settings that would do nothing, or fail in the first step.

        Args:
            recipe: The recipe.

        Raises:
            RecipeError: If there are some; the message names them and what is accepted.
        """
        known, options = self.option_names(), recipe.transform.options
        unknown = sorted(str(key) for key in options if key not in known)
        if unknown:
            near = nearest(unknown[0], list(known))
            accepted = ", ".join(known) if known else "none"
            raise RecipeError(f"unknown key transform.options.{unknown[0]}{near} (keys of {self.name}: {accepted})")
        if recipe.task == "pretrain":
            for key in ("mixup", "cutmix", "label_smoothing"):
                value = getattr(recipe.regularization, key)
                if value:
                    raise RecipeError(f"regularization.{key} is for labelled tasks; in pre-training 0, got {value}")

    def option_names(self) -> Sequence[str]:
        """Keys that `transform.options` may have.

        Returns:
            The keys; by default none.
        """
        return ()

    def shape_keys_of(self, task: str) -> tuple[str, ...]:
        """The `shape_keys` that a model for a task has.

        Args:
            task: Task of the recipe.

        Returns:
            The keys.
        """
        return self.shape_keys

    def replaced_keys(self, source: str) -> tuple[str, ...]:
        """The `shape_keys` that a run which starts from a model leaves to that model.

        Args:
            source: Folder or Hub id of the model.

        Returns:
            The keys.
        """
        return self.shape_keys

    def recipe_for(self, chosen: str, labelled: bool) -> str:
        """The recipe for a user who names none.

        Args:
            chosen: Name of the pre-training recipe that fits the pictures and the machine.
            labelled: Whether the pictures have labels.

        Returns:
            Name of the recipe.
        """
        return chosen

    def divides_task(self, task: str) -> bool:
        """Whether a step of a task may be divided; by default only pre-training compares images with each other.

        Args:
            task: Task of the recipe.
        """
        return self.divides_steps or task != "pretrain"

    def needs_classes(self, recipe: Recipe) -> bool:
        """Whether the model of a recipe has a classifier, whose classes are those of the data.

        Args:
            recipe: The recipe.
        """
        return recipe.task != "pretrain"

    def implied_settings(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of the config that follow from a recipe where its `model` section does not say them.

        Args:
            recipe: The recipe.

        Returns:
            The fields; by default none.
        """
        return {}

    def fit_to(self, recipe: Recipe, images: int) -> None:
        """Fit a recipe that was chosen for the user, and whose batch fits, to the number of training images.

        Args:
            recipe: The recipe, changed in place.
            images: Number of training images.
        """

    def advice(self, recipe: Recipe, images: int) -> str | None:
        """What a user should know before the run starts.

        Args:
            recipe: The recipe.
            images: Number of training images.

        Returns:
            A sentence, or None.
        """
        return None

    def passes_per_image(self, recipe: Recipe) -> float:
        """Forward and backward passes that a method takes for each image of an epoch.

        Args:
            recipe: The recipe.

        Returns:
            Their number, for the estimate of the time.
        """
        return 1.0

    def model_class(self, recipe: Recipe) -> type:
        """The class that a recipe trains.

        Args:
            recipe: The recipe.

        Returns:
            The class.
        """
        pretrains = recipe.task == "pretrain"
        return method_class(self.name, "AutoModelForPreTraining" if pretrains else "AutoModelForImageClassification")

    def load_model(self, recipe: Recipe, settings: dict[str, Any]) -> PreTrainedModel | None:
        """Load `init_from` of a recipe in a way of its own.

        Args:
            recipe: The recipe.
            settings: Arguments of the config.

        Returns:
            The model; None where `from_pretrained` does it.
        """
        return None

    def network_inside(self, config: PreTrainedConfig, source: str) -> PreTrainedModel | None:
        """The network that a saved model of this method wraps, from which runs of other methods start.

        Args:
            config: Config of the saved model.
            source: Its folder or Hub id.

        Returns:
            The network; None for a model that is itself what others start from.

        Raises:
            RecipeError: If no other method knows it.
        """
        return None

    def resize(self, model: PreTrainedModel, image_size: int | tuple[int, int]) -> None:
        """Make a loaded model take images of another size.

        Args:
            model: The model, changed in place.
            image_size: Pixels, one number or (height, width).

        Raises:
            RecipeError: If it cannot.
        """
        try:
            model.resize_position_embeddings(image_size)  # type: ignore[arg-type]
        except NotImplementedError as error:
            raise RecipeError(
                f"model.image_size must be that of init_from, {model.config.image_size}, got {image_size}"
            ) from error

    def labelled_collators(
        self, recipe: Recipe, config: PreTrainedConfig, evaluation: EvalTransform
    ) -> tuple[Collator, Collator]:
        """Make the collators of a labelled task and of its evaluation.

        Args:
            recipe: The recipe.
            config: Config of the model.
            evaluation: Evaluation transform of the recipe.

        Returns:
            Both collators.
        """
        train, seed = labelled_transform(recipe, evaluation), recipe.run.seed
        return ImageCollator(train, seed, train=True), ImageCollator(evaluation, seed, train=False)

    def make_trainer(
        self, recipe: Recipe, model: PreTrainedModel, arguments: Any, evaluation: EvalTransform, **parts: Any
    ) -> HubTrainer:
        """Make the trainer.

        Args:
            recipe: The recipe.
            model: The model.
            arguments: Its `HubTrainingArguments`.
            evaluation: Evaluation transform of the recipe.
            **parts: Further arguments of `HubTrainer`: collators, data sets, metrics, callbacks.

        Returns:
            The trainer.
        """
        return HubTrainer(model, arguments, **parts)

    def finish(self, recipe: Recipe, trainer: HubTrainer, evaluation: EvalTransform, output: Path) -> None:
        """Write what a run ends with besides the model; called in every process.

        Args:
            recipe: The recipe.
            trainer: The trainer, after training.
            evaluation: Evaluation transform of the recipe.
            output: Folder of the run.
        """

    def pretrain_collators(
        self, recipe: Recipe, config: PreTrainedConfig, evaluation: EvalTransform
    ) -> tuple[Collator, Collator]:
        """Make the collators of pre-training and of its evaluation.

        Args:
            recipe: The recipe.
            config: Config of the model.
            evaluation: Evaluation transform of the recipe.

        Returns:
            Both collators.
        """
        raise NotImplementedError

    def processor(self, recipe: Recipe, config: PreTrainedConfig, evaluation: EvalTransform) -> Any:
        """Make the image processor that does to a picture what evaluation does, to be saved with the model.

        Args:
            recipe: The recipe.
            config: Config of the model.
            evaluation: Evaluation transform of the recipe.

        Returns:
            The processor.
        """
        raise NotImplementedError

    def draw(
        self, model: PreTrainedModel, collator: Collator, samples: list[Any], evaluation: EvalTransform, path: Path
    ) -> None:
        """Draw what the model learned.

        Args:
            model: The pre-trained model.
            collator: Evaluation collator of pre-training.
            samples: Images.
            evaluation: Evaluation transform of the recipe.
            path: Picture to write.
        """
        raise NotImplementedError

    def use_timm_shape(self, recipe: Recipe, backbone: str, replaced: Sequence[str]) -> None:
        """Let a recipe build the architecture of a timm model.

        Args:
            recipe: The recipe, changed in place.
            backbone: Name of the timm model.
            replaced: Keys of `shape_keys` that may be set.

        Raises:
            RecipeError: If the method cannot use it.
        """
        raise NotImplementedError


def labelled_transform(recipe: Recipe, evaluation: EvalTransform) -> ImageTransform:
    """The augmentation of a linear probe or of fine-tuning.

    Args:
        recipe: The recipe.
        evaluation: Its evaluation transform.

    Returns:
        The transform.
    """
    section = recipe.transform
    common: dict[str, Any] = {
        "scale": section.crop_scale,
        "flip": section.flip,
        "num_channels": evaluation.num_channels,
        "mean": section.mean,
        "std": section.std,
    }
    if recipe.task == "linear_probe":
        return LinearProbeTransform(evaluation.size, **common)
    return FinetuneTransform(
        evaluation.size,
        auto_augment=section.auto_augment,
        random_erasing=section.random_erasing,
        crop_padding=section.crop_padding,
        resize=None if section.crop_padding is None else evaluation.short_side,
        **common,
    )


def pretrain_transform(recipe: Recipe, config: PreTrainedConfig) -> PretrainTransform:
    """The augmentation of masked pre-training: crops and flips.

    Args:
        recipe: The recipe.
        config: Config of the model.

    Returns:
        The transform.
    """
    section = recipe.transform
    return PretrainTransform(
        config.image_size,
        scale=section.crop_scale,
        flip=section.flip,
        num_channels=config.num_channels,
        mean=section.mean,
        std=section.std,
    )


def method_class(method: str, auto_class: str) -> type:
    """Class of a method behind a transformers Auto class.

    Args:
        method: Name of the method.
        auto_class: Such as "AutoModelForPreTraining".

    Returns:
        The class.

    Raises:
        RecipeError: If the method has none.
    """
    record = get_method(method)
    if auto_class not in record.auto_classes:
        raise RecipeError(f"{method} has no {auto_class}; it has {', '.join(record.auto_classes)}")
    return getattr(import_module(record.module), record.auto_classes[auto_class])
