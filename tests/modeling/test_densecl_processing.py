"""DenseCL's image processor: draws, views of both engines, geometry, evaluation, and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from hubmodels.modeling.densecl import DenseCLImageProcessor
from hubmodels.modeling.densecl.colors_densecl import COLOR_OPERATIONS, gaussian_blur_, to_gray_
from hubmodels.modeling.densecl.views_densecl import DRAWS_PER_VIEW, ViewParameters, ViewSettings
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as tvF

SIZE = {"height": 24, "width": 32}


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth colourful image, uint8 `[3, H, W]`."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth[0] * 255).clamp(0, 255).to(torch.uint8)


def table(batch: int, views: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, views, DRAWS_PER_VIEW, dtype=torch.float64, generator=generator)


@pytest.fixture
def processor():
    return DenseCLImageProcessor(size=SIZE)


@pytest.fixture
def small_images():
    return [picture(30, 40, seed) for seed in range(6)]


@pytest.fixture
def mixed_images():
    return [picture(60 + 7 * seed, 90 - 5 * seed, seed) for seed in range(6)]


# What is drawn


def test_the_published_settings_are_the_default():
    drawn = ViewParameters.draw(table(4000).numpy(), np.full(4000, 80), np.full(4000, 120), ViewSettings())
    shares = {"jitter": 0.8, "gray": 0.2, "blur": 0.5, "flip": 0.5}
    for name, share in shares.items():
        assert getattr(drawn, name).mean() == pytest.approx(share, abs=0.02)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4), "hue": (-0.1, 0.1)}
    for name, (low, high) in (ranges | {"sigma": (0.1, 2.0)}).items():
        values = getattr(drawn, name)
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    orders, counts = np.unique(drawn.order.reshape(-1, 4), axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 8000 / 24 * 0.75


def test_crops_have_the_published_distribution():
    """Area uniform in (0.2, 1), aspect log-uniform in (3/4, 4/3), as far as boxes fit; places uniform."""
    number = 4000
    drawn = ViewParameters.draw(table(number).numpy(), np.full(number, 200), np.full(number, 200), ViewSettings())
    top, left, height, width = np.moveaxis(drawn.crop, -1, 0).astype(float)
    area, ratio = height * width / 200**2, width / height
    assert area.min() > 0.19 and area.max() <= 1 and ratio.min() > 0.73 and ratio.max() < 1.37
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)
    torch.manual_seed(0)
    image = torch.empty(3, 200, 200)
    reference = [
        torchvision.transforms.RandomResizedCrop.get_params(image, (0.2, 1), (3 / 4, 4 / 3)) for _ in range(4000)
    ]
    reference = np.array(reference, dtype=float)
    for ours, theirs in zip((top, left, height, width), reference.T, strict=True):
        for share in (0.1, 0.5, 0.9):
            assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=6)


@pytest.mark.parametrize(("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))])
def test_images_too_narrow_for_any_crop_give_the_central_one(height, width, box):
    settings = ViewSettings(crop_scale=(1.0, 1.0))
    drawn = ViewParameters.draw(table(1).numpy(), np.array([height]), np.array([width]), settings)
    assert drawn.crop.tolist() == [[list(box)] * 2]


def test_a_sample_depends_on_its_own_row_alone(processor, mixed_images):
    uniforms = table(6)
    together = processor(mixed_images, mode="pretrain", uniforms=uniforms)
    for index in (0, 3):
        alone = processor(mixed_images[index], mode="pretrain", uniforms=uniforms[index : index + 1])
        torch.testing.assert_close(alone.pixel_values[0], together.pixel_values[index], atol=1e-5, rtol=0)
        assert torch.equal(alone.crop_boxes[0], together.crop_boxes[index])
    again = processor(mixed_images, mode="pretrain", uniforms=uniforms.numpy())
    assert torch.equal(again.pixel_values, together.pixel_values)
    assert not torch.equal(together.crop_boxes[:, 0], together.crop_boxes[:, 1]), "views are drawn independently"


def test_generators_repeat_and_stored_parameters_give_the_same_views(processor, mixed_images):
    def views(**options):
        return processor(mixed_images, mode="pretrain", return_params=True, **options)

    first = views(generator=torch.Generator().manual_seed(5))
    second = views(generator=torch.Generator().manual_seed(5))
    replayed = views(params=first["params"])
    for other in (second, replayed):
        assert torch.equal(first.pixel_values, other.pixel_values)
        assert all(torch.equal(first["params"][name], other["params"][name]) for name in first["params"])
    assert not torch.equal(first.pixel_values, views(generator=torch.Generator().manual_seed(6)).pixel_values)


# Views


def test_the_pillow_engine_crops_as_torchvision(processor):
    images = [picture(90, 40), picture(41, 90), picture(64, 64)]
    draws = {name: torch.zeros(3, 1, dtype=torch.int64) for name in ("jitter", "gray", "blur", "flip")}
    draws |= {name: torch.ones(3, 1) for name in ("brightness", "contrast", "saturation", "sigma")}
    draws |= {"hue": torch.zeros(3, 1)}
    boxes = [[5, 1, 80, 39], [0, 7, 41, 81], [0, 0, 64, 64]]
    draws |= {"crop": torch.tensor(boxes)[:, None], "order": torch.arange(4).expand(3, 1, 4)}
    output = processor(
        images, mode="pretrain", views=1, params=draws, engine="pil", do_rescale=False, do_normalize=False
    )
    for image, box, view in zip(images, boxes, output.pixel_values[:, 0], strict=True):
        expected = tvF.resized_crop(tvF.to_pil_image(image), *box, [24, 32], tvF.InterpolationMode.BILINEAR)
        assert torch.equal(view, tvF.pil_to_tensor(expected))


@pytest.mark.parametrize("kind", ["small", "mixed"])
def test_engines_agree(kind, processor, small_images, mixed_images):
    """Matrix products for small images, torch's resizing for others; both near Pillow."""
    images = small_images if kind == "small" else mixed_images
    both = [
        processor(images, mode="pretrain", uniforms=table(6), engine=engine, do_normalize=False).pixel_values
        for engine in ("tensor", "pil")
    ]
    assert both[0].shape == (6, 2, 3, 24, 32) and both[0].dtype == torch.float32
    difference = (both[0] - both[1]).abs().mean(dim=(2, 3, 4)) * 255
    assert difference.max() < 2, difference


def test_images_of_all_kinds_give_the_same_views(processor):
    image = picture(60, 80)
    pillow = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    expected = processor(image, mode="pretrain", uniforms=table(1)).pixel_values
    for other in (
        pillow,
        np.asarray(pillow),
        image[None],
        [image],
        image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    ):
        actual = processor(other, mode="pretrain", uniforms=table(1)).pixel_values
        assert torch.equal(actual, expected)
    for floats, options in ((image / 255, {}), (image / 255, {"do_rescale": False})):
        actual = processor(floats, mode="pretrain", uniforms=table(1), **options).pixel_values
        torch.testing.assert_close(actual, expected, atol=0.03, rtol=0)
    gray = image[:1]
    actual = processor(gray, mode="pretrain", uniforms=table(1)).pixel_values
    assert torch.equal(actual, processor(gray.expand(3, -1, -1), mode="pretrain", uniforms=table(1)).pixel_values)


def test_views_are_normalised(processor, small_images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    plain = processor(small_images, mode="pretrain", uniforms=table(6), do_normalize=False).pixel_values
    assert plain.min() >= 0 and plain.max() <= 1
    normalised = processor(small_images, mode="pretrain", uniforms=table(6)).pixel_values
    torch.testing.assert_close(normalised, (plain - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [1, 3])
def test_any_number_of_views(number, processor, mixed_images):
    output = processor(mixed_images, mode="pretrain", views=number, uniforms=table(6, number))
    assert output.pixel_values.shape == (6, number, 3, 24, 32)
    assert output.crop_boxes.shape == (6, number, 4) and output.flips.shape == (6, number)


def test_random_arguments_ask_for_views(processor, mixed_images):
    """And tell how many."""
    assert processor(mixed_images, uniforms=table(6, 3)).pixel_values.shape == (6, 3, 3, 24, 32)
    output = processor(mixed_images, uniforms=table(6, 1), return_params=True)
    assert torch.equal(processor(mixed_images, params=output["params"]).pixel_values, output.pixel_values)
    assert processor(mixed_images, generator=torch.Generator()).pixel_values.shape == (6, 2, 3, 24, 32)


@pytest.mark.parametrize("side", [30, 90])
def test_boxes_and_flips_tell_where_a_pixel_comes_from(side):
    """The image holds its own coordinates; without colour changes the views must show those of their boxes."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros(side, side)]) / side
    off = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}
    processor = DenseCLImageProcessor(size=SIZE, do_rescale=False, do_normalize=False, **off)
    output = processor([image] * 8, mode="pretrain", uniforms=table(8))
    assert output.flips.any() and not output.flips.all()
    for pixels, box, flip in zip(
        output.pixel_values.flatten(0, 1), output.crop_boxes.flatten(0, 1), output.flips.flatten(), strict=True
    ):
        top, left, height, width = box.tolist()
        y = top + (torch.arange(24) + 0.5) / 24 * height - 0.5
        x = left + (torch.arange(32) + 0.5) / 32 * width - 0.5
        x = x.flip(0) if flip else x
        inside = (slice(2, -2), slice(2, -2))  # at the border a resized crop continues its last pixels
        torch.testing.assert_close(pixels[0][inside] * side, y[:, None].expand(24, 32)[inside], atol=0.15, rtol=0)
        torch.testing.assert_close(pixels[1][inside] * side, x.expand(24, 32)[inside], atol=0.15, rtol=0)


# Colours and blur


def planes(number: int = 2, height: int = 20, width: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, number, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("number", "reference", "values"),
    [
        (0, tvF.adjust_brightness, (0.6, 1.4)),
        (1, tvF.adjust_contrast, (0.7, 1.3)),
        (2, tvF.adjust_saturation, (0.2, 1.8)),
        (3, tvF.adjust_hue, (-0.1, 0.07)),
        (3, tvF.adjust_hue, (-0.5, 0.45)),
    ],
)
def test_colour_operations_are_those_of_torchvision(number, reference, values):
    """Up to the half step of a byte that Pillow cuts off in blends."""
    x = planes()
    expected = torch.stack([reference(x[:, view], value) for view, value in enumerate(values)], dim=1)
    COLOR_OPERATIONS[number](x, torch.tensor(values).view(-1, 1, 1))
    torch.testing.assert_close(x, expected, atol=0.5 / 255 + 2e-3, rtol=0)


def test_hue_keeps_grays_and_turns_full_circle():
    gray = torch.linspace(0, 1, 8).expand(3, 1, 2, 8).clone()
    expected = gray.clone()
    COLOR_OPERATIONS[3](gray, torch.tensor([0.3]).view(1, 1, 1))
    torch.testing.assert_close(gray, expected)
    x = planes()
    expected = x.clone()
    for shift in (0.25, -0.5, 0.25, 0.5, -0.5):
        COLOR_OPERATIONS[3](x, torch.full((2, 1, 1), shift))
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


def test_gray_is_the_luma_in_all_planes():
    x = planes()
    expected = tvF.rgb_to_grayscale(x.transpose(0, 1)).squeeze(1)
    to_gray_(x)
    for plane in x:
        torch.testing.assert_close(plane, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(4, 9), (20, 28), (70, 40), (100, 131)])
@pytest.mark.parametrize("sigmas", [(0.1, 0.4, 2.0), (3.5,)])
def test_blur_is_that_of_pillow(shape, sigmas):
    """Also at the borders, in one piece and in many; Pillow rounds after each of three passes in two directions."""
    pixels = torch.randint(0, 256, (3, len(sigmas), *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = pixels / 255
    gaussian_blur_(x, torch.tensor(sigmas))
    for view, sigma in enumerate(sigmas):
        image = Image.fromarray(pixels[:, view].permute(1, 2, 0).contiguous().numpy())
        expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))).transpose(2, 0, 1)
        difference = np.abs(x[:, view].numpy() * 255 - expected)
        assert difference.max() < 3.5 and difference.mean() < 1.2


def test_blur_has_the_asked_deviation():
    x = torch.zeros(3, 1, 61, 61)
    x[:, :, 30, 30] = 1
    gaussian_blur_(x, torch.tensor([1.7]))
    torch.testing.assert_close(x.sum(dim=(2, 3)), torch.ones(3, 1))
    distance = torch.arange(61.0) - 30
    torch.testing.assert_close((x[0, 0].sum(dim=0) * distance**2).sum(), torch.tensor(1.7**2), rtol=1e-4, atol=0)


# Evaluation, fine-tuning, saving


def test_evaluation_resizes_and_crops_the_centre():
    processor = DenseCLImageProcessor()
    image = picture(300, 420)
    pixels = processor(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    resized = tvF.resize(image, [256, 358], antialias=True)
    expected = tvF.center_crop(resized, [224, 224]) / 255
    expected = tvF.normalize(expected, processor.image_mean, processor.image_std)
    torch.testing.assert_close(pixels[0], expected, atol=0.02, rtol=0)
    floats = processor(image / 255, return_tensors="pt").pixel_values
    torch.testing.assert_close(floats, pixels, atol=0.02, rtol=0)
    whole = processor(picture(32, 48), size=SIZE, crop_pct=1.0, do_normalize=False, return_tensors="pt").pixel_values
    assert whole.shape == (1, 3, 24, 32)


@pytest.mark.parametrize("margin", range(4))
def test_the_centre_is_cropped_where_torchvision_does(margin):
    processor = DenseCLImageProcessor(size={"height": 32, "width": 32}, crop_pct=32 / 36, do_normalize=False)
    image = picture(36, 36 + margin)
    pixels = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, tvF.center_crop(image, [32, 32]) / 255)


def test_fine_tuning_crops_and_flips_only(processor, mixed_images):
    output = processor(mixed_images, mode="finetune", uniforms=table(6, 1), return_params=True)
    assert output.pixel_values.shape == (6, 3, 24, 32)
    assert not any(output["params"][name].any() for name in ("jitter", "gray", "blur"))
    assert output["params"]["flip"].any()


def test_settings_are_saved(tmp_path):
    processor = DenseCLImageProcessor(size=SIZE, crop_scale=(0.5, 0.8), blur_probability=0.0, hue=0.2)
    processor.save_pretrained(tmp_path)
    loaded = DenseCLImageProcessor.from_pretrained(tmp_path)
    image = picture(60, 80)
    views = [p(image, mode="pretrain", uniforms=table(1)).pixel_values for p in (processor, loaded)]
    assert torch.equal(*views)
    assert loaded.blur_probability == 0.0 and loaded.draws == DRAWS_PER_VIEW


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniforms": table(2)}, r"uniforms must have shape \(1, 2, 32\) \(images, views, draws\), got \(2, 2, 32\)"),
        ({"uniforms": table(1) + 1}, r"uniforms must be in \[0, 1\), got values from 1"),
        ({"params": {}}, "params must have exactly the keys crop, jitter"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"crop_scale": (0.9, 0.2)}, r"crop_scale must be \(min, max\)"),
        ({"blur_sigma": (0.0, 2.0)}, r"blur_sigma must be \(min, max\) with 0 < min"),
        ({"jitter_probability": 1.5}, r"jitter_probability must be in \[0, 1\], got 1.5"),
        ({"hue": 0.7}, r"hue must be in \[0, 0.5\], got 0.7"),
    ],
)
def test_wrong_arguments_are_refused(options, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(picture(40, 50), mode="pretrain", **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("crop", [[[0, 0, 41, 10], [0, 0, 5, 5]]], r"boxes outside of their images: \[\[0, 0, 41, 10\]\]"),
        ("order", [[[0, 1, 2, 2]] * 2], "permutations of 0, 1, 2, 3"),
        ("sigma", [[-1.0, 1.0]], r"params\['sigma'\] must not be negative"),
        ("hue", [[0.0, 0.6]], r"params\['hue'\] must be in"),
        ("flip", [[True]], r"params\['crop'\] must have shape \(1, 1, 4\)"),
    ],
)
def test_wrong_parameters_are_refused(name, value, message, processor):
    image = picture(40, 50)
    params = dict(processor(image, mode="pretrain", uniforms=table(1), return_params=True)["params"])
    params[name] = torch.tensor(value)
    with pytest.raises(ValueError, match=message):
        processor(image, mode="pretrain", params=params)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hue": 0.6}, r"hue must be in \[0, 0.5\], got 0.6"),
        ({"crop_ratio": [2, 1]}, "crop_ratio must be"),
        ({"mode": "x"}, "mode must be one of eval, pretrain, finetune, got 'x'"),
        ({"engine": "x"}, "engine must be one of tensor, pil, got 'x'"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"flip_probability": 2.0}, r"flip_probability must be in \[0, 1\], got 2.0"),
    ],
)
def test_processors_are_checked_when_they_are_made(setting, message):
    with pytest.raises(ValueError, match=message):
        DenseCLImageProcessor(**setting)


def test_parameters_may_be_lists(processor):
    image = picture(40, 50)
    first = processor(image, mode="pretrain", uniforms=table(1), return_params=True)
    params = {name: value.tolist() for name, value in first["params"].items()}
    again = processor(image, params=params)
    assert torch.equal(again["pixel_values"], first["pixel_values"])


def test_contradictions_are_refused(processor):
    image = picture(40, 50)
    with pytest.raises(ValueError, match="nothing is random with mode='eval'"):
        processor(image, mode="eval", uniforms=table(1))
    params = processor(image, mode="pretrain", uniforms=table(1), return_params=True)["params"]
    with pytest.raises(ValueError, match="params or uniforms, not both"):
        processor(image, mode="pretrain", params=params, uniforms=table(1))
    with pytest.raises(ValueError, match=r"uint8 images, got torch\.float32"):
        processor(image / 255, mode="pretrain", engine="pil")
    with pytest.raises(ValueError, match=r"floating images must be in \[0, 1\], got values from "):
        processor(image / 100)
    with pytest.raises(ValueError, match="images is empty"):
        processor([], mode="pretrain")
    with pytest.raises(ValueError, match=r"images must be uint8, or floats in \[0, 1\], got torch\.int64"):
        processor(image.long(), mode="pretrain")
    with pytest.raises(ValueError, match="crop_pct must be in"):
        processor(image, crop_pct=1.5)


def test_every_order_of_the_jitter_is_applied_in_that_order(processor):
    """Each of the 24 orders in one batch, against one operation after the other."""
    image = picture(30, 40)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    params = dict(processor([image] * 12, mode="pretrain", uniforms=table(12), return_params=True)["params"])
    off = torch.zeros(12, 2, dtype=torch.bool)
    params |= {"order": orders.view(12, 2, 4), "jitter": ~off, "gray": off, "blur": off}
    views = processor([image] * 12, mode="pretrain", params=params, do_normalize=False).pixel_values
    plain = processor([image] * 12, mode="pretrain", params=params | {"jitter": off}, do_normalize=False).pixel_values
    for index in np.ndindex(12, 2):
        x = plain[index][:, None].clone()
        for number in params["order"][index].tolist():
            name = ("brightness", "contrast", "saturation", "hue")[number]
            COLOR_OPERATIONS[number](x, params[name][index].float().view(1, 1, 1))
        torch.testing.assert_close(views[index], x[:, 0], atol=1e-5, rtol=0)
