"""What holds for the converters of all methods: which files they read, which tensors and options they refuse."""

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hubmodels.conversion import METHODS, ConversionError, _method_module, convert
from official_files import repack
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PIXELS = {"num_heads": 4, "decoder_num_heads": 3, "norm_pix_loss": False}
# Kind of file -> method, checkpoint, the options that it needs.
FILES = {
    "mae": ("mae", "mae/pretrain_pixels/checkpoint.pth", PIXELS),
    "mae classifier": ("mae", "mae/linear_probe_cls/checkpoint.pth", {"num_heads": 4}),
    "densecl": ("densecl", "densecl/backbone_export/checkpoint_full.pth", {}),
    "densecl backbone": ("densecl", "densecl/backbone_export/extracted.pth", {}),
    "sanm": ("sanm", "sanm/preact_forward/checkpoint.pth", {}),
    "sanm c2d": ("sanm", "sanm/c2d_resnet50_pool/checkpoint.pth", {}),
    "vit": ("positional_label", "positional_label/vit_absolute_official/weights.safetensors", {"num_heads": 4}),
    "swin": ("positional_label", "positional_label/swin_relative_official/weights.safetensors", {"num_heads": [2, 4]}),
}
SIMCLR = ("simclr", "simclr/finetune_all_selector1/weights.safetensors", {})


def read(kind: str) -> tuple[str, dict[str, torch.Tensor], dict]:
    """Method, official state dict and options of a kind of file."""
    method, name, options = (FILES | {"simclr": SIMCLR})[kind]
    path = GOLDEN / name
    content = {"model": load_file(path)} if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return method, dict(content.get("model", content.get("state_dict", content))), options


def refusal(method: str, state: dict[str, torch.Tensor], options: dict) -> str:
    """The message of the refusal of a state dict."""
    content = state if method == "simclr" else {"model": state}
    with pytest.raises(ConversionError) as error:
        _method_module(method).convert(content, Path("checkpoint.pth"), **options)
    return str(error.value)


def run_of(state: dict[str, torch.Tensor], **content) -> dict:
    """A checkpoint of a training run."""
    return {"model": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(50)}}}, **content}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["mae", "densecl", "sanm", "swin"])
def test_archives_that_were_packed_again_and_runs_with_numbers_of_numpy(kind, write_checkpoint, tmp_path):
    method, state, options = read(kind)
    expected = weights(convert(method, write_checkpoint({"model": state}), tmp_path / "expected", **options))
    file = write_checkpoint(run_of(state, best_acc=np.float64(71.5), losses=np.zeros(3)), "run.pth")
    packed = repack(file, tmp_path / "packed.pth", zipfile.ZIP_DEFLATED)
    for number, path in enumerate((file, packed)):
        found = weights(convert(method, path, tmp_path / str(number), **options))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


SCALAR = torch.tensor(1.0)


@pytest.mark.parametrize("kind", [*FILES, "simclr"])
def test_every_tensor_must_be_there_and_have_axes(kind):
    method, state, options = read(kind)
    for name in state:
        if not name.endswith("num_batches_tracked"):
            refusal(method, state | {name: SCALAR}, options)
    for name in state:
        if not name.endswith("attn_mask"):  # computed anew
            refusal(method, {key: tensor for key, tensor in state.items() if key != name}, options)


@pytest.mark.parametrize("kind", [*FILES, "simclr"])
def test_weights_are_real_numbers(kind):
    method, state, options = read(kind)
    types = (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    names = [name for name, tensor in state.items() if tensor.is_floating_point() and not name.startswith("queue")]
    for name, dtype in zip(names, itertools.cycle(types)):
        message = refusal(method, state | {name: state[name].to(dtype)}, options)
        assert "one floating-point type" in message and name in message and str(dtype) in message
    for dtype in types:
        changed = {name: tensor.to(dtype) if name in names else tensor for name, tensor in state.items()}
        assert "one floating-point type" in refusal(method, changed, options)


@pytest.mark.parametrize("kind", FILES)
def test_values_must_be_in_the_file(kind):
    method, state, options = read(kind)
    message = refusal(method, {name: tensor.to("meta") for name, tensor in state.items()}, options)
    assert "it is a tensor without values (of the meta device)" in message
    name = list(state)[-1]
    message = refusal(method, state | {name: torch.zeros(()).expand(1, 10**12 + 1, 64)}, options)
    assert name in message and "expanded" in message


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mae", {"norm_pix_loss": 1}, "norm_pix_loss must be of type bool, got 1"),
        ("mae", {"norm_pix_loss": "yes_please"}, "norm_pix_loss must be of type bool"),
        ("mae", {"num_heads": "abc"}, "num_heads must be of type int, got 'abc'"),
        ("mae", {"num_heads": 4.0}, "num_heads must be of type int, got 4.0"),
        ("mae", {"decoder_num_heads": [3]}, "decoder_num_heads must be of type int, got [3]"),
        ("densecl", {"momentum": "fast"}, "momentum must be of type float, got 'fast'"),
        ("densecl", {"strides": [1, 2, 2, "1"]}, "strides must be of type list[int], got [1, 2, 2, '1']"),
        ("densecl", {"num_grid": True}, "num_grid must be of type int, got True"),
        ("sanm", {"image_size": "abc"}, "image_size must be of type int | list[int], got 'abc'"),
        ("sanm", {"num_labels": "abc"}, "num_labels must be of type int, got 'abc'"),
        ("sanm", {"second": 5}, "second must be of type str | pathlib.Path, got 5"),
        ("sanm", {"head": 3}, "head must be of type str | pathlib.Path, got 3"),
        ("sanm", {"image_mean": 0.5}, "image_mean must be of type list[float], got 0.5"),
        ("sanm", {"image_mean": "abc"}, "image_mean must be of type list[float], got 'abc'"),
        ("sanm", {"image_mean": [0.5, float("nan"), 0.5]}, "image_mean must have one number for each"),
        ("sanm", {"image_std": [0.5, 0, 0.5]}, "image_std must be positive"),
        ("sanm", {"num_labels": 0}, "num_labels must be positive, got 0"),
        ("sanm", {"image_size": 0}, "image_size must be positive, got 0"),
        ("sanm", {"image_size": [8, 0]}, "image_size must be positive, got [8, 0]"),
        ("sanm", {"image_size": [8, 8, 8]}, "image_size must be a positive number or (height, width)"),
        ("sanm", {"framework": "mixmatch"}, "impossible model"),
        ("vit", {"num_heads": "4"}, "num_heads must be of type int | list[int], got '4'"),
        ("vit", {"num_heads": 5}, "num_heads must divide the width 32, got 5"),
        ("vit", {"num_heads": 0}, "num_heads must divide the width 32, got 0"),
        ("vit", {"num_heads": [2, 4]}, "num_heads must be one number, got [2, 4]"),
        ("vit", {"image_size": "abc"}, "image_size must be of type int | list[int], got 'abc'"),
        ("vit", {"image_size": 0}, "image_size must be positive, got 0"),
        ("vit", {"image_size": []}, "image_size must be positive, got []"),
        ("vit", {"image_size": [8, 8, 8]}, "image_size must be one number or (height, width), got [8, 8, 8]"),
        ("swin", {"num_heads": None}, "(--num-heads HEADS1,HEADS2)"),
        ("swin", {"num_heads": 4}, "num_heads must be 2 numbers, one per stage, got 4"),
        ("swin", {"num_heads": [2]}, "num_heads must be 2 numbers, one per stage, got 2"),
        ("swin", {"num_heads": []}, "num_heads must be 2 numbers, one per stage, got []"),
        ("swin", {"num_heads": [2, 5]}, "num_heads must divide the widths [8, 16], got [2, 5]"),
        ("swin", {"window_size": "a"}, "window_size must be of type int, got 'a'"),
        ("swin", {"window_size": 0}, "window_size must be positive, got 0"),
        ("swin", {"image_size": -32}, "image_size must be positive, got -32"),
        ("swin", {"image_size": 7}, "impossible model: image_size of the authors' Swin must be a multiple"),
        ("vit", {"window_size": 4}, "window_size=4 was given, but the checkpoint is of a ViT"),
        ("sanm", {"head": "head.pth"}, "head='head.pth' was given, but the checkpoint has a classifier of its own"),
        ("simclr", {"image_size": "large"}, "image_size must be of type int | list[int], got 'large'"),
        ("simclr", {"use_ema": "yes"}, "use_ema must be of type bool, got 'yes'"),
        ("simclr", {"image_size": 0}, "impossible model"),
        ("simclr", {"ft_proj_selector": -1}, "wrong shapes"),
    ],
)
def test_options_are_checked(kind, options, message, tmp_path):
    method, file, needed = (FILES | {"simclr": SIMCLR})[kind]
    with pytest.raises(ConversionError) as error:
        convert(method, GOLDEN / file, tmp_path / "out", **(needed | options))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_methods_are_tested():
    assert {method for method, *_ in [*FILES.values(), SIMCLR]} == set(METHODS)
