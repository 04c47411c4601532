"""A saved model folder -> a self-contained repository folder that loads where only transformers is installed.

The repository carries, flat next to each other as the Hub expects them: safetensors weights, config.json and processor
configs with an `auto_map`, the code files of the method exactly as they are in `modeling/METHOD/`, and a model card.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from .catalog import CHECKPOINTS, METHODS, PACKAGED_DATASETS, Method
from .model_card import CARD_NAME, CardFacts, build_card, complete_card
from .nested_code import composed_module, composed_module_name, nested_methods, stock_auto_classes

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
RECIPE_NAME = "recipe.yaml"

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".webp", ".gif")
# Keys of a recipe that may name places on the user's machine; the first and the last also name what is on the Hub.
RECIPE_PLACES = ("data.source", "data.file_list", "data.noise_file", "init_from")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
TRAINER_STATE = (
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
)
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
# What is published, by name, with the weights, code and the pictures that the card shows. Everything else stays at
# home: logs, optimiser state, pictures of the user's own data, whatever else lies there.
PUBLISHED = (
    CONFIG_NAME,
    CARD_NAME,
    RECIPE_NAME,
    *PROCESSOR_FILES,
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
)
# Auto class of a processor -> the key under which its config names the class.
PROCESSOR_TYPE_KEYS = {
    "AutoFeatureExtractor": "feature_extractor_type",
    "AutoImageProcessor": "image_processor_type",
    "AutoProcessor": "processor_class",
    "AutoTokenizer": "tokenizer_class",
    "AutoVideoProcessor": "video_processor_type",
}


def prepare_repository(folder: str | Path, out: str | Path, name: str | None = None) -> Path:
    """Make a self-contained repository folder from a saved model.

    The result loads with `AutoModel*.from_pretrained(out, trust_remote_code=True)` and `pipeline(...)` in a process
    where hubmodels is not installed. It is complete or absent: built beside `out` and moved into place.

    Args:
        folder: Folder with config.json, safetensors weights and, for a method that has one, the processor's config:
            what `save_pretrained` of model and processor writes. A README.md in it is kept, its metadata completed.
        out: Folder to make; it must not exist, or be empty.
        name: Name that the card tells users to load; the name of `folder` by default.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: If `folder`, its config, weights or processor config is missing.
        FileExistsError: If `out` exists and is not empty.
        ValueError: If the weights are pickled or damaged, or the config belongs neither to a method of the catalog nor
            to transformers.
    """
    folder, out = Path(folder), Path(out)
    config = _without_local_paths(_read_config(folder))
    method = method_of(config)
    files = _files_to_publish(folder)
    parameters = _count_parameters(folder)
    _check_code_is_known(config, method, folder)
    _check_processor(method, folder)
    _check_is_free(out)

    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for path in files:
            shutil.copyfile(path, staging / path.name)
        _write_json(staging / CONFIG_NAME, config)
        if (staging / RECIPE_NAME).is_file():
            _leave_out_places(staging / RECIPE_NAME)
        _add_code(staging, config, method)
        _write_card(folder, staging, name or folder.resolve().name, config, method, parameters)
        staging.chmod(0o755)  # mkdtemp makes it private
        os.replace(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return out


def method_of(config: dict[str, Any]) -> Method | None:
    """Catalog record of the method that a config belongs to, by `model_type` or architecture; None if there is none."""
    architectures = set(config.get("architectures") or ())
    for method in METHODS:
        if config.get("model_type") == method.name or architectures & set(method.auto_classes.values()):
            return method
    return None


def code_files(method: Method) -> list[Path]:
    """The source files of a method that a repository carries: all of its folder but `__init__.py`."""
    spec = importlib.util.find_spec(method.module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the code of method {method.name!r} ({method.module}) is not installed")
    return sorted(path for path in Path(spec.origin).parent.glob("*.py") if path.name != "__init__.py")


def auto_map_of(method: Method, architectures: Iterable[str] | None = None) -> dict[str, str]:
    """`auto_map` of a method: Auto class -> `"file_stem.ClassName"`, found without importing the files.

    Args:
        method: The method.
        architectures: Those of the config, where a method has several classes behind one Auto class.

    Raises:
        ValueError: If the catalog names a class that no file of the method defines.
    """
    homes: dict[str, str] = {}
    for path in code_files(method):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        homes |= {node.name: path.stem for node in tree.body if isinstance(node, ast.ClassDef)}
    classes = method.classes_for(architectures)
    missing = sorted(set(classes.values()) - set(homes))
    if missing:
        raise ValueError(f"method {method.name!r}: no file of {method.module} defines {', '.join(missing)}")
    return {auto: f"{homes[cls]}.{cls}" for auto, cls in classes.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is not a folder")
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"folder: {folder} has no {CONFIG_NAME}; give a folder written by save_pretrained")
    return _read_json(path)


def _without_local_paths(value: Any) -> Any:
    """A config without the places on this machine from which networks inside of the model were loaded."""
    if isinstance(value, list):
        return [_without_local_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    source = value.get("_name_or_path")
    local = isinstance(source, str) and (Path(source).is_absolute() or Path(source).exists())
    return {key: "" if local and key == "_name_or_path" else _without_local_paths(item) for key, item in value.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _files_to_publish(folder: Path) -> list[Path]:
    """Files of the top level that belong into a repository.

    Raises:
        ValueError: If there are pickled weights: loading them can execute code, so they are never published.
    """
    candidates = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pickles = [
        path.name
        for path in candidates
        if path.suffix in PICKLE_SUFFIXES and not any(path.match(pattern) for pattern in TRAINER_STATE)
    ]
    if pickles:
        raise ValueError(
            f"folder: {folder} holds pickled files ({', '.join(pickles)}), which can execute code when they are "
            f"loaded; only safetensors weights are published. Save the model with save_pretrained and remove them"
        )
    index = [folder / INDEX_NAME] if (folder / INDEX_NAME).is_file() else []
    weights = {*_weight_files(folder), *index}
    card = folder / CARD_NAME
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    published = [
        path
        for path in candidates
        if path in weights
        or any(path.match(pattern) for pattern in PUBLISHED)
        or (path.suffix.lower() in PICTURE_SUFFIXES and _is_named(path.name, text))
    ]
    left = [path.name for path in candidates if path not in published and path.suffix != ".py"]  # ours is added anew
    if left:
        logger.warning("not published: %s", ", ".join(left))
    return published


def _is_named(name: str, text: str) -> bool:
    """Whether a text names a file, not merely one whose name ends in the same way."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None


def _leave_out_places(recipe: Path) -> None:
    """Rewrite a recipe without the folders and files of the machine that it was run on."""
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        recipe.unlink()
        return
    public = {*PACKAGED_DATASETS, *(checkpoint.name for checkpoint in CHECKPOINTS)}
    for place_key in RECIPE_PLACES:
        section, _, key = place_key.rpartition(".")
        values = content.get(section) if section else content
        place = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict) and place is not None and place not in public:
            is_on_hub = HUB_ID.fullmatch(str(place)) and not Path(str(place)).exists()
            values[key] = place if is_on_hub else None
    recipe.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _count_parameters(folder: Path) -> int:
    """Number of weights; reads the headers of all shards, which finds missing and damaged files."""
    return sum(prod(shape) for path in _weight_files(folder) for shape in _shapes(path))


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(f"folder: {folder} has no {WEIGHTS_NAME}; save the model with save_pretrained")
    shards = sorted(set(_read_json(folder / INDEX_NAME).get("weight_map", {}).values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        raise FileNotFoundError(f"{folder / INDEX_NAME} names weight files that are not there: {', '.join(missing)}")
    return [folder / shard for shard in shards]


def _shapes(path: Path) -> Iterator[list[int]]:
    try:
        with safe_open(path, framework="numpy") as weights:
            yield from [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def _check_code_is_known(config: dict[str, Any], method: Method | None, folder: Path) -> None:
    """Refuse a model that nobody could load: neither ours nor of transformers."""
    if method is not None:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES or "auto_map" in config:
        known = ", ".join(method.name for method in METHODS)
        raise ValueError(
            f"{folder / CONFIG_NAME}: model_type {config.get('model_type')!r} is neither a method of hubmodels "
            f"({known}) nor an architecture of transformers, so its code cannot be published"
        )


def _check_processor(method: Method | None, folder: Path) -> None:
    """A model without its processor cannot be used by `pipeline`."""
    needed = [cls for auto, cls in method.auto_classes.items() if auto in PROCESSOR_TYPE_KEYS] if method else []
    if needed and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise FileNotFoundError(
            f"folder: {folder} has no preprocessor_config.json; save the processor there too: "
            f"{needed[0]}(...).save_pretrained({str(folder)!r})"
        )


def _check_is_free(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"out: {out} exists already and is not overwritten; give a new folder")


def _add_code(repository: Path, config: dict[str, Any], method: Method | None) -> None:
    """Copy the code files of the method and of those nested in it; point config and processor configs to them."""
    nested = nested_methods(config)
    own = [] if method is None else [method]
    for path in {path for each in own + nested for path in code_files(each)}:
        shutil.copyfile(path, repository / path.name)
    stock = stock_auto_classes(config) if method is None and nested else {}
    auto_map = stock if method is None else auto_map_of(method, config.get("architectures"))
    models = _models_of(auto_map)
    if nested:
        inner = {each.name: _models_of(auto_map_of(each)) for each in nested}
        module = composed_module_name(config["model_type"])
        text = composed_module(config["model_type"], models, inner, own_code=method is not None)
        (repository / f"{module}.py").write_text(text, encoding="utf-8")
        models = {auto: f"{module}.{reference.split('.')[-1]}" for auto, reference in models.items()}
    if models:
        _write_json(repository / CONFIG_NAME, config | {"auto_map": models})
    processors = {auto: reference for auto, reference in auto_map.items() if auto in PROCESSOR_TYPE_KEYS}
    for each in nested:
        processors |= {a: r for a, r in auto_map_of(each).items() if a in PROCESSOR_TYPE_KEYS and a not in processors}
    for name in PROCESSOR_FILES:
        if processors and (repository / name).is_file():
            content = _read_json(repository / name)
            _add_processor_map(content, processors)
            _write_json(repository / name, content)


def _models_of(auto_map: dict[str, str]) -> dict[str, str]:
    return {auto: reference for auto, reference in auto_map.items() if auto not in PROCESSOR_TYPE_KEYS}


def _add_processor_map(content: dict[str, Any], processors: dict[str, str]) -> None:
    """Add `auto_map` to a processor's config, and to the configs nested in it, where the class is the method's own."""
    content.pop("auto_map", None)
    own = {
        auto: reference
        for auto, reference in processors.items()
        if content.get(PROCESSOR_TYPE_KEYS[auto]) == reference.split(".")[-1]
    }
    if own:
        content["auto_map"] = own
    for value in content.values():
        if isinstance(value, dict) and value is not own:
            _add_processor_map(value, processors)


def _write_card(
    folder: Path, repository: Path, name: str, config: dict[str, Any], method: Method | None, parameters: int
) -> None:
    card = build_card(name, config, method, CardFacts.from_folder(folder), parameters)
    own = folder / CARD_NAME
    text = complete_card(own.read_text(encoding="utf-8-sig"), card) if own.is_file() else str(card)
    (repository / CARD_NAME).write_text(text, encoding="utf-8")


__all__ = ["auto_map_of", "code_files", "method_of", "prepare_repository"]
