"""Every wrong input of the MAE models is refused with a message that names what was given and what is accepted."""

import re

import pytest
import torch
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEConfig,
    MAEFeaturePyramid,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from hubmodels.modeling.mae.masking_mae import sample_mask
from huggingface_hub.errors import StrictDataclassError

from tests.modeling.tiny_mae import images, tiny_config

ALL_MODELS = [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone]


@pytest.fixture(scope="module")
def model():
    return MAEForPreTraining(tiny_config()).eval()


def refuses(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_size": 18}, "image size 18x18 is not divisible by patch size 4"),
        ({"image_size": (16, 18)}, "image size 16x18 is not divisible by patch size 4"),
        ({"patch_size": 5}, "image size 16x16 is not divisible by patch size 5"),
        ({"patch_size": 0}, "image size 16x16 is not divisible by patch size 0"),
        ({"mask_ratio": 1.0}, "mask_ratio must be in [0, 1), got 1.0"),
        ({"mask_ratio": -0.1}, "mask_ratio must be in [0, 1), got -0.1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in [0, 1), got 1.0"),
        ({"pooling": "max"}, "pooling must be one of ('mean', 'cls'), got 'max'"),
        ({"mask_sampling": "rows"}, "mask_sampling must be one of ('random', 'block', 'grid'), got 'rows'"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not divisible by num_attention_heads 3"),
        ({"decoder_num_attention_heads": 3}, "decoder_hidden_size 8 is not divisible by decoder_num_attention_heads 3"),
        ({"hidden_size": 18}, "hidden_size must be divisible by 4 (sin-cos position tables), got 18"),
        ({"decoder_hidden_size": 6}, "decoder_hidden_size must be divisible by 4 (sin-cos position tables), got 6"),
    ],
)
def test_configs_that_make_no_model(fields, message):
    with refuses(message):
        tiny_config(**fields)


def test_changes_while_loading_are_checked():
    stored = tiny_config().to_dict()
    with refuses("mask_ratio must be in [0, 1), got 2.0"):
        MAEConfig.from_dict(stored, mask_ratio=2.0)
    assert MAEConfig.from_dict(stored, image_size=[16, 16]).image_height_width == (16, 16)
    assert MAEConfig.from_dict(stored, num_hidden_layers=1).out_features == ["stage1"]


def test_whole_numbers_are_ratios_too():
    config = tiny_config(mask_ratio=0, drop_path_rate=0)
    assert MAEModel(config)(images(config)).mask is None


@pytest.mark.parametrize("fields", [{"image_size": "16"}, {"pooling": 3}, {"hidden_size": "wide"}])
def test_config_fields_of_a_wrong_type(fields):
    with pytest.raises((StrictDataclassError, TypeError, ValueError), match=next(iter(fields))):
        tiny_config(**fields)


@pytest.mark.parametrize("model_class", ALL_MODELS)
@pytest.mark.parametrize("channels", [1, 4])
def test_wrong_channels(model_class, channels):
    with refuses("pixel_values must have 3 channels (num_channels of the configuration), got shape"):
        model_class(tiny_config())(torch.zeros(2, channels, 16, 16))


@pytest.mark.parametrize("model_class", ALL_MODELS)
def test_sizes_that_the_patches_do_not_divide(model_class):
    with refuses("pixel_values: image size 18x16 is not divisible by patch size 4"):
        model_class(tiny_config())(torch.zeros(2, 3, 18, 16))


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_other_sizes_need_the_flag(model_class):
    model, pixels = model_class(tiny_config()), torch.zeros(2, 3, 20, 16)
    with refuses("pixel_values: image size 20x16 differs from the model's 16x16; pass interpolate_pos_encoding=True"):
        model(pixels)
    model(pixels, interpolate_pos_encoding=True)


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16), (1, 2, 3, 16, 16)])
@pytest.mark.parametrize("model_class", ALL_MODELS)
def test_pixel_values_that_are_no_batch_of_images(model_class, shape):
    with refuses(f"expected 4 dimensions (batch, channels, height, width), got {shape}"):
        model_class(tiny_config())(torch.zeros(shape))


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_missing_pixel_values(model_class):
    with refuses("pixel_values is required"):
        model_class(tiny_config())()


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.25])
def test_mask_ratio_out_of_range(model, ratio):
    for call in (model, model.vit, model.reconstruct):
        with refuses(f"mask_ratio must be in [0, 1), got {ratio}"):
            call(images(model.config), mask_ratio=ratio)


def test_mask_ratio_that_leaves_no_patch(model):
    with refuses("mask_ratio 0.95 leaves no visible patch out of 16"):
        model(images(model.config), mask_ratio=0.95)


def test_loss_with_nothing_masked(model):
    pixels = images(model.config)
    with refuses("the loss needs masked patches, got mask_ratio 0"):
        model(pixels, mask_ratio=0)
    with refuses("the loss needs masked patches, got a bool_masked_pos that masks none"):
        model(pixels, bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool))
    assert model(pixels, mask_ratio=0, return_loss=False).logits.shape == (2, 16, 48)


@pytest.mark.parametrize("shape", [(2, 15), (1, 16), (16,), (2, 16, 1)])
def test_noise_of_a_wrong_shape(model, shape):
    with refuses(f"noise must have shape (2, 16), got {shape}"):
        model(images(model.config), noise=torch.rand(shape))


@pytest.mark.parametrize("shape", [(2, 15), (1, 16), (2, 4, 5)])
def test_mask_of_a_wrong_shape(model, shape):
    with refuses(f"bool_masked_pos must have shape (2, 16), got {shape}"):
        model(images(model.config), bool_masked_pos=torch.zeros(shape, dtype=torch.bool))


def test_masks_of_unequal_counts(model):
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, :12] = True
    masked[1, :9] = True
    with refuses("every image must mask the same number of patches, got 9..12"):
        model(images(model.config), bool_masked_pos=masked)


def test_mask_that_leaves_no_patch(model):
    with refuses("bool_masked_pos leaves no visible patch out of 16"):
        model(images(model.config), bool_masked_pos=torch.ones(2, 16, dtype=torch.bool))


def test_noise_and_mask_together(model):
    masked = torch.zeros(2, 16, dtype=torch.bool)
    with refuses("give either noise or bool_masked_pos, got both"):
        model(images(model.config), noise=torch.rand(2, 16), bool_masked_pos=masked)


@pytest.mark.parametrize("ratio, grid", [(0.5, (4, 4)), (0.75, (5, 4)), (0.6, (4, 4)), (0.8889, (12, 12))])
def test_grid_sampling_that_does_not_fit(ratio, grid):
    with refuses("grid sampling keeps one patch of every s x s: mask_ratio must be 1 - 1/s^2") as refusal:
        sample_mask(2, grid, ratio, "grid")
    offered = [float(number) for number in re.findall(r"0\.\d+", str(refusal.value))[:3]]
    for accepted, step in zip(offered, (2, 3, 4), strict=True):
        assert sample_mask(2, (12, 12), accepted, "grid").ids_keep.shape == (2, 144 // step**2)
    with refuses(f"{grid[0]}x{grid[1]} grid, got mask_ratio {ratio}"):
        sample_mask(2, grid, ratio, "grid")


def test_unknown_sampling():
    with refuses("sampling must be one of ('random', 'block', 'grid'), got 'rows'"):
        sample_mask(2, (4, 4), 0.75, "rows")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 1)])
def test_labels_of_a_wrong_shape(shape):
    model = MAEForImageClassification(tiny_config(num_labels=5))
    labels = torch.zeros(shape, dtype=torch.long if len(shape) == 1 else torch.float)
    with refuses(f"labels must have shape (2,) or (2, 5), got {shape}"):
        model(images(model.config), labels=labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pictures_of_pixels_that_are_not_finite(model, value):
    pixels = images(model.config)
    pixels[1, 0, 3, 3] = value
    with refuses("pixel_values must be finite, got NaN or infinity"):
        model.reconstruct(pixels)


def test_a_refused_picture_leaves_the_mode_of_the_model():
    model = MAEForPreTraining(tiny_config()).train()
    with pytest.raises(ValueError):
        model.reconstruct(images(model.config), mask_ratio=1.0)
    assert model.training


def test_pictures_leave_the_mode_of_every_part():
    model = MAEForPreTraining(tiny_config()).train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    model.reconstruct(images(model.config))
    assert [module.training for module in model.modules()] == modes


def test_unpatchify_of_another_number_of_patches(model):
    with refuses("15 patches do not make an image of 4x4 patches"):
        model.unpatchify(torch.zeros(1, 15, 48))


@pytest.mark.parametrize("num_blocks", [-1, 3])
def test_partial_fine_tuning_of_more_layers_than_there_are(num_blocks):
    with refuses(f"num_blocks must be in [0, 2], got {num_blocks}"):
        MAEForImageClassification(tiny_config()).freeze_all_but_last_blocks(num_blocks)


def test_pyramid_of_too_few_layers_or_odd_patches():
    with refuses("a feature pyramid needs at least 4 layers, got num_hidden_layers 2"):
        MAEFeaturePyramid(tiny_config())
    with refuses("a feature pyramid needs a patch_size divisible by 4, got 2"):
        MAEFeaturePyramid(tiny_config(num_hidden_layers=4, patch_size=2))


def test_unknown_backbone_stage():
    with pytest.raises((ValueError, StrictDataclassError), match="stage9"):
        tiny_config(out_features=["stage9"])
