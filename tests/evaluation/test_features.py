"""Features of frozen models."""

import pytest
import timm
import torch
from hubmodels.modeling.mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMModel,
)

import hubmodels
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation import extract_features, pooled_features
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
