"""SimCLR on other encoders: ViTs, ConvNeXt, timm, our own MAE; and SimCLR as the backbone of something else."""

import pytest
import torch
import torch.distributed as dist
from hubmodels.modeling.mae import MAEConfig
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRModel,
)
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from transformers import (
    AutoBackbone,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    DetrConfig,
    DetrModel,
    Dinov2Config,
    RegNetConfig,
    ResNetBackbone,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTMAEConfig,
)

from tests.modeling.tiny_simclr import gradients, images, tiny_config

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
BACKBONES = {
    "vit": Dinov2Config(**VIT),
    "plain_vit": ViTConfig(**VIT, intermediate_size=32),
    "deit": DeiTConfig(**VIT, intermediate_size=32),
    "clip": CLIPVisionConfig(**VIT, intermediate_size=32),
    "mae": MAEConfig(**VIT, intermediate_size=32),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]),
    "timm_resnet": TimmBackboneConfig(backbone="test_resnet"),
    "timm_efficientnet": TimmBackboneConfig(backbone="test_efficientnet"),
    "timm_vit": TimmBackboneConfig(backbone="test_vit"),
    "timm_convnext": TimmBackboneConfig(backbone="test_convnext"),
}
WIDTHS = {"vit": 16, "plain_vit": 16, "deit": 16, "clip": 16, "mae": 16, "convnext": 32, "swin": 16, "resnet": 32}


def config_with(name, **fields):
    backbone_config = type(BACKBONES[name]).from_dict(BACKBONES[name].to_dict())
    return SimCLRConfig(backbone_config=backbone_config, image_size=32, proj_out_dim=8, num_proj_layers=2, **fields)


def pixels_for(name, *shape):
    return images(*shape, size=160 if name == "timm_vit" else 32)


@pytest.mark.parametrize("name", BACKBONES)
def test_pre_training_and_back(name, tmp_path):
    """A step, then saved and loaded by every class with equal features; h is the mean of the last map."""
    model = SimCLRForPreTraining(config_with(name, temperature=0.5)).train()
    before = {n: p.clone() for n, p in model.backbone.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(pixels_for(name, 3, 2)).loss.backward()
    optimizer.step()
    changed = sum(not torch.equal(p, before[n]) for n, p in model.backbone.named_parameters())
    assert changed > len(before) / 2, "the encoder learns"
    model.save_pretrained(tmp_path)
    pixels = pixels_for(name, 2)
    with torch.no_grad():
        expected = model.eval()(pixels, return_loss=False)
        assert name not in WIDTHS or expected.pooler_output.shape == (2, WIDTHS[name])
        for model_class in (SimCLRForPreTraining, SimCLRModel, SimCLRBackbone, SimCLRForImageClassification):
            loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
            assert not report["unexpected_keys"] and not report["mismatched_keys"]
            assert all(key.startswith("classifier.") for key in report["missing_keys"])
            loaded.eval()
            if model_class is SimCLRBackbone:
                last = loaded(pixels).feature_maps[-1]
                torch.testing.assert_close(last.mean(dim=(2, 3)), expected.pooler_output)
                assert loaded.channels[-1] == last.shape[1]
            else:
                torch.testing.assert_close(loaded.encode(pixels).pooler_output, expected.pooler_output)


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_it_learns_to_recognise_views(name):
    """A few steps on eight images: the loss falls, and more second views are found."""
    model = SimCLRForPreTraining(config_with(name, temperature=0.2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    base = images(8, size=32)
    losses = []
    for number in range(12):
        views = torch.stack([base, (0.8 * base + 0.2 * images(8, size=32, seed=number + 1))], dim=1)
        output = model(views)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert output.contrast_accuracy == 1


@pytest.mark.parametrize("name", ["vit", "mae", "plain_vit"])
def test_class_token_pooling(name):
    """The token of the last stage, after the norm if the backbone applies it to its maps."""
    model = SimCLRModel(config_with(name, pooling="cls")).eval()
    pixels = images(2, size=32)
    with torch.no_grad():
        output = model(pixels)
        states = model.backbone(pixels, output_hidden_states=True).hidden_states[-1]
    token = states[:, 0] if name in ("mae", "plain_vit") else model.backbone.layernorm(states)[:, 0]
    torch.testing.assert_close(output.pooler_output, token)
    assert output.hidden_states is None
    assert (output.pooler_output - output.last_hidden_state.mean(dim=(2, 3))).abs().max() > 1e-3


class LargestBatch:
    """The largest batch that passes a module."""

    def __init__(self, module):
        self.size = 0
        module.register_forward_pre_hook(self.look)

    def look(self, module, args):
        self.size = max(self.size, len(args[0]))


def test_a_batch_in_chunks_is_the_same_batch():
    """Loss and gradients of 10 views, 4 at a time."""
    results = []
    for chunk_size in (None, 4):
        torch.manual_seed(0)
        model = SimCLRForPreTraining(config_with("vit", encoder_chunk_size=chunk_size)).double().train()
        watched = LargestBatch(model.backbone.embeddings.patch_embeddings.projection)
        output = model(images(5, 2, size=32, dtype=torch.float64))
        output.loss.backward()
        assert watched.size == (chunk_size or 10)
        results.append((output.loss, gradients(model)))
    torch.testing.assert_close(results[1], results[0])


def test_chunks_draw_the_same_twice():
    """The gradient of a step with random layers is that of its own loss: a small step along it has that slope."""
    config = config_with("vit", encoder_chunk_size=4)
    config.backbone_config.drop_path_rate = 0.5
    torch.manual_seed(0)
    model = SimCLRForPreTraining(config).double().train()
    views = images(5, 2, size=32, dtype=torch.float64)
    weight = model.backbone.embeddings.patch_embeddings.projection.weight

    def loss():
        torch.manual_seed(1)
        return model(views).loss

    loss().backward()
    step = 1e-5 * weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        below = loss()
    assert ((above - below) / 2e-5).item() == pytest.approx(weight.grad.norm().item(), rel=1e-4)


def test_chunks_need_an_encoder_without_batch_statistics():
    model = SimCLRForPreTraining(tiny_config(encoder_chunk_size=2)).train()
    with pytest.raises(ValueError, match="encoder_chunk_size needs an encoder without batch statistics"):
        model(images(3, 2))
    whole = SimCLRForPreTraining(tiny_config()).eval()
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images(3, 2)).loss, whole(images(3, 2)).loss)


def test_backbones_without_class_tokens_are_refused():
    model = SimCLRModel(config_with("swin", pooling="cls"))
    with pytest.raises(ValueError, match="pooling 'cls' needs a backbone with a class token; SwinBackbone has none"):
        model(images(1, size=32))
    with pytest.raises(ValueError, match="timm backbones return feature maps only"):
        SimCLRModel(config_with("timm_vit", pooling="cls"))


def test_backbones_must_return_maps():
    model = SimCLRModel(SimCLRConfig(backbone_config=Dinov2Config(**VIT, reshape_hidden_states=False)))
    with pytest.raises(
        ValueError, match=r"must return feature maps \[B, 16, h, w\], got shape .* reshape_hidden_states"
    ):
        model(images(1, size=32))


def test_maps_with_channels_last(monkeypatch):
    """timm's Swin returns them so."""
    model = SimCLRModel(config_with("resnet")).eval()
    pixels = images(2, size=32)
    with torch.no_grad():
        expected = model(pixels)
        outputs = model.backbone(pixels)
        outputs.feature_maps = tuple(m.permute(0, 2, 3, 1) for m in outputs.feature_maps)
        monkeypatch.setattr(model.backbone, "forward", lambda *args, **kwargs: outputs)
        actual = model(pixels)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("name", ["resnet", "timm_resnet", "timm_efficientnet"])
def test_statistics_of_other_backbones_are_global_too(name):
    model = SimCLRModel(config_with(name))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, SimCLRBatchNorm) and m.global_stats for m in norms)
    local = SimCLRModel(config_with(name, global_bn=False))
    local.load_state_dict(model.state_dict())
    assert not any(isinstance(m, SimCLRBatchNorm) for m in local.modules())
    with torch.no_grad():
        outputs = [m.train()(images(4, size=32)).pooler_output for m in (model, local)]
        torch.testing.assert_close(*outputs)
        local.load_state_dict(model.state_dict())
        outputs = [m.eval()(images(4, size=32)).pooler_output for m in (model, local)]
        torch.testing.assert_close(*outputs)


def test_statistics_that_stay_local_are_named(monkeypatch):
    messages = []
    monkeypatch.setattr("hubmodels.modeling.simclr.backbones_simclr.logger.warning_once", messages.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    SimCLRModel(SimCLRConfig(backbone_config=TimmBackboneConfig(backbone="levit_128s")))
    assert messages == ["global_bn: the statistics of BatchNorm1d stay those of each process"]


def test_trained_weights_of_a_backbone_can_be_used():
    """Any `AutoBackbone` model's state dict fits the encoder."""
    stock = ResNetBackbone(BACKBONES["resnet"]).eval()
    model = SimCLRModel(config_with("resnet")).eval()
    model.backbone.load_state_dict(stock.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)).last_hidden_state, stock(images(2)).feature_maps[-1])


def test_stages_of_the_own_network():
    backbone = SimCLRBackbone(tiny_config(out_features=["stem", "stage2", "stage4"])).eval()
    assert backbone.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert backbone.channels == [4, 32, 128]
    output = backbone(images(2), output_hidden_states=True)
    assert [tuple(m.shape[1:]) for m in output.feature_maps] == [(4, 16, 16), (32, 8, 8), (128, 2, 2)]
    assert all(a is output.hidden_states[i] for a, i in zip(output.feature_maps, (0, 2, 4), strict=True))
    assert output.attentions is None


@pytest.mark.parametrize("name", ["vit", "plain_vit", "convnext"])
def test_stages_of_another_network(name):
    config = config_with(name, out_features=["stage1", "stage2"])
    backbone = SimCLRBackbone(config).eval()
    assert backbone.out_features == ["stage1", "stage2"] == backbone.backbone.out_features
    maps = backbone(images(2, size=32)).feature_maps
    assert [m.shape[1] for m in maps] == backbone.channels
    again = AutoBackbone.from_config(SimCLRConfig.from_dict(config.to_dict()))
    assert type(again) is SimCLRBackbone and again.out_features == ["stage1", "stage2"]


def test_segmentation_on_a_simclr_backbone():
    """UperNet of transformers holds it as it holds its own."""
    backbone_config = tiny_config(image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=16, num_labels=3, use_auxiliary_head=False, pool_scales=[1]
    )
    model = UperNetForSemanticSegmentation(config)
    assert type(model.backbone) is SimCLRBackbone
    output = model(images(2, size=64), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    output.loss.backward()
    assert output.logits.shape == (2, 3, 64, 64)
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_simclr_on_simclr():
    """A SimCLR network is a backbone like any other."""
    config = SimCLRConfig(backbone_config=tiny_config())
    model = SimCLRModel(config).eval()
    inner = SimCLRBackbone(tiny_config()).eval()
    inner.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)).last_hidden_state, inner(images(2)).feature_maps[0])


def test_networks_without_maps_are_refused():
    for backbone, message in (
        (RegNetConfig(), r"AutoBackbone knows or a vision transformer, got 'regnet'; timm has most networks"),
        (ViTMAEConfig(), r"'vit_mae' hides patches; take the type 'mae'"),
        (ViTConfig(**VIT, out_features=["stage9"]), r"out_features must be of \['stem', .*\], got \['stage9'\]"),
        (ViTConfig(**VIT, out_indices=[7]), r"out_indices must be of 0 to 2, or negative from the end, got \[7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            SimCLRModel(SimCLRConfig(backbone_config=backbone))


@pytest.mark.parametrize("model_class", [SimCLRModel, SimCLRBackbone])
def test_attention_of_the_backbone_can_be_chosen(model_class, tmp_path):
    model_class(config_with("plain_vit")).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, attn_implementation="sdpa")
    model.set_attn_implementation("eager")
    assert model.backbone.model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.backbone.model.config._attn_implementation == "sdpa"
    model = model_class.from_pretrained(tmp_path, attn_implementation="eager", output_attentions=True)
    pixels = pixels_for("plain_vit", 2)
    assert len(model(pixels).attentions) == 2
    assert model(pixels, output_attentions=False).attentions is None


def test_channels_are_those_of_the_backbone():
    with pytest.raises(ValueError, match=r"num_channels must be that of backbone_config, 3, got 1"):
        SimCLRConfig(backbone_config=ResNetConfig(), num_channels=1)
    assert SimCLRConfig(backbone_config=ResNetConfig(num_channels=1)).num_channels == 1


def test_detr_freezes_the_normalisation():
    config = SimCLRConfig(stem_width=4, layer_type="basic", depths=[1, 1, 1, 1], out_features=["stage3", "stage4"])
    backbone = SimCLRBackbone(config).eval()
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    detr = DetrModel(DetrConfig(backbone_config=config, **sizes, **heads)).train()
    inside = detr.backbone.model
    inside.load_state_dict(backbone.state_dict(), strict=False)  # frozen ones count no batches
    pixels = images(2, size=32)
    with torch.no_grad():
        for expected, actual in zip(backbone(pixels).feature_maps, inside(pixels).feature_maps, strict=True):
            torch.testing.assert_close(actual, expected)
