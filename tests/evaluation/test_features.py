"""Features of frozen models."""

import pytest
import timm
import torch
import transformers
from hubmodels.modeling.mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMModel,
)

import hubmodels
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation import evaluate_classifier, extract_features, pooled_features
from hubmodels.evaluation.sample_predictions import predict_samples
from tests.modeling.tiny_mae import SIZES

CONFIG = SIZES | {"patch_size": 8}
DATASET = load_image_dataset("fashion-mnist-small", split="test").subset(20)
TRANSFORM = EvalTransform(16, crop_fraction=1.0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_masking_is_off_in_every_model_with_an_encoder(pooling):
    model = MAEForPreTraining(MAEConfig(**CONFIG)).eval()
    pixels = torch.randn(3, 3, 16, 16)
    tokens = model.vit(pixels, mask_ratio=0).last_hidden_state
    expected = tokens[:, 1:].mean(1) if pooling == "mean" else tokens[:, 0]
    torch.testing.assert_close(pooled_features(model, pixels, pooling), expected)
    torch.testing.assert_close(pooled_features(model.vit, pixels, pooling), expected)


def test_classifiers_backbones_and_timm_models():
    pixels = torch.randn(3, 3, 16, 16)
    classifier = MAEForImageClassification(MAEConfig(**CONFIG, num_labels=4)).eval()
    assert pooled_features(classifier, pixels).shape == (3, 16)
    backbone = MAEBackbone(MAEConfig(**CONFIG)).eval()
    expected = backbone(pixels).feature_maps[-1].mean(dim=(2, 3))
    torch.testing.assert_close(pooled_features(backbone, pixels), expected)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, embed_dim=12, depth=1, num_heads=2).eval()
    torch.testing.assert_close(pooled_features(vit, pixels, "cls"), vit.forward_features(pixels)[:, 0])
    convolutional = timm.create_model("resnet10t").eval()
    assert pooled_features(convolutional, torch.randn(2, 3, 64, 64)).shape == (2, 512)


@pytest.mark.parametrize("model_class", [SANMModel, SANMForImageClassification, SANMEnsembleForImageClassification])
def test_networks_of_sanm(model_class):
    model = model_class(SANMConfig(image_size=16, widths=[4, 8], depths=[1, 1], num_labels=3)).eval()
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(pooled_features(model, pixels), model(pixels).pooler_output)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(3, 0), (20, 2)])
def test_extraction(batch_size, num_workers):
    model = MAEModel(MAEConfig(**CONFIG, drop_path_rate=0.5)).train()
    reference, labels = extract_features(model, DATASET, TRANSFORM, progress=False)
    assert model.training and reference.shape == (20, 16) and torch.equal(labels, DATASET.labels)
    features, _ = extract_features(
        model, DATASET, TRANSFORM, batch_size=batch_size, num_workers=num_workers, progress=False
    )
    torch.testing.assert_close(features, reference, atol=1e-6, rtol=1e-5)
    torch.nn.Linear(16, 2)(features).sum().backward()  # ordinary tensors, not inference tensors


def test_training_mode_is_restored_after_an_error():
    model = MAEModel(MAEConfig(**CONFIG)).train()
    with pytest.raises(ValueError, match="expected 1 channels"):
        extract_features(
            model,
            [{"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "index": 0}],
            EvalTransform(16, num_channels=1),
            progress=False,
        )
    assert model.training


def test_unlabelled_data():
    items = [{"image": DATASET[0]["image"], "index": 0}]
    assert extract_features(MAEModel(MAEConfig(**CONFIG)), items, TRANSFORM, progress=False)[1] is None


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, got 'max'"):
        pooled_features(MAEModel(MAEConfig(**CONFIG)), torch.zeros(1, 3, 16, 16), "max")


@pytest.mark.parametrize("name", ["SimCLRForPreTraining", "SimCLRModel", "DenseCLForPreTraining", "DenseCLModel"])
def test_contrastive_models_give_the_average_of_their_last_map(name):
    fields = {"layer_type": "basic", "depths": [1, 1, 1, 1]}
    if name.startswith("SimCLR"):
        config = hubmodels.SimCLRConfig(stem_width=4, image_size=32, **fields)
    else:
        config = hubmodels.DenseCLConfig(embedding_size=4, projection_hidden_size=8, queue_length=8, **fields)
    model = getattr(hubmodels, name)(config).eval()
    pixel_values = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = pooled_features(model, pixel_values)
        expected = model.encode(pixel_values).last_hidden_state.mean(dim=(2, 3))
    assert features.shape == (2, 32)
    torch.testing.assert_close(features, expected)


def timm_swin():
    sizes = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", **sizes)


@pytest.mark.parametrize("name", ["swin", "mambaout", "resnet", "vit", "siglip", "distilled", "registers"])
def test_timm_networks_are_pooled_as_timm_pools_them(name):
    makers = {
        "swin": timm_swin,
        "mambaout": lambda: timm.create_model("mambaout_femto"),
        "resnet": lambda: timm.create_model("resnet10t"),
        "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, global_pool="avg"),
        "siglip": lambda: timm.create_model(
            "vit_base_patch16_siglip_224", img_size=64, depth=1, embed_dim=48, num_heads=3
        ),
        "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=1),
        "registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=64, patch_size=16, depth=1),
    }
    network, pixels = makers[name]().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states, features = network.forward_features(pixels), pooled_features(network, pixels)
        if name in ("swin", "mambaout"):
            expected = states.mean(dim=(1, 2))
        elif name == "resnet":
            expected = states.mean(dim=(2, 3))
        else:
            expected = states[:, states.shape[1] - 16 :].mean(dim=1)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("head", [transformers.TimmWrapperModel, transformers.TimmWrapperForImageClassification])
def test_timm_networks_inside_of_transformers(head):
    sizes = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    config = transformers.TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=sizes, num_labels=3)
    model, pixels = head(config).eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(pooled_features(model, pixels), pooled_features(model.timm_model, pixels))
    assert pooled_features(model, pixels).shape == (2, 48)


SMALL = {"image_size": 64, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SWIN = {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


@pytest.mark.parametrize(
    ("name", "fields", "prefix"),
    [
        ("ViT", SMALL, 1),
        ("DeiT", SMALL, 2),
        ("Dinov2WithRegisters", SMALL | {"patch_size": 16}, 5),
        ("DINOv3ViT", SMALL | {"num_register_tokens": 2}, 3),
        ("IJepa", SMALL, 0),
        ("SiglipVision", SMALL, 0),
        ("CLIPVision", SMALL | {"patch_size": 16}, 1),
        ("Swin", SWIN, 0),
        ("Hiera", SWIN | {"image_size": [64, 64], "query_stride": [2, 2], "num_query_pool": 1}, 0),
    ],
)
def test_tokens_in_front_of_the_patches_are_counted(name, fields, prefix):
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**fields)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state
        torch.testing.assert_close(pooled_features(model, pixels), tokens[:, prefix:].mean(dim=1))
        if prefix:
            torch.testing.assert_close(pooled_features(model, pixels, "cls"), tokens[:, 0])
        else:
            with pytest.raises(ValueError, match=f"'cls' needs a class token, which the output of {name}Model has not"):
                pooled_features(model, pixels, "cls")


def test_a_class_token_that_encode_leaves_out_is_not_made_up():
    config = hubmodels.PositionalLabelConfig(backbone_config=transformers.ViTConfig(**SMALL))
    with pytest.raises(ValueError, match="needs a class token, which the output of PositionalLabelModel has not"):
        pooled_features(hubmodels.PositionalLabelModel(config).eval(), torch.randn(1, 3, 64, 64), "cls")


def test_models_without_features_are_named():
    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(vision_config=SMALL, text_config=sizes | {"vocab_size": 10})
    with pytest.raises(ValueError, match="SiglipForImageClassification must give tokens"):
        pooled_features(transformers.SiglipForImageClassification(config).eval(), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype):
    model = MAEModel(MAEConfig(**CONFIG)).eval()
    expected = extract_features(model, DATASET, TRANSFORM, progress=False)[0]
    features = extract_features(model.to(dtype), DATASET, TRANSFORM, progress=False)[0]
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=0.05, rtol=0.05)


def test_parts_that_are_frozen_by_their_mode_stay_frozen():
    config = hubmodels.SimCLRConfig(stem_width=4, image_size=16, layer_type="basic", depths=[1] * 4, num_labels=10)
    model = hubmodels.SimCLRForImageClassification(config).train()
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    extract_features(model, DATASET, TRANSFORM, progress=False)
    evaluate_classifier(model, DATASET, TRANSFORM, [str(number) for number in range(10)], progress=False)
    predict_samples([model], DATASET, TRANSFORM)
    assert model.training and norms and not any(norm.training for norm in norms)
