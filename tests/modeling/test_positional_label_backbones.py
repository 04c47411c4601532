"""Positional Label around every family of backbones: tokens, grids, loss, wrapping, the way back to the stock class."""

import pytest
import torch
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionConfig,
    ConvNextV2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
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
PREFIXES = {"deit": 2, "dinov2_with_registers": 4, "swin": 0, "swinv2": 0, "timm_swin": 0, "timm_swinv2_cr": 0}
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


@pytest.mark.parametrize("family", ["vit", "deit", "swin", "timm_vit"])
def test_stock_checkpoints_load_with_a_configuration(family, tmp_path):
    """The stored file says what a checkpoint is, not the configuration that it shall have."""
    model = stock(family)
    model.save_pretrained(tmp_path)
    pooling = {"swin": "mean", "timm_vit": "pooler"}.get(family, "cls")
    config = PositionalLabelConfig(
        backbone_config=backbone_configs()[family],
        position_label="relative",
        position_loss_weight=0.25,
        pooling=pooling,
        id2label=dict(enumerate("abcd")),
        label2id={name: index for index, name in enumerate("abcd")},
    )
    loaded, info = PositionalLabelForImageClassification.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert all(name.startswith("position_head.") for name in info["missing_keys"]) and not info["unexpected_keys"]
    assert loaded.config.loss_weights == {"relative": 0.25} and loaded.config.id2label[2] == "c"
    pixels = images(loaded)
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
    other = PositionalLabelConfig(backbone_config=backbone_configs()["beit"])
    with pytest.raises(
        ValueError, match=r"config.backbone_config must be of the checkpoint's model_type '.*', got 'bei"
    ):
        PositionalLabelForImageClassification.from_pretrained(tmp_path, config=other)


def test_autoencoders_load_into_a_classifier_with_a_configuration(tmp_path):
    mae = ViTMAEForPreTraining(ViTMAEConfig(**MAE)).eval()
    mae.save_pretrained(tmp_path)
    config = PositionalLabelConfig(backbone_config=ViTConfig(**(VIT | {"image_size": 32})), num_labels=3)
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path, config=config)
    assert model.num_labels == 3
    torch.testing.assert_close(model.backbone.layers[0].mlp.fc1.weight, mae.vit.layers[0].mlp.fc1.weight)


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


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@torch.no_grad()
def test_models_that_never_were_stock_become_so(family, tmp_path):
    """Built from a configuration and loaded from an own folder, which have no pooler."""
    built = tiny_classifier(family)
    built.save_pretrained(tmp_path)
    pixels = images(built)
    expected = built(pixels).logits
    for model in (built, PositionalLabelForImageClassification.from_pretrained(tmp_path)):
        for plain in (model.unwrap(), model.to_backbone_classifier()):
            torch.testing.assert_close(plain(pixels).logits, expected, atol=1e-5, rtol=1e-5)
        assert model.backbone.pooler is None


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        (ViTConfig(**VIT), {"backbone_variant": "authors"}, "no stock class has the network"),
        (SwinConfig(**SWIN), {"backbone_variant": "authors"}, "no stock class has the network"),
        ("deit", {}, "no stock class of a deit pools by 'mean'"),
        (ViTConfig(**VIT), {}, "DINOv2 has no intermediate_size 36"),
        (ViTConfig(**(WIDE_VIT | {"image_size": (16, 64)})), {}, "got a grid of 2x8"),
    ],
    ids=["authors' vit", "authors' swin", "deit mean", "odd width", "oblong grid"],
)
def test_what_no_stock_class_has_keeps_its_class(backbone, settings, message):
    if message.startswith("DINOv2"):
        backbone = ViTConfig(**(VIT | {"intermediate_size": 36}))
    model = tiny_classifier(backbone, **settings)
    torch.nn.init.normal_(model.classifier.weight)
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


def test_authors_variant_is_not_put_around_another_network(tmp_path):
    model = stock("vit")
    model.save_pretrained(tmp_path / "vit")
    ViTMAEForPreTraining(ViTMAEConfig(**MAE)).save_pretrained(tmp_path / "mae")
    message = "backbone_variant 'authors' is another network than the {} that is given"
    with pytest.raises(ValueError, match=message.format("vit")):
        PositionalLabelForImageClassification.wrap(model, backbone_variant="authors")
    for source, kind in (("vit", "vit"), ("mae", "autoencoder")):
        with pytest.raises(ValueError, match=message.format(kind)):
            PositionalLabelForImageClassification.from_pretrained(tmp_path / source, backbone_variant="authors")


def test_nest_of_timm():
    """Its maps have their channels first, and its pooling is a layer, not a name."""
    inner = TimmWrapperConfig(architecture="nest_tiny", model_args={"img_size": 32, "patch_size": 4, "num_levels": 3})
    inner.num_labels = 4
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(inner).eval()
    wrapped = PositionalLabelForImageClassification.wrap(model, position_label="both")
    pixels = images(wrapped)
    assert wrapped.view.grid == (2, 2)
    expected = model(pixels).logits
    torch.testing.assert_close(wrapped(pixels).logits, expected)
    torch.testing.assert_close(wrapped.unwrap()(pixels).logits, expected)
    tokens = wrapped.encode(pixels).last_hidden_state
    torch.testing.assert_close(tokens[:, 1], model.timm_model.forward_features(pixels)[:, :, 0, 1])
    wrapped.train()(pixels, labels=torch.tensor([0, 3])).loss.backward()
    assert wrapped.backbone.timm_model.patch_embed.proj.weight.grad is not None


def test_the_class_token_of_clip_is_recognised():
    model = tiny_classifier(CLIPVisionConfig(**VIT))
    pixels = images(model)
    assert model.view.num_prefix_tokens == 1
    assert model.encode(pixels).last_hidden_state.shape == (2, 9, 16)
    model.train()(pixels, labels=torch.tensor([0, 1])).loss.backward()


def test_tokens_that_are_none_of_a_patch_are_noticed_in_evaluation():
    model = tiny_classifier("dinov2_with_registers")
    model.view.num_prefix_tokens = 1
    with pytest.raises(ValueError, match=r"backbone returned 13 tokens, expected h\*w \+ prefix = 3\*3 \+ 1"):
        model(images(model))


def test_settings_that_contradict_the_shared_classifier_are_refused():
    model = stock("vit")
    with pytest.raises(ValueError, match="num_labels must be that of the model, whose classifier is shared: 4, got 9"):
        PositionalLabelForImageClassification.wrap(model, num_labels=9)
    with pytest.raises(ValueError, match=r"pooling 'cls_mean' gives the classifier 32 channels, but .* reads 16"):
        PositionalLabelForImageClassification.wrap(model, pooling="cls_mean")


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
    unweighted = tiny_classifier(position_label="both", position_loss_weight=0).train()
    output = unweighted(images(unweighted))
    torch.testing.assert_close(output.loss, (output.position_loss + output.relative_position_loss) / 2)


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
    del seen[0]  # of the pass for the classes
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


@pytest.mark.parametrize("settings", [{"position_dropout": 0.75}, {"scheme": "droppos"}, {"scheme": "jigsaw"}, {}])
def test_positions_do_not_change_the_classes_of_an_evaluation(settings):
    model = tiny_classifier(**settings)
    torch.nn.init.normal_(model.classifier.weight)
    pixels = images(model)
    torch.testing.assert_close(model(pixels, return_position=True).logits, model(pixels).logits, atol=0, rtol=0)


def test_droppos_smooths_labels_in_training():
    model = tiny_classifier(scheme="droppos")
    assert model.config.position_dropout == 0.75 and tiny_classifier().config.position_dropout == 0
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


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@torch.no_grad()
def test_a_small_image_does_not_change_what_follows(family):
    """transformers' Swin keeps the windows that it shrinks for a small map."""
    inner = backbone_configs()[family]
    inner.image_size, inner.depths = 64, [2, 2]
    model = tiny_classifier(inner, position_label="relative")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pixels = images(model)
    expected = model(pixels).logits
    model(pixels[..., :32, :32])
    torch.testing.assert_close(model(pixels).logits, expected)
    torch.testing.assert_close(model.unwrap()(pixels).logits, expected, atol=1e-5, rtol=1e-5)


def test_windows_survive_gradient_checkpointing():
    inner = SwinConfig(**(SWIN | {"image_size": 64, "depths": [2, 2]}), drop_path_rate=0.0)
    model = tiny_classifier(inner, position_label="relative")
    torch.nn.init.normal_(model.classifier.weight)
    pixels = images(model)
    expected = model(pixels).logits
    model.train().gradient_checkpointing_enable()
    model(pixels[..., :32, :32], labels=torch.tensor([0, 1])).loss.backward()
    torch.testing.assert_close(model.eval()(pixels).logits, expected)


def test_autoencoders_become_classifiers(tmp_path):
    from hubmodels.modeling.mae import MAEConfig, MAEForPreTraining
    from hubmodels.modeling.positional_label import PositionalLabelForPreTraining

    mae = MAEForPreTraining(MAEConfig(**MAE)).eval()
    mae.save_pretrained(tmp_path / "mae")
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    both = PositionalLabelForPreTraining.wrap(mae, position_label="relative", position_dropout=0.5, **names)
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
            assert by_auto.num_labels == 5 and by_auto.config.position_dropout == 0
            assert torch.equal(model.position_head.fc1.weight, both.position_head.fc1.weight)


@pytest.mark.parametrize(
    ("inner", "settings", "message"),
    [
        (ViTConfig(**VIT), {"position_label": "diagonal"}, r"position_label must be one of \('absolute', "),
        (ViTConfig(**VIT), {"position_loss_weight": -0.5}, "position_loss_weight must not be negative .*, got -0.5"),
        (ViTConfig(**VIT), {"relative_loss_weight": -1}, "relative_loss_weight must not be negative .*, got -1"),
        (ViTConfig(**VIT), {"position_loss_weight": float("nan")}, "position_loss_weight must .* be finite, got nan"),
        (ViTConfig(**VIT), {"position_dropout": 1.5}, r"position_dropout must be in \[0, 1\], got 1.5"),
        (ViTConfig(**VIT), {"num_anchors": 0}, "num_anchors must be at least 1, got 0"),
        (ViTConfig(**VIT), {"num_anchors": 10, "position_label": "relative"}, "num_anchors must be at most the 9"),
        (ViTConfig(**VIT), {"num_anchors": 5, "position_label": "relative", "scheme": "jigsaw"},
         "num_anchors must be at most the 4 tokens of jigsaw_ratio 0.5, got 5"),
        (ViTConfig(**VIT), {"pooling": "max"}, "pooling must be one of"),
        (ViTConfig(**VIT), {"scheme": "puzzle"}, "scheme must be one of"),
        (ViTConfig(**VIT), {"scheme": "droppos", "position_label": "both"}, "'droppos' has absolute labels only"),
        (ViTConfig(**VIT), {"scheme": "droppos", "position_dropout": 0.0}, "position_dropout must be above 0"),
        (ViTConfig(**VIT), {"scheme": "jigsaw", "position_dropout": 0.5}, "position_dropout must be 0, got 0.5"),
        (ViTConfig(**VIT), {"jigsaw_ratio": 0}, r"jigsaw_ratio must be in \(0, 1\], got 0"),
        (ViTConfig(**VIT), {"position_head_dropout": 1.0}, r"position_head_dropout must be in \[0, 1\), got 1.0"),
        (ViTConfig(**VIT), {"keep_resolution": True}, "keep_resolution goes with the authors' Swin"),
        (ViTConfig(**(VIT | {"hidden_size": 18})), {}, "divisible by 4 for absolute position labels, got 18"),
        (SwinConfig(**(SWIN | {"image_size": (32, 64)})), {"backbone_variant": "authors"},
         "needs a square grid of tokens; got 8x16; take square images"),
        (SwinConfig(**SWIN), {"pooling": "cls"}, "pooling 'cls' needs a class token"),
        (SwinConfig(**SWIN), {"scheme": "jigsaw"}, "scheme 'jigsaw' needs a backbone whose embeddings add"),
        (SwinConfig(**SWIN), {"position_dropout": 0.5}, "position_dropout needs a backbone whose embeddings add"),
        (SwinConfig(**SWIN, use_absolute_embeddings=True), {"scheme": "jigsaw"}, "has none but at its patches"),
        (SwinConfig(**SWIN, use_absolute_embeddings=True), {"position_dropout": 0.5}, "has none but at its patches"),
        (TimmWrapperConfig(architecture="resnet18"), {}, "timm's ResNet has no patches, hence no tokens"),
        (ResNetConfig(), {}, "one hidden_size for all stages, .*; that of a resnet has"),
        (ConvNextV2Config(), {}, "that of a convnextv2 has not"),
        ("beit", {"backbone_variant": "authors"}, "backbone_variant 'authors' exists for"),
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(inner, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier(inner, **settings)


@pytest.mark.parametrize(
    ("label", "settings", "unused"),
    [
        ("absolute", {"num_anchors": 4}, "num_anchors"),
        ("relative", {"relative_loss_weight": 0.1}, "relative_loss_weight"),
        ("both", {"num_anchors": 4, "relative_loss_weight": 0.1}, None),
        (None, {"num_anchors": 4, "relative_loss_weight": 0.1}, None),
    ],
)
def test_settings_without_effect_are_warned_about(label, settings, unused, messages):
    PositionalLabelConfig(position_label=label, **settings)
    assert (f"{unused} is not used with position_label '{label}'" in messages.text) == bool(unused)
    assert unused or not messages.text


def test_changes_while_loading_are_checked():
    stored = PositionalLabelConfig(backbone_config=ViTConfig(**VIT)).to_dict()
    with pytest.raises(ValueError, match="scheme must be one of"):
        PositionalLabelConfig.from_dict(stored, scheme="puzzle")
    assert PositionalLabelConfig.from_dict(stored, scheme="droppos").position_dropout > 0


def test_wrong_inputs_are_refused():
    model = tiny_classifier()
    pixels = images(model)
    for labels, message in (
        (torch.zeros(3, dtype=torch.long), r"labels must have shape \(2,\) or \(2, 4\), got \(3,\)"),
        (torch.zeros(2), r"labels of shape \[B\] must be integers .* got torch.float32"),
        (torch.tensor([True, False]), r"labels of shape \[B\] must be integers .* got torch.bool"),
        (torch.tensor([0, 4]), r"labels must be in \[0, 4\) .* got 4 at index 1"),
        (torch.tensor([-1, 0]), r"labels must be in \[0, 4\) .* got -1 at index 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixels, labels=labels)
    with pytest.raises(ValueError, match="num_anchors must be at most the 6 tokens of this pass, got 8"):
        small = {"pixel_values": pixels[:, :, :16], "interpolate_pos_encoding": True}
        tiny_classifier(position_label="relative", num_anchors=8).train()(**small)
    with pytest.raises(ValueError, match="the position table away, which is one of 3x3 tokens; got images of 2x3"):
        tiny_classifier(position_label="relative", position_dropout=0.5).train()(**small)
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
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(model(pixels, labels=torch.tensor([0, 3], dtype=dtype)).loss, hard)
    model.config.problem_type = "multi_label_classification"
    logits = model(pixels).logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(4)[[0, 3]])
    torch.testing.assert_close(model(pixels, labels=torch.eye(4)[[0, 3]]).loss, expected)
    for problem in ("multi_label_classification", "regression"):
        model.config.problem_type = problem
        assert model.double()(pixels.double(), labels=torch.eye(4)[[0, 3]].double()).loss.dtype == torch.float64


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
