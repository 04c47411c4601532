"""Official files are read without executing anything, and every refusal says why."""

import argparse
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hubmodels.conversion.checkpoint_reading import ConversionError, model_state_dict, read_checkpoint
from official_files import repack
from safetensors.torch import save_file

STATE = {"model": {"weight": torch.arange(2000.0)}}


class RunsCommand:
    """Unpickling it the ordinary way creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class SomeClass:
    pass


@pytest.mark.parametrize("zip_layout", [True, False], ids=["zip", "legacy"])
def test_reads_tensors_and_training_arguments(tmp_path, zip_layout):
    content = {**STATE, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_layout)
    read = read_checkpoint(tmp_path / "a.pth")
    assert list(read) == ["model", "epoch", "optimizer", "args"]
    assert torch.equal(read["model"]["weight"], STATE["model"]["weight"])
    assert read["args"] == argparse.Namespace(lr=0.1)


def test_reads_safetensors_as_a_model(tmp_path):
    save_file(STATE["model"], tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["model"]["weight"], STATE["model"]["weight"])


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_malicious_pickle_is_refused_by_name_and_not_executed(tmp_path, writer):
    path, marker = tmp_path / "evil.pth", tmp_path / "executed"
    content = {**STATE, "args": RunsCommand(marker)}
    if writer.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(ConversionError, match=rf"refers to .*{os.system.__module__}\.system.*nothing was executed"):
        read_checkpoint(path)
    assert not marker.exists()
    if not writer.startswith("pickle"):  # the test can fail: the ordinary way of loading does run it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_class_that_is_not_allowed_is_refused_by_name(write_checkpoint):
    path = write_checkpoint({**STATE, "args": SomeClass()})
    with pytest.raises(ConversionError, match=rf"refers to {re.escape(SomeClass.__module__)}\.SomeClass"):
        read_checkpoint(path)
    with pytest.raises(ConversionError, match=r"refers to numpy\.random\._pcg64\.PCG64"):
        read_checkpoint(write_checkpoint({**STATE, "generator": np.random.default_rng(0)}))
    with pytest.raises(ConversionError, match=r"refers to numpy\.dtypes\.ObjectDType"):
        read_checkpoint(write_checkpoint({**STATE, "objects": np.array([STATE, None])}))


@pytest.mark.parametrize("layout", ["zip", "legacy", "numpy 1"])
def test_values_of_numpy_are_read(layout, tmp_path):
    """Under the names of numpy 1 and of numpy 2."""
    values = {
        "best": np.float64(71.5),
        "flag": np.bool_(True),
        "name": np.str_("last"),
        "history": np.arange(6, dtype=np.float32).reshape(2, 3),
        "labels": np.arange(3),
    }
    path = tmp_path / "a.pth"
    torch.save({**STATE, **values}, path, _use_new_zipfile_serialization=layout != "legacy")
    if layout == "numpy 1":
        path = repack(path, tmp_path / "b.pth", change=lambda content: content.replace(b"numpy._core", b"numpy.core"))
    read = read_checkpoint(path)
    assert all(np.array_equal(read[name], value) and read[name].dtype == value.dtype for name, value in values.items())


@pytest.mark.parametrize("level", [1, 9])
def test_compressed_records_are_read_as_values(level, write_checkpoint, tmp_path):
    """As of an archive that was unpacked and packed again."""
    path = repack(write_checkpoint(STATE), tmp_path / "b.pth", zipfile.ZIP_DEFLATED, level)
    assert torch.equal(read_checkpoint(path)["model"]["weight"], STATE["model"]["weight"])


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pth")
        torch.save({**STATE, "args": SomeClass()}, tmp_path / "refused.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["model"]["weight"], STATE["model"]["weight"])
    with pytest.raises(ConversionError, match=rf"refers to {re.escape(SomeClass.__module__)}\.SomeClass"):
        read_checkpoint(tmp_path / "refused.pth")


def test_the_allow_list_is_explicit(write_checkpoint):
    path = write_checkpoint({**STATE, "args": argparse.Namespace(lr=0.1)})
    with pytest.raises(ConversionError, match=r"argparse\.Namespace"):
        read_checkpoint(path, allowed_classes=())


@pytest.mark.parametrize("zip_layout", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file_is_refused(tmp_path, zip_layout, share):
    path = tmp_path / "a.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zip_layout)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConversionError, match="truncated, damaged or not a torch checkpoint"):
        read_checkpoint(path)


def test_changed_byte_in_the_weights_is_noticed(write_checkpoint):
    path = write_checkpoint(STATE)
    content = bytearray(path.read_bytes())
    position = content.find(STATE["model"]["weight"].numpy().tobytes()[:400]) + 200
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="does not match its checksum"):
        read_checkpoint(path)
    assert torch.load(path, weights_only=True)["model"]["weight"].shape == (2000,)  # torch itself does not notice


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 nothing else", b"\x80\x02}q\x00."])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="not a torch checkpoint"):
        read_checkpoint(path)


def test_damaged_safetensors_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE["model"], path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConversionError, match="not a readable safetensors file"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates TorchScript
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="TorchScript program, which holds code"):
        read_checkpoint(tmp_path / "a.pth")


def test_missing_file_folder_and_wrong_top_level(tmp_path, write_checkpoint):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ConversionError, match="is not a file"):
        read_checkpoint(tmp_path)
    with pytest.raises(ConversionError, match="holds a list, expected a dictionary"):
        read_checkpoint(write_checkpoint([torch.zeros(1)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}, "epoch": 1}, "keys: state_dict, epoch; .* ResNet"),
        ({"state_dict": {}}, "no 'model' key in the checkpoint; top-level keys: state_dict"),
        ({"model": {}}, "an empty dictionary"),
        ({"model": 3}, "it is a int"),
        ({"model": {1: torch.zeros(1)}}, "not a string: 1"),
        ({"model": {"a": [1.0]}}, r"model\['a'\] must be a dense tensor, it is a list"),
        ({"model": {"a": torch.zeros(2, 2).to_sparse()}}, "dense tensor, it is a torch.sparse_coo tensor"),
        ({"model": {"a": torch.zeros(2, device="meta")}}, "it is a tensor without values"),
        ({"model": {"a": torch.zeros(1).expand(10**13)}}, "it is an expanded tensor: shape .10000000000000."),
        ({"model": {"a": torch.zeros(1), "b": torch.zeros(1).half()}}, "found torch.float16, torch.float32"),
        ({"model": {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.int8)}}, r"another: b \(torch.int8\)"),
        ({"model": {"a": torch.zeros(1, dtype=torch.complex64)}}, r"another: a \(torch.complex64\)"),
        ({"model": {"a": torch.zeros(1).to(torch.float8_e4m3fn)}}, r"another: a \(torch.float8_e4m3fn\)"),
        ({"model": {"a.num_batches_tracked": torch.zeros((), dtype=torch.complex64)}}, "complex64"),
    ],
)
def test_state_dict_must_be_named_dense_tensors_of_one_type(content, message):
    with pytest.raises(ConversionError, match=message):
        model_state_dict(content)
