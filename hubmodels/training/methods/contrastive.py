"""Training of methods that compare two augmented views of every image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import AutoConfig

from hubmodels.data.collators import EpochCollator
from hubmodels.data.randomness import uniforms
from hubmodels.training.methods.base import MethodTraining, method_class
from hubmodels.training.methods.encoders import model_around
from hubmodels.training.random_state import EpochSampler
from hubmodels.training.recipe import RecipeError, TransformSection

_AUGMENTATION_STREAM = 0
VIEWS = 2
ENCODER_KEYS = (
    "image_size",
    "backbone_config",
    "resnet_depth",
    "layer_type",
    "depths",
    "num_stages",
    "strides",
    "stem_width",
    "embedding_size",
)
HEAD_KEYS = ("num_proj_layers", "projection_hidden_size", "projection_size")


class ViewsCollator(EpochCollator):
    """Turn items of an image data set into two augmented views each.

    Every draw is a function of (seed, epoch, sample index), as in [`hubmodels.data.ImageCollator`]. What the method
    draws once for a batch (SimCLR's width of the blur) is that of the first sample of the batch, which in training is
    the one of all processes together (`set_batches`).

    Args:
        processor: Image processor of the method, with `draws` and the argument `uniforms`.
        seed: Seed of the run.
        train: Whether the epoch counts.
        keys: What the model takes of the processor's output.
        labels: Whether it takes the labels too.
    """

    def __init__(
        self, processor: Any, seed: int, train: bool, keys: Sequence[str] = ("pixel_values",), labels: bool = False
    ):
        super().__init__(seed, train)
        self.processor = processor
        self.keys = tuple(keys)
        self.labels = labels
        self._sampler: EpochSampler | None = None
        self._batch_size = 0
        self._order: tuple[int, np.ndarray] | None = None

    def set_batches(self, sampler: EpochSampler, size: int) -> None:
        """Say how the samples are divided into batches; without it every call is a batch of its own.

        Args:
            sampler: Order of the samples.
            size: Samples in a batch of all processes.
        """
        self._sampler, self._batch_size, self._order = sampler, size, None

    def _first_of_batch(self, item: dict[str, Any]) -> int:
        """Index of the first sample of the batch, of all processes, that an item belongs to."""
        if not self.train or self._sampler is None:
            return item.get("first_of_batch", item["index"])
        epoch = self.epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, _indices_at(self._sampler.dataset, self._sampler.order(epoch))
        order = self._order[1]
        places = np.flatnonzero(order == item["index"])
        if not len(places):  # a data set with indices of its own: the batch of this process
            return item["index"]
        return int(order[places[0] - places[0] % self._batch_size])

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            items: Items with "image" (uint8 [C, H, W]), "index" and, where labels are taken, "label"; those of a stream
                with "first_of_batch", the index of the first sample of their batch.

        Returns:
            "pixel_values" float32 [B, 2, C, S, S], what else `keys` names, and with `labels` "labels" int64 [B].
        """
        indices = [item["index"] for item in items]
        draws = self.processor.draws
        table = uniforms(self.seed, self.epoch, indices, VIEWS * draws, _AUGMENTATION_STREAM)
        table = table.reshape(len(items), VIEWS, draws)
        shared = getattr(self.processor, "shared_draws", [])
        if shared:
            first = [self._first_of_batch(items[0])]
            row = uniforms(self.seed, self.epoch, first, VIEWS * draws, _AUGMENTATION_STREAM)
            table[..., shared] = row.reshape(VIEWS, draws)[:, shared]
        views = self.processor([item["image"] for item in items], mode="pretrain", uniforms=table)
        batch = {key: views[key] for key in self.keys}
        if self.labels:
            batch["labels"] = torch.tensor([item["label"] for item in items], dtype=torch.int64)
        return batch


def _indices_at(dataset: Any, positions: np.ndarray) -> np.ndarray:
    """What the items at some positions of a data set have as "index"."""
    indices = getattr(dataset, "indices", None)
    if indices is None:
        return positions
    indices = np.asarray(indices)[positions]
    return _indices_at(dataset.dataset, indices) if isinstance(dataset, Subset) else indices


class ContrastiveTraining(MethodTraining):
    """See [`MethodTraining`]. The recipe's `transform.options` are arguments of the method's image processor.

    Attributes:
        crop_option: Option that says the same as `transform.crop_scale`.
    """

    crop_option: str
    shape_keys = (*ENCODER_KEYS, *HEAD_KEYS)
    divides_steps = False
    has_test_loss = False
    sheet_file = "views.png"

    def option_names(self):
        """Settings of the method's image processor."""
        processor: Any = method_class(self.name, "AutoImageProcessor")
        return sorted(processor.valid_kwargs.__annotations__)

    def check_settings(self, recipe):
        """The views of pre-training know nothing of the settings that other methods are augmented by."""
        super().check_settings(recipe)
        if recipe.task != "pretrain":
            return
        same = {"crop_scale": self.crop_option, "flip": "flip_probability"}
        for key in (*same, "crop_padding", "auto_augment", "random_erasing"):
            instead = same.get(key)
            value, default = getattr(recipe.transform, key), getattr(TransformSection(), key)
            if value != default:
                hint = f"set transform.options.{instead}" if instead else "there is no such augmentation here"
                raise RecipeError(
                    f"transform.{key} does nothing in the pre-training of {self.name}, got {value}: {hint}"
                )

    def replaced_keys(self, source):
        """The encoder of another method comes without heads."""
        own = AutoConfig.from_pretrained(source).model_type == self.name
        return self.shape_keys if own else tuple(key for key in ENCODER_KEYS if key != "image_size")

    def load_model(self, recipe, settings):
        """Pre-training goes on from the encoder of any other model; what is fine-tuned is a model of the method."""
        config = AutoConfig.from_pretrained(recipe.init_from)
        if config.model_type == self.name:
            return None
        if recipe.task != "pretrain":
            raise RecipeError(
                f"init_from = {recipe.init_from} is a model of type {config.model_type}; {self.name} fine-tunes models "
                f"of its own: pre-train from it first (hubmodels train {self.name} --backbone ...)"
            )
        return self.model_around(config, recipe, settings)

    def model_around(self, config: Any, recipe: Any, settings: dict[str, Any]) -> Any:
        """The model that is pre-trained, around the encoder of another one.

        Args:
            config: Config of the other model.
            recipe: The recipe; `init_from` holds the other model.
            settings: Arguments of the config.

        Returns:
            The model.
        """
        return model_around(self.model_class(recipe), config, recipe.init_from, settings)

    def resize(self, model, image_size):
        """ResNets take any size; but where the size chooses the stem, it must stay the one that was loaded."""
        config = model.config
        if hasattr(config.backbone_config, "image_size"):
            raise RecipeError(
                f"model.image_size must be {config.image_size}, as in init_from, whose backbone_config has an image "
                f"size of its own, got {image_size}"
            )
        loaded_stem = config.uses_cifar_stem
        config.image_size = image_size
        if config.backbone_config is None and config.uses_cifar_stem != loaded_stem:
            raise RecipeError(
                f"model.image_size = {image_size} would choose another stem than that of init_from; model.cifar_stem "
                f"must be {str(loaded_stem).lower()} to keep it"
            )

    def processor(self, recipe, config, evaluation):
        """The method's own processor; it makes views for training and plain crops for evaluation."""
        height, width = evaluation.size
        settings = self.processor_settings(evaluation) | recipe.transform.options
        return method_class(self.name, "AutoImageProcessor")(size={"height": height, "width": width}, **settings)

    def processor_settings(self, evaluation: Any) -> dict[str, Any]:
        """What the evaluation transform of a recipe says, as arguments of the processor.

        Args:
            evaluation: The transform.

        Returns:
            The arguments, without the size.
        """
        raise NotImplementedError

    def pretrain_collators(self, recipe, config, evaluation):
        """Two views of every image; evaluation draws those of epoch 0 always."""
        processor, seed = self.processor(recipe, config, evaluation), recipe.run.seed
        wanted = self.wanted_of_views(config)
        return (
            ViewsCollator(processor, seed, train=True, **wanted),
            ViewsCollator(processor, seed, train=False, **wanted),
        )

    def wanted_of_views(self, config: Any) -> dict[str, Any]:
        """What the model takes besides the pixels.

        Args:
            config: Its config.

        Returns:
            Arguments of [`ViewsCollator`].
        """
        return {}

    def use_timm_shape(self, recipe, backbone, replaced):
        """Any timm model becomes the backbone; the heads stay those of the recipe."""
        dropped = set(replaced).intersection(ENCODER_KEYS)
        recipe.model = {key: value for key, value in recipe.model.items() if key not in dropped}
        recipe.model["backbone_config"] = {"model_type": "timm_backbone", "backbone": backbone}
