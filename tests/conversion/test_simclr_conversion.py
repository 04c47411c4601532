"""Every layout of official SimCLR checkpoints converts, comes back bit for bit, and others are refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hubmodels.conversion import ConversionError, UnknownOptionError, convert, to_official
from hubmodels.conversion.simclr import to_official as official_weights
from hubmodels.conversion.simclr import write_official
from hubmodels.conversion.simclr_names import Network, infer_network, to_official_layout, variables
from hubmodels.conversion.tensorflow_checkpoint import (
    OBJECT_GRAPH_KEY,
    VALUE_SUFFIX,
    TensorFlowCheckpoint,
    write_checkpoint,
)
from hubmodels.modeling.simclr import (
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModel

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "simclr"
R50, R18, SK, TF2 = (
    GOLDEN / f"{name}/checkpoint"
    for name in ("r50_pretrain_lars", "r18_cifar_v1head", "r50_sk_pretrain", "tf2_linear_probe_while_pretraining")
)
SAVED = TF2.with_name("saved_variables")
FINETUNED = GOLDEN / "finetune_all_selector1" / "weights.safetensors"
PROBED = GOLDEN / "linear_eval_zero_head" / "weights.safetensors"
PRETRAINING, CLASSIFIER = "SimCLRForPreTraining", "SimCLRForImageClassification"
NOT_WEIGHTS = ("global_step", OBJECT_GRAPH_KEY)
CASES = [  # checkpoint, class, config that must be found
    (R50, PRETRAINING, {"layer_type": "bottleneck", "num_proj_layers": 3, "proj_out_dim": 16, "cifar_stem": False}),
    (R18, PRETRAINING, {"layer_type": "basic", "depths": [2, 1, 1, 1], "num_proj_layers": 2, "cifar_stem": True}),
    (SK, PRETRAINING, {"depths": [2, 1, 1, 1], "sk_ratio": 0.0625, "cifar_stem": False, "image_size": 224}),
    (TF2, CLASSIFIER, {"num_proj_layers": 3, "linear_probe": True, "ft_proj_selector": 0}),
    (SAVED, CLASSIFIER, {"num_proj_layers": 3, "linear_probe": True, "ft_proj_selector": 0}),
    (FINETUNED, CLASSIFIER, {"num_proj_layers": 3, "linear_probe": False, "ft_proj_selector": 0}),
    (PROBED, CLASSIFIER, {"layer_type": "basic", "image_size": 32, "num_proj_layers": 2}),
]


def weights_of(checkpoint):
    """Official variables of a checkpoint, without steps and object graphs."""
    tensors = load_file(checkpoint) if checkpoint.suffix == ".safetensors" else TensorFlowCheckpoint(checkpoint)
    return {name: tensors[name] for name in tensors if not name.startswith(NOT_WEIGHTS)}


def ours(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def small(model_class=SimCLRForImageClassification, **changes):
    """A randomly initialised model all of whose weights differ from their start."""
    torch.manual_seed(0)
    fields = {"stem_width": 4, "depths": [2, 1, 1, 1], "image_size": 32, "proj_out_dim": 6, "num_labels": 5}
    model = model_class(SimCLRConfig(**(fields | changes)))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def written(tmp_path):
    """Writes tensors by official name as a TensorFlow checkpoint and returns its prefix."""

    def write(tensors, name="model.ckpt-7"):
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(f"{prefix}.index", f"{prefix}.data-00000-of-00001", tensors)
        return prefix

    return write


@pytest.mark.parametrize(("checkpoint", "architecture", "expected"), CASES)
def test_golden_checkpoints_convert_and_come_back(checkpoint, architecture, expected, tmp_path):
    folder = convert("simclr", checkpoint, tmp_path / "ours")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert expected.items() <= config.items() and config["stem_width"] == 2 and config["width_multiplier"] == 1
    for layout in ("tf1", "tf2"):
        back = to_official(folder, tmp_path / layout, layout=layout)
        if checkpoint not in (SAVED,) and layout == ("tf2" if checkpoint == TF2 else "tf1"):
            assert_equal(weights_of(back), weights_of(checkpoint))
        assert_equal(ours(convert("simclr", back, tmp_path / f"{layout}-again")), ours(folder))


def test_saved_model_holds_the_weights_of_the_checkpoint(tmp_path):
    folder = tmp_path / "export" / "saved_model" / "variables"
    folder.mkdir(parents=True)
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copyfile(f"{SAVED}{suffix}", folder / f"variables{suffix}")
    expected = ours(convert("simclr", TF2, tmp_path / "checkpoint"))
    assert_equal(ours(convert("simclr", tmp_path / "export", tmp_path / "a")), expected)
    assert_equal(ours(convert("simclr", folder.parent, tmp_path / "b")), expected)


@pytest.mark.parametrize("named", [Path.__fspath__, lambda path: f"{path}.index", lambda path: path.parent])
def test_prefix_index_and_folder_are_the_same_checkpoint(named, tmp_path):
    assert_equal(ours(convert("simclr", named(R18), tmp_path / "b")), ours(convert("simclr", R18, tmp_path / "a")))


@pytest.mark.parametrize("layout", ["tf1", "tf2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"layer_type": "basic", "se_ratio": 0.25, "num_proj_layers": 1},
        {"se_ratio": 0.0625},
        {"sk_ratio": 0.0625, "se_ratio": 0.5, "cifar_stem": False},
        {"sk_ratio": 0.0625, "cifar_stem": True, "num_proj_layers": 4},
        {"sk_ratio": 0.75, "stem_width": 64, "image_size": 64, "depths": [1, 1]},
        {"proj_head_mode": "none", "cifar_stem": False},
        {"num_channels": 1, "depths": [1, 3, 2, 1, 2]},
        {"ft_proj_selector": 2, "num_proj_layers": 2},
    ],
    ids=str,
)
def test_any_network_survives(changes, layout, tmp_path):
    model = small(**changes)
    model.save_pretrained(tmp_path / "ours")
    back = to_official(tmp_path / "ours", tmp_path / "model.ckpt", layout=layout)
    folder = convert("simclr", back, tmp_path / "again", image_size=model.config.image_size)
    again, info = SimCLRForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    inferred = ("layer_type", "depths", "sk_ratio", "se_ratio", "uses_cifar_stem", "proj_head_mode", "selected_layer")
    assert [getattr(again.config, name) for name in inferred] == [getattr(model.config, name) for name in inferred]
    assert again.config.embedding_size == model.config.embedding_size
    with torch.no_grad():
        images = torch.rand(2, model.config.num_channels, 64, 64)
        assert torch.equal(again(images).logits, model(images).logits)


def test_linear_head_survives_in_tf1(tmp_path):
    small(SimCLRForPreTraining, proj_head_mode="linear").save_pretrained(tmp_path / "ours")
    back = to_official(tmp_path / "ours", tmp_path / "model.ckpt")
    assert "head_contrastive/l_0/dense/kernel" in TensorFlowCheckpoint(back)
    folder = convert("simclr", back, tmp_path / "again", image_size=32)
    assert SimCLRConfig.from_pretrained(folder).proj_head_mode == "linear"
    assert_equal(ours(folder), ours(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("changes", "ours_name", "tf1", "tf2"),
    [  # as the official code names them, run with these options
        (
            {"se_ratio": 0.25},
            "backbone.encoder.stages.0.layers.0.se.expand.bias",
            "base_model/conv2d_6/bias",
            "block_groups/0/layers/0/conv_relu_dropblock_layers/9/se_expand/bias",
        ),
        (
            {"se_ratio": 0.25, "sk_ratio": 0.0625, "cifar_stem": False},
            "backbone.encoder.stages.0.layers.0.se.reduce.weight",
            "base_model/conv2d_9/kernel",
            "block_groups/0/layers/0/conv_relu_dropblock_layers/8/se_reduce/kernel",
        ),
        (
            {"layer_type": "basic", "se_ratio": 0.25},
            "backbone.encoder.stages.1.layers.0.shortcut.convolution.weight",
            "base_model/conv2d_10/kernel",
            "block_groups/1/layers/0/shortcut_layers/0/conv2d/kernel",
        ),
        (
            {"layer_type": "basic", "se_ratio": 0.25},
            "backbone.encoder.stages.0.layers.1.se.reduce.bias",
            "base_model/conv2d_8/bias",
            "block_groups/0/layers/1/se_layer/se_reduce/bias",
        ),
        (
            {"sk_ratio": 0.0625},
            "backbone.encoder.stages.1.layers.0.layer.1.squeeze.normalization.running_var",
            "base_model/batch_normalization_13/moving_variance",
            "block_groups/1/layers/0/conv_relu_dropblock_layers/3/batch_norm_relu_1/bn/moving_variance",
        ),
        (
            {"sk_ratio": 0.0625},
            "backbone.encoder.stages.1.layers.0.shortcut.convolution.weight",
            "base_model/conv2d_12/kernel",
            "block_groups/1/layers/0/projection_layers/2/conv2d/kernel",
        ),
    ],
)
def test_names_of_the_official_code(changes, ours_name, tf1, tf2):
    config = SimCLRConfig(depths=[2, 1, 2, 1], image_size=32, **changes)
    stem = "cifar" if config.uses_cifar_stem else "deep"
    network = Network(config.layer_type, (2, 1, 2, 1), stem, config.sk_ratio > 0, config.se_ratio > 0)
    names = {variable.ours: variable for variable in variables(network)}
    assert (names[ours_name].tf1, names[ours_name].tf2) == (tf1, f"model/resnet_model/{tf2}{VALUE_SUFFIX}")


@pytest.mark.parametrize(
    ("depth", "width", "sk_ratio"),
    [(18, 1, 0.0), (34, 2, 0.0), (50, 4, 0.0), (200, 1, 0.0), (50, 1, 1 / 16), (101, 2, 1 / 16), (152, 3, 1 / 16)],
)
def test_published_networks_are_told_by_their_kernels(depth, width, sk_ratio):
    config = SimCLRConfig(resnet_depth=depth, width_multiplier=width, sk_ratio=sk_ratio)
    with torch.device("meta"):
        state = SimCLRModel(config).state_dict()
    network = Network(config.layer_type, tuple(config.depths), "deep" if sk_ratio else "plain", sk_ratio > 0)
    names = [variable.ours for variable in variables(network)]
    assert set(names) == {name for name in state if not name.endswith("num_batches_tracked")}
    kernels = [(tuple(to_official_layout(state[name]).shape), False) for name in names if state[name].ndim == 4]
    found = infer_network(kernels)
    assert found.network == network
    assert (found.channels, found.width, found.sk_ratio, found.se_ratio) == (3, 64 * width, sk_ratio, 0.0)


def training_checkpoint():
    """What v2 pre-training wrote: weights, momentum, a moving average of the weights, a queue."""
    weights = weights_of(R50)
    extra = {f"{name}/Momentum": torch.full_like(tensor, 7) for name, tensor in weights.items()}
    extra |= {f"ema_model/{name}": tensor + 1 for name, tensor in weights.items()}
    return weights | extra | {"memory": torch.zeros(4, 16), "global_step": torch.tensor(9)}


def test_what_training_stores_beside_the_weights_is_left_out(tmp_path, written):
    folder = convert("simclr", written(training_checkpoint()), tmp_path / "ours")
    assert_equal(ours(folder), ours(convert("simclr", R50, tmp_path / "plain")))


@pytest.mark.parametrize("use_ema", [False, True])
def test_variables_of_no_network_are_left_out_and_named(use_ema, tmp_path, written):
    others = {"memory_ptr": torch.tensor(3), "queue/keys": torch.zeros(4, 16)}
    others |= {f"ema_model/{name}": tensor for name, tensor in others.items()}
    folder = convert("simclr", written(training_checkpoint() | others), tmp_path / "ours", use_ema=use_ema)
    plain = convert("simclr", written(training_checkpoint(), "plain"), tmp_path / "plain", use_ema=use_ema)
    assert_equal(ours(folder), ours(plain))
    card = (folder / "README.md").read_text()
    assert "belong to no network and were left out: memory_ptr, queue/keys." in card
    assert "left out" not in (plain / "README.md").read_text()


@pytest.mark.parametrize("size", [(41, 57), [41, 57]])
def test_images_that_are_not_square(size, tmp_path):
    folder = convert("simclr", R50, tmp_path / "ours", image_size=size)
    assert SimCLRConfig.from_pretrained(folder).image_size == (41, 57)
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 41, "width": 57}
    assert "impossible model" in refused(R50, tmp_path / "out", image_size=[41, 57, 3])
    assert "image_size must be of type int | list[int], got '41'" in refused(R50, tmp_path / "out", image_size="41")


def test_moving_average_on_request(tmp_path, written):
    supervised = {
        "head_supervised/linear_layer/dense/kernel": torch.ones(64, 5),
        "head_supervised/linear_layer/dense/bias": torch.ones(5),
    }
    prefix = written(training_checkpoint() | supervised)
    averaged = ours(convert("simclr", prefix, tmp_path / "ours", use_ema=True))
    plain = ours(convert("simclr", R50, tmp_path / "plain"))
    assert averaged.keys() == plain.keys()
    assert all(torch.equal(averaged[n], t + 1) for n, t in plain.items() if t.is_floating_point())
    assert "moving averages" in (tmp_path / "ours" / "README.md").read_text()
    assert "classifier.weight" in ours(convert("simclr", prefix, tmp_path / "both"))
    with pytest.raises(ConversionError, match="holds no moving average"):
        convert("simclr", R50, tmp_path / "none", use_ema=True)


def test_heads_are_left_out_on_request(tmp_path):
    folder = convert("simclr", FINETUNED, tmp_path / "ours", ignore_head=True)
    assert all(name.startswith("backbone.") for name in ours(folder))
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, SimCLRModel)
    back = weights_of(to_official(folder, tmp_path / "back"))
    assert_equal(back, {n: t for n, t in weights_of(FINETUNED).items() if n.startswith("base_model/")})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("simclrv2/finetuned_10pct/r50_1x_sk0/model.ckpt-1", 1),
        ("simclrv2/distill_1pct/r50_1x_sk0/model.ckpt-1", 1),
        ("simclrv2/pretrained/r50_1x_sk0/model.ckpt-1", 0),
        ("simclrv2/supervised/r50_1x_sk0/model.ckpt-1", 0),
        ("mine/model.ckpt-1", 0),
    ],
)
def test_layer_that_the_classifier_reads(path, expected, tmp_path, written):
    prefix = written(weights_of(FINETUNED), path)
    folder = convert("simclr", prefix, tmp_path / "ours")
    assert SimCLRConfig.from_pretrained(folder).ft_proj_selector == expected
    folder = convert("simclr", prefix, tmp_path / "given", ft_proj_selector=2)
    assert SimCLRConfig.from_pretrained(folder).ft_proj_selector == 2
    assert "layer 2 of the projection head" in (folder / "README.md").read_text()


def test_classifier_on_the_projections_is_told_by_its_width(tmp_path, written):
    weights = weights_of(FINETUNED) | {"head_supervised/linear_layer/dense/kernel": torch.ones(16, 5)}
    folder = convert("simclr", written(weights), tmp_path / "ours")
    assert SimCLRConfig.from_pretrained(folder).selected_layer == 3


def test_released_classifiers_know_the_names_of_imagenet(tmp_path, written):
    """v1 as published: no projection head, a supervised one of 1000 classes."""
    head = {
        "head_supervised/linear_layer/dense/kernel": torch.rand(16, 1000),
        "head_supervised/linear_layer/dense/bias": torch.rand(1000),
    }
    weights = {n: t for n, t in weights_of(PROBED).items() if n.startswith("base_model/")} | head
    released = convert("simclr", written(weights, "ResNet50_1x/model.ckpt-225206"), tmp_path / "released")
    config = SimCLRConfig.from_pretrained(released)
    assert config.proj_head_mode == "none" and config.id2label[0].startswith("tench")
    assert "has no projection head" in (released / "README.md").read_text()
    own = convert("simclr", written(weights, "mine/model.ckpt-1"), tmp_path / "own")
    assert SimCLRConfig.from_pretrained(own).id2label[0] == "LABEL_0"


def test_pretraining_takes_the_head_of_a_classifier(tmp_path):
    folder = convert("simclr", FINETUNED, tmp_path / "ours")
    model, info = SimCLRForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and len(model.projection_head.layers) == 3


def test_floating_point_type_is_kept(tmp_path, written):
    weights = {name: tensor.double() for name, tensor in weights_of(R18).items()}
    folder = convert("simclr", written(weights), tmp_path / "ours")
    assert_equal(weights_of(to_official(folder, tmp_path / "back")), weights)


def test_processor_and_card_lie_beside_the_weights(tmp_path, written):
    folder = convert("simclr", written(weights_of(R50), "simclrv2/pretrained/r50/model.ckpt-1"), tmp_path / "ours")
    assert SimCLRImageProcessor.from_pretrained(folder).size == {"height": 224, "width": 224}
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and "simclr" in card.data.tags
    assert "# simclrv2/pretrained/r50" in card.text
    assert (
        len(re.findall(r"\| SHA-256 of `model.ckpt-1\.(index|data-00000-of-00001)` \| `[0-9a-f]{64}` \|", card.text))
        == 2
    )


def refused(checkpoint, out, **options):
    """Convert what must be refused, see that nothing is left, and return the message."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ConversionError) as error:
        convert("simclr", checkpoint, out, **options)
    assert sorted(out.parent.iterdir()) == before
    return str(error.value)


def without(*names):
    return {name: tensor for name, tensor in weights_of(FINETUNED).items() if name not in names}


CHANGED = [
    ({"base_model/dense/kernel": torch.ones(2, 2)}, r"unknown keys: base_model/dense/kernel"),
    ({"head_supervised/linear_layer/dense/scale": torch.ones(5)}, r"unknown keys: head_supervised"),
    ({"base_model/conv2d_99/bias": torch.ones(5)}, r"unknown keys: base_model/conv2d_99/bias"),
    ({"base_model/conv2d_17/kernel": torch.ones(1, 1, 64, 16)}, r"end in the middle of a residual block"),
    ({"base_model/conv2d_3/kernel": torch.ones(3, 3, 2, 3)}, r"wrong shapes: base_model/conv2d_3/kernel"),
    ({"base_model/conv2d/kernel": torch.ones(49, 6)}, r"have no four dimensions"),
    ({"base_model/conv2d/kernel": torch.ones(7, 7, 3, 0)}, r"impossible model|wrong shapes"),
    ({"base_model/batch_normalization/gamma": torch.ones(3)}, r"wrong shapes: .* \(found \[3\], expected \[2\]\)"),
    ({"head_contrastive/nl_2/batch_normalization/beta": torch.ones(16)}, r"unknown keys: .*nl_2.*beta"),
    ({"head_contrastive/nl_2/dense/kernel": torch.ones(64)}, r"must have shape \[in, out\], found \[64\]"),
    ({"head_contrastive/nl_7/dense/kernel": torch.ones(64, 64)}, r"missing keys: .*nl_3"),
    ({"base_model/conv2d/kernel": torch.ones(7, 7, 3, 2, dtype=torch.int32)}, r"one floating-point type"),
    ({"base_model/conv2d/kernel": torch.ones(7, 7, 3, 2, dtype=torch.float64)}, r"one floating-point type, found"),
    ({"base_model/conv2d/kernel": b"import os"}, r"have no four dimensions"),
    ({"base_model/batch_normalization_3/beta": b"import os"}, r"wrong shapes"),
]


@pytest.mark.parametrize(("change", "message"), CHANGED, ids=lambda value: str(value)[:40])
def test_changed_checkpoints_are_refused(change, message, tmp_path, written):
    assert re.search(message, refused(written(without() | change), tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model/conv2d_1/kernel", "missing keys|not a SimCLR network|end in the middle"),
        (
            "base_model/batch_normalization_16/moving_mean",
            "missing keys: base_model/batch_normalization_16/moving_mean",
        ),
        ("head_contrastive/nl_1/batch_normalization/beta", "missing keys: head_contrastive/nl_1"),
        ("head_supervised/linear_layer/dense/bias", "missing keys: head_supervised/linear_layer/dense/bias"),
        ("head_supervised/linear_layer/dense/kernel", "missing keys: .*head_supervised"),
    ],
)
def test_missing_variables_are_refused(name, message, tmp_path, written):
    assert re.search(message, refused(written(without(name)), tmp_path / "out"))


def test_unknown_variables_of_an_object_graph_are_refused(tmp_path, written):
    checkpoint = TensorFlowCheckpoint(TF2)
    tensors = weights_of(TF2) | {OBJECT_GRAPH_KEY: checkpoint.string(OBJECT_GRAPH_KEY)}
    assert_equal(
        ours(convert("simclr", written(tensors, "same"), tmp_path / "ok")), ours(convert("simclr", TF2, tmp_path / "a"))
    )
    message = refused(written(tensors | {"model/extra/kernel": torch.ones(2)}, "more"), tmp_path / "out")
    assert "unknown keys: model/extra/kernel" in message
    del tensors[f"model/supervised_head/linear_layer/dense/bias{VALUE_SUFFIX}"]
    message = refused(written(tensors, "fewer"), tmp_path / "out")
    assert "missing keys: model/supervised_head/linear_layer/dense/bias" in message


def test_other_files_are_refused_with_what_they_look_like(tmp_path, written):
    bert = written({"bert/encoder/layer_0/output/dense/kernel": torch.ones(2, 2)}, "bert.ckpt")
    assert "not a SimCLR checkpoint: no variables base_model/" in refused(bert, tmp_path / "out")
    mae = GOLDEN.parent / "mae" / "pretrain_pixels" / "checkpoint.pth"
    assert "is no TensorFlow checkpoint of SimCLR; top-level keys: model" in refused(mae, tmp_path / "out")
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "not a SimCLR checkpoint" in refused(tmp_path / "other.safetensors", tmp_path / "out")
    (tmp_path / "ResNet50_1x.zip").write_bytes(b"PK")
    assert "is an archive; unpack it" in refused(tmp_path / "ResNet50_1x.zip", tmp_path / "out")
    (tmp_path / "model.ckpt-1.meta").write_bytes(b"graph")
    assert "not a torch checkpoint" in refused(tmp_path / "model.ckpt-1.meta", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no TensorFlow checkpoint"):
        convert("simclr", tmp_path / "absent", tmp_path / "out")


def test_malicious_pickles_are_refused_and_not_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model": Attack()}, tmp_path / "evil.pth")
    assert "could run code when loaded" in refused(tmp_path / "evil.pth", tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_truncated_and_damaged_checkpoints_are_refused(tmp_path, written):
    prefix = written(without())
    data = Path(f"{prefix}.data-00000-of-00001")
    whole = bytearray(data.read_bytes())
    data.write_bytes(whole[:-1])
    assert "truncated" in refused(prefix, tmp_path / "out")
    whole[len(whole) // 2] ^= 4
    data.write_bytes(whole)
    assert "does not match its checksum" in refused(prefix, tmp_path / "out")


@pytest.mark.parametrize("options", [{"ft_proj_selector": 4}, {"ft_proj_selector": 3}, {"image_size": 0}])
def test_impossible_options_are_refused(options, tmp_path):
    assert re.search("impossible model|wrong shapes", refused(FINETUNED, tmp_path / "out", **options))


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(UnknownOptionError, match="unknown option num_heads for simclr; it accepts: ignore_head"):
        convert("simclr", R50, tmp_path / "out", num_heads=2)
    convert("simclr", R18, tmp_path / "ours")
    with pytest.raises(UnknownOptionError, match="unknown option style for simclr; it accepts: layout"):
        to_official(tmp_path / "ours", tmp_path / "back", style="tf1")
    with pytest.raises(ValueError, match=r"layout must be one of .*tf1.*tf2.*got 'tf3'"):
        to_official(tmp_path / "ours", tmp_path / "back", layout="tf3")


def test_models_that_the_official_code_lacks_are_refused(tmp_path):
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    model = SimCLRModel(SimCLRConfig(backbone_config=backbone))
    with pytest.raises(ConversionError, match="knows its own ResNets only, this model has a resnet backbone"):
        write_official(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    model = small(SimCLRModel)
    for suffix in (".index", ".data-00000-of-00001"):
        mine = tmp_path / f"mine{suffix}"
        mine.write_text("mine")
        with pytest.raises(FileExistsError, match="already exists"):
            write_official(model, tmp_path / "mine")
        assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
        mine.unlink()


def test_official_weights_own_their_memory():
    model = small(SimCLRModel)
    weights = official_weights(model)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_equal(weights, before)
    assert all(tensor.is_contiguous() for tensor in weights.values())
