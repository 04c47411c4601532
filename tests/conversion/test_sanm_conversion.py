"""Checkpoints of SANM's networks: kinds, ensembles, strictness, the way back."""

from pathlib import Path

import pytest
import torch
from hubmodels.conversion import ConversionError, UnknownOptionError, convert, to_official
from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification, SANMForImageClassification
from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "sanm"
PREACT = GOLDEN / "preact_forward" / "checkpoint.pth"
ENCODER = GOLDEN / "c2d_resnet18" / "checkpoint.ckpt_cifar10_resnet18.pth"
HEAD = GOLDEN / "c2d_resnet18" / "checkpoint.head.pth"
RESNET50 = GOLDEN / "c2d_resnet50_pool" / "checkpoint.pth"
NETWORKS = [GOLDEN / "train_step" / f"checkpoint.net{number}.pth" for number in (1, 2)]


def changed(path, tmp_path, change):
    """A copy of a checkpoint whose state dict went through `change`."""
    state = torch.load(path)
    change(state.get("model", state))
    torch.save(state, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def test_architectures_are_read_from_the_tensors(tmp_path):
    expected = {
        PREACT: ("preact", [1, 2, 1, 1], False, "resnet18", 10, 32, "dividemix"),
        ENCODER: ("basic", [1, 1, 1, 2], False, "resnet18", 10, 32, "c2d"),
        RESNET50: ("bottleneck", [1, 1, 1, 1], True, "resnet50", 14, 224, "c2d"),
    }
    for number, (path, fields) in enumerate(expected.items()):
        config = AutoModelForImageClassification.from_pretrained(convert("sanm", path, tmp_path / str(number))).config
        found = (config.layer_type, config.depths, config.pool, config.decoder_type, config.num_labels)
        assert (*found, config.image_size, config.framework) == fields
        assert config.widths == [4, 8, 16, 32]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "2")
    assert (processor.size.shortest_edge, processor.crop_size.height, processor.image_mean[0]) == (256, 224, 0.6959)


def test_an_encoder_gets_fresh_heads_and_loses_its_projection(tmp_path):
    path = changed(ENCODER, tmp_path, lambda state: state.update({"head.0.weight": torch.zeros(3, 3)}))
    model = SANMForImageClassification.from_pretrained(convert("sanm", path, tmp_path / "ours", num_labels=7))
    official = torch.load(ENCODER)["model"]
    assert torch.equal(model.backbone.conv1.weight, official["encoder.module.conv1.weight"])
    assert torch.equal(model.backbone.bn1.num_batches_tracked, official["encoder.module.bn1.num_batches_tracked"])
    assert model.classifier.weight.shape == (7, 32)
    assert "classifier and decoder start anew" in (tmp_path / "ours" / "README.md").read_text()
    again = SANMForImageClassification.from_pretrained(convert("sanm", path, tmp_path / "again", num_labels=7))
    assert torch.equal(again.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("path", [PREACT, RESNET50], ids=["dividemix", "c2d"])
def test_networks_of_dividemix_and_c2d_get_a_fresh_decoder(path, tmp_path):
    """Their own code has none."""

    def without_decoder(state):
        for name in [name for name in state if "recon_module." in name]:
            del state[name]

    folder = convert("sanm", changed(path, tmp_path, without_decoder), tmp_path / "ours")
    model, whole = (
        SANMForImageClassification.from_pretrained(f) for f in (folder, convert("sanm", path, tmp_path / "whole"))
    )
    assert torch.equal(model.classifier.weight, whole.classifier.weight)
    assert model.decoder.state_dict().keys() == whole.decoder.state_dict().keys()
    assert "No reconstruction decoder is in the file" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("classes", "channels", "options", "mean", "size"),
    [
        (10, 3, {}, 0.4914, {"height": 32, "width": 32}),
        (100, 3, {}, 0.507, {"height": 32, "width": 32}),
        (10, 3, {"image_size": 64}, 0.4914, {"height": 64, "width": 64}),
        (10, 1, {"image_mean": [0.286], "image_std": [0.353]}, 0.286, {"height": 32, "width": 32}),
    ],
)
def test_the_processor_has_the_statistics_of_the_data(classes, channels, options, mean, size, tmp_path):
    def change(state):
        state["conv1.weight"] = state["conv1.weight"][:, :channels].clone()
        state["linear.weight"] = torch.zeros(classes, state["linear.weight"].shape[1])
        state["linear.bias"] = torch.zeros(classes)
        for name in [name for name in state if "recon_module." in name]:
            del state[name]

    processor = AutoImageProcessor.from_pretrained(
        convert("sanm", changed(PREACT, tmp_path, change), tmp_path / "ours", **options)
    )
    assert processor.image_mean[0] == mean and len(processor.image_mean) == channels
    assert dict(processor.size) | size == dict(processor.size)


def test_two_files_make_an_ensemble_and_two_files_again(tmp_path):
    folder = convert("sanm", NETWORKS[0], tmp_path / "pair", second=str(NETWORKS[1]))
    ensemble = AutoModelForImageClassification.from_pretrained(folder)
    assert type(ensemble) is SANMEnsembleForImageClassification
    for number, path in enumerate(NETWORKS, start=1):
        to_official(folder, tmp_path / f"net{number}.pth", layout=f"net{number}")
        before, after = torch.load(path), torch.load(tmp_path / f"net{number}.pth")["model"]
        assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    with pytest.raises(ConversionError, match="an ensemble is two official files: write each with layout"):
        to_official(folder, tmp_path / "both.pth")
    with pytest.raises(ValueError, match="layout must be net1 or net2, of an ensemble, got 'net3'"):
        to_official(folder, tmp_path / "third.pth", layout="net3")
    assert not (tmp_path / "both.pth").exists() and not (tmp_path / "third.pth").exists()


def test_files_of_different_networks_make_no_ensemble(tmp_path):
    with pytest.raises(ConversionError, match=r"missing keys|unknown keys|wrong shapes"):
        convert("sanm", NETWORKS[0], tmp_path / "out", second=str(PREACT))
    with pytest.raises(ConversionError, match="an encoder has no classifier"):
        convert("sanm", ENCODER, tmp_path / "out", second=str(ENCODER))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({"layer1.0.extra": torch.zeros(1)}), "unknown keys: layer1.0.extra"),
        (lambda state: state.pop("layer2.0.bn2.running_mean"), "missing keys: layer2.0.bn2.running_mean"),
        (lambda state: state.update({"bn1.weight": torch.zeros(5)}), r"wrong shapes: bn1.weight \(found \[5\]"),
        (
            lambda state: [state.pop(n) for n in list(state) if n.startswith("layer2")],
            r"stages layer1, layer2, ..., found",
        ),
        (
            lambda state: state.pop("linear.weight"),
            r"no network of SANM found; known layouts: .*top-level keys: conv1.weight",
        ),
    ],
    ids=["unknown", "missing", "shape", "stage", "layout"],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        convert("sanm", changed(PREACT, tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_are_checked(tmp_path):
    with pytest.raises(ConversionError, match=r"head must hold fc.\* and recon_module.\* only, found conv1.weight"):
        convert("sanm", ENCODER, tmp_path / "out", head=str(PREACT))
    with pytest.raises(ConversionError, match="impossible model: framework must be one of"):
        convert("sanm", PREACT, tmp_path / "out", framework="mixmatch")
    with pytest.raises(ConversionError, match="num_labels must be that of the file, 10, or left out, got 7"):
        convert("sanm", PREACT, tmp_path / "out", num_labels=7)
    with pytest.raises(ConversionError, match="image_mean must have one number for each of the 3 channels"):
        convert("sanm", PREACT, tmp_path / "out", image_mean=[0.5])
    with pytest.raises(UnknownOptionError, match="unknown option num_heads for sanm"):
        convert("sanm", PREACT, tmp_path / "out", num_heads=2)


def test_the_softmax_of_the_official_script_is_an_option(tmp_path):
    folders = [
        convert("sanm", ENCODER, tmp_path / str(flag), head=str(HEAD), softmax_outputs=flag) for flag in (True, False)
    ]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [AutoModelForImageClassification.from_pretrained(folder)(images).logits for folder in folders]
    torch.testing.assert_close(outputs[0], outputs[1].softmax(dim=1))
    assert "softmax_outputs=true" in (folders[1] / "README.md").read_text()


def test_other_backbones_have_no_official_layout(tmp_path):
    inner = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    SANMForImageClassification(SANMConfig(backbone_config=inner)).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ConversionError, match="only the official networks can be written, this model has a resnet backbone"
    ):
        to_official(tmp_path / "other", tmp_path / "out.pth")
