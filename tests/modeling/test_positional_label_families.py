"""Positional Label around families beside ViT and Swin: norms, grids, groups of parameters, what is refused."""

import itertools

import pytest
import torch
from timm.models import group_parameters
from transformers import (
    Aimv2VisionConfig,
    ChineseCLIPVisionConfig,
    CLIPVisionConfig,
    DINOv3ViTConfig,
    DonutSwinConfig,
    HieraConfig,
    MLCDVisionConfig,
    PvtConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
)

from tests.modeling.tiny_positional_label import SWIN, VIT, images, tiny_classifier

HIERA = {"image_size": [32, 32], "embed_dim": 4, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "num_query_pool": 2}
TIMM_HIERA = {"img_size": (64, 64), "embed_dim": 4, "num_heads": 1, "stages": (1, 1, 1, 1)}


TIMM_SWIN = {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (2, 2, 2), "window_size": 2}
TIMM_VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def others() -> dict:
    """A small configuration of each family, new at every call."""
    return {
        "clip": CLIPVisionConfig(**VIT),
        "chinese_clip": ChineseCLIPVisionConfig(**VIT),
        "mlcd": MLCDVisionConfig(**VIT),
        "siglip": SiglipVisionConfig(**VIT),
        "hiera": HieraConfig(**HIERA),
        "timm_hiera": TimmWrapperConfig(architecture="hiera_tiny_224", model_args=TIMM_HIERA),
    }


def layered() -> dict:
    """A small configuration of each further family of which the layers or tables have names of their own."""
    timm = {
        "timm_nest": ("nest_tiny", {"img_size": 32, "patch_size": 4, "num_levels": 3}),
        "timm_cait": ("cait_xxs24_224", TIMM_VIT | {"img_size": 24, "patch_size": 8}),
        "timm_swinv2": ("swinv2_tiny_window8_256", TIMM_SWIN | {"img_size": 32}),
        "timm_siglip": ("vit_base_patch16_siglip_224", TIMM_VIT | {"img_size": 24, "patch_size": 8}),
    }
    return {
        "dinov3": DINOv3ViTConfig(**VIT),
        "aimv2": Aimv2VisionConfig(**VIT),
        "swinv2": Swinv2Config(**SWIN),
        **{name: TimmWrapperConfig(architecture=kind, model_args=given) for name, (kind, given) in timm.items()},
    }


@pytest.mark.parametrize("family", list(others()))
def test_tokens_are_those_after_the_final_norm(family):
    model = tiny_classifier(others()[family], position_label="relative")
    for name, parameter in model.backbone.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif name.endswith("bias"):  # Hiera's norms have others
            torch.nn.init.zeros_(parameter)
    tokens = model.encode(images(model)).last_hidden_state
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(tokens.shape[:2]), atol=1e-3, rtol=0)
    model.train()(images(model), labels=torch.tensor([0, 1])).loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name in missing if "norm" in name and "head" not in name], missing


@pytest.mark.parametrize("family", ["hiera", "timm_hiera"])
def test_tokens_of_hiera_are_in_the_order_of_the_grid(family):
    """Every token depends most on its own cell of the image, although the network reorders its patches."""
    model = tiny_classifier(others()[family], position_label="relative")
    torch.manual_seed(0)
    for parameter in model.backbone.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    rows, columns = model.view.grid
    pixels = images(model).requires_grad_()
    tokens = model.encode(pixels).last_hidden_state
    side = pixels.shape[-1] // columns
    for index in range(rows * columns):
        weights = torch.randn(tokens.shape[-1])
        gradient = torch.autograd.grad((tokens[:, index] * weights).sum(), pixels, retain_graph=True)[0]
        cells = torch.nn.functional.avg_pool2d(gradient.abs().sum(1), side).sum(0)
        assert cells.argmax() == index


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "mlcd", "siglip"])
@torch.no_grad()
def test_what_the_family_of_clip_pools_can_be_read(family):
    model = tiny_classifier(others()[family], pooling="pooler")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pixels = images(model)
    expected = model.classifier(model.backbone(pixels).pooler_output)
    torch.testing.assert_close(model(pixels).logits, expected)


@pytest.mark.parametrize(
    ("architecture", "arguments", "grid"),
    [
        ("swin_tiny_patch4_window7_224", TIMM_SWIN | {"img_size": 40}, (3, 3)),
        ("swinv2_tiny_window8_256", TIMM_SWIN | {"img_size": 40}, (3, 3)),
        ("vit_tiny_patch16_224", TIMM_VIT | {"img_size": (24, 40), "patch_size": (4, 8)}, (6, 5)),
    ],
    ids=["odd map of Swin", "odd map of Swinv2", "oblong patches"],
)
def test_grids_of_timm(architecture, arguments, grid):
    inner = TimmWrapperConfig(architecture=architecture, model_args=arguments)
    model = tiny_classifier(inner, position_label="relative")
    assert model.view.grid == grid
    model.train()(images(model), labels=torch.tensor([0, 1])).loss.backward()


def test_grids_of_timm_with_padded_patches():
    options = {"img_size": 32, "patch_size": 8, "dynamic_img_size": True, "dynamic_img_pad": True}
    inner = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM_VIT | options)
    model = tiny_classifier(inner, position_label="relative").train()
    assert model.view.grid_of(20, 30) == (3, 4)
    model(torch.randn(2, 3, 20, 30), labels=torch.tensor([0, 1])).loss.backward()


@pytest.mark.parametrize("architecture", ["deit_tiny_distilled_patch16_224", "samvit_base_patch16_224"])
def test_a_network_of_timm_without_one_linear_classifier_keeps_its_class(architecture):
    arguments = TIMM_VIT | {"img_size": 24, "patch_size": 8}
    inner = TimmWrapperConfig(architecture=architecture, model_args=arguments)
    model = tiny_classifier(inner, pooling="pooler")
    torch.nn.init.normal_(model.classifier.weight)
    with pytest.raises(ValueError, match="no stock class has one linear classifier on timm's VisionTransformer"):
        model.unwrap()
    pixels = images(model)
    torch.testing.assert_close(model.to_backbone_classifier()(pixels).logits, model(pixels).logits)


def test_authors_swin_of_one_stage():
    """Its only stage has no stage before, whose resolution it could keep."""
    inner = SwinConfig(**(SWIN | {"depths": [1], "num_heads": [2]}))
    model = tiny_classifier(inner, backbone_variant="authors")
    assert not model.config.keep_resolution and model.view.grid == (8, 8)
    model.train()(images(model), labels=torch.tensor([0, 1])).loss.backward()
    with pytest.raises(ValueError, match=r"keep_resolution gives .* needs at least two; got depths \[1\]"):
        tiny_classifier(inner, backbone_variant="authors", keep_resolution=True)


@pytest.mark.parametrize("scheme", ["position_dropout", "jigsaw", "droppos"])
@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "aimv2"])
def test_positions_are_taken_from_tables_that_are_looked_up(family, scheme):
    """What a table with zeros in the rows of the dropped patches gives, image by image."""
    settings = {"position_dropout": {"position_dropout": 0.4}, "jigsaw": {"scheme": "jigsaw", "jigsaw_ratio": 1.0}}
    model = tiny_classifier((others() | layered())[family], **settings.get(scheme, {"scheme": scheme}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pixels, noise = images(model), torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    output = model(pixels, return_position=True, position_noise=noise)
    plain = tiny_classifier((others() | layered())[family])
    plain.load_state_dict(model.state_dict())
    count = {"position_dropout": 4, "jigsaw": 9, "droppos": 7}[scheme]
    order = noise.argsort(dim=1)
    with torch.no_grad():
        rows = plain.backbone.embeddings.position_embedding.weight[-9:]
        before = rows.clone()
        for image in range(2):
            rows.copy_(before)
            rows[order[image, :count]] = 0
            expected = plain(pixels[image : image + 1], return_position=True).position_logits[0]
            if scheme == "jigsaw":
                expected = expected[order[image]]
            torch.testing.assert_close(output.position_logits[image], expected, atol=1e-5, rtol=1e-4)
    model.train()(pixels, position_noise=noise).loss.backward()
    assert model.backbone.embeddings.position_embedding.weight.grad is not None


@pytest.mark.parametrize("settings", [{"position_dropout": 0.5}, {"scheme": "jigsaw"}, {"scheme": "droppos"}])
def test_positions_are_not_taken_from_timm(settings):
    inner = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM_VIT)
    with pytest.raises(ValueError, match="takes rows of a position table away, which is not done in timm's networks"):
        tiny_classifier(inner, **settings)


def test_authors_swin_has_whole_patches():
    message = "image_size of the authors' Swin must be a multiple of patch_size 4, got 34"
    with pytest.raises(ValueError, match=message):
        tiny_classifier(SwinConfig(**(SWIN | {"image_size": 34})), backbone_variant="authors")
    inner = SwinConfig(**(SWIN | {"image_size": 34}))  # the stock one pads
    assert tiny_classifier(inner)(torch.randn(1, 3, 34, 34)).logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("family", "order"),
    [
        ("dinov3", ["embeddings.cls_token", "model.layer.0", "model.layer.1", "norm"]),
        ("clip", ["pre_layrnorm", "encoder.layers.0", "encoder.layers.1", "post_layernorm"]),
        ("mlcd", ["class_pos_emb", "encoder.layers.0", "encoder.layers.1", "post_layernorm"]),
        ("siglip", ["embeddings.position_embedding", "encoder.layers.0", "encoder.layers.1", "head.probe"]),
        ("hiera", ["embeddings", "encoder.stages.0.layers.0", "encoder.stages.2.layers.0", "pooler.layernorm"]),
        ("timm_hiera", ["timm_model.pos_embed", "timm_model.blocks.0", "timm_model.blocks.3", "timm_model.head.norm"]),
        ("timm_nest", [f"timm_model.{name}" for name in ("patch_embed", "levels.0", "levels.1", "levels.2", "norm")]),
        ("timm_cait", [f"timm_model.{name}" for name in ("cls_token", "blocks.0", "blocks_token_only.0", "norm")]),
        ("timm_swinv2", [f"timm_model.{name}" for name in ("layers.0.blocks.0", "layers.1.downsample", "norm")]),
    ],
)
def test_layers_of_all_families_are_in_their_order(family, order):
    model = tiny_classifier((others() | layered())[family], position_label="relative")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    found = []
    for name in (*order, ""):  # the last stands for the heads
        prefix = f"backbone.{name}" if name else "position_head"
        found.append({layer for parameter, layer in layers.items() if parameter.startswith(prefix)})
    assert all(found)
    assert all(max(first) < min(second) for first, second in itertools.pairwise(found[:-1])), found
    assert found[-1] == found[-2] == {max(layers.values())}


def test_layers_with_other_names_are_refused():
    model = tiny_classifier("vit")
    model.backbone.parts = model.backbone.layers
    del model.backbone.layers
    with pytest.raises(
        ValueError, match=r"layer decay needs a backbone whose layers are in .*; those of ViTModel have"
    ):
        model.group_matcher()


@pytest.mark.parametrize(
    ("family", "tables"),
    [
        ("clip", {"embeddings.position_embedding.weight"}),
        ("mlcd", {"class_pos_emb"}),
        ("siglip", {"embeddings.position_embedding.weight", "head.probe"}),
        ("timm_siglip", {"timm_model.pos_embed", "timm_model.attn_pool.latent"}),
        ("swinv2", {f"encoder.layers.{stage}.blocks.0.attention.self.logit_scale" for stage in (0, 1)}),
        ("timm_swinv2", {f"timm_model.layers.{stage}.blocks.0.attn.logit_scale" for stage in (0, 1, 2)}),
    ],
)
def test_tables_are_not_decayed(family, tables):
    model = tiny_classifier((others() | layered())[family], position_label="relative")
    assert {f"backbone.{name}" for name in tables} <= model.no_weight_decay() <= {*model.state_dict()}
    matrices = {name for name in model.no_weight_decay() if name.endswith(("proj.weight", "fc1.weight"))}
    assert not matrices


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (Siglip2VisionConfig(), "must have an image_size, .*; that of a siglip2_vision_model has none"),
        (PvtConfig(), "one patch_size and one hidden_size for all stages, .*; that of a pvt has not"),
        (SwinConfig(**(SWIN | {"window_size": 5})), "window_size of the swin must be at most .* 4x4 tokens .*; got 5"),
        (DonutSwinConfig(**(SWIN | {"window_size": 7})), "window_size of the donut-swin must be at most .*; got 7"),
    ],
    ids=["no image size", "a width per stage", "window of Swin", "window of DonutSwin"],
)
def test_backbones_that_cannot_be_read_are_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier(inner, position_label="relative")


def test_images_that_are_smaller_than_a_window_are_refused():
    model = tiny_classifier("swin", position_label="relative")
    with pytest.raises(
        ValueError, match=r"window_size of the swin must be at most .* 3x4 tokens for these images; got 4"
    ):
        model(torch.randn(1, 3, 24, 32))


def test_tokens_of_two_scales_are_refused():
    # Older versions of timm do not say what its stages are.
    message = r"one sequence of tokens \[B, N, 384\]; CrossVit returns 2 of different scales|CrossVit has no patches"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model = tiny_classifier(TimmWrapperConfig(architecture="crossvit_9_240"), position_label="relative")
        model(images(model))
