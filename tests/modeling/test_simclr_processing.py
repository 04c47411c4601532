"""SimCLR's image processor: randomness, replay, inputs, settings, errors."""

import colorsys
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRImageProcessor
from hubmodels.modeling.simclr import resampling_simclr as resampling
from hubmodels.modeling.simclr.augmentation_simclr import DRAWS
from hubmodels.modeling.simclr.colors_simclr import hue_, hue_shifts, saturation_
from hubmodels.modeling.simclr.crops_simclr import TABLE_ATTEMPTS, central_crop_box, sample_crop_boxes
from PIL import Image
from torchvision.transforms.v2 import functional as tvF


def make_images(count: int = 4, height: int = 22, width: int = 27) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded(5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(count: int, views: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, views, DRAWS))


def small(**settings) -> SimCLRImageProcessor:
    return SimCLRImageProcessor(**{"size": 16, "blur_kernel_size": 5} | settings)


# Randomness


@pytest.mark.parametrize(
    ("height", "width", "mean", "quantiles"),
    [(300, 400, 0.391, (0.138, 0.208, 0.362, 0.544, 0.693)), (200, 200, 0.424, None)],
)
def test_crops_are_distributed_as_tensorflows(height, width, mean, quantiles):
    """
    Figures measured with TensorFlow's op (their median has a sampling error of about 2%; a finer run of its algorithm
    gives 0.354); crops under a tenth of the image never occur.
    """
    count = 100_000
    uniforms = np.random.default_rng(0).random((count, TABLE_ATTEMPTS * 4))
    boxes = sample_crop_boxes(uniforms, np.full(count, height), np.full(count, width))
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    assert area.min() >= 0.1
    assert area.mean() == pytest.approx(mean, rel=0.02)
    if quantiles:
        np.testing.assert_allclose(np.quantile(area, (0.1, 0.25, 0.5, 0.75, 0.9)), quantiles, rtol=0.025)
        assert (boxes[:, 3] / boxes[:, 2]).mean() == pytest.approx(1.040, rel=0.02)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


def test_crops_that_rarely_fit_use_further_attempts():
    """Each row decides alone; where nothing can fit, the whole image is taken."""
    uniforms = np.random.default_rng(2).random((500, TABLE_ATTEMPTS * 4))
    heights, widths = np.full(500, 60), np.full(500, 12)
    rare = {"area_range": (0.97, 1.0), "aspect_range": (0.15, 0.9), "min_covered": 0.97}
    boxes = sample_crop_boxes(uniforms, heights, widths, **rare)
    area = boxes[:, 2] * boxes[:, 3] / 720
    assert (area >= 0.97).all()
    for row in (0, 7, 499):
        alone = sample_crop_boxes(uniforms[row : row + 1], heights[:1], widths[:1], **rare)
        np.testing.assert_array_equal(alone[0], boxes[row])
    whole = sample_crop_boxes(uniforms, heights, widths, area_range=(0.9, 1.0), aspect_range=(2.0, 3.0))
    np.testing.assert_array_equal(whole, np.tile([0, 0, 60, 12], (500, 1)))


def test_the_generator_decides():
    images, processor = make_images(), small()
    first, again = (processor(images, generator=seeded())["pixel_values"] for _ in range(2))
    assert first.shape == (4, 2, 3, 16, 16)
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, processor(images, generator=seeded(1))["pixel_values"])
    assert not torch.equal(first[:, 0], first[:, 1])
    torch.manual_seed(3)
    by_global = processor(images, views=2)["pixel_values"]
    torch.manual_seed(3)
    assert torch.equal(by_global, processor(images, views=2)["pixel_values"])


@pytest.mark.parametrize("settings", [{}, {"jitter": "torchvision"}, {"brightness_mode": "additive"}])
def test_equal_rows_give_equal_pixels_in_any_batch(settings):
    images, uniforms = make_images(40), table(40)
    processor = small(blur_sigma="per_image", **settings)
    whole = processor(images, uniforms=uniforms)["pixel_values"]
    for rows in ([3], [17, 2], list(range(39, 4, -1))):
        assert torch.equal(processor(images[rows], uniforms=uniforms[rows])["pixel_values"], whole[rows])
    assert torch.equal(processor(list(images), uniforms=torch.from_numpy(uniforms))["pixel_values"], whole)


def test_the_first_sample_gives_the_shared_sigma():
    images, uniforms = make_images(8), table(8)
    processor = small()
    result = processor(images, uniforms=uniforms, return_params=True)
    sigma = result["params"]["sigma"]
    assert torch.equal(sigma, sigma[:1].expand(8, 2))
    assert sigma[0, 0] != sigma[0, 1]
    rows = [0, 5, 3]
    assert torch.equal(processor(images[rows], uniforms=uniforms[rows])["pixel_values"], result["pixel_values"][rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_params_replay(dtype):
    images, processor = make_images(), small()
    result = processor(images, views=3, generator=seeded(), return_params=True, dtype=dtype)
    assert result["pixel_values"].dtype == dtype
    assert {name: tuple(value.shape) for name, value in result["params"].items() if name in ("crop", "order")} == {
        "crop": (4, 3, 4),
        "order": (4, 3, 4),
    }
    replayed = processor(images, params=result["params"], dtype=dtype, return_params=True)
    assert torch.equal(replayed["pixel_values"], result["pixel_values"])
    assert all(torch.equal(value, result["params"][name]) for name, value in replayed["params"].items())
    alone = {name: value[1] for name, value in result["params"].items()}
    assert torch.equal(processor(images[1], params=alone, dtype=dtype)["pixel_values"][0], result["pixel_values"][1])


def test_probabilities_and_ranges():
    images = make_images(1, 8, 8).expand(600, 3, 8, 8)
    params = small(size=2, strength=0.5)(images, generator=seeded(), return_params=True)["params"]
    for name, probability in (("flip", 0.5), ("apply_jitter", 0.8), ("gray", 0.2), ("blur", 0.5)):
        assert params[name].float().mean() == pytest.approx(probability, abs=0.05)
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("hue", -0.1, 0.1)):
        assert params[name].min() == pytest.approx(low, abs=0.01)
        assert params[name].max() == pytest.approx(high, abs=0.01)
    assert len(params["order"].flatten(0, 1).unique(dim=0)) == 24
    additive = small(size=2, brightness_mode="additive")(images, generator=seeded(), return_params=True)["params"]
    assert additive["brightness"].min() == pytest.approx(-0.8, abs=0.01)


def test_strength_zero_leaves_the_colors_as_they_are():
    """Neither jitter nor grey, as in the official TF2 code; the other draws stay where they are."""
    images = make_images(200, 16, 16)
    processor = small(strength=0, do_random_crop=False, do_blur=False, flip_probability=0.0)
    result = processor(images, mode="pretrain", uniforms=table(200), return_params=True)
    assert set(result["params"]) == {"crop", "flip"}
    torch.testing.assert_close(result["pixel_values"], (images / 255)[:, None].expand(-1, 2, -1, -1, -1))
    flips = [
        small(strength=strength)(images, uniforms=table(200), return_params=True)["params"]["flip"]
        for strength in (0, 1)
    ]
    assert torch.equal(*flips)


# Pixels


def test_colors_are_those_of_hsv():
    images = torch.rand(1, 3, 20, 20, generator=seeded(), dtype=torch.float64)
    images[..., :5] = (images[..., :5] * 3).floor() / 2  # ties, black, white and grey

    def by_colorsys(change) -> torch.Tensor:
        pixels = images[0].flatten(1).t().tolist()
        changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
        return torch.tensor(changed, dtype=torch.float64).t().reshape(images.shape)

    for delta in (-0.5, -0.2, 0.0, 0.1, 0.45, 1.3):
        turned = hue_(images.clone(), hue_shifts(torch.tensor([delta], dtype=torch.float64)))
        expected = by_colorsys(lambda h, s, v, delta=delta: ((h + delta) % 1, s, v))
        torch.testing.assert_close(turned, expected, atol=1e-12, rtol=0)
    for factor in (0.0, 0.4, 1.0, 1.8):
        saturated = saturation_(images.clone(), torch.tensor([factor], dtype=torch.float64))
        expected = by_colorsys(lambda h, s, v, factor=factor: (h, min(s * factor, 1), v))
        torch.testing.assert_close(saturated, expected, atol=1e-12, rtol=0)


def test_torchvision_jitter_is_torchvisions():
    images = make_images(12, 16, 16)
    processor = small(jitter="torchvision", do_random_crop=False, flip_probability=0.0, do_blur=False, resample="torch")
    result = processor(images, views=1, generator=seeded(), return_params=True)
    params = {name: value[:, 0] for name, value in result["params"].items()}
    operations = (tvF.adjust_brightness, tvF.adjust_contrast, tvF.adjust_saturation, tvF.adjust_hue)
    for row, image in enumerate(images / 255):
        expected = image
        for operation in params["order"][row].tolist() if params["apply_jitter"][row] else ():
            name = ("brightness", "contrast", "saturation", "hue")[operation]
            expected = operations[operation](expected, params[name][row].item())
        expected = tvF.rgb_to_grayscale(expected, 3) if params["gray"][row] else expected
        torch.testing.assert_close(result["pixel_values"][row, 0], expected.clamp(0, 1), atol=1e-4, rtol=0)


def test_torch_resize_is_torchs():
    image = make_images(1)
    processor = small(resample="torch", size={"height": 18, "width": 13})
    box = torch.tensor([3, 2, 17, 21])
    off = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "do_blur": False}
    pixels = processor(image, params={"crop": box, "flip": torch.tensor(True)}, **off)["pixel_values"][0, 0]
    crop = image[:, :, 3:20, 2:23] / 255
    expected = F.interpolate(crop, (18, 13), mode="bicubic").clamp(0, 1)[0].flip(-1)
    torch.testing.assert_close(pixels, expected, atol=2e-6, rtol=0)


def test_matrix_products_equal_the_embedding_bags(monkeypatch):
    """Devices other than the CPU take the other way."""
    images = torch.rand(3, 2, 9, 7, generator=seeded())
    index, weight = resampling.bicubic_taps(torch.tensor([0, 2, 1]), torch.tensor([9, 5, 8]), 6)
    expected = resampling.combine_rows(images, index, weight)
    monkeypatch.setattr(resampling, "_FAST_ROW_SUMS", ())
    torch.testing.assert_close(resampling.combine_rows(images, index, weight), expected, atol=1e-6, rtol=0)


def test_blur_darkens_borders_and_keeps_the_inside():
    kernels = resampling.gaussian_kernels(torch.tensor([0.1, 2.0]), radius=3)
    assert torch.allclose(kernels.sum(dim=1), torch.ones(2))
    blurred = resampling.blur_transposed(torch.ones(2, 1, 16, 12), kernels)
    assert blurred.shape == (2, 1, 12, 16)
    assert torch.allclose(blurred[:, :, 3:-3, 3:-3], torch.ones(()))
    assert blurred[1, 0, 0, 0] < 0.5
    assert torch.allclose(blurred[0], torch.ones(()))


def test_off_center_pixels_of_the_evaluation_crop():
    assert central_crop_box(37, 52, (24, 24), 0.875) == (3, 10, 32, 32)
    assert central_crop_box(100, 100, (10, 20), 1.0) == (25, 0, 50, 100)


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (78, 52, (96, 64), (5, 3, 68, 46)),  # 0.875 * 2 / 3 * 78 is 45.5, in float32 a little more
        (40, 54, (64, 96), (5, 4, 31, 47)),  # 31.5, a little less
        (60, 84, (160, 224), (4, 5, 52, 74)),
        (85, 60, (224, 160), (6, 4, 74, 52)),
        (70, 51, (128, 96), (6, 3, 59, 45)),
    ],
)
def test_the_evaluation_crop_rounds_float32_numbers(height, width, size, box):
    """As the official code computes them."""
    assert central_crop_box(height, width, size, 0.875) == box


# Inputs and modes


def test_every_kind_of_input_gives_the_same_views():
    images, uniforms = make_images(), table(4)
    processor = small()
    expected = processor(images, uniforms=uniforms)["pixel_values"]
    last = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    for given in ([Image.fromarray(image) for image in last], list(last), last, images.numpy(), images.to("cpu")):
        assert torch.equal(processor(given, uniforms=uniforms)["pixel_values"], expected)
    torch.testing.assert_close(processor(images / 255, uniforms=uniforms)["pixel_values"], expected, atol=1e-6, rtol=0)
    by_device = processor(images, uniforms=uniforms, device="cpu", return_tensors="pt")["pixel_values"]
    assert torch.equal(by_device, expected)
    as_array = processor(images, uniforms=uniforms, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(as_array, expected.numpy())


def test_images_of_different_sizes():
    images = [make_images(1, *size)[0] for size in ((20, 30), (64, 40), (17, 17))]
    uniforms, processor = table(3), small(blur_sigma="per_image")
    together = processor(images, uniforms=uniforms)["pixel_values"]
    for row, image in enumerate(images):
        alone = processor(image, uniforms=uniforms[row : row + 1])["pixel_values"]
        assert torch.equal(together[row], alone[0])


def test_inputs_stay_as_they_are():
    images = make_images() / 255
    before = images.clone()
    small(do_random_crop=False, size={"height": 22, "width": 27})(images, generator=seeded())
    assert torch.equal(images, before)


def test_finetune_is_crop_and_flip():
    images, uniforms = make_images(), table(4, 1)
    processor = small(mode="finetune")
    result = processor(images)["pixel_values"]
    assert result.shape == (4, 3, 16, 16)
    pixels = processor(images, mode="finetune", uniforms=uniforms[:, 0], return_params=True)
    assert set(pixels["params"]) == {"crop", "flip"}
    off = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "do_blur": False}
    assert torch.equal(pixels["pixel_values"], small(**off)(images, uniforms=uniforms)["pixel_values"][:, 0])


def test_small_images_are_evaluated_as_they_are():
    images = make_images(3, 32, 32)
    pixels = SimCLRImageProcessor(size=32)(images)["pixel_values"]
    torch.testing.assert_close(pixels, images / 255, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"must be 32x32, got 22x27; set crop_proportion"):
        SimCLRImageProcessor(size=32)(make_images())
    assert SimCLRImageProcessor(size=32, crop_proportion=1.0)(make_images())["pixel_values"].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (24, 32)])
def test_small_rectangles_are_those_of_the_model(size):
    """Taken as they are where the model has the stem for small images."""
    processor = SimCLRImageProcessor(size={"height": size[0], "width": size[1]})
    if SimCLRConfig(image_size=size).uses_cifar_stem:
        with pytest.raises(ValueError, match=r"must be 24x32, got 80x90; set crop_proportion"):
            processor(make_images(2, 80, 90))
    else:
        assert processor(make_images(2, 80, 90))["pixel_values"].shape == (2, 3, *size)


def test_saving_keeps_the_settings_and_ships_the_code(tmp_path):
    processor = small(strength=0.5, do_blur=False, area_range=(0.2, 1.0), mode="finetune")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_simclr.SimCLRImageProcessor"}
    files = {path.name for path in tmp_path.glob("*.py")}
    assert {f"{part}_simclr.py" for part in ("image_processing", "augmentation", "colors", "crops")} <= files
    loaded = SimCLRImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    images, uniforms = make_images(), table(4, 1)
    assert torch.equal(
        loaded(images, uniforms=uniforms[:, 0], mode="finetune")["pixel_values"],
        processor(images, uniforms=uniforms[:, 0], mode="finetune")["pixel_values"],
    )


# Errors

PARAMS = small()(make_images(2), generator=seeded(), return_params=True)["params"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "train"}, r"mode must be one of .*'train'"),
        ({"strength": 1.3}, r"strength must be in \[0, 1.25\].*1.3"),
        ({"resample": "pil"}, r"resample must be one of .*'pil'"),
        ({"jitter": "v1"}, r"jitter must be one of .*'v1'"),
        ({"brightness_mode": "v1"}, r"brightness_mode must be one of"),
        ({"blur_sigma": "batch"}, r"blur_sigma must be one of"),
        ({"flip_probability": 1.5}, r"flip_probability must be in \[0, 1\], got 1.5"),
        ({"area_range": (0.5, 0.2)}, r"area_range must be \(low, high\)"),
        ({"area_range": (0.5, 1.2)}, r"area_range must end at most at 1"),
        ({"size": {"shortest_edge": 16}}, r"size must give height and width"),
        ({"size": 0}, r"size must give height and width"),
        ({"blur_kernel_size": -1}, r"blur_kernel_size -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "test"}, r"mode must be one of .*'test'"),
        ({"mode": "eval", "views": 2}, r"mode 'eval' draws nothing, got views"),
        ({"mode": "finetune", "views": 2}, r"mode 'finetune' makes one view, got views=2"),
        ({"mode": "eval", "crop_proportion": 1.5}, r"crop_proportion must be in \(0, 1\], got 1.5"),
        ({"views": 0}, r"views must be at least 1, got 0"),
        ({"views": 2, "dtype": torch.float16}, r"dtype must be .*float16"),
        ({"uniforms": table(3)}, rf"uniforms must have shape \(2, 2, {DRAWS}\).*got \(3, 2, {DRAWS}\)"),
        ({"uniforms": table(2) + 0.5}, r"uniforms must lie in \[0, 1\)"),
        ({"uniforms": table(2), "generator": seeded()}, r"exclude each other"),
        ({"params": {"crop": PARAMS["crop"]}}, r"params lacks \['flip', 'apply_jitter'"),
        ({"params": PARAMS | {"hue": torch.zeros(3)}}, r"params\['hue'\] must have shape \(2, 2\), got \(3,\)"),
        ({"params": PARAMS | {"order": torch.zeros(2, 2, 4)}}, r"params\['order'\] must list the operations"),
        ({"params": PARAMS | {"crop": PARAMS["crop"] + 20}}, r"must lie in the image, got .* for image 0 of 22x27"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small()(make_images(2), **arguments)


def test_wrong_images():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values from 0 to 255"):
        small()(torch.tensor([0.0, 255.0]).expand(1, 3, 20, 2), views=2)
    with pytest.raises(ValueError, match=r"got values from nan"):
        small()(torch.full((1, 3, 20, 20), torch.nan), views=2)
    with pytest.raises(ValueError, match=r"must be uint8, or floating in \[0, 1\], got torch.int64"):
        small()(torch.zeros(1, 3, 20, 20, dtype=torch.int64), views=2)
    with pytest.raises(ValueError, match=r"needs images of 3 channels, got \[4\]"):
        small()(torch.zeros(4, 20, 20, dtype=torch.uint8), views=2, do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"images is empty"):
        small()(torch.zeros(0, 3, 20, 20, dtype=torch.uint8), views=2)
