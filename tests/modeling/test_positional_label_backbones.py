"""Positional Label around every family of backbones: tokens, grids, loss, wrapping, the way back to the stock class."""

import pytest
import torch
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextV2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    ViTConfig,
)

from tests.modeling.tiny_positional_label import (
    MAE,
    SWIN,
    VIT,
    WIDE_VIT,
    backbone_configs,
    images,
    tiny_classifier,
)

FAMILIES = list(backbone_configs())
PREFIXES = {"deit": 2, "dinov2_with_registers": 4, "swin": 0, "swinv2": 0, "timm_swin": 0}
POSITIONED = ["vit", "deit", "dinov2", "dinov2_with_registers", "beit_cls"]


def stock(family: str):
    """The stock classifier of a family with random weights, also where initialisation leaves zeros."""
    torch.manual_seed(0)
    inner = backbone_configs()[family]
    inner.num_labels = 4
    if family == "deit":
        inner.architectures = ["DeiTForImageClassification"]  # there is another, with two classifiers
    model = AutoModelForImageClassification.from_config(inner).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_grid_and_gradients(family):
    pooling = "pooler" if family in ("beit", "timm_vit_mean") else "mean"
    model = tiny_classifier(family, position_label="both", pooling=pooling)
    side = 4 if "swin" in family else 3
    assert model.view.grid == (side, side)
    assert model.view.num_prefix_tokens == PREFIXES.get(family, 1)
    pixels = images(model)
    tokens, pooled, _ = model.view.run(model.backbone, pixels, {})
    assert tokens.shape == (2, side**2, 16) and pooled.shape == (2, 16)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, side**2), atol=1e-5, rtol=0)  # after the final norm
    model.train()(pixels, labels=torch.tensor([0, 3])).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all("mask_token" in name for name in missing), missing


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_wrap_and_unwrap_keep_the_logits(family, tmp_path):
    model = stock(family)
    wrapped = PositionalLabelForImageClassification.wrap(model, position_label="relative")
    pixels = images(wrapped)
    expected = model(pixels).logits
    torch.testing.assert_close(wrapped(pixels).logits, expected, atol=1e-5, rtol=1e-5)
    assert wrapped.config.num_labels == 4 and wrapped.num_labels == 4
    plain = wrapped.unwrap()
    assert type(plain) is type(model)
    torch.testing.assert_close(plain(pixels).logits, expected, atol=1e-5, rtol=1e-5)
    assert {id(p) for p in plain.parameters()} <= {id(p) for p in wrapped.parameters()}
    plain.save_pretrained(tmp_path / "plain")
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(again.eval()(pixels).logits, expected, atol=1e-5, rtol=1e-5)
    wrapped.save_pretrained(tmp_path / "wrapped")
    loaded, info = PositionalLabelForImageClassification.from_pretrained(tmp_path / "wrapped", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(loaded(pixels).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_checkpoints_load(family, tmp_path):
    model = stock(family)
    model.save_pretrained(tmp_path / "stock")
    loaded, info = PositionalLabelForImageClassification.from_pretrained(
        tmp_path / "stock", position_label="relative", output_loading_info=True
    )
    new = {f"position_head.{name}" for name, _ in loaded.position_head.named_parameters()}
    assert info["missing_keys"] == new and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels = images(loaded)
    assert loaded.config.position_label == "relative" and not loaded.training
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
    other = PositionalLabelForImageClassification.from_pretrained(
        tmp_path / "stock", num_labels=7, ignore_mismatched_sizes=True
    )
    assert other(pixels).logits.shape == (2, 7)
    ours, theirs = other.backbone.state_dict(), loaded.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
@torch.no_grad()
def test_other_poolings_become_a_dinov2_classifier(family, pooling, tmp_path):
    inner = ViTConfig(**WIDE_VIT, layer_norm_eps=1e-12) if family == "vit" else backbone_configs()[family]
    model = tiny_classifier(inner, pooling=pooling)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pixels = images(model)
    plain = model.to_backbone_classifier()
    if (family, pooling) == ("vit", "cls"):
        assert type(plain).__name__ == "ViTForImageClassification"
    else:
        assert type(plain) is Dinov2ForImageClassification
    plain.save_pretrained(tmp_path)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        (ViTConfig(**VIT), {"backbone_variant": "authors"}, "no stock class has the network"),
        (SwinConfig(**SWIN), {"backbone_variant": "authors"}, "no stock class has the network"),
        ("deit", {}, "no stock class of a deit pools by 'mean'"),
        (ViTConfig(**VIT), {}, "DINOv2 has no intermediate_size 36"),
    ],
    ids=["authors' vit", "authors' swin", "deit mean", "odd width"],
)
def test_what_no_stock_class_has_keeps_its_class(backbone, settings, message):
    if message.startswith("DINOv2"):
        backbone = ViTConfig(**(VIT | {"intermediate_size": 36}))
    model = tiny_classifier(backbone, **settings)
    with pytest.raises(ValueError, match=message):
        model.unwrap()
    if model.config.backbone_variant == "authors":
        with pytest.raises(ValueError, match="the authors' backbone is no stock model"):
            model.save_backbone("nowhere")
    plain = model.to_backbone_classifier()
    assert type(plain) is PositionalLabelForImageClassification and not plain.position_heads
    assert not any("position_head" in name for name in plain.state_dict())
    pixels = images(model)
    torch.testing.assert_close(plain(pixels).logits, model(pixels).logits)


def test_backbone_alone_is_a_stock_checkpoint(tmp_path):
    model = tiny_classifier("swin")
    model.save_backbone(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, add_pooling_layer=False)
    assert not any(info.values()) and type(loaded).__name__ == "SwinModel"
    pixels = images(model)
    tokens = model.view.run(model.backbone, pixels, {})[0]
    torch.testing.assert_close(loaded.eval()(pixels).last_hidden_state, tokens)


def test_inference_does_not_run_the_position_head():
    model = tiny_classifier()
    calls = []
    model.position_head.register_forward_hook(lambda *_: calls.append(1))
    output = model(images(model), labels=torch.tensor([0, 1]))
    assert not calls and output.position_loss is None and output.loss == output.classification_loss
    model.train()(images(model))
    assert calls == [1]
    assert model(images(model), return_position=False).position_loss is None


def test_training_without_labels_is_the_position_loss():
    model = tiny_classifier(position_label="both", position_loss_weight=0.25, relative_loss_weight=0.75).train()
    output = model(images(model))
    expected = 0.25 * output.position_loss + 0.75 * output.relative_position_loss
    torch.testing.assert_close(output.loss, expected)
    single = tiny_classifier(position_loss_weight=0.1).train()
    output = single(images(single))
    torch.testing.assert_close(output.loss, output.position_loss)


@pytest.mark.parametrize("family", POSITIONED)
def test_position_dropout_takes_the_table_from_some_tokens(family):
    """Tokens without position are what a table of zeros gives, and only they count."""
    settings = {"position_dropout": 0.4, "pooling": "mean"}
    model = tiny_classifier(family, **settings)
    torch.nn.init.normal_(model.backbone.embeddings.position_embeddings)
    noise = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    pixels = images(model)
    seen = []
    model.backbone.embeddings.register_forward_hook(lambda m, a, tokens: seen.append(tokens))
    output = model(pixels, return_position=True, position_noise=noise)
    prefix = model.view.num_prefix_tokens
    with torch.no_grad():
        table = model.backbone.embeddings.position_embeddings
        before = table.clone()
        model.backbone.embeddings(pixels)
        table[:, -9:] = 0
        model.backbone.embeddings(pixels)
        table.copy_(before)
    marked = noise.argsort(1).argsort(1) < 4
    dropped, full, empty = (tokens[:, prefix:] for tokens in seen)
    torch.testing.assert_close(dropped, torch.where(marked[..., None], empty, full))
    losses = torch.nn.functional.cross_entropy(
        output.position_logits.transpose(1, 2), torch.arange(9).expand(2, -1), reduction="none"
    )
    torch.testing.assert_close(output.position_loss, losses[marked].mean())


@pytest.mark.parametrize("family", POSITIONED)
def test_jigsaw_reads_some_patches_without_positions(family):
    model = tiny_classifier(family, scheme="jigsaw", position_label="relative", pooling="mean")
    noise = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    pixels = images(model)
    output = model(pixels, labels=torch.tensor([0, 1]), return_position=True, position_noise=noise)
    assert output.position_logits.shape == (2, 16, 25)  # 4 of the 9 patches, all pairs
    torch.nn.init.normal_(model.backbone.embeddings.position_embeddings[:, -9:])
    again = model(pixels, labels=torch.tensor([0, 1]), return_position=True, position_noise=noise)
    torch.testing.assert_close(again.position_loss, output.position_loss)
    assert again.classification_loss != output.classification_loss


def test_droppos_smooths_labels_in_training():
    model = tiny_classifier(scheme="droppos")
    assert model.config.position_dropout == 0.75
    noise = torch.rand(2, 9)
    smoothed = model.train()(images(model), return_position=True, position_noise=noise)
    sharp = model.eval()(images(model), return_position=True, position_noise=noise)
    torch.testing.assert_close(smoothed.position_logits, sharp.position_logits)
    assert smoothed.position_loss != sharp.position_loss


def test_anchors_are_the_same_when_activations_are_computed_again():
    """Gradient checkpointing, and a checkpoint around the whole model: same anchors, same gradients."""
    gradients = []
    for kind in ("plain", "layers", "whole"):
        model = tiny_classifier(position_label="relative", num_anchors=2).train()
        if kind == "layers":
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        pixels = images(model)
        labels = torch.tensor([0, 1])
        if kind == "whole":
            loss = torch.utils.checkpoint.checkpoint(
                lambda m, p, y: m(p, y).loss, model, pixels, labels, use_reentrant=False
            )
        else:
            loss = model(pixels, labels).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_anchors_come_from_the_generator():
    model = tiny_classifier(position_label="relative", num_anchors=2).train()
    losses = [model(images(model), generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_relative_labels_allow_smaller_images():
    model = tiny_classifier(position_label="relative")
    small = torch.randn(1, 3, 16, 24)
    with pytest.raises(ValueError):
        model(small)
    model = tiny_classifier("dinov2", position_label="relative")
    output = model(small, return_position=True)
    assert output.position_logits.shape == (1, 36, 25)
    absolute = tiny_classifier("dinov2")
    absolute(small)
    with pytest.raises(ValueError, match="position head was built for a 3x3 grid, got 2x3"):
        absolute(small, return_position=True)


def test_autoencoders_become_classifiers(tmp_path):
    from hubmodels.modeling.mae import MAEConfig, MAEForPreTraining
    from hubmodels.modeling.positional_label import PositionalLabelForPreTraining

    mae = MAEForPreTraining(MAEConfig(**MAE)).eval()
    mae.save_pretrained(tmp_path / "mae")
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    both = PositionalLabelForPreTraining.wrap(mae, position_label="relative", **names)
    both.save_pretrained(tmp_path / "both")
    pixels = torch.randn(2, 3, 32, 32)
    expected = mae.vit(pixels, mask_ratio=0).last_hidden_state[:, 1:]
    model_class = PositionalLabelForImageClassification
    for source, heads in (("mae", 2), ("both", 1)):
        settings = {"position_label": "both"} if source == "mae" else {}
        model, info = PositionalLabelForImageClassification.from_pretrained(
            tmp_path / source, num_labels=5, output_loading_info=True, **settings
        )
        torch.testing.assert_close(model.view.run(model.backbone, pixels, {})[0], expected, atol=1e-5, rtol=1e-5)
        assert not [name for name in info["missing_keys"] if name.startswith("backbone.")]
        assert model.config.backbone_config.model_type == "vit" and len(model.position_heads) == heads
        model.save_pretrained(tmp_path / "again")
        again, info = model_class.from_pretrained(tmp_path / "again", output_loading_info=True)
        assert not any(info.values()), info
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
        encoder = AutoModel.from_pretrained(tmp_path / source)
        renamed = {"id2label": {0: "c"}, "label2id": {"c": 0}}
        assert model_class.from_pretrained(tmp_path / source, **renamed).config.id2label == {0: "c"}
        if source == "both":
            assert type(encoder).__name__ == "PositionalLabelModel"
            torch.testing.assert_close(encoder(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(both.encode(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
            by_auto = AutoModelForImageClassification.from_pretrained(tmp_path / source, num_labels=5)
            assert torch.equal(by_auto.backbone.layernorm.weight, model.backbone.layernorm.weight)
            assert by_auto.num_labels == 5
            assert torch.equal(model.position_head.fc1.weight, both.position_head.fc1.weight)


@pytest.mark.parametrize(
    ("inner", "settings", "message"),
    [
        (ViTConfig(**VIT), {"position_label": "diagonal"}, r"position_label must be one of \('absolute', "),
        (ViTConfig(**VIT), {"position_loss_weight": -0.5}, "position_loss_weight must not be negative, got -0.5"),
        (ViTConfig(**VIT), {"relative_loss_weight": -1}, "relative_loss_weight must not be negative, got -1"),
        (ViTConfig(**VIT), {"position_dropout": 1.5}, r"position_dropout must be in \[0, 1\], got 1.5"),
        (ViTConfig(**VIT), {"num_anchors": 0}, "num_anchors must be at least 1, got 0"),
        (ViTConfig(**VIT), {"num_anchors": 10, "position_label": "relative"}, "num_anchors must be at most the 9"),
        (ViTConfig(**VIT), {"pooling": "max"}, "pooling must be one of"),
        (ViTConfig(**VIT), {"scheme": "puzzle"}, "scheme must be one of"),
        (ViTConfig(**VIT), {"scheme": "droppos", "position_label": "both"}, "'droppos' has absolute labels only"),
        (ViTConfig(**VIT), {"scheme": "jigsaw", "position_dropout": 0.5}, "position_dropout must be 0, got 0.5"),
        (ViTConfig(**VIT), {"jigsaw_ratio": 0}, r"jigsaw_ratio must be in \(0, 1\], got 0"),
        (ViTConfig(**VIT), {"position_head_dropout": 1.0}, r"position_head_dropout must be in \[0, 1\), got 1.0"),
        (ViTConfig(**VIT), {"keep_resolution": True}, "keep_resolution goes with the authors' Swin"),
        (ViTConfig(**(VIT | {"hidden_size": 18})), {}, "divisible by 4 for absolute position labels, got 18"),
        (SwinConfig(**SWIN), {"pooling": "cls"}, "pooling 'cls' needs a class token"),
        (SwinConfig(**SWIN), {"scheme": "jigsaw"}, "scheme 'jigsaw' needs a backbone whose embeddings add"),
        (SwinConfig(**SWIN), {"position_dropout": 0.5}, "position_dropout needs a backbone whose embeddings add"),
        (ResNetConfig(), {}, "a resnet has no patches of one width"),
        (ConvNextV2Config(), {}, "a convnextv2 has no patches of one width"),
        ("beit", {"backbone_variant": "authors"}, "backbone_variant 'authors' exists for"),
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(inner, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier(inner, **settings)


def test_changes_while_loading_are_checked():
    stored = PositionalLabelConfig(backbone_config=ViTConfig(**VIT)).to_dict()
    with pytest.raises(ValueError, match="scheme must be one of"):
        PositionalLabelConfig.from_dict(stored, scheme="puzzle")
    assert PositionalLabelConfig.from_dict(stored, scheme="droppos").position_dropout > 0


def test_wrong_inputs_are_refused():
    model = tiny_classifier()
    pixels = images(model)
    for labels, message in (
        (torch.zeros(3, dtype=torch.long), r"labels must have shape \[2\] or \[2, 4\], got \[3\]"),
        (torch.zeros(2), r"labels of shape \[B\] must be integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixels, labels=labels)
    with pytest.raises(ValueError, match="pixel_values is required"):
        model()
    with pytest.raises(ValueError, match=r"position_noise must have shape \[2, 9\], got \[2, 8\]"):
        tiny_classifier(position_dropout=0.5)(pixels, return_position=True, position_noise=torch.rand(2, 8))
    with pytest.raises(ValueError, match=r"backbone returned 9 tokens, expected h\*w \+ prefix = 3\*2 \+ 1"):
        model.view.check_tokens(torch.zeros(1, 8, 16), (3, 2))
    with pytest.raises(ValueError, match="model must be an image classifier with one linear layer"):
        PositionalLabelForImageClassification.wrap(
            ResNetForImageClassification(ResNetConfig(depths=[1], hidden_sizes=[8]))
        )
    with pytest.raises(ValueError, match="is an autoencoder, for PositionalLabelForPreTraining"):
        PositionalLabelForImageClassification(PositionalLabelConfig(backbone_config={"model_type": "vit_mae", **MAE}))


def test_soft_labels_and_problem_types():
    model = tiny_classifier()
    pixels = images(model)
    hard = model(pixels, labels=torch.tensor([0, 3])).loss
    soft = model(pixels, labels=torch.eye(4)[[0, 3]]).loss
    torch.testing.assert_close(hard, soft)
    model.config.problem_type = "multi_label_classification"
    logits = model(pixels).logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(4)[[0, 3]])
    torch.testing.assert_close(model(pixels, labels=torch.eye(4)[[0, 3]]).loss, expected)


@pytest.mark.parametrize("label", ["absolute", "relative"])
def test_training_compiles_as_one_graph(label):
    model = tiny_classifier(position_label=label).train()
    pixels, labels = images(model), torch.tensor([0, 1])
    gradients = []
    for forward in (model, torch.compile(model, backend="eager", fullgraph=True)):
        model.zero_grad()
        forward(pixels, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
