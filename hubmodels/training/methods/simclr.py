"""Training of SimCLR: pairs of views, a linear probe beside them, fine-tuning with its own crops."""

from typing import Any

from hubmodels.data.collators import ImageCollator
from hubmodels.data.processing import ProcessorTransform
from hubmodels.training.methods.base import labelled_transform
from hubmodels.training.methods.contrastive import ContrastiveTraining
from hubmodels.training.recipe import RecipeError

SMALL_BATCH = 256  # the smallest batch of the paper's comparison (figure 9)


class SimCLRTraining(ContrastiveTraining):
    """See [`ContrastiveTraining`]."""

    crop_option = "area_range"
    encoder_prefixes = ("backbone.",)
    takes_statistics = False

    def needs_classes(self, recipe):
        """The linear probe learns them in pre-training."""
        return recipe.task != "pretrain" or bool(recipe.model.get("linear_probe"))

    def implied_settings(self, recipe):
        """What a loaded config says about its classifier was about the run that it comes from.

        LARS leaves the classifier out, whose weight decay is then in the loss, as in the official code.
        """
        optimizer = recipe.optimizer
        in_loss = optimizer.name == "lars" and not optimizer.decay_vectors and self.needs_classes(recipe)
        return {"linear_probe": False, "weight_decay": optimizer.weight_decay if in_loss else 0.0}

    def advice(self, recipe, images):
        """About few negatives."""
        batch = recipe.schedule.batch_size
        if recipe.task != "pretrain" or batch >= SMALL_BATCH:
            return None
        return (
            f"schedule.batch_size = {batch} leaves every view {2 * batch - 2} negatives; SimCLR learns better with "
            f"at least {SMALL_BATCH} images, and smaller batches need more epochs and a higher model.temperature (0.5)"
        )

    def processor_settings(self, evaluation: Any) -> dict[str, Any]:
        """Pixels are not normalised.

        Raises:
            RecipeError: For a recipe that asks for it.
        """
        mean, std = list(evaluation.mean), list(evaluation.std)
        if set(mean) != {0.0} or set(std) != {1.0}:
            raise RecipeError(
                "transform.mean and transform.std must be 0 and 1, as SimCLR takes pixels in [0, 1] without "
                f"normalisation, got {mean} and {std}"
            )
        return {"crop_proportion": evaluation.crop_fraction}

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

    def wanted_of_views(self, config: Any) -> dict[str, Any]:
        """Labels for the linear probe."""
        return {"labels": config.linear_probe}

    def draw(self, model, collator, samples, evaluation, path):
        """The views that the model was trained on."""
        from hubmodels.visualization import view_pairs

        view_pairs(collator(samples)["pixel_values"], path, list(evaluation.mean), list(evaluation.std))
