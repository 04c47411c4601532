"""The golden case of DenseCL's augmentation with stored draws: the Pillow engine exactly, the tensor engine nearly."""

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLImageProcessor

from tests.golden.harness import load_case


@pytest.fixture(scope="module")
def case():
    return load_case("densecl", "augment_stored_params")


def views(case, **options):
    params = {name.removeprefix("param/"): t[None] for name, t in case.inputs.items() if name.startswith("param/")}
    size = case.manifest["config"]["size"]
    processor = DenseCLImageProcessor(size={"height": size, "width": size})
    return processor(case.inputs["image"], mode="pretrain", views=len(params["flip"][0]), params=params, **options)


def test_pillow_engine_is_exact(case):
    pixels = views(case, engine="pil", do_rescale=False, do_normalize=False).pixel_values[0]
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, case.outputs["uint8_before_normalise"])
    torch.testing.assert_close(views(case, engine="pil").pixel_values[0], case.outputs["views"], atol=1e-6, rtol=0)


def test_tensor_engine_is_within_the_tolerance_of_the_manifest(case):
    assert "mean |diff| <= 2/255, max <= 12/255" in case.manifest["tolerance"]
    pixels = views(case, do_normalize=False).pixel_values[0] * 255
    difference = (pixels - case.outputs["uint8_before_normalise"].float()).abs()
    assert difference.mean(dim=(1, 2, 3)).max() <= 2
    assert difference.max() <= 12
    normalised = (views(case).pixel_values[0] - case.outputs["views"]).abs() * 0.225
    assert normalised.max() <= 12 / 255


def test_boxes_and_flips_are_those_of_the_draws(case):
    output = views(case)
    assert torch.equal(output.crop_boxes[0], case.inputs["param/crop"])
    assert torch.equal(output.flips[0], case.inputs["param/flip"].bool())
