"""Training of methods that compare two augmented views of every image: SimCLR and DenseCL."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig

from hubmodels.data.collators import EpochCollator, ImageCollator
from hubmodels.data.processing import ProcessorTransform
from hubmodels.data.randomness import uniforms
from hubmodels.training.methods.base import MethodTraining, labelled_transform, method_class
from hubmodels.training.methods.encoders import model_around
from hubmodels.training.recipe import RecipeError, TransformSection

_AUGMENTATION_STREAM = 0
VIEWS = 2
SMALL_BATCH = 256  # the smallest batch of the paper's comparison (figure 9)
DEFAULT_QUEUE_LENGTH = 65536  # of DenseCLConfig
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
# What says in `transform.options` the same as these keys of `transform`.
PRETRAINING_OPTIONS = {
    name: {"crop_scale": crop, "flip": "flip_probability", "crop_padding": "", "auto_augment": "", "random_erasing": ""}
    for name, crop in (("simclr", "area_range"), ("densecl", "crop_scale"))
}
HEAD_KEYS = ("num_proj_layers", "projection_hidden_size", "projection_size")


class ViewsCollator(EpochCollator):
    """Turn items of an image data set into two augmented views each.

    Every draw is a function of (seed, epoch, sample index), as in [`hubmodels.data.ImageCollator`]; a blur whose width
    the method shares over a batch takes that of the first sample.

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

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            items: Items with "image" (uint8 [C, H, W]), "index" and, where labels are taken, "label".

        Returns:
            "pixel_values" float32 [B, 2, C, S, S], what else `keys` names, and with `labels` "labels" int64 [B].
        """
        indices = [item["index"] for item in items]
        draws = self.processor.draws
        table = uniforms(self.seed, self.epoch, indices, VIEWS * draws, _AUGMENTATION_STREAM)
        views = self.processor(
            [item["image"] for item in items], mode="pretrain", uniforms=table.reshape(len(items), VIEWS, draws)
        )
        batch = {key: views[key] for key in self.keys}
        if self.labels:
            batch["labels"] = torch.tensor([item["label"] for item in items], dtype=torch.int64)
        return batch


class ContrastiveTraining(MethodTraining):
    """See [`MethodTraining`]. The recipe's `transform.options` are arguments of the method's image processor."""

    shape_keys = (*ENCODER_KEYS, *HEAD_KEYS)
    encoder_prefixes = ("backbone.", "encoder.backbone.")  # of SimCLR, of DenseCL
    divides_steps = False
    has_test_loss = False
    sheet_file = "views.png"

    def __init__(self, name: str):
        super().__init__(name)
        self.takes_statistics = name != "simclr"  # whose pixels are not normalised

    def option_names(self):
        """Settings of the method's image processor."""
        processor: Any = method_class(self.name, "AutoImageProcessor")
        return sorted(processor.valid_kwargs.__annotations__)

    def check_settings(self, recipe):
        """The views of pre-training know nothing of the settings that other methods are augmented by."""
        super().check_settings(recipe)
        if recipe.task != "pretrain":
            return
        for key, instead in PRETRAINING_OPTIONS[self.name].items():
            value, default = getattr(recipe.transform, key), getattr(TransformSection(), key)
            if value != default:
                hint = f"set transform.options.{instead}" if instead else "there is no such augmentation here"
                raise RecipeError(
                    f"transform.{key} does nothing in the pre-training of {self.name}, got {value}: {hint}"
                )

    def needs_classes(self, recipe):
        """The linear probe of SimCLR learns them in pre-training."""
        return recipe.task != "pretrain" or bool(recipe.model.get("linear_probe"))

    def implied_settings(self, recipe):
        """What a loaded SimCLR config says about its classifier was about the run that it comes from.

        LARS leaves the classifier out, whose weight decay is then in the loss, as in the official code.
        """
        if self.name != "simclr":
            return {}
        optimizer = recipe.optimizer
        in_loss = optimizer.name == "lars" and not optimizer.decay_vectors and self.needs_classes(recipe)
        return {"linear_probe": False, "weight_decay": optimizer.weight_decay if in_loss else 0.0}

    def replaced_keys(self, source):
        """The encoder of another method comes without heads."""
        own = AutoConfig.from_pretrained(source).model_type == self.name
        return self.shape_keys if own else tuple(key for key in ENCODER_KEYS if key != "image_size")

    def load_model(self, recipe, settings):
        """Pre-training goes on from the encoder of any other model; SimCLR fine-tunes what it pre-trained."""
        config = AutoConfig.from_pretrained(recipe.init_from)
        if config.model_type == self.name:
            return None
        if recipe.task != "pretrain":
            raise RecipeError(
                f"init_from = {recipe.init_from} is a model of type {config.model_type}; {self.name} fine-tunes models "
                f"of its own: pre-train from it first (hubmodels train {self.name} --backbone ...)"
            )
        model_class: Any = self.model_class(recipe)
        if self.name == "simclr":
            return model_around(model_class, config, recipe.init_from, settings)
        model = model_around(model_class, config, recipe.init_from, settings, lambda model: model.encoder)
        model.momentum_encoder.load_state_dict(model.encoder.state_dict())
        return model

    def fit_to(self, recipe, images):
        """DenseCL's queues hold at most about half as many keys as there are images, in whole batches."""
        batch, length = recipe.schedule.batch_size, recipe.model.get("queue_length")
        if length is not None and length > images // 2:
            recipe.model["queue_length"] = max(1, images // 2 // batch) * batch

    def advice(self, recipe, images):
        """About queues that are longer than the data, and about few negatives."""
        batch = recipe.schedule.batch_size
        if self.name == "simclr" and recipe.task == "pretrain" and batch < SMALL_BATCH:
            return (
                f"schedule.batch_size = {batch} leaves every view {2 * batch - 2} negatives; SimCLR learns better with "
                f"at least {SMALL_BATCH} images, and smaller batches need more epochs and a higher model.temperature "
                "(0.5)"
            )
        length = recipe.model.get("queue_length", DEFAULT_QUEUE_LENGTH) if self.name == "densecl" else 0
        if recipe.task != "pretrain" or length <= images:
            return None
        return (
            f"model.queue_length = {length} is more than the {images} images: views of the same image of earlier "
            f"epochs count as negatives; better is at most {images // 2}, in multiples of schedule.batch_size"
        )

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
        mean, std = list(evaluation.mean), list(evaluation.std)
        if self.name == "simclr":
            if set(mean) != {0.0} or set(std) != {1.0}:
                raise RecipeError(
                    "transform.mean and transform.std must be 0 and 1, as SimCLR takes pixels in [0, 1] without "
                    f"normalisation, got {mean} and {std}"
                )
            settings: dict[str, Any] = {"crop_proportion": evaluation.crop_fraction}
        else:
            settings = {"crop_pct": evaluation.crop_fraction, "image_mean": mean, "image_std": std}
        height, width = evaluation.size
        return method_class(self.name, "AutoImageProcessor")(
            size={"height": height, "width": width}, **(settings | recipe.transform.options)
        )

    def labelled_collators(self, recipe, config, evaluation):
        """The method's own crops, as its published processor makes them; what it does not know is done as elsewhere."""
        section, seed = recipe.transform, recipe.run.seed
        processor, channels = self.processor(recipe, config, evaluation), evaluation.num_channels
        if section.crop_padding is not None or section.auto_augment or section.random_erasing:
            train: Any = labelled_transform(recipe, evaluation)
        else:
            settings = {"mode": "finetune", "area_range": section.crop_scale, "flip_probability": section.flip}
            train = ProcessorTransform(processor, channels, processor.draws, **settings)
        test = ProcessorTransform(processor, channels)
        return ImageCollator(train, seed, train=True), ImageCollator(test, seed, train=False)

    def pretrain_collators(self, recipe, config, evaluation):
        """Two views of every image; evaluation draws those of epoch 0 always."""
        processor = self.processor(recipe, config, evaluation)
        geometry = getattr(config, "matching", None) == "geometry"
        keys = ("pixel_values", "crop_boxes", "flips") if geometry else ("pixel_values",)
        labels, seed = getattr(config, "linear_probe", False), recipe.run.seed
        return (
            ViewsCollator(processor, seed, train=True, keys=keys, labels=labels),
            ViewsCollator(processor, seed, train=False, keys=keys, labels=labels),
        )

    def draw(self, model, collator, samples, evaluation, path):
        """The views that the model was trained on; for dense methods with their correspondences."""
        from hubmodels import visualization

        batch = collator(samples)
        mean, std = list(evaluation.mean), list(evaluation.std)
        if self.name == "densecl":
            visualization.dense_correspondences(model, batch["pixel_values"].to(model.device), path, mean, std)
        else:
            visualization.view_pairs(batch["pixel_values"], path, mean, std)

    def use_timm_shape(self, recipe, backbone, replaced):
        """Any timm model becomes the backbone; the heads stay those of the recipe."""
        dropped = set(replaced).intersection(ENCODER_KEYS)
        recipe.model = {key: value for key, value in recipe.model.items() if key not in dropped}
        recipe.model["backbone_config"] = {"model_type": "timm_backbone", "backbone": backbone}
