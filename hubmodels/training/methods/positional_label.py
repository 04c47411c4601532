"""Training of Positional Label: classifiers around any backbone, and masked autoencoders with positions."""

import math

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from hubmodels.data import ImageCollator
from hubmodels.training.methods.base import MethodTraining, pretrain_transform
from hubmodels.training.methods.mae import MAECollator
from hubmodels.training.recipe import RecipeError

logger = logging.get_logger(__name__)

TRIVIAL_SHARE = 0.05


class TrivialLabels(TrainerCallback):
    """Says once when absolute labels have become trivial: their loss is next to nothing of that of a guess, log N."""

    def __init__(self):
        self.has_warned = False

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        """Looks at the mean position loss since the last log."""
        loss, config = (logs or {}).get("position_loss"), model.config
        plain = config.scheme == "plain" and not config.position_dropout
        if self.has_warned or loss is None or not plain or "absolute" not in config.labels:
            return
        rows, columns = model.position_heads["absolute"].grid
        chance = math.log(rows * columns)
        if state.is_world_process_zero and loss < TRIVIAL_SHARE * chance:
            self.has_warned = True
            logger.warning(
                f"position_loss is {loss:.2g} after step {state.global_step} (by chance {chance:.2g}): the absolute "
                "labels have become trivial and teach little more; position_label='relative' or, where tokens carry "
                "a table of positions, position_dropout=0.5 keep the task hard"
            )


class PositionalLabelTraining(MethodTraining):
    """See [`MethodTraining`]. Labelled pictures train a classifier, unlabelled ones an autoencoder."""

    shape_keys = ("backbone_config", "backbone_variant", "keep_resolution", "pooling")
    sheet_file = "positions.png"

    def recipe_for(self, chosen, labelled):
        """With labels the supervised recipe of the same size."""
        return chosen.replace("_pretrain", "_finetune") if labelled else chosen

    def advice(self, recipe, images):
        """About a table of positions from which absolute labels can be read off."""
        model = recipe.model
        inner = model.get("backbone_config", {}).get("model_type", "vit")
        plain = model.get("scheme", "plain") == "plain" and not model.get("position_dropout")
        if model.get("position_label", "absolute") not in ("absolute", "both") or not plain or "swin" in inner:
            return None
        return (
            "the tokens carry a table of positions, so absolute labels are soon read off it (position_loss near 0); "
            "model.position_dropout=0.5 or model.position_label=relative keep the task hard"
        )

    def make_trainer(self, recipe, model, arguments, evaluation, **parts):
        """The common trainer, which also watches for labels that have become trivial."""
        parts["callbacks"] = [*parts.get("callbacks", []), TrivialLabels()]
        return super().make_trainer(recipe, model, arguments, evaluation, **parts)

    def pretrain_collators(self, recipe, config, evaluation):
        """Crops and flips, with the masking noise of every image."""
        from hubmodels.modeling.positional_label.backbones_positional_label import patch_grid

        train, seed, inner = pretrain_transform(recipe, config), recipe.run.seed, config.backbone_config
        if hasattr(inner, "mask_sampling"):
            return MAECollator(train, seed, True, inner), MAECollator(evaluation, seed, False, inner)
        rows, columns = patch_grid(inner, *config.image_height_width)
        return (
            ImageCollator(train, seed, train=True, noise_length=rows * columns),
            ImageCollator(evaluation, seed, train=False, noise_length=rows * columns),
        )

    def processor(self, recipe, config, evaluation):
        """Resize, centre crop, normalise."""
        from transformers import BitImageProcessor

        height, width = evaluation.size
        return BitImageProcessor(
            size={"shortest_edge": evaluation.short_side},
            crop_size={"height": height, "width": width},
            image_mean=list(evaluation.mean),
            image_std=list(evaluation.std),
        )

    def draw(self, model, collator, samples, evaluation, path):
        """How well the place of every patch is told, and by how much it is missed; nothing without position heads."""
        from hubmodels.visualization import position_sheet

        if not model.position_heads:
            return

        pixels = collator(samples)["pixel_values"].to(model.device)
        position_sheet(model, pixels, path, mean=list(evaluation.mean), std=list(evaluation.std))

    def use_timm_shape(self, recipe, backbone, replaced):
        """Any ViT or Swin of timm, at the image size of the recipe."""
        from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelModel

        size = recipe.model.get("backbone_config", {}).get("image_size")
        if size is None:
            size = PositionalLabelConfig(backbone_config=recipe.model.get("backbone_config")).image_size
        recipe.model = {key: value for key, value in recipe.model.items() if key not in replaced}
        recipe.model["backbone_config"] = {
            "model_type": "timm_wrapper",
            "architecture": backbone,
            "model_args": {"img_size": size},
        }
        recipe.model["pooling"] = "pooler"
        try:
            with torch.device("meta"):
                config = PositionalLabelConfig(**(recipe.model | {"position_label": None}))
                rows, columns = PositionalLabelModel(config).view.grid
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise RecipeError(
                f"backbone = {backbone} is no ViT or Swin for images of {size} pixels: {error}"
            ) from error
        if recipe.model.get("num_anchors"):
            recipe.model["num_anchors"] = min(recipe.model["num_anchors"], rows * columns)

    def network_inside(self, config, source):
        """The autoencoder of a pre-trained model, the backbone of a classifier; without the position heads.

        Raises:
            RecipeError: For the authors' own networks, which no other method knows.
        """
        from hubmodels.modeling.positional_label import PositionalLabelForPreTraining, PositionalLabelModel
        from hubmodels.modeling.positional_label.configuration_positional_label import AUTOENCODERS

        if config.backbone_variant == "authors":
            raise RecipeError(
                f"init_from = {source} holds the authors' {config.backbone_config.model_type}, which only "
                "positional_label can train; other methods take stock networks"
            )
        if config.backbone_config.model_type in AUTOENCODERS:
            return PositionalLabelForPreTraining.from_pretrained(source).mae
        return PositionalLabelModel.from_pretrained(source).backbone
