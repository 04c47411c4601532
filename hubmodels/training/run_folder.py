"""The folder of a run: what it holds before training starts, and whether a call continues it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from hubmodels.data.image_folder import split_folders
from hubmodels.files import PARTIAL, write_text
from hubmodels.training.assembly import RunData
from hubmodels.training.recipe import Recipe, RecipeError

RECIPE_FILE = "recipe.yaml"
DATA_FILE = "data.jsonl"  # like the log not of the files that are published: it names the classes of the user


def has_started(output: Path) -> bool:
    """Whether a folder holds more than what is written before the first step.

    Args:
        output: The folder; it may be missing.

    Returns:
        False also for the folder of a start that failed, as with an unknown option of the optimiser, or was killed.
    """
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    names = {name for name in names if not name.startswith(PARTIAL)}
    # A recipe alone may be the user's own.
    return bool(names) and not {DATA_FILE} <= names <= {RECIPE_FILE, DATA_FILE}


def check_place(output: Path, recipe: Recipe, data: RunData) -> None:
    """Refuse to start a run among its training images, as its pictures would become some of them.

    Args:
        output: Folder of the run; it may be missing.
        recipe: The recipe.
        data: Its data.

    Raises:
        RecipeError: If the output lies in the folder of images that the recipe names, or in a split of it.
    """
    folder = Path(str(recipe.data.source)).expanduser()
    reads_files = folder.is_dir() and hasattr(data.train, "name") and Path(data.train.name(0)).is_file()
    if not reads_files or has_started(output):
        return
    for images in split_folders(folder).values() or [folder]:
        if output.resolve().is_relative_to(images.resolve()):
            raise RecipeError(f"output must lie outside of the training images in {images}, got {output}")


def holds_finished_run(output: Path, recipe: Recipe, data: RunData) -> bool:
    """Whether an output already holds the finished run.

    Args:
        output: Folder of the run; it may be missing.
        recipe: The recipe that is asked for.
        data: Its data.

    Returns:
        False for a run that is to be started or continued.

    Raises:
        FileExistsError: If the output holds something else.
        RecipeError: If the images or the classes changed since the run was started.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; output must be a folder")
    if not has_started(output):
        return False
    if not (output / RECIPE_FILE).is_file():
        raise FileExistsError(f"{output} is not empty and holds no run; give another output folder")
    differences = Recipe.load(output / RECIPE_FILE).differences(recipe)
    if differences:
        listed = "; ".join(f"{key}: {there!r} there, {here!r} asked" for key, (there, here) in differences.items())
        raise FileExistsError(f"{output} holds a run of another recipe ({listed}); give another output folder")
    _check_data(output, recipe, data)
    return (output / "config.json").is_file()


def write_start(output: Path, recipe: Recipe, data: RunData) -> None:
    """Write the recipe and what tells its data from others.

    Args:
        output: Folder of the run.
        recipe: The recipe.
        data: Its data.
    """
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob(f"{PARTIAL}*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    write_text(output / DATA_FILE, json.dumps(_identity(recipe, data), ensure_ascii=True) + "\n")
    write_text(output / RECIPE_FILE, recipe.to_yaml())


def _check_data(output: Path, recipe: Recipe, data: RunData) -> None:
    """Refuse to go on with other images: the class numbers of the first part would mean other classes."""
    if not (output / DATA_FILE).is_file():  # a recipe of the user's own, nothing else
        return
    there, here = json.loads((output / DATA_FILE).read_text(encoding="utf-8")), _identity(recipe, data)
    described = {"classes": "the classes were {} and are {}", "images": "there were {} training images and are {}"}
    changes = [text.format(there[key], here[key]) for key, text in described.items() if there[key] != here[key]]
    if there != here:
        what = "; ".join(changes) or "the names or the labels of the training images are others"
        raise RecipeError(
            f"{recipe.data.source} changed since the run in {output} was started: {what}; restore the data, or give "
            "another output folder"
        )


def _identity(recipe: Recipe, data: RunData) -> dict[str, Any]:
    """Classes, number of images and a hash of their names and labels; a stream is not read for the latter."""
    identity = {"classes": list(data.class_names), "images": data.images_per_epoch, "sha256": None}
    if hasattr(data.train, "name"):
        source = str(recipe.data.source)  # which the same images may have in several forms, relative and absolute
        names = [data.train.name(position).replace(source, "", 1) for position in range(len(data.train))]
        labels = [] if data.train.labels is None else data.train.labels.tolist()
        identity["sha256"] = hashlib.sha256(json.dumps([names, labels]).encode()).hexdigest()
    return identity
