"""Conversion of official checkpoints into folders that `from_pretrained` loads, and back.

Each method has one module here, which offers

* `convert(checkpoint, source, **options) -> Converted`: the model, processors and card of an official checkpoint;
* `MODEL_CLASSES`: the classes whose folders it can convert back, by name;
* `to_official(model) -> dict`: the official state dict of such a model;
* where official checkpoints are not torch files: `read_official(path)`, which opens one, and
  `write_official(model, out, **options)`, which writes one.

Everything else that has to do with files (safe reading, complete-or-absent writing) is common and happens here.
"""

import inspect
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

METHODS: tuple[str, ...] = ("mae", "simclr", "densecl", "positional_label", "sanm")


class UnknownOptionError(TypeError):
    """An option was given that the converter of the method does not have."""


def convert(method: str, checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Path:
    """Convert an official checkpoint into a model folder.

    Args:
        method: name of the method whose official code wrote the file, e.g. `"mae"`.
        checkpoint: the official file (`.pth` or `.safetensors`), or what the method's `read_official` takes, such as
            the prefix of a TensorFlow checkpoint. Nothing in it is executed.
        out: folder to create; it appears only when it is complete. An empty folder may exist there.
        options: what cannot be read from the file, see the method's `convert` (for example `num_heads=12`);
            None counts as not given.

    Returns:
        The path of the folder: weights (safetensors), config, processors and a model card.

    Raises:
        ConversionError: the file or the value of an option is refused; the message says why. `out` is not created.
        ValueError: unknown `method`.
        UnknownOptionError: an option that the method does not have.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: `out` exists and is not an empty folder.

    Example:

    ```python
    >>> from hubmodels.conversion import convert

    >>> convert("mae", "mae_visualize_vit_base.pth", "mae-visualize-base")  # doctest: +SKIP
    ```
    """
    from .checkpoint_reading import read_checkpoint
    from .output import check_new_folder, new_folder

    module = _method_module(method)
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(module, module.convert, given)
    check_new_folder(out)
    read = getattr(module, "read_official", read_checkpoint)
    converted = module.convert(read(checkpoint), Path(checkpoint), **given)
    with new_folder(out) as folder:
        converted.model.save_pretrained(folder)
        for processor in converted.processors:
            processor.save_pretrained(folder)
        (folder / "README.md").write_text(converted.card, encoding="utf-8")
    return Path(out)


def to_official(folder: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Path:
    """Write the weights of a model folder as an official checkpoint.

    Args:
        folder: a local folder that `save_pretrained` or `convert` wrote.
        out: `.pth` file to create, `{"model": state_dict}`, or prefix of the TensorFlow checkpoint to create, as the
            official code has it; it appears only when it is complete.
        options: of the method's `write_official`, for example `layout="tf2"`; None counts as not given.

    Returns:
        The path of the file.

    Raises:
        ConversionError: the folder holds no model of a known method, its weights do not fit its config, or the
            official code has no equivalent of the model.
        UnknownOptionError: an option that the method does not have.
        FileExistsError: `out` exists.
    """
    import torch

    from .output import check_new_file, new_file

    module = _method_module_of(folder)
    given = {name: value for name, value in options.items() if value is not None}
    if hasattr(module, "write_official"):
        _check_options(module, module.write_official, given)
        module.write_official(_load_model(folder), out, **given)
        return Path(out)
    _check_options(module, module.to_official, given)
    check_new_file(out)
    state = module.to_official(_load_model(folder))
    with new_file(out) as file:
        torch.save({"model": state}, file)
    return Path(out)


def _method_module(method: str) -> ModuleType:
    if method not in METHODS:
        raise ValueError(f"no converter for method {method!r}; there are converters for: {', '.join(METHODS)}")
    return import_module(f"{__name__}.{method}")


def _check_options(module: ModuleType, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that `function` of a method's module does not have, and values of other types than it declares.

    The options are the parameters that come with a default.
    """
    from .checkpoint_reading import ConversionError

    parameters = inspect.signature(function).parameters.values()
    accepted = {
        parameter.name: parameter.annotation for parameter in parameters if parameter.default is not parameter.empty
    }
    unknown = [name for name in options if name not in accepted]
    if unknown:
        method = module.__name__.rpartition(".")[2]
        known = f"it accepts: {', '.join(accepted)}" if accepted else "it accepts none"
        raise UnknownOptionError(f"unknown option {', '.join(unknown)} for {method}; {known}")
    for name, value in options.items():
        if not _fits(value, accepted[name]):
            expected = inspect.formatannotation(accepted[name]).removesuffix(" | None")
            raise ConversionError(f"{name} must be of type {expected}, got {value!r}")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what a type annotation says; integers are numbers too, truth values are not."""
    parts = get_args(annotation)
    if get_origin(annotation) is list:
        return isinstance(value, (list, tuple)) and all(_fits(entry, parts[0]) for entry in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    if annotation in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def _read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    from .checkpoint_reading import ConversionError

    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConversionError(f"{os.fspath(folder)!r} is not a model folder: {error}") from error


def _method_module_of(folder: str | os.PathLike[str]) -> ModuleType:
    from .checkpoint_reading import ConversionError

    architecture = (_read_config(folder).get("architectures") or [None])[0]
    for method in METHODS:
        module = _method_module(method)
        if architecture in module.MODEL_CLASSES:
            return module
    raise ConversionError(f"{os.fspath(folder)!r} holds a {architecture}, which no converter knows")


def _load_model(folder: str | os.PathLike[str]) -> Any:
    """Load a folder in the type it was saved in, refusing anything that does not fit."""
    from .checkpoint_reading import ConversionError

    config = _read_config(folder)
    model_class = _method_module_of(folder).MODEL_CLASSES[config["architectures"][0]]
    try:
        model, info = model_class.from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"cannot load {os.fspath(folder)!r}: {error}") from error
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        raise ConversionError(f"the weights in {os.fspath(folder)!r} do not fit its config: {problems}")
    return model


def __getattr__(name: str) -> Any:
    if name == "ConversionError":  # lazily, so that importing this package does not import torch
        from .checkpoint_reading import ConversionError

        return ConversionError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["METHODS", "ConversionError", "UnknownOptionError", "convert", "to_official"]
