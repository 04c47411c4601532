"""Crop, resize and crop boxes against torchvision."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvF

from hubmodels.data import crops
from hubmodels.data.randomness import uniforms
from hubmodels.data.resampling import resized_crop


def torchvisions(image: torch.Tensor, box: np.ndarray, size: tuple[int, int], flip: bool) -> torch.Tensor:
    """The published pipeline: torchvision on a PIL image."""
    picture = tvF.to_pil_image(image)
    view = tvF.resized_crop(picture, *box.tolist(), list(size), tvF.InterpolationMode.BICUBIC)
    return tvF.pil_to_tensor(tvF.hflip(view) if flip else view)


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    heights, widths = rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)
    return np.stack([rng.integers(0, height - heights + 1), rng.integers(0, width - widths + 1), heights, widths], 1)


@pytest.mark.parametrize("contrast", ["noise", "black and white"])
def test_small_images_equal_torchvision(contrast):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, *size = (int(v) for v in rng.integers(1, 33, 4))
        pixels = rng.integers(0, 256, (6, 3, height, width), dtype=np.uint8)
        if contrast == "black and white":  # overshoots both ends of the range
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        images = torch.from_numpy(pixels)
        boxes, flips = random_boxes(rng, 6, height, width), rng.random(6) < 0.5
        result = resized_crop(images, boxes, tuple(size), flips)
        expected = [torchvisions(*item) for item in zip(images, boxes, [tuple(size)] * 6, flips.tolist(), strict=True)]
        torch.testing.assert_close(result, torch.stack(expected), atol=0, rtol=0)


def test_large_and_varying_images_equal_torchvision():
    rng = np.random.default_rng(1)
    sizes = [(60, 84), (200, 31), (33, 33), (5, 90), (90, 60), (300, 200)]
    images = [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for size in sizes]
    boxes = np.concatenate([random_boxes(rng, 1, *size) for size in sizes])
    flips = np.array([True, False] * 3)
    result = resized_crop(images, boxes, (48, 40), flips)
    expected = [torchvisions(*item) for item in zip(images, boxes, [(48, 40)] * 6, flips.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), atol=0, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_are_independent(channels):
    images = torch.randint(0, 256, (2, channels, 50, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    boxes = np.array([[3, 4, 30, 20], [0, 0, 50, 40]])
    result = resized_crop(images, boxes, (24, 24))
    for channel in range(channels):
        single = images[:, channel : channel + 1].expand(-1, 3, -1, -1)
        assert torch.equal(result[:, channel], resized_crop(single, boxes, (24, 24))[:, 0])


def test_whole_image_at_its_own_size_is_unchanged():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.equal(resized_crop(images, np.tile([0, 0, 32, 32], (3, 1)), (32, 32)), images)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 84), (20, 200)])
def test_random_crops_are_distributed_as_torchvisions(height, width):
    count = 3000
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    draws = uniforms(0, 0, np.arange(count), crops.RANDOM_CROP_DRAWS)
    ours = crops.random_crop_boxes(draws, np.full(count, height), np.full(count, width), scale, ratio)
    for column in range(4):
        # Continuous in all but the pixel grid; the test is conservative for ties.
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    area = ours[:, 2] * ours[:, 3] / (height * width)
    their_area = theirs[:, 2] * theirs[:, 3] / (height * width)
    assert stats.ks_2samp(area, their_area).pvalue > 1e-3


@pytest.mark.parametrize("sizes", [(1, 1), (1, 300), (300, 1), (7, 500), (500, 7)])
def test_crops_lie_inside_extreme_images(sizes):
    count = 500
    heights, widths = np.full(count, sizes[0]), np.full(count, sizes[1])
    draws = uniforms(0, 0, np.arange(count), crops.RANDOM_CROP_DRAWS)
    for boxes in (
        crops.random_crop_boxes(draws, heights, widths),
        crops.loop_free_crop_boxes(draws[:, :4], heights, widths),
    ):
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
        assert (boxes[:, 0] + boxes[:, 2] <= heights).all() and (boxes[:, 1] + boxes[:, 3] <= widths).all()


def test_fallback_is_torchvisions_central_crop():
    for height, width in ((10, 400), (400, 10)):
        torch.manual_seed(0)
        expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [0.9, 1.0], [3 / 4, 4 / 3])
        draws = uniforms(0, 0, [0], crops.RANDOM_CROP_DRAWS)
        boxes = crops.random_crop_boxes(draws, np.array([height]), np.array([width]), (0.9, 1.0))
        assert boxes[0].tolist() == list(expected)


@pytest.mark.parametrize("shape", ["batch", "list"])
def test_crops_without_resizing_are_copies(shape):
    generator = torch.manual_seed(0)
    sizes = [(40, 44)] * 3 if shape == "batch" else [(40, 44), (20, 30), (50, 16)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    boxes = np.array([[0, 3, 20, 16], [0, 14, 20, 16], [20, 0, 20, 16]])
    result = resized_crop(torch.stack(images) if shape == "batch" else images, boxes, (20, 16), np.array([0, 1, 0]) > 0)
    assert torch.equal(result[0], images[0][:, :20, 3:19])
    assert torch.equal(result[1], images[1][:, :20, 14:30].flip(2))
    assert torch.equal(result[2], images[2][:, 20:40, :16])
