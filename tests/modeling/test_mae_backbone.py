"""MAE as a backbone: feature maps, the pyramid, and a detector on top."""

import pytest
import torch
from hubmodels.modeling.mae import MAEBackbone, MAEFeaturePyramid, MAEForPreTraining, MAEModel
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from tests.modeling.tiny_mae import images, perturbed, tiny_config


def test_feature_maps_are_the_patch_tokens_of_the_layers():
    config = tiny_config(image_size=(12, 20), out_features=["stem", "stage1", "stage2"])
    backbone = perturbed(MAEBackbone(config)).eval()
    pixels = images(config)
    maps = backbone(pixels).feature_maps
    encoder = MAEModel(config).eval()
    encoder.load_state_dict(backbone.vit.state_dict(), strict=False)
    states = encoder(pixels, mask_ratio=0, output_hidden_states=True).hidden_states
    assert len(maps) == 3
    for feature_map, tokens in zip(maps, states, strict=True):
        assert feature_map.shape == (2, 16, 3, 5)
        torch.testing.assert_close(feature_map[:, :, 2, 1], tokens[:, 1 + 2 * 5 + 1])


def test_stages_and_channels_are_announced():
    backbone = MAEBackbone(tiny_config(out_indices=[1, 2]))
    assert backbone.stage_names == ["stem", "stage1", "stage2"]
    assert backbone.out_features == ["stage1", "stage2"]
    assert backbone.channels == [16, 16]
    assert MAEBackbone(tiny_config()).out_features == ["stage2"]


def test_backbone_of_a_pre_trained_folder(tmp_path):
    model = perturbed(MAEForPreTraining(tiny_config()))
    model.save_pretrained(tmp_path)
    backbone = MAEBackbone.from_pretrained(tmp_path, out_features=["stage1"])
    assert backbone(torch.zeros(1, 3, 32, 16)).feature_maps[0].shape == (1, 16, 8, 4)
    assert torch.equal(backbone.vit.layers[1].mlp.fc1.weight, model.vit.layers[1].mlp.fc1.weight)
    backbone.save_pretrained(tmp_path / "backbone")
    again = MAEBackbone.from_pretrained(tmp_path / "backbone")
    assert again.out_features == ["stage1"]


@pytest.mark.parametrize("model_class, depth", [(MAEBackbone, 2), (MAEFeaturePyramid, 4)])
def test_maps_pass_the_final_norm_on_request(model_class, depth, tmp_path):
    encoder = perturbed(MAEModel(tiny_config(num_hidden_layers=depth))).eval()
    encoder.save_pretrained(tmp_path)
    raw = model_class.from_pretrained(tmp_path, out_indices=range(1, depth + 1))
    normed, report = model_class.from_pretrained(
        tmp_path, out_indices=range(1, depth + 1), apply_layernorm=True, output_loading_info=True
    )
    assert not any("layernorm" in key for keys in report.values() for key in keys)
    pixels = images(encoder.config)
    states = encoder(pixels, mask_ratio=0, output_hidden_states=True).hidden_states
    index = depth // 2  # of both classes a map that is no further scaled: stage 1 of 2, stage 3 of 4
    map_index = index - 1 if model_class is MAEBackbone else index
    for model, tokens in ((raw, states[map_index + 1]), (normed, encoder.layernorm(states[map_index + 1]))):
        expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(model(pixels).feature_maps[map_index], expected)
    assert not tiny_config().apply_layernorm


@pytest.fixture
def pyramid():
    return MAEFeaturePyramid(tiny_config(num_hidden_layers=4, image_size=32, patch_size=8))


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48)])
def test_pyramid_has_four_scales(pyramid, height, width):
    output = pyramid(torch.randn(2, 3, height, width))
    assert pyramid.strides == [2, 4, 8, 16]
    expected = [(2, 16, height // stride, width // stride) for stride in pyramid.strides]
    assert [tuple(feature_map.shape) for feature_map in output.feature_maps] == expected


def test_pyramid_reads_the_quarters_of_the_encoder():
    pyramid = MAEFeaturePyramid(tiny_config(num_hidden_layers=12)).eval()
    assert pyramid.config.out_features == ["stage3", "stage6", "stage9", "stage12"]
    output = pyramid(images(pyramid.config), output_hidden_states=True)
    tokens = output.hidden_states[9][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(output.feature_maps[2], tokens)


def test_pyramid_leaves_the_configuration_alone():
    config = tiny_config(num_hidden_layers=4, out_features=["stage2"])
    assert MAEFeaturePyramid(config).config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert config.out_features == ["stage2"] and config.out_indices == [2]


def test_gradients_of_every_scale_reach_the_encoder(pyramid):
    for index in range(4):
        pyramid.zero_grad()
        pyramid(torch.randn(2, 3, 32, 32)).feature_maps[index].square().sum().backward()
        layer = index  # scale i reads layer i + 1 of four
        assert pyramid.vit.layers[layer].mlp.fc2.weight.grad.abs().sum() > 0
        later = pyramid.vit.layers[layer + 1 :].parameters()
        assert all(parameter.grad is None for parameter in later)
        assert pyramid.vit.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_pyramid_round_trip(pyramid, tmp_path):
    perturbed(pyramid).eval().save_pretrained(tmp_path)
    loaded, loading = MAEFeaturePyramid.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    pixels = torch.randn(1, 3, 32, 32)
    for first, second in zip(pyramid(pixels).feature_maps, loaded.eval()(pixels).feature_maps, strict=True):
        assert torch.equal(first, second)


class DetectorBackbone(nn.Module):
    """The adapter that torchvision's detectors need: named maps and one number of channels."""

    def __init__(self, pyramid):
        super().__init__()
        self.pyramid = pyramid
        self.out_channels = pyramid.channels[0]

    def forward(self, pixel_values):
        return {str(i): feature_map for i, feature_map in enumerate(self.pyramid(pixel_values).feature_maps)}


def test_a_torchvision_detector_trains_and_predicts_on_the_pyramid(pyramid):
    pyramid.vit.requires_grad_(True)
    detector = FasterRCNN(
        DetectorBackbone(pyramid),
        num_classes=3,
        min_size=32,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(sizes=((4,), (8,), (16,), (32,)), aspect_ratios=((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(featmap_names=["0", "1", "2", "3"], output_size=4, sampling_ratio=2),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    detector.transform.size_divisible = 16  # so that every scale is whole
    pictures = [torch.rand(3, 30, 40), torch.rand(3, 44, 36)]
    targets = [
        {"boxes": torch.tensor([[4.0, 4.0, 20.0, 24.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[2.0, 8.0, 30.0, 30.0]]), "labels": torch.tensor([2])},
    ]
    losses = detector.train()(pictures, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    assert pyramid.vit.layers[0].attention.q_proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        predictions = detector.eval()(pictures)
    assert [set(prediction) for prediction in predictions] == [{"boxes", "labels", "scores"}] * 2
