"""DenseCL on backbones of transformers and timm, and DenseCL as a backbone of others."""

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLForPreTraining, DenseCLModel
from tiny_densecl import snapshot, tiny_config, tiny_views
from transformers import (
    AutoBackbone,
    AutoConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    RegNetConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
)
from transformers.modeling_outputs import BackboneOutput

VIT = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
BACKBONES = {
    "resnet18": (ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[8, 16, 32, 64]), 64, (1, 1)),
    "resnet50": (ResNetConfig(embedding_size=4, hidden_sizes=[8, 16, 32, 64]), 64, (1, 1)),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]), 16, (1, 1)),
    "swin": (SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, window_size=4), 16, (4, 4)),
    "vit": (Dinov2Config(hidden_size=16, patch_size=8, **VIT), 16, (4, 4)),
    "plain vit": (ViTConfig(hidden_size=16, patch_size=8, intermediate_size=16, **VIT), 16, (4, 4)),
    "deit": (DeiTConfig(hidden_size=16, patch_size=8, intermediate_size=16, **VIT), 16, (4, 4)),
    "mae": (AutoConfig.for_model("mae", hidden_size=16, patch_size=8, intermediate_size=16, **VIT), 16, (4, 4)),
    "timm resnet18": (TimmBackboneConfig(backbone="resnet18", out_indices=[-2]), 256, (2, 2)),
    "timm convnext": (TimmBackboneConfig(backbone="convnext_atto", out_indices=[-2]), 160, (2, 2)),
    "timm vit": (TimmBackboneConfig(backbone="test_vit"), 64, (2, 2)),
}


def config_on(name, **changes):
    backbone, channels, grid = BACKBONES[name]
    return tiny_config(backbone_config=backbone.to_dict(), queue_length=8, **changes), channels, grid


@pytest.mark.parametrize("name", BACKBONES)
def test_pre_training_on_any_backbone(name, tmp_path):
    config, channels, grid = config_on(name)
    torch.manual_seed(0)
    model = DenseCLForPreTraining(config).train()
    size = 160 if name == "timm vit" else 32
    grid = (10, 10) if name == "timm vit" else grid
    for seed in range(2):
        output = model(tiny_views(seed=seed, dtype=torch.float32, size=size))
        output.loss.backward()
    assert output.query_feature_map.shape == (4, channels, *grid)
    assert output.match_index.shape == (4, grid[0] * grid[1])
    assert all(p.grad is not None for p in model.encoder.global_head.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.backbone.parameters())
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    # The whole state survives, and the encoder alone gives the same features.
    model.save_pretrained(tmp_path)
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path)
    for key, tensor in snapshot(model).items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    images = tiny_views(dtype=torch.float32, size=size)[:, 0]
    with torch.no_grad():
        expected = model.eval().encoder(images)
        encoder = DenseCLModel.from_pretrained(tmp_path)(images)
        backbone = DenseCLBackbone.from_pretrained(tmp_path)
        maps = backbone(images).feature_maps
    torch.testing.assert_close(encoder.last_hidden_state, expected.feature_map)
    torch.testing.assert_close(encoder.global_embedding, expected.global_embedding)
    torch.testing.assert_close(maps[-1], expected.feature_map)
    assert backbone.channels == [channels]


def test_chosen_maps_of_another_backbone():
    config, *_ = config_on("convnext", out_features=["stage2", "stage4"])
    backbone = AutoBackbone.from_config(config)
    maps = backbone(torch.zeros(1, 3, 64, 64)).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 8), (16, 2, 2)]
    assert backbone.channels == [8, 16]
    assert backbone.out_indices == [2, 4]


def test_maps_with_the_channels_last_are_turned():
    model = DenseCLModel(config_on("vit")[0])
    feature_map = torch.randn(2, 3, 4, 16)
    model.encoder.backbone.forward = lambda pixel_values, **kwargs: BackboneOutput(feature_maps=(feature_map,))
    assert torch.equal(model(torch.zeros(2, 3, 24, 32)).last_hidden_state, feature_map.permute(0, 3, 1, 2))


def test_the_last_map_tells_whether_all_have_their_channels_last():
    model = DenseCLModel(config_on("vit")[0])
    maps = torch.rand(2, 8, 8, 8), torch.rand(2, 4, 4, 16)  # of the first every order fits
    model.encoder.backbone.forward = lambda pixel_values, **kwargs: BackboneOutput(feature_maps=maps)
    first, last = model.encoder.feature_maps(torch.zeros(2, 3, 32, 32))
    assert torch.equal(first, maps[0].permute(0, 3, 1, 2)) and torch.equal(last, maps[1].permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(4, 17, 16), (4, 4, 4, 8)], ids=["tokens", "other channels"])
def test_a_backbone_without_a_map_is_refused(shape):
    model = DenseCLModel(config_on("vit")[0])
    model.encoder.backbone.forward = lambda pixel_values, **kwargs: BackboneOutput(feature_maps=(torch.zeros(shape),))
    with pytest.raises(ValueError, match=r"must return feature maps \[B, 16, h, w\], got shape"):
        model(torch.zeros(4, 3, 32, 32))


def test_backbone_of_a_segmentation_model(tmp_path):
    """A saved pre-training model under transformers' UperNet, all stages of the backbone trained."""
    pretrained = DenseCLForPreTraining(
        tiny_config(num_stages=4, depths=[1] * 4, strides=[1, 2, 2, 2], dilations=[1] * 4)
    )
    pretrained.save_pretrained(tmp_path)
    backbone = DenseCLBackbone.from_pretrained(tmp_path, out_indices=[1, 2, 3, 4])
    config = UperNetConfig(
        backbone_config=backbone.config, hidden_size=8, num_labels=3, auxiliary_channels=4, auxiliary_in_channels=16
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    labels = torch.randint(3, (2, 64, 64))
    model(torch.randn(2, 3, 64, 64), labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert backbone.channels == [4, 8, 16, 32]


def test_out_features_and_out_indices_agree():
    by_name = DenseCLBackbone(tiny_config(out_features=["stem", "stage2"]))
    by_index = DenseCLBackbone(tiny_config(out_indices=[0, 2]))
    assert by_name.out_features == by_index.out_features == ["stem", "stage2"]
    assert [m.shape[1:] for m in by_name(torch.zeros(1, 3, 32, 32)).feature_maps] == [(4, 16, 16), (8, 4, 4)]
    by_name.out_features = ["stage1"]
    assert by_name(torch.zeros(1, 3, 32, 32)).feature_maps[0].shape == (1, 4, 8, 8)


def test_networks_without_maps_are_refused():
    config = tiny_config(backbone_config=RegNetConfig().to_dict(), queue_length=8)
    for model_class in (DenseCLModel, DenseCLBackbone):
        with pytest.raises(ValueError, match=r"AutoBackbone knows or a vision transformer, got 'regnet'"):
            model_class(config)


@pytest.mark.parametrize("name", ["plain vit", "mae"])
def test_keywords_reach_the_backbone_inside(name, tmp_path):
    config, *_ = config_on(name)
    DenseCLForPreTraining(config).save_pretrained(tmp_path)
    asked = {"output_attentions": True, "output_hidden_states": True}
    images = torch.rand(2, 2, 3, 40, 48)
    for model_class in (DenseCLModel, DenseCLBackbone, DenseCLForPreTraining):
        pixels = images if model_class is DenseCLForPreTraining else images[:, 0]
        model = model_class.from_pretrained(tmp_path, attn_implementation="eager").eval()
        output = model(pixels, interpolate_pos_encoding=True, **asked)
        assert (len(output.attentions), len(output.hidden_states)) == (2, 3)
        plain = model(pixels, interpolate_pos_encoding=True)
        assert (plain.attentions, plain.hidden_states) == (None, None)
        by_config = model_class.from_pretrained(tmp_path, attn_implementation="eager", **asked).eval()
        output = by_config(pixels, interpolate_pos_encoding=True)
        assert (len(output.attentions), len(output.hidden_states)) == (2, 3)
    maps = DenseCLBackbone.from_pretrained(tmp_path)(images[:, 0], interpolate_pos_encoding=True).feature_maps
    assert maps[0].shape == (2, 16, 5, 6)


@pytest.mark.parametrize("name", ["resnet18", "timm resnet18", "timm vit"])
def test_hidden_states_of_other_backbones_are_optional(name):
    model = DenseCLModel(config_on(name)[0]).eval()
    pixels = torch.rand(1, 3, 160, 160)
    assert model(pixels).hidden_states is None
    output = model(pixels, output_hidden_states=True)
    assert output.hidden_states
    torch.testing.assert_close(output.last_hidden_state, model(pixels).last_hidden_state)


def test_attention_of_the_backbone_can_be_chosen(tmp_path):
    DenseCLModel(config_on("plain vit")[0]).save_pretrained(tmp_path)
    model = DenseCLModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    model.set_attn_implementation("eager")
    assert model.encoder.backbone.model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.encoder.backbone.model.config._attn_implementation == "sdpa"


def test_channels_are_those_of_the_backbone():
    with pytest.raises(ValueError, match=r"num_channels must be that of backbone_config, 3, got 1"):
        tiny_config(backbone_config=ResNetConfig(), num_channels=1)
    assert tiny_config(backbone_config=ResNetConfig(num_channels=1)).num_channels == 1
