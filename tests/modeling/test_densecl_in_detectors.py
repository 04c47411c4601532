"""DenseCL backbones under torchvision's detectors and segmentation models, and under those of transformers."""

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining
from hubmodels.modeling.mae import MAEConfig, MAEFeaturePyramid
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import (
    ResNetBackbone,
    ResNetConfig,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hubmodels.torchvision_models import BackboneBody, FeaturePyramid, fcn

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def tiny_config(**changes) -> DenseCLConfig:
    fields = {"layer_type": "basic", "depths": [1, 1, 1, 1], "embedding_size": 4, "out_features": STAGES}
    heads = {"projection_hidden_size": 4, "projection_size": 4, "queue_length": 4}
    return DenseCLConfig(**(fields | heads | changes))


@pytest.fixture
def backbone():
    return DenseCLBackbone(tiny_config())


def assert_trains(model, loss):
    """Every parameter gets a gradient."""
    assert torch.isfinite(loss)
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


def targets():
    box = torch.tensor([[4.0, 6.0, 40.0, 50.0]])
    return [{"boxes": box, "labels": torch.tensor([number + 1]), "masks": torch.ones(1, 64, 64)} for number in range(2)]


@pytest.mark.parametrize("detector_class", [FasterRCNN, MaskRCNN])
def test_detectors_train_and_detect(detector_class, backbone):
    pyramid = FeaturePyramid(backbone, out_channels=8, norm_layer=torch.nn.BatchNorm2d)
    detector = detector_class(pyramid, num_classes=3, min_size=64, max_size=64)
    images = list(torch.rand(2, 3, 64, 64))
    losses = detector(images, targets())
    assert_trains(detector, sum(losses.values()))
    detections = detector.eval()(images)
    assert len(detections) == 2 and {"boxes", "labels", "scores"} <= detections[0].keys()


def test_pyramid_holds_the_maps_of_the_backbone(backbone):
    pyramid = FeaturePyramid(backbone, out_channels=8).eval()
    pixels = torch.rand(1, 3, 64, 96)
    maps = pyramid(pixels)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (1, 8, 16, 24),
        "1": (1, 8, 8, 12),
        "2": (1, 8, 4, 6),
        "3": (1, 8, 2, 3),
        "pool": (1, 8, 1, 2),
    }
    body = pyramid.body(pixels)
    for expected, actual in zip(backbone.eval()(pixels).feature_maps, body.values(), strict=True):
        assert torch.equal(expected, actual)
    with_more = FeaturePyramid(backbone, out_channels=8, extra_blocks=LastLevelP6P7(8, 8)).eval()
    assert list(with_more(pixels)) == ["0", "1", "2", "3", "p6", "p7"]


def test_synchronised_normalisation_reaches_all_layers(backbone):
    pyramid = FeaturePyramid(backbone, out_channels=8, norm_layer=torch.nn.BatchNorm2d)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(pyramid)
    kinds = {type(m) for m in converted.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert kinds == {torch.nn.SyncBatchNorm}


@pytest.mark.parametrize("auxiliary", [False, True])
def test_fcn_with_output_stride_8(auxiliary):
    features = ["stage3", "stage4"] if auxiliary else ["stage4"]
    config = tiny_config(out_features=features, strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4])
    model = fcn(DenseCLBackbone(config), num_classes=5)
    pixels = torch.rand(2, 3, 64, 48)
    assert model.backbone(pixels)["out"].shape == (2, 32, 8, 6)
    logits = model(pixels)
    assert list(logits) == (["out", "aux"] if auxiliary else ["out"])
    assert logits["out"].shape == (2, 5, 64, 48)
    labels = torch.randint(5, (2, 64, 48))
    assert_trains(model, sum(torch.nn.functional.cross_entropy(part, labels) for part in logits.values()))


def test_other_backbones_of_transformers_fit(backbone):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage1", "stage2"])
    maps = FeaturePyramid(ResNetBackbone(config), out_channels=8)(torch.rand(1, 3, 32, 32))
    assert list(maps) == ["0", "1", "pool"]
    with pytest.raises(TypeError, match=r"backbone must be a backbone of transformers .*got DenseCLForPreTraining"):
        FeaturePyramid(DenseCLForPreTraining(tiny_config()))
    with pytest.raises(ValueError, match="must have 2 out_features for aux, out, got"):
        fcn(backbone, num_classes=5)
    assert BackboneBody(backbone, ("a", "b", "c", "d")).channels == [4, 8, 16, 32]


def test_upernet_takes_the_backbone_by_its_configuration(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "backbone")
    config = UperNetConfig(
        backbone_config=DenseCLConfig.from_pretrained(tmp_path / "backbone", out_features=STAGES),
        hidden_size=8,
        pool_scales=[1, 2],
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        num_labels=5,
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    output = model(torch.rand(2, 3, 64, 64), labels=torch.randint(5, (2, 64, 64)))
    assert output.logits.shape == (2, 5, 64, 64)
    assert_trains(model, output.loss)
    model.eval().save_pretrained(tmp_path / "upernet")
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet")
    assert isinstance(loaded.backbone, DenseCLBackbone)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)


def test_a_pyramid_of_mae_under_a_detector():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32}
    pyramid = MAEFeaturePyramid(MAEConfig(image_size=32, patch_size=8, **sizes))
    maps = FeaturePyramid(pyramid, out_channels=8).eval()(torch.rand(1, 3, 32, 48))
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    detector = FasterRCNN(FeaturePyramid(pyramid, out_channels=8), num_classes=3, min_size=64, max_size=64)
    assert torch.isfinite(sum(detector(list(torch.rand(2, 3, 64, 64)), targets()).values()))
    with pytest.raises(ValueError, match="backbone must have 2 out_features for aux, out, got 4"):
        fcn(pyramid, num_classes=3)


def test_maps_with_channels_last_are_turned():
    """timm's Swin returns them so."""
    settings = {"backbone": "swin_tiny_patch4_window7_224", "use_pretrained_backbone": False, "out_indices": [0, 1]}
    backbone = TimmBackbone(TimmBackboneConfig(**settings)).eval()
    maps = FeaturePyramid(backbone, out_channels=8).eval()(torch.rand(1, 3, 224, 224))
    assert [tuple(each.shape) for each in maps.values()] == [(1, 8, 56, 56), (1, 8, 28, 28), (1, 8, 14, 14)]
