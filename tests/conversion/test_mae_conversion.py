"""Every kind of official MAE file converts, loads without a word, and comes back bit for bit."""

import re
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hubmodels.conversion import convert, to_official
from hubmodels.conversion.checkpoint_reading import ConversionError, read_checkpoint
from hubmodels.conversion.key_mapping import check_identical
from hubmodels.conversion.mae import Kind, key_map
from hubmodels.conversion.mae import convert as convert_content
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from huggingface_hub import ModelCard
from official_files import GOLDEN, encoder_state, golden_state
from timm.models.vision_transformer import VisionTransformer
from transformers import ViTMAEConfig, ViTMAEForPreTraining

PRETRAINING = {"num_heads": 4, "decoder_num_heads": 3}
CASES = {  # golden case -> class, what must be said, config that must be found
    "pretrain_pixels": (
        MAEForPreTraining,
        PRETRAINING | {"norm_pix_loss": False},
        {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 96},
    ),
    "pretrain_normpix_adamw": (MAEForPreTraining, PRETRAINING, {"norm_pix_loss": True, "mask_ratio": 0.6}),
    "finetune_global_pool_mixup": (
        MAEForImageClassification,
        {"num_heads": 4},
        {"num_labels": 7, "pooling": "mean", "probe_batch_norm": False, "num_hidden_layers": 3},
    ),
    "finetune_cls_token_cutmix": (
        MAEForImageClassification,
        {"num_heads": 4},
        {"num_labels": 5, "pooling": "cls", "probe_batch_norm": False},
    ),
    "linear_probe_cls": (
        MAEForImageClassification,
        {"num_heads": 4},
        {"num_labels": 6, "pooling": "cls", "probe_batch_norm": True},
    ),
}


def convert_case(case: str, out: Path, **options) -> Path:
    return convert("mae", GOLDEN / case / "checkpoint.pth", out, **{**CASES[case][1], **options})


def load_strictly(model_class, folder: Path):
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not {name: keys for name, keys in info.items() if keys}
    return model


@pytest.mark.parametrize("case", CASES)
def test_golden_checkpoint_converts_and_comes_back(case, tmp_path):
    model_class, _, expected = CASES[case]
    folder = convert_case(case, tmp_path / "out")
    config = load_strictly(model_class, folder).config
    common = {"hidden_size": 32, "patch_size": 8, "image_size": 32, "num_channels": 3, "num_attention_heads": 4}
    for name, value in (common | {"intermediate_size": 128, "layer_norm_eps": 1e-6} | expected).items():
        assert getattr(config, name) == value, name

    official = golden_state(case)
    restored = read_checkpoint(to_official(folder, tmp_path / "back.pth"))
    assert list(restored) == ["model"]
    assert list(restored["model"]) == list(official)
    check_identical(official, restored["model"])


def test_encoder_only_file(tmp_path, write_checkpoint):
    """The released `mae_pretrain_vit_*.pth`: an MAEModel, which the other classes take as initialisation."""
    state = {
        key: value
        for key, value in golden_state("pretrain_normpix_adamw").items()
        if not key.startswith("decoder_") and key != "mask_token"
    }
    path = write_checkpoint({"model": state}, "mae_pretrain_vit_tiny.pth")
    folder = convert("mae", path, tmp_path / "out", num_heads=4)
    encoder = load_strictly(MAEModel, folder)
    assert encoder.config.norm_pix_loss is True
    restored = read_checkpoint(to_official(folder, tmp_path / "back.pth"))["model"]
    assert list(restored) == list(state)
    check_identical(state, restored)

    for model_class in (MAEForPreTraining, MAEForImageClassification, MAEBackbone):
        model = model_class.from_pretrained(folder)
        assert torch.equal(model.vit.layers[1].mlp.fc2.weight, encoder.layers[1].mlp.fc2.weight)
        assert torch.equal(model.vit.embeddings.position_embeddings, encoder.embeddings.position_embeddings)


def test_mean_pooled_linear_probe(tmp_path, write_checkpoint):
    """The official linear probe has a `--global_pool` switch too; then `fc_norm` and `head.0` occur together."""
    state = golden_state("linear_probe_cls")
    for name in ("weight", "bias"):
        state[f"fc_norm.{name}"] = state.pop(f"norm.{name}")
    folder = convert("mae", write_checkpoint({"model": state}), tmp_path / "out", num_heads=4)
    config = load_strictly(MAEForImageClassification, folder).config
    assert (config.pooling, config.probe_batch_norm) == ("mean", True)
    check_identical(state, read_checkpoint(to_official(folder, tmp_path / "back.pth"))["model"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_type_is_kept(dtype, tmp_path, write_checkpoint):
    state = {key: value.to(dtype) for key, value in golden_state("finetune_cls_token_cutmix").items()}
    folder = convert("mae", write_checkpoint({"model": state}), tmp_path / "out", num_heads=4)
    assert MAEConfig.from_pretrained(folder).dtype == dtype
    check_identical(state, read_checkpoint(to_official(folder, tmp_path / "back.pth"))["model"])


@pytest.mark.parametrize(
    ("name", "norm_pix_loss"),
    [
        ("mae_pretrain_vit_base_full.pth", True),
        ("mae_visualize_vit_base.pth", False),
        ("mae_visualize_vit_large_ganloss.pth", False),
    ],
)
def test_name_of_a_released_file_tells_the_loss(name, norm_pix_loss, tmp_path, write_checkpoint):
    path = write_checkpoint({"model": golden_state("pretrain_pixels")}, name)
    assert MAEConfig.from_pretrained(convert("mae", path, tmp_path / "a", **PRETRAINING)).norm_pix_loss == norm_pix_loss
    folder = convert("mae", path, tmp_path / "b", **PRETRAINING, norm_pix_loss=not norm_pix_loss)
    assert MAEConfig.from_pretrained(folder).norm_pix_loss != norm_pix_loss


def test_shared_and_transposed_tensors_convert(tmp_path, write_checkpoint):
    state = golden_state("finetune_cls_token_cutmix")
    state["blocks.1.norm1.weight"] = state["blocks.0.norm1.weight"]
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].t().contiguous().t()
    folder = convert("mae", write_checkpoint({"model": state}), tmp_path / "out", num_heads=4)
    check_identical(state, read_checkpoint(to_official(folder, tmp_path / "back.pth"))["model"])


def test_recorded_arguments_of_a_fine_tuning_run(tmp_path, write_checkpoint):
    content = {"model": golden_state("finetune_cls_token_cutmix"), "args": Namespace(drop_path=0.1), "epoch": 1}
    folder = convert("mae", write_checkpoint(content), tmp_path / "out", num_heads=4)
    assert MAEConfig.from_pretrained(folder).drop_path_rate == 0.1


def test_released_classifier_gets_the_imagenet_names(tmp_path, write_checkpoint):
    state = golden_state("finetune_global_pool_mixup")
    state |= {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    released = write_checkpoint({"model": state}, "mae_finetuned_vit_base.pth")
    config = MAEConfig.from_pretrained(convert("mae", released, tmp_path / "a", num_heads=4))
    assert (len(config.id2label), config.id2label[1]) == (1000, "goldfish, Carassius auratus")
    own = write_checkpoint({"model": state}, "checkpoint-99.pth")
    assert MAEConfig.from_pretrained(convert("mae", own, tmp_path / "b", num_heads=4)).id2label[1] == "LABEL_1"


@pytest.mark.parametrize(
    ("width", "heads", "patch", "grid", "timm_name"),
    [(768, 12, 16, 14, "base"), (1024, 16, 16, 14, "large"), (1280, 16, 14, 16, "huge")],
)
def test_released_sizes_need_no_heads(width, heads, patch, grid, timm_name, tmp_path, write_checkpoint):
    source = write_checkpoint({}, f"mae_pretrain_vit_{timm_name}.pth")
    config = convert_content({"model": encoder_state(width, 1, patch, grid)}, source).model.config
    assert (config.num_attention_heads, config.image_size, config.patch_size) == (heads, 224, patch)
    assert (config.hidden_size, config.intermediate_size) == (width, 4 * width)


SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_real_sizes_have_exactly_the_names_and_shapes_of_timm(size, pooling):
    """timm's vision transformer, which the official classifier extends, is the independent witness."""
    sizes = SIZES[size]
    config = MAEConfig(**sizes, intermediate_size=4 * sizes["hidden_size"], num_labels=1000, pooling=pooling)
    with torch.device("meta"):
        model = MAEForImageClassification(config)
        witness = VisionTransformer(
            patch_size=sizes["patch_size"],
            embed_dim=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            global_pool={"mean": "avg", "cls": "token"}[pooling],
        )
    official = key_map(Kind.of_model(model)).to_official(model.state_dict())
    expected = {key: tensor.shape for key, tensor in witness.state_dict().items()}
    assert {key: tensor.shape for key, tensor in official.items()} == expected


@pytest.mark.parametrize(("size", "count"), [("base", 111_907_840), ("large", 329_541_888), ("huge", 657_074_508)])
def test_real_sizes_with_decoder_have_all_values(size, count):
    config = MAEConfig(**SIZES[size], intermediate_size=4 * SIZES[size]["hidden_size"])
    with torch.device("meta"):
        model = MAEForPreTraining(config)
    official = key_map(Kind.of_model(model)).to_official(model.state_dict())
    assert sum(tensor.numel() for tensor in official.values()) == count
    assert Kind.of_keys(official) == Kind.of_model(model)
    assert "decoder_blocks.7.attn.qkv.weight" in official
    assert key_map(Kind.of_model(model)).to_ours(official).keys() == model.state_dict().keys()


def test_processor_and_card_lie_beside_the_weights(tmp_path, write_checkpoint):
    path = write_checkpoint({"model": golden_state("pretrain_pixels")}, "mae_visualize_vit_large_ganloss.pth")
    folder = convert("mae", path, tmp_path / "out", **PRETRAINING)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        file.name for file in folder.iterdir()
    }
    processor = MAEImageProcessor.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (int(32 / 0.875), 32)
    assert processor(torch.zeros(3, 50, 60, dtype=torch.uint8))["pixel_values"][0].shape == (3, 32, 32)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "transformers"
    assert "CC-BY-NC 4.0" in card.text and "adversarial loss" in card.text and path.name in card.text


def test_images_of_other_channels_get_no_processor(tmp_path, write_checkpoint):
    state = golden_state("finetune_cls_token_cutmix")
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1].clone()
    folder = convert("mae", write_checkpoint({"model": state}), tmp_path / "out", num_heads=4)
    assert MAEConfig.from_pretrained(folder).num_channels == 1
    assert not (folder / "preprocessor_config.json").exists()
    assert "no image processor" in (folder / "README.md").read_text()


def refused(content, out: Path, write_checkpoint, **options) -> str:
    """Convert `content`, which must fail and leave nothing, and return the message."""
    path = write_checkpoint(content)
    with pytest.raises(ConversionError) as error:
        convert("mae", path, out, **options)
    assert [file.name for file in out.parent.iterdir()] == [path.name]
    return str(error.value)


def without(state: dict, *keys: str) -> dict:
    return {key: value for key, value in state.items() if key not in keys}


PIXELS = golden_state("pretrain_pixels")
CLASSIFIER = golden_state("finetune_cls_token_cutmix")
CHANGED = [
    (CLASSIFIER | {"blocks.0.ls1.gamma": torch.ones(32)}, r"unknown keys: blocks\.0\.ls1\.gamma"),
    (CLASSIFIER | {"blocks.5.norm1.weight": torch.ones(32)}, r"unknown keys: .*missing keys: "),
    (CLASSIFIER | {"vit.layernorm.weight": torch.ones(32)}, r"unknown keys: vit\.layernorm\.weight"),
    (without(CLASSIFIER, "blocks.1.attn.qkv.bias"), r"missing keys: blocks\.1\.attn\.qkv\.bias"),
    (without(CLASSIFIER, "norm.bias"), r"missing keys: norm\.bias"),
    (without(CLASSIFIER, "head.weight"), r"missing keys: head\.weight"),
    (CLASSIFIER | {"fc_norm.weight": torch.ones(32)}, r"unknown keys: norm\.weight.*missing keys: fc_norm\.bias"),
    (CLASSIFIER | {"head.bias": torch.ones(9)}, r"wrong shapes: head\.bias \(found \[9\], expected \[5\]\)"),
    (CLASSIFIER | {"blocks.1.attn.qkv.weight": torch.ones(95, 32)}, r"wrong shapes: .* \(found \[95, 32\]"),
    (CLASSIFIER | {"pos_embed": torch.zeros(1, 16, 32)}, r"leaves 15 patches, which is not a square grid"),
    (CLASSIFIER | {"patch_embed.proj.weight": torch.ones(32, 192)}, r"must have shape \[D, C, p, p\]"),
    (CLASSIFIER | {"patch_embed.proj.weight": torch.ones(32, 3, 8, 4)}, r"wrong shapes: patch_embed"),
]


@pytest.mark.parametrize(("state", "message"), CHANGED)
def test_changed_state_dict_is_refused(state, message, tmp_path, write_checkpoint):
    assert re.search(message, refused({"model": state}, tmp_path / "out", write_checkpoint, num_heads=4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PIXELS, r"no 'model' key in the checkpoint; top-level keys: cls_token, pos_embed, .*in all"),
        (
            {"state_dict": {"encoder_q.conv1.weight": torch.zeros(1)}},
            r"top-level keys: state_dict; .*momentum-contrast",
        ),
        (
            {"model": {"layer1.0.conv1.weight": torch.zeros(1)}},
            r"not an MAE checkpoint: .*top-level keys: model.*ResNet",
        ),
        ({"model": {"vit.layers.0.attention.q_proj.bias": torch.zeros(1)}}, r"already in transformers layout"),
        ({"model": {"albert.encoder.albert_layer_groups.0.x": torch.zeros(1)}}, r"ALBERT"),
        ({"model": {"something": torch.zeros(1)}}, r"not an MAE checkpoint: no cls_token.*top-level keys: model$"),
        ({"model": PIXELS, "args": 3}, r"'args' must be the arguments of a training run, it is a int"),
        ({"model": PIXELS, "args": Namespace(norm_pix_loss="no")}, r"args.norm_pix_loss .* unexpected value: 'no'"),
        ({"model": PIXELS, "args": Namespace(norm_pix_loss=True, mask_ratio=2.0)}, r"impossible model: .*mask_ratio"),
    ],
)
def test_other_files_are_refused_with_what_they_look_like(content, message, tmp_path, write_checkpoint):
    assert re.search(message, refused(content, tmp_path / "out", write_checkpoint, **PRETRAINING))


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (PIXELS, {}, r"num_heads not given.*width 32 .*768: 12, 1024: 16, 1280: 16.*--num-heads"),
        (PIXELS, {"num_heads": 4}, r"decoder_num_heads not given.*width 24 .*512: 16.*--decoder-num-heads"),
        (PIXELS, PRETRAINING, r"pass norm_pix_loss"),
        (CLASSIFIER, {"num_heads": 5}, r"num_heads must divide the width 32, got 5"),
        (CLASSIFIER, {"num_heads": 0}, r"num_heads must divide the width 32, got 0"),
        (CLASSIFIER, {"num_heads": 4, "decoder_num_heads": 3}, r"the checkpoint has no decoder"),
    ],
)
def test_what_tensors_do_not_show_must_be_given(state, options, message, tmp_path, write_checkpoint):
    assert re.search(message, refused({"model": state}, tmp_path / "out", write_checkpoint, **options))


def test_unknown_method_and_option(tmp_path):
    with pytest.raises(ValueError, match="no converter for method 'albert'; there are converters for: mae"):
        convert("albert", tmp_path / "a.pth", tmp_path / "out")
    with pytest.raises(TypeError, match="unknown option heads for mae; it accepts: num_heads, decoder_num_heads"):
        convert_case("linear_probe_cls", tmp_path / "out", heads=3)


def test_existing_output_is_refused_and_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists"):
        convert_case("linear_probe_cls", out)
    folder = convert_case("linear_probe_cls", tmp_path / "new")
    with pytest.raises(FileExistsError, match="already exists"):
        to_official(folder, out / "mine.txt")
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("mine.txt", "mine")]


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError("No space left on device")

    folder = convert_case("linear_probe_cls", tmp_path / "new")
    monkeypatch.setattr(MAEImageProcessor, "save_pretrained", disk_full)
    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        convert_case("linear_probe_cls", tmp_path / "out")
    with pytest.raises(OSError, match="No space left"):
        to_official(folder, tmp_path / "back.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_stock_transformers_folder_becomes_official(tmp_path):
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    decoder = {f"decoder_{name}": value for name, value in encoder.items()}
    stock = ViTMAEForPreTraining(ViTMAEConfig(**encoder, **decoder, image_size=32, patch_size=8))
    stock.save_pretrained(tmp_path / "stock")
    official = read_checkpoint(to_official(tmp_path / "stock", tmp_path / "official.pth"))["model"]
    assert list(official) == list(PIXELS)
    assert torch.equal(official["decoder_blocks.1.mlp.fc1.weight"], stock.decoder.decoder_layers[1].mlp.fc1.weight)
    attention = stock.vit.layers[1].attention
    assert torch.equal(official["blocks.1.attn.qkv.bias"][32:64], attention.k_proj.bias)


@pytest.mark.parametrize(
    "change",
    [{"image_size": (32, 64)}, {"qkv_bias": False}, {"hidden_act": "relu"}],
    ids=lambda change: next(iter(change)),
)
def test_what_the_official_code_cannot_express_is_refused(change, tmp_path):
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    MAEModel(MAEConfig(**fields | change)).save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match=f"cannot express {next(iter(change))}="):
        to_official(tmp_path / "model", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_folders_that_hold_no_known_model_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="is not a model folder"):
        to_official(tmp_path, tmp_path / "out.pth")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["ResNetModel"]}')
    with pytest.raises(ConversionError, match="holds a ResNetModel, which no converter knows"):
        to_official(folder, tmp_path / "out.pth")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match="holds a None"):
        to_official(folder, tmp_path / "out.pth")


def test_folder_whose_weights_do_not_fit_is_refused(tmp_path):
    folder = convert_case("finetune_cls_token_cutmix", tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ConversionError, match=r"do not fit its config.*missing_keys.*vit\.layers\.2"):
        to_official(folder, tmp_path / "out.pth")


def test_conversion_is_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_case("pretrain_pixels", tmp_path / "out")
