"""The views of training with wrong labels: a function of their numbers, ranges, grey squares, sizes."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hubmodels.data.noisy_label_views import (
    OPERATIONS,
    PlainView,
    StrongView,
    WarmUpView,
    WeakView,
)
from hubmodels.data.randomness import uniforms

KINDS = (PlainView, WeakView, StrongView, WarmUpView)
NO_NORMALISATION = {"mean": 0.0, "std": 1.0}


def images(count=6, size=32, channels=3):
    return [
        torch.from_numpy(a) for a in np.random.default_rng(0).integers(0, 256, (count, channels, size, size), np.uint8)
    ]


def table(view, count=6, seed=1):
    return np.random.default_rng(seed).random((count, view.draws))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_a_function_of_its_numbers(kind, channels):
    view = kind(32, num_channels=channels, **NO_NORMALISATION)
    pictures, numbers = images(channels=channels), table(view)
    state = torch.get_rng_state()
    first = view(pictures, numbers)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (6, channels, 32, 32)
    assert first.min() >= 0 and first.max() <= 1
    torch.manual_seed(9)
    assert torch.equal(view(pictures[2:4], numbers[2:4]), first[2:4])
    assert not torch.equal(view(pictures, table(view, seed=2)), first)


def test_a_plain_view_crops_and_flips_only():
    view = PlainView(32, crop_padding=0, **NO_NORMALISATION)
    pictures = torch.stack(images())
    numbers = table(view)
    flips = numbers[:, -2] < 0.5
    expected = torch.stack([p.flip(-1) if f else p for p, f in zip(pictures, flips, strict=True)]) / 255
    torch.testing.assert_close(view(list(pictures), numbers), expected)


def test_strong_views_have_a_grey_square_of_half_the_side():
    view = StrongView(32, crop_padding=0, **NO_NORMALISATION)
    numbers = table(view, 50)
    numbers[:, -3:-1] = 0.5  # in the middle
    pictures = view(images(50), numbers)
    torch.testing.assert_close(pictures[:, :, 8:24, 8:24], torch.full((50, 3, 16, 16), 127 / 255))
    assert (pictures[:, :, 26:] != 127 / 255).any()


@pytest.mark.parametrize("number", range(14))
def test_operations_keep_size_and_mode(number):
    assert len(OPERATIONS) == 14
    for mode, channels in (("RGB", 3), ("L", 1)):
        pixels = images(1, 17, channels)[0].permute(1, 2, 0).numpy().squeeze()
        for level, sign in ((0.1, 1), (0.9, -1)):
            changed = OPERATIONS[number](Image.fromarray(pixels, mode), level, sign)
            assert (changed.size, changed.mode) == ((17, 17), mode)


@pytest.mark.parametrize("sign, left", [(1, 1), (-1, 1)])
def test_shifts_are_cut_to_whole_pixels_in_both_directions(sign, left):
    """A fifth of 0.3 of 32 pixels is 1.9: one pixel, also to the left."""
    picture = Image.fromarray(np.arange(32, dtype=np.uint8)[None].repeat(32, 0))
    moved = np.array(OPERATIONS[-2](picture, 0.2, sign))
    inside = moved[0, 2:-2].astype(int) - np.arange(32)[2:-2]
    assert (inside == sign * left).all()


def test_large_images_are_resized_to_their_short_side_first():
    view = PlainView(32, resize=32, crop_padding=0, flip=0.0, **NO_NORMALISATION)
    wide = torch.zeros(3, 64, 96, dtype=torch.uint8)
    wide[:, :, 48:] = 255
    assert view([wide], table(view, 1)).shape == (1, 3, 32, 32)
    columns = view([wide], np.full((1, view.draws), 0.5))[0, 0, 0]
    assert columns[0] == 0 and columns[-1] == 1  # both halves are seen: half the width of the picture is in the crop


def test_errors():
    with pytest.raises(ValueError, match="resize must be at least the size"):
        WeakView(32, resize=16)
    with pytest.raises(ValueError, match="1 or 3 channels, got num_channels=4"):
        StrongView(32, num_channels=4)


@pytest.mark.parametrize("view", KINDS)
def test_views_reach_workers_that_are_spawned(view):
    pictures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    table = uniforms(0, 0, range(3), view.draws)
    copy = pickle.loads(pickle.dumps(view(16)))
    assert torch.equal(copy(pictures, table), view(16)(pictures, table))
