"""Training of DenseCL: pairs of views, queues that fit the data, correspondences as pictures."""

from typing import Any

from hubmodels.training.methods.contrastive import ContrastiveTraining
from hubmodels.training.methods.encoders import model_around
from hubmodels.training.recipe import RecipeError

DEFAULT_QUEUE_LENGTH = 65536  # of DenseCLConfig


class DenseCLTraining(ContrastiveTraining):
    """See [`ContrastiveTraining`]."""

    crop_option = "crop_scale"
    encoder_prefixes = ("encoder.backbone.",)

    def model_around(self, config: Any, recipe: Any, settings: dict[str, Any]) -> Any:
        """Both encoders start from the other model's."""
        model: Any = model_around(
            self.model_class(recipe), config, recipe.init_from, settings, lambda model: model.encoder
        )
        model.momentum_encoder.load_state_dict(model.encoder.state_dict())
        return model

    def fit_to(self, recipe, images):
        """The queues hold at most about half as many keys as there are images, in whole batches."""
        batch, length = recipe.schedule.batch_size, recipe.model.get("queue_length")
        if length is not None and (length > images // 2 or length % batch):
            recipe.model["queue_length"] = max(1, min(length, images // 2) // batch) * batch

    def check_settings(self, recipe):
        """See the base class; whole batches must fill the queues."""
        super().check_settings(recipe)
        batch, partial = recipe.schedule.batch_size, recipe.model.get("queue_partial", "error")
        length = recipe.model.get("queue_length", None if recipe.init_from else DEFAULT_QUEUE_LENGTH)
        if recipe.task == "pretrain" and partial == "error" and length is not None and length % batch:
            raise RecipeError(
                f"model.queue_length must be a multiple of schedule.batch_size ({batch}), got {length}; or choose "
                "model.queue_partial"
            )

    def advice(self, recipe, images):
        """About queues that are longer than the data."""
        length = recipe.model.get("queue_length", DEFAULT_QUEUE_LENGTH)
        if length <= images:
            return None
        return (
            f"model.queue_length = {length} is more than the {images} images: views of the same image of earlier "
            f"epochs count as negatives; better is at most {images // 2}, in multiples of schedule.batch_size"
        )

    def processor_settings(self, evaluation: Any) -> dict[str, Any]:
        """Crop and normalisation."""
        return {
            "crop_pct": evaluation.crop_fraction,
            "image_mean": list(evaluation.mean),
            "image_std": list(evaluation.std),
        }

    def wanted_of_views(self, config: Any) -> dict[str, Any]:
        """Where the crops lie, if they tell which positions match."""
        return {"keys": ("pixel_values", "crop_boxes", "flips")} if config.matching == "geometry" else {}

    def draw(self, model, collator, samples, evaluation, path):
        """The views that the model was trained on, with their correspondences."""
        from hubmodels.visualization import dense_correspondences

        pixels = collator(samples)["pixel_values"].to(model.device)
        dense_correspondences(model, pixels, path, list(evaluation.mean), list(evaluation.std))
