"""Reading official checkpoint files without executing anything that is in them.

Pickles are only ever opened with `torch.load(weights_only=True)` and an explicit allow-list. That reader rebuilds
tensors and plain containers itself and calls nothing else; whatever it does not know is refused by name.
"""

import os
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .pickled_classes import ALLOWED_CLASSES
from .recognition import describe

# What torch's weights-only reader accepts by itself: used to single out the offending names in an error message.
_HARMLESS_GLOBALS = re.compile(r"torch\..*|collections\.(OrderedDict|Counter)|_codecs\.encode")

_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTER = "num_batches_tracked"
_LISTED_NAMES = 12


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message says why, and nothing has been written."""


def read_checkpoint(path: str | os.PathLike[str], allowed_classes: Sequence[Any] = ALLOWED_CLASSES) -> dict[str, Any]:
    """Read the top-level dictionary of a checkpoint file.

    Args:
        path: a file written by `torch.save` (zip or older layout), or a `.safetensors` file.
        allowed_classes: classes that may occur in a pickle besides tensors, numbers, strings and containers; a pair
            `(class, name)` allows one under another name. Default: command-line arguments and values of numpy.

    Returns:
        The dictionary in the file. Tensors are on the CPU; those of a zip file as torch writes it, uncompressed, are
        memory-mapped, so that parts of it which are not used (optimiser states) are not loaded. A safetensors file,
        which holds tensors only, gives `{"model": tensors}`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ConversionError: the file is not a checkpoint, is truncated or damaged, is not a dictionary, or refers to a
            class or function that is not allowed; the message names it. Nothing in the file is executed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"checkpoint {os.fspath(path)!r} does not exist")
    if not os.path.isfile(path):
        raise ConversionError(
            f"checkpoint {os.fspath(path)!r} is not a file; give the .pth or .safetensors file itself"
        )
    if os.fspath(path).endswith(".safetensors"):
        return {"model": _read_safetensors(path)}
    content = _read_pickle(path, allowed_classes)
    if not isinstance(content, dict):
        raise ConversionError(f"{os.fspath(path)!r} holds a {type(content).__name__}, expected a dictionary")
    return content


def model_state_dict(
    checkpoint: Mapping[str, Any], key: str = "model", free_types: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Take the named tensors of a model out of a checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returned.
        key: the top-level key that holds the state dict.
        free_types: names of tensors that may be of any type, for the caller to check; others have one floating-point
            type, or count the batches of a normalisation.

    Returns:
        Parameter and buffer tensors by official name, in the order of the file; each contiguous and with memory of
        its own, as safetensors files need it.

    Raises:
        ConversionError: `key` is absent (the message lists the keys there are), or its value is not a dictionary
            from names to dense tensors of one floating-point type with all their values in the file.
    """
    if key not in checkpoint:
        raise ConversionError(f"no {key!r} key in the checkpoint; {describe(checkpoint)}")
    state = checkpoint[key]
    if not isinstance(state, Mapping) or not state:
        given = "an empty dictionary" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ConversionError(f"{key!r} must be a non-empty dictionary of named tensors, it is {given}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise ConversionError(f"{key!r} has a key that is not a string: {name!r}")
        _check_dense(f"{key}[{name!r}]", value)
    check_types({name: value for name, value in state.items() if name not in free_types})
    uses = Counter(value.untyped_storage().data_ptr() for value in state.values())
    return {
        name: value.contiguous()
        if uses[value.untyped_storage().data_ptr()] == 1
        else value.clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def check_types(weights: Mapping[str, torch.Tensor]) -> None:
    """Check that weights are real numbers of one floating-point type; counters of batches may also be integers.

    Raises:
        ConversionError: names those that are integers, complex or packed in 8 bits, or lists the types.
    """
    floats = {
        name: tensor.dtype
        for name, tensor in weights.items()
        if not name.endswith(_COUNTER) or tensor.dtype.is_floating_point or tensor.dtype.is_complex
    }
    wrong = [f"{name} ({dtype})" for name, dtype in floats.items() if dtype not in _WEIGHT_TYPES]
    if wrong:
        raise ConversionError(
            "all weights must have one floating-point type: float16, bfloat16, float32 or float64; these have another: "
            f"{shorten(wrong)}"
        )
    dtypes = sorted({str(dtype) for dtype in floats.values()})
    if len(dtypes) > 1:
        raise ConversionError(f"all weights must have one floating-point type, found {', '.join(dtypes)}")


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    listed = ", ".join(names[:_LISTED_NAMES])
    return listed + (f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else "")


def _check_dense(place: str, value: Any) -> None:
    """Refuse what is no tensor with all its values in memory."""
    given = None
    if not isinstance(value, torch.Tensor):
        given = f"a {type(value).__name__}"
    elif value.layout is not torch.strided or value.is_quantized:
        given = f"a {'quantized' if value.is_quantized else value.layout} tensor"
    elif value.is_meta:
        given = "a tensor without values (of the meta device)"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        given = f"an expanded tensor: shape {list(value.shape)}, of which the file holds a part"
    if given is not None:
        raise ConversionError(f"{place} must be a dense tensor, it is {given}")


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConversionError(f"{os.fspath(path)!r} is not a readable safetensors file: {error}") from error


def _read_pickle(path: str | os.PathLike[str], allowed_classes: Sequence[Any]) -> Any:
    is_zip = zipfile.is_zipfile(path)
    is_stored = is_zip and _check_records(path)
    try:
        with torch.serialization.safe_globals(list(allowed_classes)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_stored)
    except pickle.UnpicklingError as error:
        names = _refused_globals(path, str(error), is_zip, allowed_classes)
        if names:
            raise ConversionError(
                f"{os.fspath(path)!r} refers to {', '.join(names)}, which a checkpoint of weights has no use for and "
                "which could run code when loaded; it was refused and nothing was executed"
            ) from None
        raise ConversionError(_not_a_checkpoint(path, "it is not a pickle of tensors")) from None
    except Exception as error:  # torch reports damage as EOFError, RuntimeError, KeyError, UnicodeDecodeError, ...
        reason = re.split(r"\n|\. ", str(error))[0] or type(error).__name__
        raise ConversionError(_not_a_checkpoint(path, reason)) from error


def _not_a_checkpoint(path: str | os.PathLike[str], reason: str) -> str:
    size = os.path.getsize(path)
    return f"{os.fspath(path)!r} ({size:,} bytes) is truncated, damaged or not a torch checkpoint: {reason}"


def _check_records(path: str | os.PathLike[str]) -> bool:
    """Check a zip file beyond what torch.load does, and say whether its records lie in it as they are.

    TorchScript is refused and checksums are compared, unless torch was told to write none (all are 0 then). Records
    that were compressed when the file was packed again must not be memory-mapped: their bytes are no values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise ConversionError(f"{os.fspath(path)!r} is a TorchScript program, which holds code; it was refused")
            damaged = archive.testzip() if any(record.CRC for record in records) else None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ConversionError(_not_a_checkpoint(path, str(error))) from error
    if damaged is not None:
        raise ConversionError(_not_a_checkpoint(path, f"record {damaged!r} does not match its checksum"))
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _refused_globals(
    path: str | os.PathLike[str], message: str, is_zip: bool, allowed_classes: Sequence[Any]
) -> list[str]:
    """Names of the classes and functions a refused pickle refers to, found without loading it."""
    allowed = {c[1] if isinstance(c, tuple) else f"{c.__module__}.{c.__qualname__}" for c in allowed_classes}
    pickles = []
    if is_zip:
        with zipfile.ZipFile(path) as archive, suppress(zipfile.BadZipFile):  # raised where there are no checksums
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    else:
        with open(path, "rb") as file:
            pickles = [file.read(1 << 24)]  # the older layout keeps its small pickles before the storages
    found = {name for data in pickles for name in _globals_in(data)}
    refused = {name for name in found if not _HARMLESS_GLOBALS.fullmatch(name) and name not in allowed}
    named_by_torch = re.search(r"(?:GLOBAL |got <class ')(\w+(?:\.\w+)+)", message)
    if named_by_torch:
        refused.add(named_by_torch.group(1))
    return sorted(refused)


def _globals_in(data: bytes) -> set[str]:
    """Dotted names of all globals in a sequence of pickles, disassembled and never run."""
    names: set[str] = set()
    position = 0
    while position < len(data):
        strings: list[str] = []
        end = None
        try:
            for opcode, argument, offset in pickletools.genops(data[position:]):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    names.add(".".join(strings[-2:]))
                elif "UNICODE" in opcode.name or "STRING" in opcode.name:
                    strings.append(str(argument))
                if opcode.name == "STOP":
                    end = offset
        except Exception:  # not a pickle from here on: the storages of the older layout, or damage
            break
        if end is None:
            break
        position += end + 1
    return names
