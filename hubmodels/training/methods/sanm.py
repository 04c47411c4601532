"""Training of SANM: two co-trained networks, or the light mode of a single one, and the report of suspicious labels."""

from dataclasses import fields
from typing import Any

from transformers import AutoConfig
from transformers.image_utils import PILImageResampling

from hubmodels.data.collators import ImageCollator
from hubmodels.data.noisy_label_views import PlainView, WeakView
from hubmodels.evaluation.label_quality import LabelQualityEstimator
from hubmodels.training.cotraining_data import WARM_UP_FACTOR, CoTrainingViews
from hubmodels.training.cotraining_step import CoTrainingSettings
from hubmodels.training.label_quality_callback import LabelQualityCallback, QualityCollator
from hubmodels.training.methods.base import MethodTraining, method_class
from hubmodels.training.methods.encoders import model_around
from hubmodels.training.recipe import Recipe, RecipeError
from hubmodels.training.sanm_trainer import SANMTrainer

# Per labelled image: 6 guessing forwards (a third of a pass each), 4 reconstructions, 12 mixed rows. About 60 % of the
# images are labelled, and a pass of the ensemble is one of both networks.
PASSES = 0.6 * (6 / 3 + 4 + 12)
LIGHT_PASSES = 3.0
# Steps that a recipe which was chosen for the user takes at least, of batches of all images. Of 62 an epoch,
# co-training for 40 epochs beat cross entropy where 20 did not (benchmarks/results.md, longer co-training).
WARM_UP_STEPS = 600
CO_TRAINING_STEPS = 1200
MOST_EPOCHS = 60  # of either, where that many steps are too many epochs
MANY_CLASSES = 50  # from here on the settings of CIFAR-100 are taken, below those of CIFAR-10
REPORT_STEM = "noisy_labels"
SHEET_IMAGES = 8


def preset_lambda_u(num_classes: int, kind: str, rate: float | None) -> float:
    """Published weight of the unlabelled loss for a kind of noise (DivideMix, C2D); the nearest of the published rates.

    Args:
        num_classes: Number of classes.
        kind: "sym" or "asym".
        rate: Noise rate; None takes 0.5.

    Returns:
        The weight.
    """
    rate = 0.5 if rate is None else rate
    if num_classes >= MANY_CLASSES:
        return 25.0 if kind == "sym" and rate < 0.35 else 150.0
    if kind == "asym" or rate < 0.35:
        return 0.0
    return 25.0 if rate < 0.85 else 50.0


class SANMTraining(MethodTraining):
    """See [`MethodTraining`]. `transform.options` are arguments of the views: `resize`, `crop_padding`."""

    shape_keys = ("image_size", "backbone_config", "layer_type", "depths", "widths", "pool")
    divides_steps = False
    eval_resample = PILImageResampling.BILINEAR  # as the views of the training, and torchvision's Resize of the authors

    def option_names(self):
        """Arguments of the views that a recipe may say."""
        return ("resize", "crop_padding", "flip")

    def divides_task(self, task):
        """Mixing and batch normalisation see the whole batch."""
        return False

    def recipe_for(self, chosen, labelled):
        """Co-training for the size of the pictures."""
        return chosen.replace("_pretrain", "_cotrain")

    def fit_to(self, recipe, images):
        """Few images need more epochs: losses tell labels apart once something is learned, and its use shows late."""
        section, schedule = recipe.noisy_labels, recipe.schedule
        before, after = section.warm_up_epochs, schedule.epochs - section.warm_up_epochs
        section.warm_up_epochs = _epochs_of(WARM_UP_STEPS, images / (WARM_UP_FACTOR * schedule.batch_size), before)
        longer = _epochs_of(CO_TRAINING_STEPS, images / schedule.batch_size, after)
        section.decay_epochs = [
            section.warm_up_epochs + round((epoch - before) / after * longer) for epoch in section.decay_epochs
        ]
        schedule.epochs = section.warm_up_epochs + longer

    def passes_per_image(self, recipe):
        """Warm-up epochs cost a pass for both networks."""
        if is_light(recipe):
            return LIGHT_PASSES
        warm_up = min(recipe.noisy_labels.warm_up_epochs / recipe.schedule.epochs, 1.0)
        return warm_up + (1 - warm_up) * PASSES

    def model_class(self, recipe):
        """The ensemble, or in the light mode a single network."""
        single = method_class(self.name, "AutoModelForImageClassification")
        if is_light(recipe):
            return single
        from hubmodels.modeling.sanm import SANMEnsembleForImageClassification

        return SANMEnsembleForImageClassification

    def load_model(self, recipe, settings):
        """Both networks start from one encoder, with heads of their own; an ensemble is loaded as it is.

        The encoder is that of a SANM network or of any other model, such as a self-supervised one (C2D).
        """
        config = AutoConfig.from_pretrained(recipe.init_from)
        ensemble_class: Any = self.model_class(recipe)
        single: Any = method_class(self.name, "AutoModelForImageClassification")
        light = is_light(recipe)
        if config.model_type != self.name:
            network = model_around(single, config, recipe.init_from, settings)
        elif light or config.architectures == [ensemble_class.__name__]:
            return None
        else:
            network = single.from_pretrained(recipe.init_from, ignore_mismatched_sizes=True, **settings)
        if light:
            return network
        ensemble = ensemble_class(network.config)
        for part in (ensemble.net1, ensemble.net2):
            part.backbone.load_state_dict(network.backbone.state_dict())
        return ensemble.float()

    def processor(self, recipe, config, evaluation):
        """Resize, crop and normalise as the evaluation does."""
        height, width = evaluation.size
        return method_class(self.name, "AutoImageProcessor")(
            size={"shortest_edge": evaluation.short_side},
            crop_size={"height": height, "width": width},
            do_center_crop=True,
            resample=self.eval_resample,
            do_convert_rgb=evaluation.num_channels == 3,
            image_mean=list(evaluation.mean),
            image_std=list(evaluation.std),
        )

    def labelled_collators(self, recipe, config, evaluation):
        """Views of the light mode with the label quality; for co-training what the plan measures."""
        if recipe.data.streaming:
            raise RecipeError(
                "data.streaming: SANM judges the label of every image anew in every epoch, so it needs data that is "
                "read by index; leave streaming off"
            )
        kind = PlainView if recipe.noisy_labels.mixing == "weak" else WeakView
        view = kind(evaluation.size, **view_options(recipe, evaluation))
        seed = recipe.run.seed
        collator = QualityCollator if is_light(recipe) else ImageCollator
        return collator(view, seed, train=True), ImageCollator(evaluation, seed, train=False)

    def make_trainer(self, recipe, model, arguments, evaluation, **parts):
        """The co-training, or the common trainer with the label quality of a single network."""
        settings = co_training_settings(recipe, model.config.num_labels)
        if is_light(recipe):
            quality = LabelQualityCallback(
                parts["train_dataset"],
                evaluation,
                parts["data_collator"],
                settings.warm_up_epochs,
                settings.history,
                settings.p_threshold,
            )
            parts["callbacks"] = [*parts.get("callbacks", []), quality]
            if not model.config.recon_weight:  # parameters without a gradient stop several processes
                model.decoder.requires_grad_(False)
            return super().make_trainer(recipe, model, arguments, evaluation, **parts)
        views = CoTrainingViews.for_mixing(
            settings.mixing, evaluation, evaluation.size, **view_options(recipe, evaluation)
        )
        checkpoints = recipe.run.checkpoints
        return SANMTrainer(
            model,
            arguments,
            settings,
            views,
            decay_epochs=recipe.noisy_labels.decay_epochs,
            save_every=-(-recipe.schedule.epochs // checkpoints) if checkpoints else 0,
            evaluate_every=recipe.noisy_labels.evaluate_every,
            **parts,
        )

    def use_timm_shape(self, recipe, backbone, replaced):
        """Any timm model becomes the backbone."""
        recipe.model = {key: value for key, value in recipe.model.items() if key not in replaced or key == "image_size"}
        recipe.model["backbone_config"] = {"model_type": "timm_backbone", "backbone": backbone}

    sheet_file = "masks.png"

    def draw(self, model, collator, samples, evaluation, path):
        """Where the network looks and what the masks hide."""
        from hubmodels.visualization import masking_sheet

        pixel_values = evaluation([sample["image"] for sample in samples]).to(model.device)
        masking_sheet(model, pixel_values, path, list(evaluation.mean), list(evaluation.std))

    def finish(self, recipe, trainer, evaluation, output):
        """A picture of the masks, and the report of suspicious labels, also of images held out of training."""
        if trainer.is_world_process_zero():
            data = trainer.train_dataset
            samples = [data[index] for index in range(min(SHEET_IMAGES, len(data)))]
            self.draw(trainer.model, None, samples, evaluation, output / self.sheet_file)
        count = recipe.noisy_labels.report_images
        if not count:
            return
        from hubmodels.evaluation import NoisyLabelReport

        data, held_out = trainer.train_dataset, trainer.eval_dataset
        with_held_out = held_out is not None and held_out.is_part_of(data)
        if with_held_out:  # the user wants to know of all labels
            data = data.together_with(held_out)
        report = NoisyLabelReport.from_model(
            trainer.model, data, transform=evaluation, device=trainer.args.device, progress=False
        )
        if not trainer.is_world_process_zero():
            return
        for old in output.glob(f"{REPORT_STEM}.*"):
            old.unlink()
        report.save(output, min(count, len(report)), REPORT_STEM)
        note = f" (of them {len(held_out):,} held out of training)" if with_held_out else ""
        print(f"{report.num_wrong:,} of {len(report):,} labels{note} are probably wrong: {output / REPORT_STEM}.html")


def _epochs_of(steps: int, steps_per_epoch: float, fewest: int) -> int:
    return min(max(round(steps / max(steps_per_epoch, 1)), fewest), max(fewest, MOST_EPOCHS))


def is_light(recipe: Recipe) -> bool:
    """Whether a recipe trains a single network.

    Args:
        recipe: The recipe.

    Returns:
        Whether `model.framework` is "ce".
    """
    return recipe.model.get("framework") == "ce"


def view_options(recipe: Recipe, evaluation: Any) -> dict[str, Any]:
    """Arguments of the augmented views.

    Args:
        recipe: The recipe.
        evaluation: Its evaluation transform, whose statistics and resizing they share.

    Returns:
        The arguments.
    """
    section = recipe.transform
    padding = 4 if section.crop_padding is None else section.crop_padding
    options = {"resize": evaluation.short_side, "crop_padding": padding, "flip": section.flip}
    statistics = {"num_channels": evaluation.num_channels, "mean": evaluation.mean, "std": evaluation.std}
    return options | statistics | section.options


def co_training_settings(recipe: Recipe, num_classes: int) -> CoTrainingSettings:
    """The settings of a recipe, with the published ones for its noise where it leaves them open.

    Args:
        recipe: The recipe.
        num_classes: Number of classes.

    Returns:
        The settings.
    """
    section, data = recipe.noisy_labels, recipe.data
    kind = section.kind or ("asym" if data.noise_mode == "asym" else "sym")
    rate = data.noise_rate if section.rate is None else section.rate
    weight, penalty = section.lambda_u, section.warm_up_penalty
    given: dict[str, Any] = {entry.name: getattr(section, entry.name, None) for entry in fields(CoTrainingSettings)}
    chosen: dict[str, Any] = {
        "lambda_u": preset_lambda_u(num_classes, kind, rate) if weight is None else weight,
        "negative_entropy": kind == "asym" if penalty is None else penalty,
        "history": LabelQualityEstimator.for_noise_rate(rate).history,
    }
    return CoTrainingSettings(**given | chosen)
