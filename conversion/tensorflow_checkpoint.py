"""Reading and writing TensorFlow checkpoints without TensorFlow.

A checkpoint ("bundle") is a table `PREFIX.index` of the names, types, shapes and places of its tensors, and one or more
files `PREFIX.data-00000-of-00001` with their bytes. TF1 names its variables as the graph does; TF2 names them by their
path through Python objects and stores the graph of these objects as one more tensor. A SavedModel keeps the same pair
of files in `variables/`. Nothing in these files is executed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .checkpoint_reading import ConversionError
from .tensorflow_table import (
    masked_crc32c,
    message_field,
    message_fixed32,
    read_message,
    read_table,
    read_varint,
    varint,
    write_table,
)

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
STRING = 7

# Numbers of TensorFlow's types (types.proto) -> types of torch, and of numpy with the same bytes.
DTYPES: dict[int, tuple[torch.dtype, str]] = {
    1: (torch.float32, "<f4"),
    2: (torch.float64, "<f8"),
    3: (torch.int32, "<i4"),
    4: (torch.uint8, "u1"),
    5: (torch.int16, "<i2"),
    6: (torch.int8, "i1"),
    9: (torch.int64, "<i8"),
    10: (torch.bool, "?"),
    14: (torch.bfloat16, "<i2"),
    19: (torch.float16, "<f2"),
}
_DTYPE_NUMBERS = {dtype: number for number, (dtype, _) in DTYPES.items()}
_HEADER = message_field(1, 1) + message_field(3, message_field(1, 1))  # one shard, version 1
_LARGEST_SHARD_COUNT = 99_999


@dataclass(frozen=True)
class Entry:
    """What the index says of one tensor.

    Args:
        dtype: number of its type, see `DTYPES`.
        shape: its shape.
        shard: number of the data file that holds it.
        offset: first byte in that file.
        size: number of bytes.
        checksum: masked CRC-32C of the bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


@dataclass
class Node:
    """An object of a TF2 checkpoint.

    Args:
        children: numbers of the objects it refers to, by attribute name.
        checkpoint_key: name of its tensor in the checkpoint, None for an object that is no variable.
    """

    children: dict[str, int] = field(default_factory=dict)
    checkpoint_key: str | None = None


class TensorFlowCheckpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name; each is read from the memory-mapped files when it is asked for.

    Args:
        prefix: path of the checkpoint without `.index`, see `find_prefix`.
        verify: compare the checksum of every tensor that is read.

    Raises:
        FileNotFoundError: there is no index or a data file is missing.
        ConversionError: the index is damaged, or a data file is shorter than the index says.

    Example:

    ```python
    >>> checkpoint = TensorFlowCheckpoint("model.ckpt-250228")  # doctest: +SKIP
    >>> checkpoint["base_model/conv2d/kernel"].shape  # doctest: +SKIP
    torch.Size([7, 7, 3, 64])
    ```
    """

    def __init__(self, prefix: str | os.PathLike[str], verify: bool = True):
        self.prefix = os.fspath(prefix)
        self.verify = verify
        try:
            self.entries = self._read_index()
            self._shards = self._open_shards()
        except ConversionError as error:
            raise ConversionError(f"{self.prefix!r} is not a readable TensorFlow checkpoint: {error}") from error

    def __getitem__(self, key: str) -> torch.Tensor:
        """Read a tensor into memory of its own.

        Raises:
            KeyError: there is none of this name.
            ConversionError: it is no tensor of numbers, or it does not match its checksum.
        """
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            kind = "strings" if entry.dtype == STRING else f"the unknown type {entry.dtype}"
            raise ConversionError(f"{key!r} holds {kind}, expected numbers")
        dtype, layout = DTYPES[entry.dtype]
        values = self._bytes(key).view(layout).reshape(entry.shape)
        tensor = torch.from_numpy(np.array(values, order="C", ndmin=0))
        return tensor.view(dtype) if tensor.dtype != dtype else tensor

    def __contains__(self, key: object) -> bool:
        return key in self.entries  # without reading the tensor, as Mapping would

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def string(self, key: str) -> bytes:
        """Read a tensor that is a single string.

        Raises:
            KeyError: there is none of this name.
            ConversionError: it is not a single string, or it does not match its checksum.
        """
        entry = self.entries[key]
        if entry.dtype != STRING or entry.shape != ():
            raise ConversionError(f"{key!r} must be a single string")
        data = self._bytes(key, verify=False).tobytes()
        length, start = read_varint(data, 0)
        if start + 4 + length != len(data):
            raise ConversionError(f"{key!r} has {len(data):,} bytes, its length says {start + 4 + length:,}")
        if self.verify and _string_checksum(data[start + 4 :]) != entry.checksum:
            raise ConversionError(f"{key!r} does not match its checksum")
        return data[start + 4 :]

    @cached_property
    def object_graph(self) -> list[Node] | None:
        """The objects of a TF2 checkpoint or SavedModel, the root first; None in a TF1 checkpoint.

        Raises:
            ConversionError: the graph is damaged.
        """
        if OBJECT_GRAPH_KEY not in self.entries:
            return None
        messages = read_message(self.string(OBJECT_GRAPH_KEY))
        nodes = [_read_node(content) for number, content in messages if number == 1]
        for node in nodes:
            if any(child >= len(nodes) for child in node.children.values()):
                raise ConversionError("the object graph refers to objects that it does not hold")
        return nodes

    @property
    def files(self) -> list[Path]:
        """The files of the checkpoint, the index first."""
        return [Path(f"{self.prefix}.index"), *(self._shard_path(number) for number in range(len(self._shards)))]

    def _shard_path(self, number: int) -> Path:
        return Path(f"{self.prefix}.data-{number:05d}-of-{self._shard_count:05d}")

    def _read_index(self) -> dict[str, Entry]:
        path = f"{self.prefix}.index"
        if not os.path.isfile(path):
            raise FileNotFoundError(f"checkpoint index {path!r} does not exist")
        self._shard_count = 0
        entries: dict[str, Entry] = {}
        for key, value in read_table(Path(path).read_bytes()):
            if key == b"":
                count = dict(read_message(value)).get(1, 0)
                self._shard_count = count if isinstance(count, int) else 0
                continue
            try:
                name = key.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ConversionError(f"the name {key!r} is not text") from error
            if name in entries:
                raise ConversionError(f"the index names {name!r} twice")
            entries[name] = _read_entry(name, value)
        if not 1 <= self._shard_count <= _LARGEST_SHARD_COUNT:
            raise ConversionError(f"the index announces {self._shard_count!r} data files")
        return entries

    def _open_shards(self) -> list[np.ndarray]:
        shards = []
        for number in range(self._shard_count):
            path = self._shard_path(number)
            if not path.is_file():
                raise FileNotFoundError(f"checkpoint {self.prefix!r} lacks its data file {path.name!r}")
            shards.append(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8))
        for name, entry in self.entries.items():
            if entry.shard >= len(shards):
                raise ConversionError(f"{name!r} lies in data file {entry.shard}, there are {len(shards)}")
            if entry.offset + entry.size > len(shards[entry.shard]):
                raise ConversionError(
                    f"it is truncated: {name!r} ends at byte {entry.offset + entry.size:,} of "
                    f"{self._shard_path(entry.shard).name!r}, which has {len(shards[entry.shard]):,}"
                )
        return shards

    def _bytes(self, key: str, verify: bool = True) -> np.ndarray:
        entry = self.entries[key]
        data = self._shards[entry.shard][entry.offset : entry.offset + entry.size]
        if self.verify and verify and masked_crc32c(data) != entry.checksum:
            raise ConversionError(f"{key!r} does not match its checksum: the checkpoint is damaged")
        return data


def find_prefix(path: str | os.PathLike[str]) -> str:
    """Find the checkpoint that a path means.

    Args:
        path: prefix (`model.ckpt-250228`), one of the files of a checkpoint, a folder with one checkpoint (or with
            TensorFlow's `checkpoint` file that names the latest), or a SavedModel folder.

    Returns:
        The prefix: the path of the index without `.index`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConversionError: a folder holds several checkpoints and does not say which is the latest.
    """
    path = os.fspath(path)
    if os.path.basename(path) == "saved_model.pb":
        path = os.path.dirname(path) or "."
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)
    if os.path.isfile(f"{prefix}.index"):
        return prefix
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no TensorFlow checkpoint {path!r} (no file {prefix + '.index'!r})")
    folder = Path(path)
    for saved in (folder / "variables", folder / "saved_model" / "variables"):
        if (saved / "variables.index").is_file():
            return str(saved / "variables")
    prefixes = sorted(str(index)[: -len(".index")] for index in folder.glob("*.index"))
    latest = _latest_checkpoint(folder)
    if latest in prefixes:
        return latest
    if not prefixes:
        raise FileNotFoundError(f"folder {path!r} holds no TensorFlow checkpoint (no .index file, no variables/)")
    if len(prefixes) > 1:
        names = ", ".join(os.path.basename(name) for name in prefixes)
        raise ConversionError(f"folder {path!r} holds several checkpoints: {names}; give one of them")
    return prefixes[0]


def write_checkpoint(
    index: str | os.PathLike[str], data: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor | bytes]
) -> None:
    """Write a checkpoint with a single data file, byte for byte as TensorFlow does.

    Args:
        index: `PREFIX.index`, to be created.
        data: `PREFIX.data-00000-of-00001`, to be created.
        tensors: tensors by name, and bytes for single strings (an object graph); the data file holds them in this
            order.

    Raises:
        ConversionError: a tensor has a type that checkpoints do not know.
    """
    table = {b"": _HEADER}
    offset = 0
    with open(data, "wb") as file:
        for name, value in tensors.items():
            if isinstance(value, bytes):
                entry = Entry(STRING, (), 0, offset, 0, _string_checksum(value))
                stored = varint(len(value)) + _length_checksum(value) + value
            else:
                if value.dtype not in _DTYPE_NUMBERS:
                    raise ConversionError(f"{name!r} has type {value.dtype}, which cannot be written")
                stored = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                number = _DTYPE_NUMBERS[value.dtype]
                entry = Entry(number, tuple(value.shape), 0, offset, 0, masked_crc32c(stored))
            file.write(stored)
            table[name.encode()] = _encode_entry(replace(entry, size=len(stored)))
            offset += len(stored)
    Path(index).write_bytes(write_table(table))


def object_graph(keys: Iterable[str]) -> bytes:
    """Encode the object graph of a TF2 checkpoint whose variables have these names.

    Args:
        keys: names of variables, object paths with `VALUE_SUFFIX`.

    Returns:
        What a checkpoint stores under `OBJECT_GRAPH_KEY`.
    """
    children: list[dict[str, int]] = [{}]
    variables: dict[int, str] = {}
    for key in keys:
        node = 0
        for name in key.removesuffix(VALUE_SUFFIX).split("/"):
            if name not in children[node]:
                children[node][name] = len(children)
                children.append({})
            node = children[node][name]
        variables[node] = key
    graph = b""
    for number, names in enumerate(children):
        content = b"".join(
            message_field(1, message_field(1, child) + message_field(2, name.encode())) for name, child in names.items()
        )
        if number in variables:
            stored_as = message_field(3, variables[number].encode())
            content += message_field(2, message_field(1, b"VARIABLE_VALUE") + stored_as)
        graph += message_field(1, content)
    return graph


def _latest_checkpoint(folder: Path) -> str | None:
    """The checkpoint that TensorFlow's state file names, looked for in the same folder only."""
    state = folder / "checkpoint"
    if not state.is_file():
        return None
    found = re.search(r'^model_checkpoint_path: "(.*)"$', state.read_text(errors="replace"), re.MULTILINE)
    return str(folder / os.path.basename(found.group(1))) if found else None


def _read_entry(name: str, value: bytes) -> Entry:
    fields: dict[int, int | bytes] = {}
    for number, content in read_message(value):
        if number == 7:
            raise ConversionError(f"{name!r} is stored in slices, which is not supported")
        if (number == 2) != isinstance(content, bytes):
            raise ConversionError(f"the entry of {name!r} is damaged")
        fields[number] = content
    shape = _read_shape(fields.get(2, b""))  # type: ignore[arg-type]
    dtype, shard, offset, size, checksum = (fields.get(number, 0) for number in (1, 3, 4, 5, 6))
    entry = Entry(dtype, shape, shard, offset, size, checksum)  # type: ignore[arg-type]
    if entry.dtype in DTYPES:
        expected = np.dtype(DTYPES[entry.dtype][1]).itemsize
        for length in shape:
            expected *= length
        if expected != entry.size:
            raise ConversionError(
                f"{name!r} of shape {list(shape)} must have {expected:,} bytes, it has {entry.size:,}"
            )
    return entry


def _read_shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, dimension in read_message(message):
        if number == 2 and isinstance(dimension, bytes):
            size = dict(read_message(dimension)).get(1, 0)
            if not isinstance(size, int) or size >= 2**63:
                raise ConversionError(f"a shape has a dimension of {size!r}")
            sizes.append(size)
    return tuple(sizes)


def _encode_entry(entry: Entry) -> bytes:
    shape = b"".join(message_field(2, message_field(1, size) if size else b"") for size in entry.shape)
    encoded = message_field(1, entry.dtype) + message_field(2, shape)
    if entry.offset:
        encoded += message_field(4, entry.offset)
    if entry.size:
        encoded += message_field(5, entry.size)
    return encoded + message_fixed32(6, entry.checksum)


def _read_node(message: int | bytes) -> Node:
    if not isinstance(message, bytes):
        raise ConversionError("the object graph is damaged")
    node = Node()
    for number, content in read_message(message):
        if number in (1, 2) and isinstance(content, bytes):
            fields = dict(read_message(content))
            if number == 1:
                child, name = fields.get(1, 0), _text(fields.get(2, b""))
                if not isinstance(child, int):
                    raise ConversionError("the object graph is damaged")
                node.children[name] = child
            elif fields.get(1) == b"VARIABLE_VALUE":
                node.checkpoint_key = _text(fields.get(3, b""))
    return node


def _text(value: int | bytes) -> str:
    try:
        return value.decode("utf-8")  # type: ignore[union-attr]
    except (AttributeError, UnicodeDecodeError) as error:
        raise ConversionError("the object graph is damaged: a name is not text") from error


def _length_checksum(value: bytes) -> bytes:
    return masked_crc32c(len(value).to_bytes(4, "little")).to_bytes(4, "little")


def _string_checksum(value: bytes) -> int:
    """TensorFlow's checksum of a string tensor: over its length as four bytes, their checksum, and the string."""
    return masked_crc32c(len(value).to_bytes(4, "little"), _length_checksum(value), value)
