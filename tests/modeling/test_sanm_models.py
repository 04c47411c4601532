"""SANM models: any backbone, the light mode, decoders, ensembles, initialisation, errors."""

import copy
import math

import pytest
import torch
from hubmodels.modeling.mae import MAEConfig
from hubmodels.modeling.sanm import (
    SANMBackbone,
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
    SANMModel,
    reconstruction_loss,
    sharpen,
    soft_cross_entropy,
)
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    pipeline,
)

import hubmodels
from hubmodels.training.cotraining_step import CoTrainingSettings
from hubmodels.training.labelled_split import labelled_mask

TINY = {"widths": [4, 8], "depths": [1, 1], "image_size": 16, "num_labels": 3}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
BACKBONES = {
    "vit": ViTConfig(**TRANSFORMER, intermediate_size=16),
    "dinov2": Dinov2Config(**TRANSFORMER),
    "swin": SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4, window_size=2),
    "resnet": ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2),
    "mae": MAEConfig(**TRANSFORMER, intermediate_size=16),
    "timm": {"model_type": "timm_backbone", "backbone": "resnet10t"},
    "timm_vit": {
        "model_type": "timm_wrapper",
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, "depth": 1},
        "num_classes": 0,
    },
}


def tiny(**changes):
    torch.manual_seed(0)
    return SANMForImageClassification(SANMConfig(**TINY | changes))


def images(count=4, size=16, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_trains_and_comes_back(name, tmp_path):
    config = SANMConfig(backbone_config=BACKBONES[name], image_size=32, num_labels=3, framework="ce")
    model = SANMForImageClassification(config).train()
    outputs = model(images(size=32), labels=torch.tensor([0, 1, 2, 0]), clean_prob=torch.rand(4))
    outputs.loss.backward()
    assert outputs.last_hidden_state.ndim == 4 and outputs.logits.shape == (4, 3)
    learned = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("decoder") for name in learned) and any(name.startswith("backbone") for name in learned)
    model.eval().save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(size=32)).logits, model(images(size=32)).logits)


def test_tokens_make_the_grid_of_the_patches():
    model = SANMForImageClassification(SANMConfig(backbone_config=BACKBONES["vit"], image_size=32)).eval()
    with torch.no_grad():
        tokens = model.backbone.model(images(1, 32)).last_hidden_state
        outputs = model(images(1, 32))
    assert tokens.shape == (1, 17, 16)
    torch.testing.assert_close(outputs.last_hidden_state[0, :, 1, 2], tokens[0, 1 + 4 + 2])


def test_the_light_loss_is_that_of_its_parts():
    """Refined label, plain view, both masked views, reconstruction of both (spelled out)."""
    model = tiny(framework="ce").train()
    pixels, labels, trust = images(), torch.tensor([0, 1, 2, 0]), torch.tensor([0.1, 0.9, 0.5, 1.0])
    draws = model._masking.draw(4, 3, generator=torch.Generator().manual_seed(0))
    outputs = model(pixels, labels=labels, clean_prob=trust, draws=draws)
    given = torch.nn.functional.one_hot(labels, 3).float()
    guess = outputs.logits.detach().softmax(1)
    targets = sharpen(trust[:, None] * given + (1 - trust[:, None]) * guess, 0.5)
    views = model._masking(pixels, outputs.last_hidden_state, trust, targets, draws)
    masked = model.encode(torch.cat([views.max_views, views.min_views]), output_reconstruction=True)
    plain = soft_cross_entropy(outputs.logits, targets)
    hidden = soft_cross_entropy(masked.logits, views.targets.repeat(2, 1))
    error = reconstruction_loss(masked.reconstruction, pixels)
    torch.testing.assert_close(outputs.loss, plain + hidden + 0.02 * error)
    torch.testing.assert_close(outputs.reconstruction_loss, error)
    # Without an estimate all labels are trusted; in evaluation, and outside the light mode, the loss is cross entropy.
    certain = model(pixels, labels=labels, draws=draws)
    torch.testing.assert_close(certain.classification_loss, torch.nn.functional.cross_entropy(certain.logits, labels))
    for other in (model.eval(), tiny().train()):
        result = other(pixels, labels=labels, clean_prob=trust)
        torch.testing.assert_close(result.loss, torch.nn.functional.cross_entropy(result.logits, labels))


def test_light_controls_leave_plain_cross_entropy():
    model = tiny(framework="ce", mask="none", mask_labels=False, recon_weight=0.0).train()
    outputs = model(images(), labels=torch.tensor([0, 1, 2, 0]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(outputs.loss, expected)


def test_large_pictures_are_evaluated_as_the_official_transforms_do():
    """`Resize(256)`, which is bilinear, `CenterCrop(224)`; torchvision and Pillow differ by a level here and there."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=generator), size=(300, 400))[0]
    picture = tvF.to_pil_image((picture * 255).to(torch.uint8))
    processor = SANMImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True, do_normalize=False
    )
    expected = tvF.pil_to_tensor(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(picture)) / 255
    found = processor(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(found, expected, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("margin", range(4))
def test_the_centre_is_cropped_where_torchvision_does(margin):
    picture = torch.randint(0, 256, (3, 36, 36 + margin), dtype=torch.uint8)
    processor = SANMImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, do_center_crop=True, do_normalize=False
    )
    found = processor(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(found, v2.CenterCrop(32)(picture) / 255)


@pytest.mark.parametrize("mask", ["activation", "none"])
def test_without_its_weight_the_decoder_rests_and_labels_are_masked_all_the_same(mask):
    labels, draws = torch.tensor([0, 1, 2, 0]), torch.rand(4, 8) * 0.01 + 0.04
    draws[:, 1] = 1.0
    losses = []
    for weight in (0.0, 0.02):
        torch.manual_seed(0)
        model = tiny(framework="ce", mask=mask, recon_weight=weight).train()
        outputs = model(images(), labels=labels, draws=draws)
        outputs.loss.backward()
        losses.append(outputs.masked_loss)
        assert all((parameter.grad is None) == (weight == 0) for parameter in model.decoder.parameters())
        assert (outputs.reconstruction_loss is None) == (weight == 0)
    torch.testing.assert_close(*losses)


def test_float64_networks_guess_and_learn_in_float64():
    model = tiny(framework="ce").double().train()
    trust = torch.tensor([0.1, 0.9, 1 / 3, 0.7], dtype=torch.float64)
    pixels, labels = images().double(), torch.tensor([0, 1, 2, 0])
    outputs = model(pixels, labels=labels, clean_prob=trust)
    assert outputs.loss.dtype == torch.float64
    given = torch.nn.functional.one_hot(labels, 3).double()
    refined = sharpen(trust[:, None] * given + (1 - trust[:, None]) * outputs.logits.detach().softmax(1), 0.5)
    torch.testing.assert_close(
        outputs.classification_loss, soft_cross_entropy(outputs.logits, refined), rtol=1e-12, atol=0
    )


def test_short_formats_guess_in_float32():
    model = tiny(framework="ce", mask="none", mask_labels=False, recon_weight=0.0).bfloat16().train()
    labels, trust = torch.tensor([0, 1, 2, 0]), torch.full((4, 1), 0.3)
    outputs = model(images().bfloat16(), labels=labels, clean_prob=trust)
    given = torch.nn.functional.one_hot(labels, 3).float()
    refined = sharpen(trust * given + (1 - trust) * outputs.logits.detach().float().softmax(1), 0.5)
    torch.testing.assert_close(outputs.loss, soft_cross_entropy(outputs.logits, refined), rtol=1e-6, atol=0)


def test_sharpening_among_many_classes_stays_a_distribution():
    sharp = sharpen(torch.full((2, 1000), 1e-3), 0.05)
    torch.testing.assert_close(sharp, torch.full((2, 1000), 1e-3))


def test_names_of_other_resnets_are_understood():
    config = SANMConfig(num_blocks=[1, 1], hidden_sizes=[16, 32], layer_type="bottleneck")
    assert (config.depths, config.num_blocks, config.widths, config.hidden_sizes) == ([1, 1], [1, 1], [4, 8], [16, 32])
    again = SANMConfig.from_dict(config.to_dict())
    assert (again.depths, again.widths) == ([1, 1], [4, 8])


@pytest.mark.parametrize(
    ("changes", "decoder", "size"),
    [
        ({"widths": [4, 8, 16, 32], "depths": [1] * 4, "image_size": 32}, "resnet18", 32),
        ({"widths": [1, 2, 4, 8], "image_size": 224, "layer_type": "bottleneck"}, "resnet50", 224),
        ({}, "auto", 16),
        ({"image_size": (24, 20)}, "auto", (24, 20)),
    ],
)
def test_decoders_reach_the_size_of_the_image(changes, decoder, size):
    model = tiny(**({"depths": None} if "layer_type" in changes else {}) | changes).eval()
    assert model.config.decoder_type == decoder
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, height, width), output_reconstruction=True)
    assert outputs.reconstruction.shape == (1, 3, height, width)
    assert model(torch.zeros(1, 3, height, width)).reconstruction is None


def test_a_decoder_of_the_wrong_size_is_refused_in_training():
    model = tiny(framework="ce", decoder_type="resnet18").train()
    with pytest.raises(ValueError, match=r"pictures of \(48, 48\) .* images of \(16, 16\); set decoder_type='auto'"):
        model(images(), labels=torch.zeros(4, dtype=torch.long))


def test_an_ensemble_sums_its_networks_and_is_found_by_the_auto_class(tmp_path):
    ensemble = SANMEnsembleForImageClassification(SANMConfig(**TINY)).eval()
    with torch.no_grad():
        outputs = ensemble(images(), labels=torch.tensor([0, 1, 2, 0]))
        first, second = (net(images(), labels=torch.tensor([0, 1, 2, 0])) for net in (ensemble.net1, ensemble.net2))
    torch.testing.assert_close(outputs.logits, first.logits + second.logits)
    torch.testing.assert_close(outputs.loss, (first.loss + second.loss) / 2)
    assert not torch.equal(first.logits, second.logits)
    ensemble.save_pretrained(tmp_path)
    SANMImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is SANMEnsembleForImageClassification
    assert loaded.config.auto_map["AutoModelForImageClassification"].endswith("SANMEnsembleForImageClassification")
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SANMImageProcessor
    assert hubmodels.SANMEnsembleForImageClassification is SANMEnsembleForImageClassification


@pytest.mark.parametrize("model_class", [SANMForImageClassification, SANMEnsembleForImageClassification])
def test_outputs_have_the_names_of_the_paper_too(model_class):
    outputs = model_class(SANMConfig(**TINY)).eval()(images())
    assert outputs.feature_map is outputs.last_hidden_state and outputs.pooled is outputs.pooler_output
    assert list(outputs) == ["logits", "last_hidden_state", "pooler_output"] and len(outputs.to_tuple()) == 3


def test_an_ensemble_joins_the_states_and_attentions_of_its_networks():
    config = SANMConfig(**TINY | {"backbone_config": BACKBONES["vit"], "image_size": 32})
    ensemble = SANMEnsembleForImageClassification(config).eval()
    ensemble.set_attn_implementation("eager")
    asked = {"output_attentions": True, "output_hidden_states": True}
    outputs, *parts = (model(images(size=32), **asked) for model in (ensemble, ensemble.net1, ensemble.net2))
    for name in ("hidden_states", "attentions"):
        expected = [value for part in parts for value in part[name]]
        assert len(outputs[name]) == len(expected) > 0
        assert all(torch.equal(found, value) for found, value in zip(outputs[name], expected, strict=True))


def test_pipelines_give_grey_pictures_to_networks_of_one_channel(tmp_path, monkeypatch):
    tiny(num_channels=1).eval().save_pretrained(tmp_path)
    processor = SANMImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.286], image_std=[0.353])
    processor.save_pretrained(tmp_path)
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    grey = Image.fromarray(levels.numpy())
    for picture in (grey, grey.convert("RGB"), levels[None]):
        pixels = processor(picture, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixels, (levels[None] / 255 - 0.286) / 0.353)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"pipeline asks: {question}"))
    answers = pipeline("image-classification", str(tmp_path))(grey, top_k=1)
    assert answers[0]["label"].startswith("LABEL_")


def test_one_network_and_two_are_not_mistaken_for_each_other(tmp_path):
    tiny().save_pretrained(tmp_path / "one")
    SANMEnsembleForImageClassification(SANMConfig(**TINY)).save_pretrained(tmp_path / "two")
    for model_class in (SANMForImageClassification, SANMModel, SANMBackbone):
        with pytest.raises(ValueError, match=r"holds a SANMEnsembleForImageClassification, which .* cannot load"):
            model_class.from_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="SANMEnsembleForImageClassification cannot load"):
        SANMEnsembleForImageClassification.from_pretrained(tmp_path / "one")


def test_the_encoder_and_the_backbone_are_those_of_the_classifier(tmp_path):
    model = tiny(layer_type="basic").eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(images(), output_hidden_states=True)
        encoded = AutoModel.from_pretrained(tmp_path)(images())
        maps = SANMBackbone.from_pretrained(tmp_path, out_features=["stem", "stage2"])(images()).feature_maps
    assert torch.equal(encoded.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(encoded.pooler_output, expected.pooler_output)
    assert torch.equal(maps[0], expected.hidden_states[0]) and torch.equal(maps[1], expected.last_hidden_state)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "timm_vit"])
def test_the_backbone_around_any_network_is_that_of_the_classifier(name, tmp_path):
    config = SANMConfig(backbone_config=BACKBONES[name], image_size=32, num_labels=3)
    model = SANMForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    backbone = SANMBackbone.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(images(size=32)).last_hidden_state
        outputs = backbone(images(size=32), output_hidden_states=True)
    assert torch.equal(outputs.feature_maps[-1], expected)
    assert backbone.channels == [expected.shape[1]]
    assert outputs.hidden_states is not None


def test_any_layer_of_a_vision_transformer_is_a_stage_of_the_backbone():
    config = SANMConfig(backbone_config=BACKBONES["vit"], image_size=32, out_features=["stem", "stage1"])
    backbone = SANMBackbone(config)
    assert backbone.stage_names == ["stem", "stage1"] and backbone.has_attentions
    assert [tuple(m.shape) for m in backbone(images(size=32)).feature_maps] == [(4, 16, 4, 4)] * 2


def test_a_network_without_stages_is_no_backbone():
    config = SANMConfig(backbone_config=BACKBONES["timm_vit"], image_size=32)
    with pytest.raises(ValueError, match=r"a vision transformer, got 'timm_wrapper', which has no stages"):
        SANMBackbone(config)


@pytest.mark.parametrize("layer_type", ["preact", "basic", "bottleneck"])
def test_initialisation_is_that_of_the_official_code(layer_type):
    model = tiny(layer_type=layer_type, widths=[16, 32], image_size=32)
    weight = model.backbone.layer2[0].conv2.weight
    fan_in, fan_out = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
    expected = math.sqrt(1 / (3 * fan_in)) if layer_type == "preact" else math.sqrt(2 / fan_out)
    assert weight.std().item() == pytest.approx(expected, rel=0.1)
    if layer_type == "preact":
        assert weight.abs().max() <= math.sqrt(1 / fan_in)
    for layer in (model.classifier, model.decoder.layer1):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert 0 < layer.bias.abs().max() <= bound and layer.weight.abs().max() <= bound
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_preact_shortcut_carries_the_activated_input():
    layer = tiny().backbone.layer1[0].eval()
    torch.nn.init.zeros_(layer.conv2.weight)
    negative = -torch.ones(1, 4, 3, 3)
    with torch.no_grad():
        assert torch.equal(layer(negative), torch.zeros_like(negative))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels):
    model = tiny(num_channels=channels, framework="ce").train()
    model(images(channels=channels), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    with pytest.raises(ValueError, match=rf"must have {channels} channels \(num_channels of the configuration\)"):
        model(images(channels=2))


def test_images_without_a_label_are_left_out_of_the_cross_entropy_only():
    model, labels = tiny(framework="ce"), torch.tensor([0, -100, 2, 0])
    expected = torch.nn.functional.cross_entropy(model.eval()(images()).logits[[0, 2, 3]], labels[[0, 2, 3]])
    torch.testing.assert_close(model(images(), labels=labels).loss, expected)
    with pytest.raises(ValueError, match=r"light mode \(framework 'ce'\) must not be -100"):
        model.train()(images(), labels=labels)


def test_inputs_that_do_not_fit_are_refused():
    model = tiny(framework="ce").train()
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"clean_prob must be in \[0, 1\], got values from -0.5 to -0.5"):
        model(images(), labels=labels, clean_prob=torch.full((4,), -0.5))
    with pytest.raises(ValueError, match=r"clean_prob must have shape \(4,\), got \(3,\)"):
        model(images(), labels=labels, clean_prob=torch.ones(3))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"framework": "mixup"}, r"framework must be one of \('dividemix', 'c2d', 'ce'\), got 'mixup'"),
        ({"layer_type": "dense"}, "layer_type must be one of"),
        ({"decoder_type": "resnet34"}, "decoder_type must be one of"),
        ({"mask": "cam"}, "mask must be one of"),
        ({"widths": [4, 8], "depths": [1]}, r"one each per stage, got \[1\] and \[4, 8\]"),
        ({"image_size": 0}, "image_size must be a positive number"),
        ({"num_channels": 0}, "num_channels must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"recon_weight": -1.0}, "recon_weight must be at least 0"),
        ({"area_range": (0.5, 0.2)}, "area_range must be"),
        ({"area_range": [0.1]}, "area_range must be"),
        ({"min_aspect": 0.0}, "min_aspect must be in"),
        ({"area_factor": 0.0}, "area_factor must be in"),
        ({"quality_slope": 2.0}, "quality_slope must be in"),
    ],
)
def test_configurations_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SANMConfig(**setting)


def test_changes_while_loading_are_checked():
    stored = SANMConfig().to_dict()
    with pytest.raises(ValueError, match="mask must be one of"):
        SANMConfig.from_dict(stored, mask="cam")
    assert SANMConfig.from_dict(stored, image_size=[16, 16]).image_height_width == (16, 16)
    assert SANMConfig.from_dict(stored, depths=[1, 1], widths=[4, 8]).out_features == ["stage2"]


def test_a_backbone_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"backbone_config must describe a network with feature maps|Unrecognized"):
        SANMForImageClassification(SANMConfig(backbone_config={"model_type": "encoder-decoder"}))
    text = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    with pytest.raises(ValueError, match=r"must describe a network for images, got model_type 'bert'"):
        SANMForImageClassification(SANMConfig(backbone_config=text))
    with pytest.raises(ValueError, match=r"num_channels must be that of backbone_config, 3, got 4"):
        SANMForImageClassification(SANMConfig(backbone_config=BACKBONES["resnet"], num_channels=4))
    from hubmodels.modeling.sanm.backbones_sanm import token_grid

    with pytest.raises(ValueError, match=r"got shape \(2, 3, 8\) for images of \(32, 32\) pixels"):
        token_grid(torch.zeros(2, 3, 8), (32, 32), BACKBONES["vit"])


def test_splits_without_labelled_or_unlabelled_images():
    settings = CoTrainingSettings(min_labelled=0)
    low, high = torch.linspace(0, 0.4, 9).numpy(), torch.linspace(0.6, 1, 9).numpy()
    with pytest.raises(ValueError, match=r"no sample above threshold 0.5 in epoch 7: lower p_threshold or lengthen"):
        labelled_mask(low, settings, 7)
    with pytest.raises(ValueError, match=r"all samples are above threshold 0.5 in epoch 7"):
        labelled_mask(high, settings, 7)
    settings = CoTrainingSettings(min_labelled=2)
    assert labelled_mask(low, settings, 7).tolist() == [False] * 7 + [True] * 2
    assert labelled_mask(high, settings, 7).tolist() == [False] * 2 + [True] * 7


@pytest.mark.parametrize("layer_type", ["preact", "basic", "bottleneck"])
def test_gradient_checkpointing_counts_every_batch_once(layer_type):
    config = SANMConfig(layer_type=layer_type, widths=[4, 4, 4, 4], depths=[1, 1, 1, 1], num_labels=3)
    plain = SANMForImageClassification(config).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable()
    pixels, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for model in (plain, saving):
        model(pixels, labels=labels).loss.backward()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[name], value, msg=name)
    for name, value in plain.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(saving.get_parameter(name).grad, value.grad, msg=name)


@pytest.mark.parametrize("model_class", [SANMModel, SANMForImageClassification])
def test_attention_of_the_backbone_can_be_chosen(model_class, tmp_path):
    config = SANMConfig(**TINY | {"backbone_config": ViTConfig(**TRANSFORMER, intermediate_size=16), "image_size": 32})
    model_class(config).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, attn_implementation="sdpa")
    model.set_attn_implementation("eager")
    model.set_attn_implementation("sdpa")
    model = model_class.from_pretrained(tmp_path, attn_implementation="eager", output_attentions=True)
    pixels = images(size=32)
    assert len(model(pixels).attentions) == 1
    assert model(pixels, output_attentions=False).attentions is None


def test_channels_are_those_of_the_backbone():
    with pytest.raises(ValueError, match=r"num_channels must be that of backbone_config, 3, got 1"):
        SANMConfig(backbone_config=ResNetConfig(), num_channels=1)
    assert SANMConfig(backbone_config=ResNetConfig(num_channels=1)).num_channels == 1
