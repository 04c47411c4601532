"""Image sizes: non-square, other than configured, odd grids, any number of channels; patch sizes."""

import pytest
import torch
from hubmodels.modeling.mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.mae.positions_mae import resize_position_table, sincos_position_table
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from tests.modeling.stock import stock_5_23
from tests.modeling.tiny_mae import SIZES, images, noise_for, perturbed, tiny_config


@pytest.mark.parametrize("image_size", [(8, 24), (24, 8), (12, 20), 12, (16, 16)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_patches_survive_the_round_trip(image_size, channels):
    config = tiny_config(image_size=image_size, num_channels=channels)
    model = MAEForPreTraining(config)
    pixels = images(config)
    patches = model.patchify(pixels)
    assert patches.shape == (2, config.grid_size[0] * config.grid_size[1], 16 * channels)
    assert torch.equal(model.unpatchify(patches), pixels)
    row, column = config.grid_size[0] - 1, 1
    expected = pixels[:, :, row * 4 : row * 4 + 4, 4:8].permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(patches[:, row * config.grid_size[1] + column], expected), "(row, column, channel) order"


@pytest.mark.parametrize("channels", [1, 5])
def test_non_square_images_train(channels):
    config = tiny_config(image_size=(8, 24), num_channels=channels)
    model = perturbed(MAEForPreTraining(config)).train()
    output = model(images(config))
    output.loss.backward()
    assert output.mask.shape == (2, 12)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    pictures = model.reconstruct(images(config))
    assert pictures.pasted.shape == (2, channels, 8, 24)
    assert pictures.error.shape == (2, 2, 6)


@stock_5_23
def test_stock_fails_on_non_square_images():
    """transformers 5.23 builds a square table for them, or refuses to cut them."""
    with pytest.raises((RuntimeError, ValueError)):
        config = ViTMAEConfig(**SIZES | {"image_size": (8, 24)})
        ViTMAEForPreTraining(config)(torch.zeros(1, 3, 8, 24))


def test_height_and_width_are_treated_alike():
    """Transposing images, patch projection and table halves transposes the features."""
    wide, high = tiny_config(image_size=(8, 24)), tiny_config(image_size=(24, 8))
    model, twin = perturbed(MAEModel(wide)).eval(), MAEModel(high).eval()
    weights = model.state_dict()
    projection = "embeddings.patch_embeddings.projection.weight"
    weights[projection] = weights[projection].transpose(2, 3)
    columns = weights["embeddings.position_embeddings"][:, 1:].reshape(1, 2, 6, -1).transpose(1, 2).flatten(1, 2)
    weights["embeddings.position_embeddings"] = torch.cat(
        [weights["embeddings.position_embeddings"][:, :1], columns], dim=1
    )
    twin.load_state_dict(weights)
    pixels = images(wide)
    with torch.no_grad():
        features = model(pixels, mask_ratio=0).last_hidden_state
        turned = twin(pixels.transpose(2, 3), mask_ratio=0).last_hidden_state
    torch.testing.assert_close(turned[:, 0], features[:, 0])
    expected = features[:, 1:].unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(turned[:, 1:], expected, atol=1e-5, rtol=1e-5)


def test_a_pair_of_equal_patch_sizes_is_one_number():
    config = tiny_config(patch_size=(4, 4))
    assert config.patch_size == 4
    assert MAEForPreTraining(config)(images(config)).loss.isfinite()
    with pytest.raises(ValueError, match=r"patch_size must be one number \(square patches\), got \(4, 2\)"):
        tiny_config(patch_size=(4, 2))


@stock_5_23
def test_stock_fails_on_a_pair_of_patch_sizes():
    with pytest.raises(TypeError):
        ViTMAEForPreTraining(ViTMAEConfig(**SIZES | {"patch_size": (4, 4)}))


@pytest.mark.parametrize("image_size", [(12, 20), (24, 24), (32, 8), (8, 8)])
def test_pre_training_at_another_size_equals_a_model_of_that_size(image_size):
    """Tables are not learnt in pre-training: both are built anew, exactly, for any grid."""
    model = perturbed(MAEForPreTraining(tiny_config())).eval()
    twin = MAEForPreTraining(tiny_config(image_size=image_size)).eval()
    fixed = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
    twin.load_state_dict({n: w for n, w in model.state_dict().items() if n not in fixed}, strict=False)
    pixels, noise = images(twin.config), noise_for(twin.config)
    output = model(pixels, noise=noise, interpolate_pos_encoding=True)
    expected = twin(pixels, noise=noise)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    reconstruction = model.reconstruct(pixels, noise=noise).reconstruction
    assert torch.equal(reconstruction, twin.reconstruct(pixels, noise=noise).reconstruction)


@stock_5_23
def test_stock_interpolates_the_decoder_table_along_the_sequence():
    """At twice the size transformers 5.23 takes the decoder positions of a line of patches, not of a plane of them."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES))
    model.decoder.decoder_pos_embed.data = sincos_position_table(8, (4, 4))[None]
    stock = model.decoder.interpolate_pos_encoding(torch.zeros(1, 1 + 64, 8))
    plane = resize_position_table(model.decoder.decoder_pos_embed, (4, 4), (8, 8))
    assert stock.shape == plane.shape
    assert (stock - plane).abs().mean() > 0.1


@pytest.mark.parametrize("image_size", [(12, 20), 24])
def test_features_at_another_size_use_the_resized_table(image_size):
    """Outside pre-training the table may be learnt, so that it is resized in both directions (official code)."""
    model = perturbed(MAEForImageClassification(tiny_config(num_labels=3))).eval()
    config = tiny_config(image_size=image_size, num_labels=3)
    pixels = images(config)
    twin = MAEForImageClassification(config).eval()
    weights = model.state_dict()
    table = weights["vit.embeddings.position_embeddings"]
    weights["vit.embeddings.position_embeddings"] = resize_position_table(table, (4, 4), config.grid_size)
    twin.load_state_dict(weights)
    output = model(pixels, interpolate_pos_encoding=True)
    assert torch.equal(output.logits, twin(pixels).logits)
    backbone = MAEBackbone(tiny_config()).eval()
    assert backbone(pixels).feature_maps[-1].shape == (2, 16, *config.grid_size)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEModel, MAEBackbone])
def test_resize_position_embeddings(model_class, tmp_path):
    model = perturbed(model_class(tiny_config())).eval()
    target = tiny_config(image_size=(12, 20))
    pixels, noise = images(target), noise_for(target)
    arguments = {"noise": noise} if model_class in (MAEForPreTraining, MAEModel) else {}
    with torch.no_grad():
        # a backbone takes any size without being told
        flag = {} if model_class is MAEBackbone else {"interpolate_pos_encoding": True}
        before = model(pixels, **arguments, **flag)
        trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        model.resize_position_embeddings((12, 20))
        after = model(pixels, **arguments)
    key = "feature_maps" if model_class is MAEBackbone else 0
    first = before[key][0] if key == "feature_maps" else before.to_tuple()[0]
    second = after[key][0] if key == "feature_maps" else after.to_tuple()[0]
    assert torch.equal(first, second)
    assert model.config.image_size == (12, 20)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    model.save_pretrained(tmp_path)
    loaded, loading = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert loaded.config.image_size == (12, 20)


@pytest.mark.parametrize("image_size", [24, (12, 20)])
@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEModel, MAEBackbone])
def test_loading_at_another_size_resizes(model_class, image_size, tmp_path):
    """Whether the size is an argument or in the configuration, which is how the Auto classes pass it on."""
    stored = perturbed(model_class(tiny_config()))
    stored.save_pretrained(tmp_path)
    expected = model_class.from_pretrained(tmp_path)
    expected.resize_position_embeddings(image_size)
    config = tiny_config(image_size=image_size)
    for arguments in (
        {"image_size": image_size},
        {"config": config},
        {"ignore_mismatched_sizes": True} | {"config": config},
    ):
        loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True, **arguments)
        assert not any(report.values()), report
        assert loaded.config.image_size == image_size == config.image_size
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
        trainable = {name: parameter.requires_grad for name, parameter in expected.named_parameters()}
        assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == trainable
        loaded(torch.zeros(1, 3, *config.image_height_width))
    automatic = AutoModel.from_pretrained(tmp_path, image_size=image_size)
    assert automatic.config.image_size == image_size
    with pytest.raises(ValueError, match="image size 18x18 is not divisible by patch size 4"):
        model_class.from_pretrained(tmp_path, image_size=18)


def test_loading_with_other_patches_starts_them_anew(tmp_path):
    MAEModel(tiny_config()).save_pretrained(tmp_path)
    loaded = MAEModel.from_pretrained(tmp_path, image_size=24, patch_size=8, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.embeddings.position_embeddings[0], sincos_position_table(16, (3, 3)))


def test_resizing_rejects_what_the_patches_do_not_divide():
    model = MAEForPreTraining(tiny_config())
    with pytest.raises(ValueError, match="image_size 16x18 is not divisible by patch size 4"):
        model.resize_position_embeddings((16, 18))
    assert model.config.image_size == 16


def test_resizing_keeps_the_class_row_and_returns_equal_grids_as_they_are():
    table = torch.randn(1, 1 + 6, 8)
    assert resize_position_table(table, (2, 3), (2, 3)) is table
    assert torch.equal(resize_position_table(table, (2, 3), (5, 4))[:, 0], table[:, 0])
    with pytest.raises(ValueError, match="a 3x3 grid needs 10 rows, got 7"):
        resize_position_table(table, (3, 3), (4, 4))


def test_no_masking_returns_all_patches_in_natural_order():
    """In particular the features do not depend on the random state, and equal those of a mask that keeps everything."""
    config = tiny_config()
    model = perturbed(MAEModel(config)).eval()
    pixels = images(config)
    output = model(pixels, mask_ratio=0, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 17, 16)
    assert output.mask is None and output.ids_restore is None
    state = torch.get_rng_state()
    assert torch.equal(model(pixels, mask_ratio=0.0).last_hidden_state, output.last_hidden_state)
    assert torch.equal(torch.get_rng_state(), state)
    kept = model(pixels, bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool))
    torch.testing.assert_close(kept.last_hidden_state, output.last_hidden_state)


@stock_5_23
def test_stock_loss_without_masking_is_nan():
    """Ours says that a loss needs masked patches, see the errors."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, mask_ratio=0.0))
    assert model(torch.randn(1, 3, 16, 16)).loss.isnan()


@stock_5_23
def test_stock_features_are_shuffled_without_masking():
    model = ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0)).eval()
    restored = model(torch.randn(1, 3, 16, 16)).ids_restore
    assert not torch.equal(restored[0], torch.arange(16))
