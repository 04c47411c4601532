"""MAE's image transforms against tensors made by the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
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
