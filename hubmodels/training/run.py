"""One call from pictures to a trained model."""

import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm
from transformers import AutoImageProcessor, EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import suppress_progress_bars

from hubmodels.catalog import model_source
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.data.processing import processor_statistics
from hubmodels.data.transforms import channel_statistics
from hubmodels.model_card import CARD_NAME, CardFacts
from hubmodels.training.assembly import (
    RunData,
    build_collators,
    build_model,
    evaluation_transform,
    load_data,
    resolved_precision,
    take_shape_of,
    training_arguments,
)
from hubmodels.training.callbacks import CollapseGuard, OnlineProbe
from hubmodels.training.methods import Collator, method_training
from hubmodels.training.planning import (
    Plan,
    choose_recipe,
    finetuning_recipe,
    first_samples,
    make_plan,
    measure,
    plan_table,
    with_fitting_batch,
)
from hubmodels.training.recipe import Recipe, RecipeError
from hubmodels.training.run_folder import check_place, holds_finished_run, write_start

SHEET_IMAGES = 8


@dataclass(frozen=True)
class TrainingResult:
    """What `train` made.

    Attributes:
        folder: The run's folder; `from_pretrained` loads it.
        metrics: Last measurements, by name.
    """

    folder: Path
    metrics: dict[str, float]


def train(
    method: str | None = None,
    data: str | Path | None = None,
    output: str | Path | None = None,
    backbone: str | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    yes: bool = True,
) -> TrainingResult:
    """Train a model: plan, training, loadable folder, pictures of what it learned.

    The same call with the same output continues a run that was stopped, and ends with the same weights. It also runs in
    several processes (`accelerate launch`, `torchrun`).

    Args:
        method: Name of the method; None takes that of the recipe, or "mae" where its name does not tell.
        data: What to train on, see `hubmodels.data.load_image_dataset`; replaces `data.source` of the recipe.
        output: Folder of the run; default `runs/RECIPE`. A folder that holds anything but this run is refused.
        backbone: Encoder: a folder, packaged checkpoint or Hub id with weights to start from, or the name of a timm
            network, whose shape is taken.
        recipe: YAML file, name of a packaged recipe, or a `Recipe`. None chooses a pre-training recipe that fits the
            pictures and the machine.
        overrides: Values of the recipe to change, `section.key=value`.
        yes: Start without asking. If False and a person is at the terminal, the plan is to be confirmed.

    Returns:
        The folder and the last measurements.

    Raises:
        RecipeError: If the recipe, an override or the data do not fit; the message says what would.
        FileExistsError: If the output holds something else.

    Example:

        >>> result = train("mae", data="photos/", output="run/")
        >>> model = AutoModelForPreTraining.from_pretrained(result.folder)
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    console = Console(highlight=False, quiet=not state.is_main_process)
    recipe, title = _resolve_recipe(method, data, backbone, recipe, overrides)
    output = Path(output).expanduser() if output is not None else Path("runs", title.replace("/", "-"))
    method_training(recipe.method).check_settings(recipe)
    run_data = load_data(recipe)
    check_place(output, recipe, run_data)
    model = build_model(recipe, run_data.class_names)
    take_shape_of(recipe, model)
    method_parts, evaluation = method_training(recipe.method), evaluation_transform(recipe, model.config)
    if holds_finished_run(output, recipe, run_data):
        console.print(f"{output} already holds this run, complete", markup=False)
        return TrainingResult(output, {})
    collators = build_collators(recipe, model.config)
    plan = _plan(recipe, run_data, model, collators[0], state)
    console.print(plan_table(recipe, escape(title), run_data, model, plan, state.device, output))
    advice = method_parts.advice(recipe, run_data.images_per_epoch)
    if advice:
        console.print(f"note: {advice}", markup=False, soft_wrap=True)
    if not yes and state.num_processes == 1 and sys.stdin.isatty() and not Confirm.ask("Start?", console=console):
        raise RecipeError("not started")

    state.wait_for_everyone()
    trainer = method_parts.make_trainer(
        recipe,
        model,
        training_arguments(
            recipe, run_data, output, plan.processes, plan.device_batch_size, plan.workers, plan.finds_unused
        ),
        evaluation,
        data_collator=collators[0],
        eval_data_collator=collators[1],
        train_dataset=run_data.train,
        eval_dataset=run_data.test,
        compute_metrics=None if recipe.task == "pretrain" else accuracy,
        callbacks=_callbacks(recipe, run_data, evaluation),
    )
    if state.is_main_process:  # after all checks of the settings: a recipe that fails them leaves nothing
        write_start(output, recipe, run_data)
    state.wait_for_everyone()
    resumes = trainer.can_resume()
    trainer.train(resume_from_checkpoint=resumes)
    metrics = _last_metrics(trainer.state.log_history)
    if resumes:  # the mean over the steps since then, of which there may be none
        metrics.pop("train_loss", None)

    def save() -> None:
        """Last: with the model in its place the run counts as complete."""
        if state.is_main_process:
            facts = CardFacts.of_descendant(recipe.init_from, _data_names(recipe))
            _save(trainer.model, method_parts.processor(recipe, model.config, evaluation), facts, output)

    with trainer.averaged_weights():
        try:
            method_parts.finish(recipe, trainer, evaluation, output)
            if state.is_main_process and recipe.task == "pretrain":
                pictures = first_samples(RunData(run_data.test or run_data.train, None, 0, ""), SHEET_IMAGES)
                sheet = output / method_parts.sheet_file
                method_parts.draw(trainer.model, collators[1], pictures, evaluation, sheet)
        except Exception:  # a report or a picture that fails costs no trained model
            save()
            raise
        save()
    if state.is_main_process:
        for name, value in metrics.items():
            console.print(f"{name}: {value:.4g}", markup=False)
        closing = f"model: {output}\nnext: {next_command(recipe, run_data, output)}"
        console.print(closing, markup=False, soft_wrap=True)
    state.wait_for_everyone()
    return TrainingResult(output, metrics)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 accuracy.

    Args:
        prediction: Logits [N, classes] and labels [N].

    Returns:
        `accuracy`, in [0, 1].
    """
    return {"accuracy": float(np.mean(np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids))}


def next_command(recipe: Recipe, data: RunData, output: Path) -> str:
    """The command that a user will want after a run.

    Args:
        recipe: The recipe.
        data: Its data.
        output: Folder of the run.

    Returns:
        The command, quoted for a shell.
    """
    folder, tuned, source = (shlex.quote(str(name)) for name in (output, f"{output}-finetuned", recipe.data.source))
    if recipe.task == "pretrain" and not data.class_names:
        finetuning = finetuning_recipe(recipe.method, recipe.model.get("image_size"))
        if finetuning is not None:
            return f"hubmodels train {finetuning} --backbone {folder} --data LABELLED_FOLDER --out {tuned}"
        return f"hubmodels evaluate {folder} --data LABELLED_FOLDER --protocol knn"
    protocol = " --protocol knn" if recipe.task == "pretrain" else ""
    return f"hubmodels evaluate {folder} --data {source}{protocol}"


def _resolve_recipe(
    method: str | None,
    data: str | Path | None,
    backbone: str | None,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
) -> tuple[Recipe, str]:
    """The recipe with all that the call changes in it, and its name."""
    asked, method = method, method or "mae"
    if recipe is None:
        if data is None:
            raise RecipeError(f"give the pictures to train on, data=FOLDER, or a recipe that names them, for {method}")
        pictures = load_image_dataset(data)
        title = choose_recipe(min(pictures.typical_size()), torch.cuda.is_available())
        title = method_training(method).recipe_for(title, labelled=bool(pictures.class_names))
        chosen = with_fitting_batch(Recipe.load(title, method=method), len(pictures))
        chosen = Recipe.from_dict(chosen.to_dict(), overrides)  # what is fitted depends on them, and does not undo them
        method_training(method).fit_to(chosen, len(pictures))
    elif isinstance(recipe, Recipe):
        chosen, title = recipe, f"{recipe.method}_{recipe.task}"
    else:
        chosen, title = Recipe.load(recipe, method=method), Path(str(recipe)).stem
    if asked is not None and chosen.method != asked:
        raise RecipeError(f"the recipe {title} trains {chosen.method}, got method = {asked!r}; leave one of them out")
    chosen = Recipe.from_dict(chosen.to_dict(), overrides)
    if chosen.init_from is not None:
        chosen.init_from = model_source(chosen.init_from)
    if data is not None:
        chosen.data.source = str(data)
    if chosen.data.source is not None and Path(chosen.data.source).exists():
        chosen.data.source = os.path.normpath(chosen.data.source)  # names of images start with it
    if backbone is not None:
        overridden = {override.partition("=")[0].strip() for override in overrides}
        _use_backbone(chosen, backbone, {key.removeprefix("model.") for key in overridden})
        takes_statistics = method_training(chosen.method).takes_statistics
        if chosen.init_from is not None and takes_statistics and not {"transform.mean", "transform.std"} & overridden:
            _normalize_as(chosen, chosen.init_from)
    return chosen, title


def _use_backbone(recipe: Recipe, backbone: str, kept: Collection[str]) -> None:
    """Let a recipe start from a model, or take the shape of a timm model; `kept` are keys that the user asked for."""
    method = method_training(recipe.method)
    if Path(backbone).exists() or not timm.is_model(backbone):
        source = model_source(backbone)
        replaced = set(method.replaced_keys(source)) - set(kept)
        recipe.init_from = source
        recipe.model = {key: value for key, value in recipe.model.items() if key not in replaced}
    else:
        method.use_timm_shape(recipe, backbone, [key for key in method.shape_keys if key not in kept])


def _normalize_as(recipe: Recipe, source: str) -> None:
    """Normalise as the model at `source` was trained, where its image processor says so."""
    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return
    channels = recipe.model.get("num_channels", 3)
    statistics = processor_statistics(processor, channels)
    asked = channel_statistics(channels, recipe.transform.mean, recipe.transform.std)
    if not np.allclose(statistics, asked, atol=1e-3):
        recipe.transform.mean, recipe.transform.std = statistics


def _plan(recipe: Recipe, data: RunData, model: PreTrainedModel, collator: Collator, state: PartialState) -> Plan:
    """Measured by all, as a forward pass may talk to the other processes; the main process decides."""
    samples = first_samples(data, min(16, recipe.schedule.batch_size))
    measurement = measure(model, collator, samples, state.device, resolved_precision(recipe.run.precision))
    plan: list[Any] = [None]
    if state.is_main_process:
        plan = [make_plan(recipe, data, measurement, state.num_processes, state.device)]
    return broadcast_object_list(plan)[0]


def _callbacks(recipe: Recipe, data: RunData, transform: EvalTransform) -> list[TrainerCallback]:
    probe = recipe.probe
    if recipe.task != "pretrain" or not probe.every_epochs or data.test is None or recipe.data.streaming:
        return []
    train, test = (
        dataset.subset(min(probe.images, len(dataset)), recipe.run.seed) for dataset in (data.train, data.test)
    )
    if not train.class_names:
        return []
    neighbours = min(probe.k, len(train))
    return [
        CollapseGuard(),
        OnlineProbe(train, test, transform, probe.every_epochs, neighbours, probe.linear_epochs),
    ]


def _last_metrics(log_history: list[dict[str, float]]) -> dict[str, float]:
    names = ["loss", "train_loss", "eval_loss", "eval_accuracy", "knn_accuracy", "linear_accuracy"]
    names += ["best_accuracy", "last_epochs_accuracy"]
    return {name: entry[name] for name in names for entry in log_history if name in entry}


def _data_names(recipe: Recipe) -> list[str]:
    """What a card says of the data: of a local path only its last part."""
    source = str(recipe.data.source)
    return [Path(source).resolve().name if Path(source).exists() else source]


def _save(model: PreTrainedModel, processor: Any, facts: CardFacts, output: Path) -> None:
    """Write model, processor and origin beside, then move them in; `config.json` last, without it nothing loads."""
    partial = output / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with suppress_progress_bars():
        model.save_pretrained(partial)
    processor.save_pretrained(partial)
    (partial / CARD_NAME).write_text(facts.metadata(), encoding="utf-8")
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output / path.name)
    partial.rmdir()
