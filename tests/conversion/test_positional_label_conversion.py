"""Checkpoints of the official Positional Label code: both directions, training files, refused files."""

from pathlib import Path

import pytest
import torch
from hubmodels.conversion import ConversionError, UnknownOptionError, _method_module, convert, to_official
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, SwinConfig
from typer.testing import CliRunner

from hubmodels.cli import app
from tests.modeling.tiny_positional_label import SWIN, VIT, tiny_classifier

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "positional_label"
HEADS = {"vit_absolute_official": 4, "swin_relative_official": [2, 4], "swin_absolute_official": [2, 4]}


def official(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / name / "weights.safetensors")


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(name, write_checkpoint, tmp_path):
    """Bit for bit, the masks of attention windows included."""
    state = official(name)
    folder = convert("positional_label", write_checkpoint({"model": state}), tmp_path / "ours", num_heads=HEADS[name])
    back = torch.load(to_official(folder, tmp_path / "back.pth"), weights_only=True)["model"]
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.backbone_variant == "authors"
    assert model.config.keep_resolution == (name == "swin_absolute_official")
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.crop_size["height"] == 32 and processor.size["shortest_edge"] == 36
    card = (folder / "README.md").read_text()
    assert "arxiv:2206.04981" in card and "AutoModelForImageClassification" in card


def test_a_training_file_with_its_settings(tmp_path, monkeypatch):
    """The settings are an object of yacs, which is not installed: they are read as a dictionary, and not used."""
    import sys
    from types import ModuleType

    module = ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = module.CfgNode(MODEL=module.CfgNode(NAME="swin", DROP_PATH_RATE=0.2))
    settings.__dict__["__immutable__"] = True
    content = {
        "model": official("swin_relative_official"),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "scaler": {"scale": 65536.0},
        "max_accuracy": 12.5,
        "epoch": 7,
        "config": settings,
    }
    torch.save(content, tmp_path / "ckpt_epoch_7.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    folder = convert("positional_label", tmp_path / "ckpt_epoch_7.pth", tmp_path / "ours", num_heads=[2, 4])
    assert PositionalLabelForImageClassification.from_pretrained(folder).config.position_label == "relative"


def test_other_classes_in_a_file_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": official("vit_absolute_official"), "config": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ConversionError, match=r"refers to .*print"):
        convert("positional_label", tmp_path / "evil.pth", tmp_path / "ours", num_heads=4)
    assert not (tmp_path / "ours").exists()


def test_unused_patch_merging_is_left_out(write_checkpoint, tmp_path):
    state = official("swin_absolute_official")
    state |= {"layers.0.downsample.reduction.weight": torch.zeros(16, 32)}
    state |= {f"layers.0.downsample.norm.{kind}": torch.zeros(32) for kind in ("weight", "bias")}
    folder = convert("positional_label", write_checkpoint({"model": state}), tmp_path / "ours", num_heads=[2, 4])
    assert "layers.0.downsample.reduction.weight" in (folder / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_types_survive(dtype, write_checkpoint, tmp_path):
    state = {key: tensor.to(dtype) for key, tensor in official("vit_absolute_official").items()}
    folder = convert("positional_label", write_checkpoint({"model": state}), tmp_path / "ours", num_heads=4)
    back = torch.load(to_official(folder, tmp_path / "back.pth"), weights_only=True)["model"]
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == dtype for key in state)


def test_published_sizes_need_no_options(tmp_path):
    """ViT-B: heads from the width; the tensors are expanded zeros, so that nothing is large."""
    from hubmodels.conversion.positional_label import SWIN_HEADS, VIT_HEADS

    assert VIT_HEADS[768] == (12,) and SWIN_HEADS[96] == (3, 6, 12, 24) and SWIN_HEADS[128] == (4, 8, 16, 32)
    with torch.device("meta"):
        config = {"model_type": "vit", "layer_norm_eps": 1e-6}
        model = PositionalLabelForImageClassification(
            PositionalLabelConfig(backbone_config=config, backbone_variant="authors", num_labels=1000)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.position_head.state_dict().items()}
    assert shapes["fc1.weight"] == (384, 384) and shapes["fc2.weight"] == (192, 384)  # published sizes
    assert shapes["classifier.weight"] == (196, 192)
    with torch.device("meta"):
        inner = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
        settings = {"backbone_variant": "authors", "position_label": "relative"}
        swin = PositionalLabelForImageClassification(PositionalLabelConfig(backbone_config=inner, **settings))
    shapes = {name: tuple(tensor.shape) for name, tensor in swin.position_head.state_dict().items()}
    assert shapes["fc1.weight"] == (384, 768) and shapes["fc2.weight"] == (384, 384)
    assert shapes["classifier.weight"] == (169, 384)


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in official("vit_absolute_official").items() if name != key}


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (without("norm.bias"), {"num_heads": 4}, "missing keys: norm.bias"),
        (without("head.weight"), {"num_heads": 4}, "missing keys: head.weight"),
        (without("") | {"surplus": torch.zeros(1)}, {"num_heads": 4}, "unknown keys: surplus"),
        (without(""), {}, "num_heads not given: .* width 32 is not a published one"),
        (without(""), {"num_heads": 5}, "num_heads must divide the width 32, got 5"),
        (without("") | {"cls_token": torch.zeros(1, 1, 32)}, {"num_heads": 4}, "it is another ViT"),
        (without("") | {"pos_embed": torch.zeros(1, 17, 32)}, {"num_heads": 4}, "17 rows, which is not a square grid"),
        (without("") | {"To2D.fc1.weight": torch.zeros(16, 20)}, {"num_heads": 4}, "To2D.fc1 reads 20 channels"),
        ({"conv1.weight": torch.zeros(1)}, {}, "not a checkpoint of the official Positional Label code"),
        (official("swin_relative_official"), {"num_heads": [2, 4], "window_size": 7}, "masks are of windows of 4"),
    ],
)
def test_wrong_files_are_refused(state, options, message, write_checkpoint, tmp_path):
    with pytest.raises(ConversionError, match=message):
        convert("positional_label", write_checkpoint({"model": state}), tmp_path / "ours", **options)
    assert not (tmp_path / "ours").exists()


def test_unknown_options_are_refused(write_checkpoint, tmp_path):
    with pytest.raises(UnknownOptionError, match="unknown option norm_pix_loss for positional_label"):
        convert("positional_label", write_checkpoint({"model": without("")}), tmp_path / "ours", norm_pix_loss=True)


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("vit", {}, "backbone_variant='stock'"),
        ("vit", {"backbone_variant": "authors", "position_label": "both"}, "position_label='both'"),
        ("vit", {"backbone_variant": "authors", "feature_split": "full"}, "feature_split='full'"),
        (
            SwinConfig(**(SWIN | {"depths": [2], "num_heads": [2], "window_size": 3})),
            {"backbone_variant": "authors"},
            "window_size 3 does not divide a map of 8x8 tokens",
        ),
        (
            SwinConfig(**(SWIN | {"image_size": 12, "window_size": 4})),
            {"backbone_variant": "authors", "position_label": "relative"},
            "merges maps of even sides only, got one of 3x3 tokens",
        ),
    ],
)
def test_what_the_official_code_has_not(backbone, settings, message, tmp_path):
    tiny_classifier(backbone, **settings).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match=message):
        to_official(tmp_path / "ours", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_command_line_takes_heads_of_every_stage(tmp_path):
    checkpoint = GOLDEN / "swin_relative_official" / "weights.safetensors"
    arguments = ["convert", "positional_label", str(checkpoint), str(tmp_path / "ours"), "--set", "num_heads=[2, 4]"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "ours" / "config.json").is_file()


OBLONG = {
    "vit": ({"model_type": "vit", **VIT, "patch_size": 4, "layer_norm_eps": 1e-6}, "absolute", 2),
    "vit relative": ({"model_type": "vit", **VIT, "patch_size": 4, "layer_norm_eps": 1e-6}, "relative", 2),
    "swin": ({"model_type": "swin", **SWIN, "drop_path_rate": 0.0}, "relative", [2, 2]),
    "swin without head": ({"model_type": "swin", **SWIN, "drop_path_rate": 0.0}, None, [2, 2]),
}


def oblong(kind: str, size) -> PositionalLabelForImageClassification:
    inner, label, _ = OBLONG[kind]
    settings = {"backbone_variant": "authors", "position_label": label}
    config = PositionalLabelConfig(backbone_config=inner | {"image_size": size}, num_labels=3, **settings)
    return PositionalLabelForImageClassification(config).eval()


@pytest.mark.parametrize("kind", OBLONG)
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "given"])
def test_images_that_are_no_squares(kind, is_stored, tmp_path, caplog):
    """The ViT's grid is 2x8, which has as many tokens as 4x4."""
    size, heads = ((8, 32) if kind.startswith("vit") else (32, 64)), OBLONG[kind][2]
    model = oblong(kind, size)
    model.save_pretrained(tmp_path / "ours")
    file, options = to_official(tmp_path / "ours", tmp_path / "official.pth"), {"num_heads": heads}
    if not is_stored:
        torch.save({"model": torch.load(file, weights_only=True)["model"]}, file)
        options["image_size"] = size
    if kind.startswith("swin"):  # no block of it shifts its windows, so no mask shows their size
        options["window_size"] = SWIN["window_size"]
    again = PositionalLabelForImageClassification.from_pretrained(
        convert("positional_label", file, tmp_path / "again", **options)
    )
    assert again.config.image_size == size and not caplog.records
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found, expected = (each(pixels, return_position=True) for each in (again, model))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    if OBLONG[kind][1] is not None:
        torch.testing.assert_close(found.position_loss, expected.position_loss, rtol=0, atol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert (processor.crop_size["height"], processor.crop_size["width"]) == size
    assert "square" not in (tmp_path / "again" / "README.md").read_text()


def test_a_size_that_is_given_counts_more_than_the_stored_one(tmp_path):
    oblong("vit", (8, 32)).save_pretrained(tmp_path / "ours")
    file = to_official(tmp_path / "ours", tmp_path / "official.pth")
    folder = convert("positional_label", file, tmp_path / "again", num_heads=2, image_size=16)
    assert PositionalLabelForImageClassification.from_pretrained(folder).config.image_size == 16
    torch.save(torch.load(file, weights_only=True) | {"image_size": 16}, tmp_path / "foreign.pth")
    foreign = convert("positional_label", tmp_path / "foreign.pth", tmp_path / "foreign", num_heads=2)
    assert PositionalLabelForImageClassification.from_pretrained(foreign).config.image_size == 16


@pytest.mark.parametrize("name", HEADS)
def test_a_square_grid_that_is_assumed_is_named(name, write_checkpoint, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        convert(
            "positional_label", write_checkpoint({"model": official(name)}), tmp_path / "ours", num_heads=HEADS[name]
        )
    notes = [record.message for record in caplog.records if "taken for those of a square grid" in record.message]
    assert len(notes) == 1 and "of images of 32x32 pixels" in notes[0]
    assert notes[0] in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "size", "options", "message"),
    [
        ("vit", (12, 20), {}, r"pos_embed has 15 rows, which is not a square grid. Pass image_size"),
        ("swin", (16, 32), {}, r"head_coordinate has 21 classes, which no square grid has. Pass image_size"),
        ("swin without head", (32, 32), {}, r"without position head no tensor shows it. Pass image_size"),
        (
            "vit",
            (12, 20),
            {"image_size": (8, 32)},
            "image_size 8x32 gives a grid of 2x8 tokens, for which pos_embed must have 16 rows, found 15",
        ),
        (
            "swin",
            (16, 32),
            {"image_size": 32},
            "image_size 32x32 gives a grid of 4x4 tokens, .* head_coordinate.weight must have 49 classes, found 21",
        ),
    ],
)
def test_sizes_that_are_needed_or_do_not_fit(kind, size, options, message, write_checkpoint, tmp_path):
    file = write_checkpoint({"model": _method_module("positional_label").to_official(oblong(kind, size))})
    with pytest.raises(ConversionError, match=message):
        convert("positional_label", file, tmp_path / "ours", num_heads=OBLONG[kind][2], **options)
