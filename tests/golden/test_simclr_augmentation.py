"""SimCLR's image operations against tensors made by the official TensorFlow 2 pipeline.

The stored contrast, saturation, hue and order are not those that the stored results were made with: with them no order
of the operations reproduces any jittered view, while brightness, crop, flip, grey and blur agree. `RECOVERED` holds the
values that do, fitted to the results alone: four numbers against 1728 pixels, which they meet to 1e-6. (Operations that
commute on an image leave its order open.)
"""

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRImageProcessor
from hubmodels.modeling.simclr.colors_simclr import affine_, hue_, hue_shifts, luminance, saturation_
from hubmodels.modeling.simclr.resampling_simclr import blur_transposed, gaussian_kernels, transposed

from tests.golden.harness import load_case

CASE = load_case("simclr", "augment_stored_params")
# View: order, contrast, saturation, hue.
RECOVERED = {
    0: ([0, 1, 3, 2], 1.7713900219, 1.2879572870, 0.0132318060),
    1: ([0, 1, 2, 3], 1.5816323604, 0.7478803457, -0.0413678212),
    2: ([3, 0, 1, 2], 0.8929538167, 1.1286097762, 0.1271611163),
    3: ([3, 2, 0, 1], 1.4297882140, 0.8383596005, 0.0163993834),
}
ATOL, HSV_ATOL = 2e-5, 1e-4  # of the manifest, whose tolerance is a sentence
OFF = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "do_blur": False}


def stored_params(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name.removeprefix("param/"): value for name, value in CASE.inputs.items() if "/" in name} | changes


def recovered_params(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    params = {name: value.clone() for name, value in stored_params().items()}
    for view, (order, *factors) in RECOVERED.items():
        params["order"][view] = torch.tensor(order)
        for name, factor in zip(("contrast", "saturation", "hue"), factors, strict=True):
            params[name][view] = factor
    return params | changes


def views(params: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, **settings) -> torch.Tensor:
    """Views [5, 3, 24, 24] of the case's image."""
    processor = SimCLRImageProcessor(size=24, blur_kernel_size=CASE.manifest["config"]["blur_kernel_argument"])
    return processor(CASE.inputs["image"], params=params, dtype=dtype, **settings)["pixel_values"][0]


def assert_equals(actual: torch.Tensor, name: str, atol: float = ATOL) -> None:
    expected = CASE.outputs[name].to(actual.dtype)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crop_resize_and_flip(dtype):
    cropped = CASE.outputs["cropped"]
    flipped = torch.where(CASE.inputs["param/flip"].bool()[:, None, None, None], cropped.flip(-1), cropped)
    actual = views(stored_params(), dtype, **OFF)
    torch.testing.assert_close(actual, flipped.clamp(0, 1).to(dtype), atol=ATOL, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_pipeline(dtype):
    jittered = views(recovered_params(gray=torch.zeros(5)), dtype, do_blur=False)
    expected = CASE.outputs["jittered"].clamp(0, 1).to(dtype)  # the view without jitter is stored before the clipping
    torch.testing.assert_close(jittered, expected, atol=ATOL, rtol=0)
    assert_equals(views(recovered_params(), dtype, do_blur=False), "before_blur")
    assert_equals(views(recovered_params(blur=torch.ones(5)), dtype), "blurred_all")
    assert_equals(views(recovered_params(), dtype), "views")


def test_stored_brightness_is_the_applied_one():
    """The recovered factors are no free fit: the one that is stored right comes out of the same pixels."""
    close = views(recovered_params(), do_blur=False)
    shifted = views(recovered_params(brightness=CASE.inputs["param/brightness"] + 1e-3), do_blur=False)
    expected = CASE.outputs["before_blur"]
    assert (close - expected).abs().max() < 2e-6
    assert (shifted - expected).abs().amax(dim=(1, 2, 3))[:4].min() > 1e-4


def test_blur_of_stored_images():
    images = CASE.outputs["before_blur"]
    kernels = gaussian_kernels(CASE.inputs["param/sigma"].expand(5), radius=2)
    assert_equals(blur_transposed(transposed(images), kernels), "blurred_all")


def test_evaluation():
    processor = SimCLRImageProcessor(size=24, crop_proportion=CASE.manifest["config"]["crop_proportion"])
    assert_equals(processor(CASE.inputs["image"], mode="eval")["pixel_values"], "eval")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_legacy_resize(dtype):
    processor = SimCLRImageProcessor(size=24, resample="tf1", do_random_crop=False, flip_probability=0.0, **OFF)
    actual = processor(CASE.inputs["image"], mode="finetune", dtype=dtype)["pixel_values"]
    expected = CASE.outputs["op/resize_tf1_legacy_bicubic"].clamp(0, 1).to(dtype)
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_operations(dtype):
    def image() -> torch.Tensor:
        return CASE.outputs["before_blur"][:1].to(dtype, copy=True)

    def factor(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=dtype)

    assert_equals(affine_(image(), factor(1.6), mean_factor=factor(-0.6)), "op/contrast")
    assert_equals(affine_(image(), factor(1.0), offset=factor(-0.3)), "op/brightness_v1")
    assert_equals(saturation_(image(), factor(1.7)), "op/saturation", HSV_ATOL)
    assert_equals(hue_(image(), hue_shifts(factor(0.13))), "op/hue", HSV_ATOL)
    assert_equals(luminance(image()).expand(-1, CASE.outputs["op/gray"].shape[1], -1, -1), "op/gray")
