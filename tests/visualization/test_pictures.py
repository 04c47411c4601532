"""Sheets of reconstructions, anomaly maps and attention of tiny models."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEFeaturePyramid,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from PIL import Image

from hubmodels.visualization import (
    anomaly_map,
    anomaly_sheet,
    attention_maps,
    attention_sheet,
    reconstruction_sheet,
    save_figure,
    to_pictures,
)
from hubmodels.visualization.anomaly import _covering_masks
from tests.modeling import tiny_mae


def tiny_config(**overrides):
    return tiny_mae.tiny_config(**({"image_size": (16, 24), "num_hidden_layers": 4} | overrides))


def trained(model):
    """Stands for a trained model: no weight is at its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def model():
    return trained(MAEForPreTraining(tiny_config()))


@pytest.fixture
def pixel_values():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def drawn(figure):
    """The image arrays of a sheet, row by row."""
    return [np.asarray(axis.images[-1].get_array()) for axis in figure.axes if axis.images]


def test_colours_are_denormalised():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    colours = torch.rand(2, 3, 4, 6)
    normalised = (colours - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = colours.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(to_pictures(normalised, mean, std), expected, atol=1e-6)
    assert to_pictures(torch.full((1, 3, 2, 2), 9.0)).max() == 1, "colours are clipped"


@pytest.mark.parametrize("channels", [1, 5])
def test_other_than_three_channels_are_grey(channels):
    colours = torch.rand(2, channels, 4, 6)
    pictures = to_pictures(colours, mean=0.0, std=1.0)
    np.testing.assert_allclose(pictures, colours.mean(dim=1).numpy(), atol=1e-6)


def test_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"(mean|std) has 3 values, but pixel_values has 1 channels"):
        to_pictures(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got \[3, 4, 4\]"):
        to_pictures(torch.zeros(3, 4, 4))


def test_reconstruction_sheet_shows_the_four_pictures(model, pixel_values, tmp_path):
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(2))
    path = tmp_path / "new" / "sheet.png"
    figure = reconstruction_sheet(model, pixel_values, path, mean=0.5, std=0.5, noise=noise)
    expected = model.reconstruct(pixel_values, noise=noise)
    rows = np.array(drawn(figure)).reshape(2, 4, 16, 24, 3)
    columns = (pixel_values, expected.masked, expected.reconstruction, expected.pasted)
    for index, pixels in enumerate(columns):
        np.testing.assert_allclose(rows[:, index], to_pictures(pixels, 0.5, 0.5), atol=1e-6)
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "75% hidden", "reconstruction", "pasted"]
    with Image.open(path) as picture:
        assert picture.width > picture.height
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50, "the sheet is not empty"
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"], "nothing is left beside it"


def test_reconstruction_sheet_repeats_with_a_generator_and_takes_masks(model, pixel_values):
    def sheet(**options):
        return np.array(drawn(reconstruction_sheet(model, pixel_values, **options)))

    first = sheet(generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(first, sheet(generator=torch.Generator().manual_seed(3)))
    masked = torch.zeros(2, 24, dtype=torch.bool)
    masked[:, ::2] = True
    figure = reconstruction_sheet(model, pixel_values, bool_masked_pos=masked)
    assert figure.axes[1].get_title() == "50% hidden"
    assert reconstruction_sheet(model, pixel_values, mask_ratio=0.25).axes[1].get_title() == "25% hidden"


def test_sheet_of_a_normalised_pixels_model_says_that_it_uses_the_truth(pixel_values):
    model = trained(MAEForPreTraining(tiny_config(norm_pix_loss=True)))
    assert "true patch" in reconstruction_sheet(model, pixel_values).get_supxlabel()
    plain = trained(MAEForPreTraining(tiny_config()))
    assert not reconstruction_sheet(plain, pixel_values).get_supxlabel()


def test_sheets_take_grey_images_and_other_sizes(tmp_path):
    model = trained(MAEForPreTraining(tiny_config(num_channels=1)))
    pixels = torch.rand(1, 1, 32, 16)
    for sheet in (reconstruction_sheet, anomaly_sheet, attention_sheet):
        path = tmp_path / f"{sheet.__name__}.png"
        sheet(model, pixels, path, mean=0.0, std=1.0)
        assert path.stat().st_size > 1000


@pytest.mark.parametrize("draw", [reconstruction_sheet, anomaly_map])
def test_a_model_that_cannot_reconstruct_is_refused(draw, pixel_values, tmp_path):
    """Weights without decoder load with a new decoder: its pictures are noise, and nothing would say so."""
    with pytest.raises(ValueError, match=r"decoder.*MAEForImageClassification"):
        draw(MAEForImageClassification(tiny_config()), pixel_values)
    trained(MAEModel(tiny_config())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder of model is untrained"):
        draw(MAEForPreTraining.from_pretrained(tmp_path), pixel_values)


def test_one_step_of_training_makes_a_model_drawable(pixel_values):
    model = MAEForPreTraining(tiny_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model(pixel_values).loss.backward()
    optimizer.step()
    reconstruction_sheet(model, pixel_values)


def test_anomaly_map_is_the_mean_error_of_hidden_patches(model, pixel_values):
    """With one patch hidden at a time a round is the exact leave-one-out error, whatever its order."""
    errors = anomaly_map(model, pixel_values, rounds=1, mask_ratio=1 / 24)
    expected = torch.empty(2, 24)
    for patch in range(24):
        masked = torch.zeros(2, 24, dtype=torch.bool)
        masked[:, patch] = True
        expected[:, patch] = model.reconstruct(pixel_values, bool_masked_pos=masked).error.flatten(1)[:, patch]
    torch.testing.assert_close(errors, expected.view(2, 4, 6))


@pytest.mark.parametrize("num_hidden", [1, 5, 6, 12, 18, 23])
def test_masks_of_a_round_cover_all_patches(num_hidden):
    masks = _covering_masks(3, 24, num_hidden, torch.Generator().manual_seed(0))
    counts = torch.stack(masks).sum(dim=0)
    assert all((mask.sum(dim=1) == num_hidden).all() for mask in masks)
    assert counts.min() == 1 and counts.max() <= 2
    assert len(masks) == -(-24 // num_hidden)


def test_anomaly_map_finds_what_the_model_does_not_expect(model, pixel_values):
    """The model predicts values near zero here, so that a bright patch must stand out."""
    pixels = pixel_values * 0.1
    pixels[0, :, 4:8, 8:12] = 30.0
    errors = anomaly_map(model, pixels, rounds=2, generator=torch.Generator().manual_seed(0))
    assert errors[0].argmax() == 1 * 6 + 2
    assert errors[0].max() > 5 * errors[1].max()
    again = anomaly_map(model, pixels, rounds=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(errors, again)


@pytest.mark.parametrize("options, message", [({"rounds": 0}, "rounds"), ({"mask_ratio": 0.0}, "mask_ratio")])
def test_anomaly_map_names_wrong_arguments(model, pixel_values, options, message):
    with pytest.raises(ValueError, match=message):
        anomaly_map(model, pixel_values, **options)


@pytest.mark.parametrize(
    "model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone, MAEFeaturePyramid]
)
def test_attention_maps_of_every_model(model_class, pixel_values):
    model = trained(model_class(tiny_config(_attn_implementation="sdpa"))).train()
    for layer in (-1, 0):
        maps = attention_maps(model, pixel_values, layer=layer)
        assert maps.shape == (2, 2, 4, 6)
        assert (maps >= 0).all() and (maps.flatten(2).sum(dim=2) < 1).all()
        assert not torch.allclose(maps, maps.mean(dim=(2, 3), keepdim=True), rtol=1e-3)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_attention_maps_are_those_of_the_layer(model, pixel_values):
    maps = attention_maps(model, pixel_values, layer=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.eval().vit(pixel_values, mask_ratio=0, output_attentions=True).attentions
    torch.testing.assert_close(maps.flatten(2), attentions[2][:, :, 0, 1:])


def test_attention_implementation_is_put_back_after_an_error(model, pixel_values):
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="must have 3 channels"):
        attention_maps(model, pixel_values[:, :1])
    assert model.config._attn_implementation == before != "eager"
    with pytest.raises(ValueError, match=r"layer must be in \[-4, 3\], got 4"):
        attention_maps(model, pixel_values, layer=4)


def test_attention_sheet_has_a_column_per_head(model, pixel_values, tmp_path):
    figure = attention_sheet(model, pixel_values, tmp_path / "attention.svg", layer=0)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "head 1", "head 2"]
    assert len(drawn(figure)) == 6
    assert (tmp_path / "attention.svg").read_text().lstrip().startswith("<?xml")


def test_anomaly_sheet_has_one_scale(model, pixel_values):
    figure = anomaly_sheet(model, pixel_values, rounds=1)
    limits = {axis.images[-1].get_clim() for axis in figure.axes if len(axis.images) == 2}
    assert len(limits) == 1


def test_a_new_picture_is_moved_into_place(model, pixel_values, tmp_path):
    """Whoever has the old file open keeps it whole: it is replaced, not written over."""
    path, other_name = tmp_path / "sheet.png", tmp_path / "old.png"
    reconstruction_sheet(model, pixel_values[:1], path)
    other_name.hardlink_to(path)
    old = path.read_bytes()
    reconstruction_sheet(model, pixel_values, path)
    assert other_name.read_bytes() == old != path.read_bytes()


def test_a_failed_write_leaves_the_old_file(model, pixel_values, tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    figure = reconstruction_sheet(model, pixel_values, path)
    old = path.read_bytes()

    def fail(file, **kwargs):
        file.write_bytes(b"half a pict")
        raise OSError("no space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        save_figure(figure, path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_unknown_suffix_is_refused_with_the_known_ones(model, pixel_values, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of .*\.png.*, got .*sheet\.txt"):
        reconstruction_sheet(model, pixel_values, tmp_path / "sheet.txt")
    assert not list(tmp_path.iterdir())


def test_drawing_needs_no_display_and_no_global_state():
    """pyplot picks a window system at import and keeps every figure alive: nothing here may load it."""
    command = "import sys, hubmodels.visualization; print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "False"
