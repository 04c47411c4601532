"""MAE's image transforms against tensors made by the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hubmodels.modeling.mae import MAEImageProcessor
from safetensors.torch import load_file

from hubmodels.data.crops import loop_free_crop_boxes
from hubmodels.data.resampling import resized_crop
from hubmodels.data.transforms import EvalTransform, ImageTransform

CASE = Path(__file__).parent / "mae" / "processors"
INPUTS = load_file(CASE / "inputs.safetensors")
OUTPUTS = load_file(CASE / "outputs.safetensors")
MANIFEST = json.loads((CASE / "manifest.json").read_text())
IMAGE = INPUTS["image_hwc_uint8"].permute(2, 0, 1)
SIZE = MANIFEST["official"]["input_size"]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = MANIFEST["tolerance"]
    torch.testing.assert_close(actual, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])


@pytest.mark.parametrize(("flip", "name"), [(False, "noflip"), (True, "flip")])
def test_pretraining_pixels(flip, name):
    cropped = resized_crop([IMAGE], INPUTS["crop_ijhw"].numpy()[None], (SIZE, SIZE), np.array([flip]))
    assert_close(ImageTransform(SIZE)._normalize(cropped)[0], OUTPUTS[f"pretrain_pixel_values_{name}"])


def test_evaluation_pixels():
    transform = EvalTransform(SIZE)
    assert min(transform.resized_size(*IMAGE.shape[1:])) == int(OUTPUTS["eval_resize_size"])
    assert_close(transform([IMAGE])[0], OUTPUTS["eval_pixel_values"])


def test_linear_probe_crops():
    draws = INPUTS["crop_uniforms"].numpy()
    heights, widths = (np.full(len(draws), side) for side in IMAGE.shape[1:])
    boxes = loop_free_crop_boxes(draws, heights, widths)
    np.testing.assert_array_equal(boxes, OUTPUTS["linprobe_crop_ijhw"].numpy())


@pytest.mark.parametrize("margin", range(8))
def test_processor_crops_where_the_evaluation_transform_does(margin):
    """Also where the margins of the centre crop differ: half a pixel is rounded to the even side."""
    image = IMAGE[:, :36, : 36 + margin]
    processor = MAEImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    for picture in (image, image.transpose(1, 2)):
        expected = EvalTransform(32, crop_fraction=32 / 36)([picture])
        torch.testing.assert_close(processor(picture, return_tensors="pt").pixel_values, expected)
