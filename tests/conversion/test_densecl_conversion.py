"""DenseCL checkpoints to folders and on to other libraries: kinds of file, inferred sizes, refused files."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
import torchvision
from hubmodels.conversion import ConversionError, UnknownOptionError, convert, to_official
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, ResNetBackbone

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "densecl" / "backbone_export"
FULL, EXTRACTED = GOLDEN / "checkpoint_full.pth", GOLDEN / "extracted.pth"


def official(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def small(model_class=DenseCLBackbone, **changes):
    """A randomly initialised model whose statistics are not those of a new one."""
    torch.manual_seed(0)
    fields = {"embedding_size": 4, "depths": [1, 2, 1, 1], "projection_hidden_size": 8, "projection_size": 6}
    model = model_class(DenseCLConfig(**(fields | {"queue_length": 10} | changes)))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """A saved model, by class and changes of its configuration."""

    def save(model_class=DenseCLBackbone, **changes):
        small(model_class, **changes).save_pretrained(tmp_path / "ours")
        return tmp_path / "ours"

    return save


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("everything", "DenseCLForPreTraining"),
        ("without alias", "DenseCLForPreTraining"),
        ("query encoder", "DenseCLModel"),
        ("query backbone", "DenseCLBackbone"),
        ("alias", "DenseCLBackbone"),
        ("released", "DenseCLBackbone"),
        ("bare", "DenseCLBackbone"),
    ],
)
def test_kinds_of_file(prefix, content, expected, write_checkpoint, tmp_path):
    everything = official(FULL)["state_dict"]
    kept = {
        "everything": "",
        "without alias": ("encoder_", "queue"),
        "query encoder": "encoder_q.",
        "query backbone": "encoder_q.0.",
        "alias": "backbone.",
    }
    if content in kept:
        state = {name: tensor for name, tensor in everything.items() if name.startswith(kept[content])}
    else:
        state = official(EXTRACTED)["state_dict"]
    state = {prefix + name: tensor for name, tensor in state.items()}
    file = write_checkpoint(state if content == "bare" else {"meta": {"epoch": 3}, "state_dict": state})
    out = convert("densecl", file, tmp_path / "out")
    config = DenseCLConfig.from_pretrained(out)
    assert config.architectures == [expected]
    backbone = DenseCLBackbone.from_pretrained(out)
    weight = backbone.encoder.backbone.embedder.embedder.convolution.weight
    assert torch.equal(weight, everything["encoder_q.0.conv1.weight"])


def test_training_runs_of_mmpretrain_become_the_same_model(write_checkpoint, tmp_path):
    state = {n: t for n, t in official(FULL)["state_dict"].items() if n.startswith(("encoder_", "queue"))}
    names = {"encoder_q.0.": "backbone.", "encoder_q.1.": "neck.", "encoder_k.": "encoder_k.module."}
    theirs = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), "")
        theirs[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    theirs["encoder_k.steps"] = torch.tensor(300)
    file = write_checkpoint({"meta": {"epoch": 3}, "state_dict": theirs})
    out, expected = convert("densecl", file, tmp_path / "out"), convert("densecl", FULL, tmp_path / "expected")
    actual, expected = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    del theirs["neck.mlp2.2.bias"]
    with pytest.raises(ConversionError, match=r"missing keys: encoder_q\.1\.mlp2\.2\.bias"):
        convert("densecl", write_checkpoint({"state_dict": theirs}), tmp_path / "broken")


def test_logs_of_mmengine_are_left_out(tmp_path, monkeypatch):
    """Its runner writes objects of mmengine, which is not installed, and methods that are looked up with getattr."""
    buffers = ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.array([8.7, 8.5]), np.array([1, 1])
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            return self._log_history.min()

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = buffers.__name__, "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = buffers.__name__, "HistoryBuffer.min"
    buffers.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", buffers.__name__):
        monkeypatch.setitem(sys.modules, name, buffers)
    hub = {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()}), "runtime_info": OrderedDict(epoch=3)}
    content = {"meta": {"epoch": 3}, "message_hub": hub, "optimizer": {}, "param_schedulers": []}
    state = official(FULL)["state_dict"]
    torch.save({**content, "state_dict": state}, tmp_path / "epoch_3.pth")
    for name in ("mmengine", "mmengine.logging", buffers.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert b"__builtin__\ngetattr" in (tmp_path / "epoch_3.pth").read_bytes()
    out, expected = (convert("densecl", file, tmp_path / file.stem) for file in (tmp_path / "epoch_3.pth", FULL))
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


class Lookup:
    """A method that a pickle looks up with getattr."""

    def __call__(self):
        pass

    def __reduce__(self):
        return getattr, (np.ndarray, "tofile")


class Call:
    """Unpickling it the ordinary way writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Lookup(), (np.arange(3), str(self.marker))


def test_what_getattr_finds_in_a_file_is_not_called(write_checkpoint, tmp_path):
    marker = tmp_path / "executed"
    file = write_checkpoint({"state_dict": official(FULL)["state_dict"], "message_hub": Call(marker)})
    with pytest.raises(ConversionError, match="it is not a pickle of tensors"):
        convert("densecl", file, tmp_path / "out")
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("head.fc.weight", "head.fc.bias"), r"unknown keys: head\.fc\.weight, head\.fc\.bias$"),
        (("classifier.weight", "projector.0.weight"), r"unknown keys: classifier\.weight, projector\.0\.weight$"),
    ],
    ids=["mmpretrain", "solo-learn"],
)
def test_classifiers_of_other_libraries_are_refused_by_their_names(extra, message, write_checkpoint, tmp_path):
    state = {f"backbone.{name}": tensor for name, tensor in official(EXTRACTED)["state_dict"].items()}
    state |= {name: torch.zeros(3, 2) for name in extra}
    with pytest.raises(ConversionError, match=message):
        convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")


def test_sizes_are_inferred(tmp_path):
    config = DenseCLConfig.from_pretrained(convert("densecl", FULL, tmp_path / "out"))
    assert (config.depths, config.embedding_size, config.layer_type) == ([2, 1, 1, 1], 2, "bottleneck")
    assert (config.projection_hidden_size, config.projection_size, config.queue_length) == (16, 8, 8)
    assert (config.momentum, config.temperature, config.loss_lambda) == (0.999, 0.2, 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_type": "basic", "depths": [2, 1, 1, 3]},
        {"num_stages": 3, "depths": [1, 1, 2]},
        {"num_channels": 1},
        {"strides": [1, 2, 2, 1], "dilations": [1, 1, 1, 2], "style": "caffe"},
    ],
)
@torch.no_grad()
def test_any_resnet_survives_the_way_out_and_in(changes, folder, tmp_path):
    ours = folder(DenseCLForPreTraining, **changes)
    file = to_official(ours, tmp_path / "official.pth")
    options = {name: value for name, value in changes.items() if name in ("strides", "dilations", "style")}
    back = DenseCLForPreTraining.from_pretrained(convert("densecl", file, tmp_path / "back", **options))
    before = DenseCLForPreTraining.from_pretrained(ours)
    assert back.config.num_stages == before.config.num_stages
    for (name, left), (_, right) in zip(before.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(left, right), name
    pixels = torch.rand(1, changes.get("num_channels", 3), 64, 64)
    maps = (model.eval().encoder.feature_maps(pixels)[-1] for model in (before, back))
    torch.testing.assert_close(*maps, rtol=0, atol=0)


def test_options_fill_in_what_no_tensor_shows(tmp_path):
    out = convert("densecl", FULL, tmp_path / "out", momentum=0.99, temperature=0.1, loss_lambda=1.0, num_grid=3)
    config = DenseCLConfig.from_pretrained(out)
    assert (config.momentum, config.temperature, config.loss_lambda, config.num_grid) == (0.99, 0.1, 1.0, 3)
    run = {"frozen_stages": 1, "norm_eval": True, "matching": "projection"}
    run |= {"queue_partial": "wrap", "shuffle_bn": False}
    config = DenseCLConfig.from_pretrained(convert("densecl", FULL, tmp_path / "going on", **run))
    assert {name: getattr(config, name) for name in run} == run
    with pytest.raises(ConversionError, match=r"impossible model: .*temperature"):
        convert("densecl", FULL, tmp_path / "other", temperature=-1.0)
    with pytest.raises(UnknownOptionError, match="unknown option depth for densecl; it accepts: strides"):
        convert("densecl", FULL, tmp_path / "other", depth=50)


def test_files_without_the_second_queue_get_a_random_one(write_checkpoint, tmp_path):
    state = {name: t for name, t in official(FULL)["state_dict"].items() if not name.startswith("queue2")}
    out = convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")
    model = DenseCLForPreTraining.from_pretrained(out)
    torch.testing.assert_close(model.queue2.norm(dim=0), torch.ones(8))
    assert torch.equal(model.queue, state["queue"])
    assert "queue2" in (out / "README.md").read_text()


def damaged(change):
    """The state dict of the golden training run, after `change`."""
    state = dict(official(FULL)["state_dict"])
    change(state)
    return {"state_dict": state}


@pytest.mark.parametrize("lost", [("queue",), ("queue", "queue2")])
def test_queues_that_a_training_run_lacks_are_random(lost, write_checkpoint, tmp_path):
    def change(state):
        for name in lost:
            del state[name], state[f"{name}_ptr"]

    out = convert("densecl", write_checkpoint(damaged(change)), tmp_path / "out")
    model, info = DenseCLForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert model.config.queue_length == (8 if len(lost) == 1 else 65536)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(model.config.queue_length))
    for name in lost:
        assert int(getattr(model, f"{name}_ptr")) == 0
        assert f"(`{name}`): it starts with random ones" in (out / "README.md").read_text()


def test_options_of_a_wrong_type_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="momentum must be of type float, got 'fast'"):
        convert("densecl", FULL, tmp_path / "out", momentum="fast")


def reshape_queue(state):
    state["queue"] = state["queue"][:4].contiguous()


def change_alias(state):
    state["backbone.bn1.weight"] = state["backbone.bn1.weight"] + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (damaged(change_alias), r"backbone\.\* and encoder_q\.0\.\* must be the same tensors.*bn1\.weight"),
        (damaged(lambda s: s.pop("backbone.conv1.weight")), r"must be the same tensors.*missing keys"),
        (damaged(lambda s: s.pop("encoder_q.1.mlp2.2.bias")), r"missing keys: encoder_q\.1\.mlp2\.2\.bias"),
        (damaged(lambda s: s.pop("encoder_k.0.bn1.running_var")), "missing keys"),
        (damaged(lambda s: s.update({"encoder_q.1.extra": torch.zeros(1)})), r"unknown keys: encoder_q\.1\.extra"),
        (damaged(reshape_queue), r"wrong shapes: queue"),
        (damaged(lambda s: s.update(queue=s["queue"].long())), "queue must be floating-point keys, got torch.int64"),
        (
            damaged(lambda s: s.update(queue_ptr=torch.tensor([3.7]))),
            "queue_ptr must be torch.int64, got torch.float32",
        ),
        (damaged(lambda s: s.update(queue2_ptr=torch.tensor([8]))), r"queue2_ptr must be a column .*\[0, 8\), got 8"),
        ({"state_dict": {"fc.weight": torch.zeros(2, 3)}}, "no backbone weights found; known layouts: conv1.weight"),
        ({"state_dict": {}}, "empty dictionary"),
        ({"epoch": 3}, "no 'state_dict' key"),
        ({"state_dict": {"conv1.weight": torch.zeros(4, 3, 7, 7)}}, "must have stages"),
    ],
)
def test_bad_files_are_refused(content, message, write_checkpoint, tmp_path):
    with pytest.raises(ConversionError, match=message):
        convert("densecl", write_checkpoint(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_stage_is_refused(write_checkpoint, tmp_path):
    state = {name: t for name, t in official(EXTRACTED)["state_dict"].items() if not name.startswith("layer2.")}
    with pytest.raises(ConversionError, match="must have stages layer1, layer2"):
        convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")


def test_a_file_that_could_run_code_is_refused(tmp_path):
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"state_dict": Trap(tmp_path / "sprung")}))
    with pytest.raises(ConversionError):
        convert("densecl", file, tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_folder_is_complete(tmp_path):
    out = convert("densecl", EXTRACTED, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "none stated by the authors" in card and "DenseCLBackbone" in card and "no projection heads" in card
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 224, "width": 224}
    assert isinstance(AutoModel.from_pretrained(out), DenseCLModel)


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_torchvision_and_timm_load_the_export(layout, suffix, folder, tmp_path):
    shape = {"embedding_size": 64, "layer_type": "basic", "depths": [2, 2, 2, 2]}
    file = to_official(folder(**shape), tmp_path / f"resnet{suffix}", layout=layout)
    state = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    pixels = torch.rand(1, 3, 64, 64)
    if layout == "torchvision":
        network = torchvision.models.resnet18().eval()
        network.fc = torch.nn.Identity()
        network.load_state_dict(state, strict=True)
        features = network(pixels)
    else:
        network = timm.create_model("resnet18", num_classes=0).eval()
        network.load_state_dict(state, strict=True)
        features = network(pixels)
    expected = small(**shape)(pixels).feature_maps[-1].mean(dim=(2, 3))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("changes", [{}, {"layer_type": "basic", "strides": [2, 2, 2, 2]}, {"style": "caffe"}])
@torch.no_grad()
def test_transformers_loads_the_export(changes, folder, tmp_path):
    out = to_official(folder(out_features=["stage2", "stage4"], **changes), tmp_path / "resnet", layout="transformers")
    network, info = ResNetBackbone.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    pixels = torch.rand(1, 3, 64, 64)
    expected = small(out_features=["stage2", "stage4"], **changes)(pixels).feature_maps
    for left, right in zip(network.eval()(pixels).feature_maps, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("strides", [[1, 2, 2, 1], [1, 2, 1, 2]])
def test_transformers_cannot_hold_every_resnet(strides, folder, tmp_path):
    with pytest.raises(ConversionError, match=r"strides \(1 or 2, 2, 2, 2\) and no dilations, not \[1, 2"):
        to_official(folder(strides=strides), tmp_path / "resnet", layout="transformers")
    assert not (tmp_path / "resnet").exists()


def test_transformers_has_another_stem(folder, tmp_path):
    """Its endpoint is behind the max pool."""
    with pytest.raises(ConversionError, match=r"out_features must be of stage1 to stage4, got \['stem', 'stage4'\]"):
        to_official(folder(out_features=["stem", "stage4"]), tmp_path / "resnet", layout="transformers")
    assert not (tmp_path / "resnet").exists()


def test_torchvision_to_here_to_detectron2(write_checkpoint, tmp_path):
    """The names differ, the tensors do not."""
    state = torchvision.models.resnet18().state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    ours = convert("densecl", write_checkpoint(state), tmp_path / "ours")
    written = load_file(to_official(ours, tmp_path / "d2.safetensors", layout="detectron2"))
    with to_official(ours, tmp_path / "d2.pkl", layout="detectron2").open("rb") as file:
        pickled = pickle.load(file)["model"]
    names = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.conv2.weight": "res2.0.conv2.weight",
        "layer3.1.bn1.num_batches_tracked": "res4.1.conv1.norm.num_batches_tracked",
        "layer4.0.downsample.0.weight": "res5.0.shortcut.weight",
        "layer4.0.downsample.1.bias": "res5.0.shortcut.norm.bias",
    }
    assert len(written) == len(state) == len(pickled)
    for official_name, name in names.items():
        assert torch.equal(written[name], state[official_name])
        assert torch.equal(torch.from_numpy(pickled[name]), state[official_name])
        assert pickled[name].flags.writeable


def test_classifier_of_torchvision_is_left_out(write_checkpoint, tmp_path):
    network = torchvision.models.resnet18()
    out = convert("densecl", write_checkpoint(network.state_dict()), tmp_path / "out")
    assert "`fc.weight`, `fc.bias`" in (out / "README.md").read_text()
    written = torch.load(to_official(out, tmp_path / "back.pth", layout="torchvision"), weights_only=True)
    assert network.load_state_dict(written, strict=False).missing_keys == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(("file", "prefix"), [(EXTRACTED, ""), (FULL, "encoder_q.0.")])
def test_old_files_do_not_count_their_batches(file, prefix, write_checkpoint, tmp_path):
    full = official(file)["state_dict"]
    old = {name: tensor for name, tensor in full.items() if not name.endswith("num_batches_tracked")}
    out = convert("densecl", write_checkpoint({"state_dict": old}), tmp_path / "out")
    assert "num_batches_tracked" in (out / "README.md").read_text()
    back = official(to_official(out, tmp_path / "back.pth"))["state_dict"]
    assert back.keys() == full.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in old.items())
    assert torch.equal(back[prefix + "bn1.num_batches_tracked"], torch.tensor(0))
    del full[prefix + "bn1.num_batches_tracked"]
    with pytest.raises(ConversionError, match=r"missing keys|must be the same tensors"):
        convert("densecl", write_checkpoint({"state_dict": full}), tmp_path / "damaged")


def test_errors_name_the_keys_of_the_file(write_checkpoint, tmp_path):
    state = official(EXTRACTED)["state_dict"] | {"layer1.0.extra": torch.zeros(1)}
    del state["layer2.0.bn1.bias"]
    message = r"unknown keys: layer1\.0\.extra\. missing keys: layer2\.0\.bn1\.bias$"
    with pytest.raises(ConversionError, match=message):
        convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")


def test_pickles_for_detectron2_name_one_harmless_class(folder, tmp_path):
    """An old numpy, which lacks private names of a new one, can read them as well."""
    data = to_official(folder(), tmp_path / "d2.pkl", layout="detectron2").read_bytes()

    class Strict(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) in {("numpy", "ndarray"), ("builtins", "bytearray")}
            return super().find_class(module, name)

    with (tmp_path / "d2.pkl").open("rb") as file:
        assert Strict(file).load()["matching_heuristics"] is True
    assert b"numpy._core" not in data


@pytest.mark.parametrize(
    ("layout", "name", "error", "message"),
    [
        ("yolo", "out.pth", ValueError, "layout must be one of official, torchvision"),
        ("detectron2", "out.pth", ConversionError, r"must end in \.pkl or \.safetensors for layout detectron2"),
        ("official", "out.bin", ConversionError, r"must end in \.pth"),
    ],
)
def test_wrong_layouts_and_suffixes_are_refused(layout, name, error, message, folder, tmp_path):
    with pytest.raises(error, match=message):
        to_official(folder(), tmp_path / name, layout=layout)
    assert not (tmp_path / name).exists()


def test_existing_files_are_kept(folder, tmp_path):
    out = tmp_path / "out.pth"
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        to_official(folder(), out)
    assert out.read_text() == "mine"


def test_foreign_backbones_and_bfloat16_pickles_are_refused(tmp_path):
    config = DenseCLConfig(backbone_config={"model_type": "resnet", "depths": [1], "hidden_sizes": [8]})
    DenseCLModel(config).save_pretrained(tmp_path / "foreign")
    with pytest.raises(ConversionError, match="only models with DenseCL's own ResNet"):
        to_official(tmp_path / "foreign", tmp_path / "out.pth")
    small().bfloat16().save_pretrained(tmp_path / "half")
    with pytest.raises(ConversionError, match=r"cannot be bfloat16; use \.safetensors"):
        to_official(tmp_path / "half", tmp_path / "out.pkl", layout="detectron2")


def test_float64_survives(write_checkpoint, tmp_path):
    state = {name: t.double() if t.is_floating_point() else t for name, t in official(FULL)["state_dict"].items()}
    out = convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")
    back = official(to_official(out, tmp_path / "back.pth"))["state_dict"]
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_half_precision_states_with_their_float32_queues_go_out_and_in(
    dtype, prefix, folder, write_checkpoint, tmp_path
):
    half = DenseCLForPreTraining.from_pretrained(folder(DenseCLForPreTraining), dtype=dtype)
    half.save_pretrained(tmp_path / "half")
    written = official(to_official(tmp_path / "half", tmp_path / "half.pth"))["state_dict"]
    assert (written["queue"].dtype, written["encoder_k.0.conv1.weight"].dtype) == (torch.float32, dtype)
    file = write_checkpoint({"state_dict": {prefix + name: tensor for name, tensor in written.items()}})
    back = DenseCLForPreTraining.from_pretrained(convert("densecl", file, tmp_path / "back"))
    for (name, left), (_, right) in zip(half.state_dict().items(), back.state_dict().items(), strict=True):
        assert left.dtype == right.dtype and torch.equal(left, right), name


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_queues_that_a_file_lacks_are_at_least_float32(dtype, expected, write_checkpoint, tmp_path):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in official(FULL)["state_dict"].items()}
    del state["queue2"], state["queue2_ptr"]
    out = convert("densecl", write_checkpoint({"state_dict": state}), tmp_path / "out")
    assert load_file(out / "model.safetensors")["queue2"].dtype == expected
    assert DenseCLForPreTraining.from_pretrained(out).queue2.dtype == expected


def test_weights_of_several_types_are_refused(write_checkpoint, tmp_path):
    content = damaged(lambda state: state.update({"encoder_k.0.conv1.weight": torch.zeros(2, 3, 7, 7).half()}))
    with pytest.raises(ConversionError, match=r"one floating-point type, found torch\.float16, torch\.float32"):
        convert("densecl", write_checkpoint(content), tmp_path / "out")
