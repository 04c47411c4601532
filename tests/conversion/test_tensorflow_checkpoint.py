"""TensorFlow checkpoints are read and written byte for byte, and damaged ones refused with the reason."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hubmodels.conversion import ConversionError
from hubmodels.conversion.simclr_names import tf2_variable_keys
from hubmodels.conversion.tensorflow_checkpoint import (
    DTYPES,
    OBJECT_GRAPH_KEY,
    STRING,
    VALUE_SUFFIX,
    Node,
    TensorFlowCheckpoint,
    find_prefix,
    object_graph,
    write_checkpoint,
)
from hubmodels.conversion.tensorflow_table import (
    FOOTER_BYTES,
    TRAILER_BYTES,
    masked_crc32c,
    message_field,
    read_table,
    read_varint,
    write_table,
)
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "simclr"
PREFIXES = sorted(str(path).removesuffix(".index") for path in GOLDEN.glob("*/*.index"))
TF1 = GOLDEN / "r50_pretrain_lars" / "checkpoint"
CONV = "base_model/conv2d/kernel"


def named(prefix):
    return "/".join(Path(prefix).parts[-2:])


def in_file_order(checkpoint):
    """All tensors, and strings as bytes, in the order of the data file."""
    keys = sorted(checkpoint, key=lambda key: checkpoint.entries[key].offset)
    return {key: checkpoint.string(key) if checkpoint.entries[key].dtype == STRING else checkpoint[key] for key in keys}


@pytest.fixture
def copied(tmp_path):
    """A copy of a golden checkpoint whose files can be damaged; returns its prefix."""
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copyfile(f"{TF1}{suffix}", tmp_path / f"copy{suffix}")
    return tmp_path / "copy"


def edit_index(prefix, edit):
    """Change the entries of an index, which gets new checksums."""
    path = Path(f"{prefix}.index")
    entries = dict(read_table(path.read_bytes()))
    edit(entries)
    path.write_bytes(write_table(entries))


@pytest.mark.parametrize("prefix", PREFIXES, ids=named)
def test_official_checkpoints_are_rewritten_byte_for_byte(prefix, tmp_path):
    index, data = tmp_path / "x.index", tmp_path / "x.data-00000-of-00001"
    write_checkpoint(index, data, in_file_order(TensorFlowCheckpoint(prefix)))
    assert index.read_bytes() == Path(f"{prefix}.index").read_bytes()
    assert data.read_bytes() == Path(f"{prefix}.data-00000-of-00001").read_bytes()


@pytest.mark.parametrize("prefix", [p for p in PREFIXES if p.endswith("/checkpoint")], ids=named)
def test_tensors_are_those_of_the_official_code(prefix):
    expected = load_file(Path(prefix).parent / "weights.safetensors")
    checkpoint = TensorFlowCheckpoint(prefix)
    assert set(checkpoint) - {OBJECT_GRAPH_KEY} == set(expected)
    assert all(torch.equal(checkpoint[key], tensor) for key, tensor in expected.items())


def test_every_type_survives(tmp_path):
    tensors = {str(dtype): torch.arange(-3, 9).reshape(3, 4).to(dtype) for dtype, _ in DTYPES.values()}
    tensors |= {"scalar": torch.tensor(2.5, dtype=torch.float64), "empty": torch.zeros(0, 3), "ä": torch.ones(1)}
    tensors["strided"] = torch.arange(6.0).reshape(2, 3).t()
    write_checkpoint(tmp_path / "x.index", tmp_path / "x.data-00000-of-00001", tensors | {"text": b"a\0b" * 100})
    checkpoint = TensorFlowCheckpoint(tmp_path / "x")
    assert len(checkpoint) == len(tensors) + 1 and checkpoint.string("text") == b"a\0b" * 100
    for name, tensor in tensors.items():
        assert checkpoint[name].dtype == tensor.dtype
        assert torch.equal(checkpoint[name], tensor)
    with pytest.raises(ConversionError, match=r"torch\.complex64, which cannot be written"):
        write_checkpoint(tmp_path / "y", tmp_path / "z", {"c": torch.zeros(1, dtype=torch.complex64)})


def test_an_index_of_several_blocks(tmp_path):
    tensors = {f"{'name' * 20}_{number:05d}": torch.tensor([float(number)]) for number in range(4000)}
    write_checkpoint(tmp_path / "x.index", tmp_path / "x.data-00000-of-00001", tensors)
    assert (tmp_path / "x.index").stat().st_size > 64_000
    checkpoint = TensorFlowCheckpoint(tmp_path / "x")
    assert list(checkpoint) == sorted(tensors)
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())


def test_several_data_files(copied):
    first = Path(f"{copied}.data-00000-of-00001")
    data = first.read_bytes()
    entry = TensorFlowCheckpoint(copied).entries[CONV]
    expected = TensorFlowCheckpoint(copied)[CONV]

    def move_to_second_file(entries):
        entries[b""] = message_field(1, 2)
        entries[CONV.encode()] += message_field(3, 1) + message_field(4, 3)

    edit_index(copied, move_to_second_file)
    with pytest.raises(FileNotFoundError, match=r"lacks its data file 'copy\.data-00000-of-00002'"):
        TensorFlowCheckpoint(copied)
    first.rename(f"{copied}.data-00000-of-00002")
    second = b"xyz" + data[entry.offset : entry.offset + entry.size]  # an odd offset
    Path(f"{copied}.data-00001-of-00002").write_bytes(second)
    checkpoint = TensorFlowCheckpoint(copied)
    assert torch.equal(checkpoint[CONV], expected)
    assert [file.name for file in checkpoint.files][1:] == ["copy.data-00000-of-00002", "copy.data-00001-of-00002"]


@pytest.mark.parametrize("length", [0, 1, 31, 127, 128, 129, 4096, 70_001, 300_001])
def test_checksum(length):
    def slowly(data):
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        crc = register ^ 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data = random.Random(length).randbytes(length)
    assert masked_crc32c(data) == masked_crc32c(data[:7], np.frombuffer(data[7:], np.uint8)) == slowly(data)


def test_all_ways_to_name_a_checkpoint(copied, tmp_path):
    assert find_prefix(copied) == find_prefix(f"{copied}.index") == find_prefix(tmp_path) == str(copied)
    assert find_prefix(f"{copied}.data-00000-of-00001") == find_prefix(f"{copied}.meta") == str(copied)
    shutil.copyfile(f"{copied}.index", tmp_path / "model.ckpt-7.index")
    with pytest.raises(ConversionError, match=r"holds several checkpoints: copy, model\.ckpt-7"):
        find_prefix(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-7"\nall_model_checkpoint_paths: "copy"\n')
    assert find_prefix(tmp_path) == str(tmp_path / "model.ckpt-7")
    saved = tmp_path / "released" / "saved_model"
    (saved / "variables").mkdir(parents=True)
    shutil.copyfile(f"{copied}.index", saved / "variables" / "variables.index")
    expected = str(saved / "variables" / "variables")
    assert find_prefix(saved) == find_prefix(saved.parent) == find_prefix(saved / "saved_model.pb") == expected
    for nothing in (tmp_path / "none", tmp_path / "none.index"):
        with pytest.raises(FileNotFoundError, match="there is no TensorFlow checkpoint"):
            find_prefix(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no TensorFlow checkpoint"):
        find_prefix(tmp_path / "empty")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(copied, share):
    for suffix in (".index", ".data-00000-of-00001"):
        path = Path(f"{copied}{suffix}")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ConversionError, match=r"not a readable TensorFlow checkpoint: .*(truncated|does not end)"):
            TensorFlowCheckpoint(copied)
        path.write_bytes(whole)


def test_changed_bytes_are_noticed(copied):
    path = Path(f"{copied}.data-00000-of-00001")
    entry = TensorFlowCheckpoint(copied).entries[CONV]
    data = bytearray(path.read_bytes())
    data[entry.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=f"'{CONV}' does not match its checksum"):
        TensorFlowCheckpoint(copied)[CONV]
    assert TensorFlowCheckpoint(copied, verify=False)[CONV].shape == entry.shape
    path = Path(f"{copied}.index")
    index = bytearray(path.read_bytes())
    index[40] ^= 1
    path.write_bytes(index)
    with pytest.raises(ConversionError, match="a block does not match its checksum"):
        TensorFlowCheckpoint(copied)


def test_compressed_blocks_are_refused(copied):
    path = Path(f"{copied}.index")
    index = bytearray(path.read_bytes())
    after_it, _ = read_varint(bytes(index[-FOOTER_BYTES:]), 0)  # where the next block starts
    first_block = after_it - TRAILER_BYTES
    index[first_block] = 1
    index[first_block + 1 : first_block + 5] = masked_crc32c(bytes(index[: first_block + 1])).to_bytes(4, "little")
    path.write_bytes(index)
    with pytest.raises(ConversionError, match=r"a block is compressed \(type 1\)"):
        TensorFlowCheckpoint(copied)


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        (message_field(3, 1), "lies in data file 1, there are 1"),
        (message_field(4, 10**12), "it is truncated: .* ends at byte"),
        (message_field(5, 3), r"of shape \[7, 7, 3, 2\] must have 1,176 bytes, it has 3"),
        (message_field(2, message_field(2, message_field(1, 2**63))), "a shape has a dimension of"),
        (message_field(7, b"") + message_field(7, b""), "is stored in slices"),
        (message_field(2, 5), "the entry of .* is damaged"),
        (message_field(3, b"x"), "the entry of .* is damaged"),
        (b"\x0f", "unknown wire type 7"),
        (b"\x12\x7f", "runs past its end"),
        (b"\xff" * 11, "more than 64 bits"),
    ],
)
def test_impossible_entries_are_refused(copied, addition, message):
    edit_index(copied, lambda entries: entries.update({CONV.encode(): entries[CONV.encode()] + addition}))
    with pytest.raises(ConversionError, match=message):
        TensorFlowCheckpoint(copied)


@pytest.mark.parametrize(("dtype", "message"), [(8, "the unknown type 8"), (STRING, "strings, expected numbers")])
def test_types_that_hold_no_weights_are_refused(copied, dtype, message):
    edit_index(
        copied, lambda entries: entries.update({CONV.encode(): entries[CONV.encode()] + message_field(1, dtype)})
    )
    checkpoint = TensorFlowCheckpoint(copied)
    with pytest.raises(ConversionError, match=f"holds {message}"):
        checkpoint[CONV]


@pytest.mark.parametrize("header", [None, b"", message_field(1, 10**6), message_field(1, b"two")])
def test_impossible_headers_are_refused(copied, header):
    def edit(entries):
        del entries[b""]
        if header is not None:
            entries[b""] = header

    edit_index(copied, edit)
    with pytest.raises(ConversionError, match=r"the index announces .* data files"):
        TensorFlowCheckpoint(copied)


def test_names_that_are_no_text_are_refused(copied):
    edit_index(copied, lambda entries: entries.update({b"\xff\xfe": entries[CONV.encode()]}))
    with pytest.raises(ConversionError, match="is not text"):
        TensorFlowCheckpoint(copied)


def test_random_damage_is_an_error_of_the_checkpoint_and_nothing_else(copied):
    """Bytes of entries change and the checksums follow, as someone would who wants to break the reader."""
    rng = random.Random(0)
    path = Path(f"{copied}.index")
    whole = dict(read_table(path.read_bytes()))
    refused = 0
    for _ in range(150):
        entries = dict(whole)
        for key in rng.sample(sorted(entries), 3):
            value = bytearray(entries[key])
            value[rng.randrange(len(value))] = rng.randrange(256)
            entries[key] = bytes(value)
        path.write_bytes(write_table(entries))
        try:
            checkpoint = TensorFlowCheckpoint(copied)
            for key in checkpoint:
                _ = checkpoint[key]
        except (ConversionError, FileNotFoundError):
            refused += 1
    assert refused > 100


def test_object_graph_survives(tmp_path):
    keys = [f"model/{name}/dense/{leaf}{VALUE_SUFFIX}" for name in ("a", "b") for leaf in ("kernel", "bias")]
    tensors = {key: torch.ones(1) for key in keys} | {OBJECT_GRAPH_KEY: object_graph(keys)}
    write_checkpoint(tmp_path / "x.index", tmp_path / "x.data-00000-of-00001", tensors)
    nodes = TensorFlowCheckpoint(tmp_path / "x").object_graph
    for key in keys:
        node = nodes[0]
        for name in key.removesuffix(VALUE_SUFFIX).split("/"):
            node = nodes[node.children[name]]
        assert node.checkpoint_key == key
    assert TensorFlowCheckpoint(TF1).object_graph is None


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (message_field(1, message_field(1, message_field(1, 9) + message_field(2, b"model"))), "does not hold"),
        (message_field(1, message_field(1, message_field(2, b"\xff"))), "a name is not text"),
        (message_field(1, b"\x0a\x7f"), "runs past its end"),
        (message_field(1, 7), "is damaged"),
    ],
)
def test_damaged_object_graphs_are_refused(graph, message, tmp_path):
    write_checkpoint(tmp_path / "x.index", tmp_path / "x.data-00000-of-00001", {OBJECT_GRAPH_KEY: graph})
    with pytest.raises(ConversionError, match=message):
        _ = TensorFlowCheckpoint(tmp_path / "x").object_graph


def test_endless_object_graphs_end():
    """Objects that hold themselves, and a thousand names for each of a few objects, level below level."""
    names = ["model", "resnet_model", "block_groups", "layers", "conv_relu_dropblock_layers", "conv2d", "kernel"]
    numbers = [str(number) for number in range(1000)]
    nodes = [
        Node(dict.fromkeys(names, 0) | dict.fromkeys(numbers, 1)),
        Node(dict.fromkeys(names, 1) | dict.fromkeys(numbers, 1), "key"),
    ]
    assert len(tf2_variable_keys(nodes)) < 100
    assert tf2_variable_keys([]) == {}


def test_nothing_is_read_before_it_is_asked_for(copied, monkeypatch):
    """Optimiser slots, which are most of a training checkpoint, stay on the disk."""
    monkeypatch.setattr(TensorFlowCheckpoint, "__getitem__", lambda *args: pytest.fail("a tensor was read"))
    checkpoint = TensorFlowCheckpoint(os.fspath(copied))
    assert CONV in checkpoint and "nothing" not in checkpoint
    assert checkpoint.entries[CONV].shape == (7, 7, 3, 2)
