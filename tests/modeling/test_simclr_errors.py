"""Every documented error of SimCLR: raised early, naming the argument, what was given and what is accepted."""

import pytest
import torch
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from transformers import Dinov2Config

from tests.modeling.tiny_simclr import images, tiny_config


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": -1}, "temperature must be positive and finite, got -1"),
        ({"temperature": float("nan")}, "temperature must be positive and finite, got nan"),
        ({"num_proj_layers": 0}, "num_proj_layers must be at least 1, got 0"),
        ({"proj_out_dim": 0}, "proj_out_dim must be at least 1, got 0"),
        ({"proj_head_mode": "mlp"}, r"proj_head_mode must be one of \('none', 'linear', 'nonlinear'\), got 'mlp'"),
        ({"loss_reduction": "sum"}, r"loss_reduction must be one of \('official', 'mean'\), got 'sum'"),
        ({"pool_padding": "same"}, r"pool_padding must be one of \('same_tf', 'torch'\), got 'same'"),
        ({"bn_running_var": "none"}, r"bn_running_var must be one of \('biased', 'unbiased'\), got 'none'"),
        ({"frozen_bn": "eval"}, r"frozen_bn must be one of \('batch', 'inference'\), got 'eval'"),
        ({"layer_type": "wide"}, r"layer_type must be one of \('bottleneck', 'basic'\), got 'wide'"),
        ({"pooling": "max"}, r"pooling must be one of \('mean', 'cls'\), got 'max'"),
        ({"pooling": "cls"}, "pooling 'cls' needs the backbone_config of a ViT"),
        ({"ft_proj_selector": 4}, r"ft_proj_selector must be in \[-4, 3\] .*nonlinear .* of 3 layers, got 4"),
        ({"ft_proj_selector": -5}, r"ft_proj_selector must be in \[-4, 3\] .* got -5"),
        ({"ft_proj_selector": 1, "proj_head_mode": "none"}, r"ft_proj_selector must be in \[-1, 0\] .* got 1"),
        ({"ft_proj_selector": 2, "proj_head_mode": "linear"}, r"ft_proj_selector must be in \[-2, 1\] .* got 2"),
        ({"resnet_depth": 20}, r"resnet_depth must be one of \(18, 34, 50, 101, 152, 200\), got 20"),
        ({"resnet_depth": 50, "layer_type": "basic"}, "resnet_depth 50 means bottleneck blocks"),
        ({"resnet_depth": 18, "depths": [1, 1, 1, 1]}, r"depths \[2, 2, 2, 2\], got .*\[1, 1, 1, 1\]"),
        ({"depths": []}, "depths must be at least one positive number per group"),
        ({"depths": [1, 0]}, "depths must be at least one positive number per group"),
        ({"sk_ratio": 0.0625, "layer_type": "basic"}, "sk_ratio must be 0 with layer_type 'basic'"),
        ({"sk_ratio": -0.1}, "sk_ratio must be at least 0, got -0.1"),
        ({"sk_ratio": 0.0625, "stem_width": 1}, r"stem_width \* width_multiplier must be at least 2 with sk_ratio"),
        ({"encoder_chunk_size": 0}, "encoder_chunk_size must be at least 1, got 0"),
        ({"width_multiplier": 0}, "width_multiplier must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be a positive number"),
        ({"image_size": (32, 32, 3)}, "image_size must be a positive number or"),
        ({"fine_tune_after_block": -2}, "fine_tune_after_block must be at least -1, got -2"),
        (
            {"fine_tune_after_block": 2, "backbone_config": Dinov2Config()},
            r"fine_tune_after_block must be -1 \(train all\) or 4 \(classifier only\) with a backbone_config, got 2",
        ),
    ],
    ids=str,
)
def test_contradictory_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        SimCLRConfig(**fields)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ft_proj_selector": 5}, r"ft_proj_selector must be in \[-3, 2\] .* got 5"),
        ({"num_proj_layers": 0}, "num_proj_layers must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1"),
        ({"loss_reduction": "bar"}, "loss_reduction must be one of"),
        ({"frozen_bn": "xx"}, "frozen_bn must be one of"),
        ({"pool_padding": "xx"}, "pool_padding must be one of"),
        ({"proj_head_mode": "foo"}, "proj_head_mode must be one of"),
        ({"sk_ratio": -1.0}, "sk_ratio must be at least 0"),
        ({"fine_tune_after_block": -3}, "fine_tune_after_block must be at least -1, got -3"),
    ],
    ids=str,
)
def test_changes_while_loading_are_checked(changes, message, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        SimCLRConfig.from_pretrained(tmp_path, **changes)


def test_changes_while_loading_are_completed(tmp_path):
    tiny_config(out_features=["stage4"]).save_pretrained(tmp_path)
    assert SimCLRConfig.from_pretrained(tmp_path, image_size=[16, 16]).image_height_width == (16, 16)
    deeper = SimCLRConfig.from_pretrained(tmp_path, resnet_depth=18)
    assert (deeper.layer_type, deeper.depths) == ("basic", [2, 2, 2, 2])
    deeper.save_pretrained(tmp_path)
    shallow = SimCLRConfig.from_pretrained(tmp_path, depths=[1, 1])
    assert (shallow.resnet_depth, shallow.layer_type, shallow.out_features) == (None, "basic", ["stage2"])


def test_pre_training_trains_all():
    with pytest.raises(ValueError, match=r"fine_tune_after_block must be -1 in pre-training .*, got 0"):
        SimCLRForPreTraining(tiny_config(fine_tune_after_block=0))


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 3, 16, 16), (2, 1, 3, 16, 16), (5, 3, 16, 16)], ids=str)
def test_pre_training_needs_two_views(shape):
    model = SimCLRForPreTraining(tiny_config())
    with pytest.raises(ValueError, match=r"expected two views .*\[B, 2, C, H, W\].* got shape \("):
        model(torch.rand(shape))


def test_pre_training_needs_negatives():
    with pytest.raises(ValueError, match="1 image, which leaves no negatives"):
        SimCLRForPreTraining(tiny_config())(images(1, 2))


@pytest.mark.parametrize("model_class", [SimCLRModel, SimCLRForPreTraining, SimCLRForImageClassification])
def test_images(model_class):
    model = model_class(tiny_config())
    shape = (4, 2) if model_class is SimCLRForPreTraining else (4,)
    with pytest.raises(ValueError, match="pixel_values is required"):
        model()
    with pytest.raises(ValueError, match=r"pixel_values must be floats, .* got torch.uint8"):
        model((images(*shape) * 255).byte())
    with pytest.raises(
        ValueError, match=r"pixel_values must have 3 channels \(num_channels of the configuration\), got shape"
    ):
        model(images(*shape)[..., :1, :, :])


def test_encoder_takes_images_not_views():
    for model in (SimCLRModel(tiny_config()), SimCLRForImageClassification(tiny_config())):
        with pytest.raises(ValueError, match=r"shape \[B, C, H, W\]: expected 4 dimensions .*, got \(2, 2, 3"):
            model(images(2, 2))


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr("hubmodels.modeling.simclr.views_simclr.logger.warning", messages.append)
    return messages


@pytest.mark.parametrize("model_class", [SimCLRModel, SimCLRBackbone])
@pytest.mark.parametrize("shift, warns", [(0.0, False), (-0.1, True), (0.5, True), (float("nan"), True)])
def test_values_outside_of_the_range_warn_once(shift, warns, model_class, warnings):
    model = model_class(tiny_config()).eval()
    model(images(2))
    for _ in range(3):
        model(images(2) + shift)
    assert len(warnings) == warns
    assert not warns or "expected in [0, 1], without subtracting a mean; got values from" in warnings[0]


def test_a_call_that_fails_leaves_the_range_to_be_looked_at(warnings):
    model = SimCLRModel(tiny_config()).eval()
    with pytest.raises(ValueError, match="must have 3 channels"):
        model(images(2)[:, :1] - 1)
    assert not warnings
    model(images(2) - 1)
    assert len(warnings) == 1


def test_accelerators_look_at_the_first_batch_only(warnings):
    """Looking costs them a synchronisation."""
    model = SimCLRModel(tiny_config()).eval()
    for shift in (0, 1):
        model((images(2) + shift).as_subclass(OnAccelerator))
    assert not warnings
    SimCLRModel(tiny_config()).eval()((images(2) + 1).as_subclass(OnAccelerator))
    assert len(warnings) == 1


class OnAccelerator(torch.Tensor):
    """A tensor that says that it is not on the CPU."""

    device = torch.device("cuda")


def test_linear_probe_needs_labels():
    model = SimCLRForPreTraining(tiny_config(linear_probe=True, num_labels=3))
    with pytest.raises(ValueError, match=r"labels are required: config\.linear_probe"):
        model(images(2, 2))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\) or \(2, 3\), got \(3,\)"):
        model(images(2, 2), labels=torch.tensor([0, 1, 2]))
    assert model(images(2, 2), return_loss=False).logits.shape == (4, 3)


def test_label_shapes():
    model = SimCLRForImageClassification(tiny_config(num_labels=3))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\) or \(2, 3\), got \(2, 1\)"):
        model(images(2), labels=torch.tensor([[0], [1]]))


def test_classes_that_are_none_are_refused():
    model = SimCLRForImageClassification(tiny_config(num_labels=3))
    for labels, message in (
        (torch.tensor([0, 3]), r"labels must be in \[0, 3\) .* got 3 at index 1"),
        (torch.tensor([-1, 2]), r"got -1 at index 0"),
        (torch.tensor([0.0, 1.0]), r"labels of shape \[B\] must be integers \(classes\), got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images(2), labels=labels)
    expected = model(images(2), labels=torch.tensor([0, 2])).loss
    torch.testing.assert_close(model(images(2), labels=torch.tensor([0, 2], dtype=torch.int32)).loss, expected)


def test_empty_batches_are_refused():
    for model_class, shape in ((SimCLRModel, (0,)), (SimCLRForPreTraining, (0, 2))):
        with pytest.raises(ValueError, match="pixel_values must not be empty, got shape"):
            model_class(tiny_config())(images(*shape))


def test_processors_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match=r"crop_proportion must be in \(0, 1\], got 0"):
        SimCLRImageProcessor(crop_proportion=0)


def test_one_value_per_channel_cannot_be_normalised():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SimCLRForImageClassification(tiny_config()).train()(images(1))
