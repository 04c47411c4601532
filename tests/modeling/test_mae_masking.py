"""Which patches MAE removes: counts, randomness, block and grid sampling."""

import math

import pytest
import torch
from hubmodels.modeling.mae import MAEForPreTraining, MAEModel
from hubmodels.modeling.mae.masking_mae import sample_mask

from tests.modeling.tiny_mae import images, seeded, tiny_config


@pytest.mark.parametrize(
    "grid, ratio, kept",
    [
        ((10, 10), 0.9, 9),  # 100 * (1 - 0.9) is 9.99... in float64
        ((4, 4), 0.6, 6),
        ((14, 14), 0.75, 49),
        ((7, 7), 0.75, 12),
        ((4, 4), 0.01, 15),
        ((3, 5), 0.5, 7),
    ],
)
@pytest.mark.parametrize("sampling", ["random", "block"])
def test_number_of_kept_patches_is_truncated(grid, ratio, kept, sampling):
    mask = sample_mask(3, grid, ratio, sampling, generator=seeded())
    length = grid[0] * grid[1]
    assert mask.ids_keep.shape == (3, kept)
    assert mask.ids_masked.shape == (3, length - kept)
    assert (mask.mask.sum(dim=1) == length - kept).all()


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_parts_of_a_mask_belong_together(sampling):
    mask = sample_mask(4, (8, 8), 0.75, sampling, generator=seeded())
    shuffled = torch.cat([mask.ids_keep, mask.ids_masked], dim=1)
    assert torch.equal(shuffled.sort(dim=1).values, torch.arange(64).expand(4, -1))
    assert torch.equal(shuffled.gather(1, mask.ids_restore), torch.arange(64).expand(4, -1))
    assert not mask.mask.gather(1, mask.ids_keep).any()
    assert mask.mask.gather(1, mask.ids_masked).all()
    assert mask.mask.dtype == torch.float32


def test_patches_of_the_smallest_noise_are_kept_in_its_order():
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.8, 0.0, 0.4]])
    mask = sample_mask(2, (2, 2), 0.5, noise=noise)
    assert mask.ids_keep.tolist() == [[1, 3], [2, 0]]
    assert mask.mask.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_generator_repeats_the_mask_and_leaves_the_global_state(sampling):
    state = torch.get_rng_state()
    first, second = (sample_mask(2, (8, 8), 0.75, sampling, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first.ids_restore, second.ids_restore)
    assert torch.equal(torch.get_rng_state(), state)
    other = sample_mask(2, (8, 8), 0.75, sampling, generator=seeded(8))
    assert not torch.equal(first.ids_restore, other.ids_restore)


def test_models_repeat_with_a_generator():
    config = tiny_config()
    model = MAEForPreTraining(config).train()
    losses = {model(images(config), generator=seeded(7)).loss.item() for _ in range(2)}
    assert len(losses) == 1
    assert model(images(config), generator=seeded(8)).loss.item() not in losses
    torch.manual_seed(0)
    first = model(images(config)).mask
    torch.manual_seed(0)
    assert torch.equal(model(images(config)).mask, first)


def test_masks_differ_between_images_and_steps():
    config = tiny_config(image_size=32)
    model = MAEModel(config).eval()
    torch.manual_seed(0)
    masks = torch.cat([model(images(config, batch=8)).mask for _ in range(2)])
    assert len({tuple(mask.tolist()) for mask in masks}) == 16


def test_random_masks_are_uniform():
    """Every patch is removed equally often (5 standard deviations of 4000 draws), whatever its neighbours."""
    mask = sample_mask(4000, (4, 4), 0.75, generator=seeded()).mask
    deviation = math.sqrt(0.75 * 0.25 / 4000)
    assert (mask.mean(dim=0) - 0.75).abs().max() < 5 * deviation
    together = (mask[:, 0] * mask[:, 1]).mean().item()
    assert together == pytest.approx(12 / 16 * 11 / 15, abs=5 * math.sqrt(0.25 / 4000))


def test_half_precision_models_draw_masks_without_ties():
    """In bfloat16 two of 196 random numbers are almost surely equal: the noise is float32 in any model."""
    config = tiny_config(image_size=56)
    model = MAEModel(config).bfloat16().eval()
    torch.manual_seed(0)
    mask = model(images(config, dtype=torch.bfloat16)).ids_restore
    torch.manual_seed(0)
    noise = torch.rand(2, 196)
    assert torch.equal(mask, noise.argsort(dim=1).argsort(dim=1))
    assert len(noise.bfloat16()[0].unique()) < 196 == len(noise[0].unique())


def neighbours_alike(mask, grid):
    """Share of horizontally or vertically adjacent patches of which both or none is removed."""
    mask = mask.view(-1, *grid)
    pairs = [(mask[:, 1:] == mask[:, :-1]).flatten(1), (mask[:, :, 1:] == mask[:, :, :-1]).flatten(1)]
    return torch.cat(pairs, dim=1).float().mean().item()


def test_block_masks_are_made_of_rectangles():
    """Removed patches lie together: far more equal neighbours than at random, with the same count."""
    grid = (14, 14)
    block = sample_mask(50, grid, 0.5, "block", generator=seeded()).mask
    random = sample_mask(50, grid, 0.5, "random", generator=seeded()).mask
    assert neighbours_alike(random, grid) == pytest.approx(0.5, abs=0.03)
    assert neighbours_alike(block, grid) > 0.75
    assert (block.sum(dim=1) == 98).all()
    frequency = block.mean(dim=0)
    assert frequency.min() > 0 and frequency.max() < 1, "every patch may be removed or kept"


@pytest.mark.parametrize("grid", [(1, 6), (2, 3), (14, 2), (3, 30)])
def test_block_masks_of_narrow_grids(grid):
    mask = sample_mask(20, grid, 0.6, "block", generator=seeded())
    length = grid[0] * grid[1]
    assert (mask.mask.sum(dim=1) == length - int(length * 0.4)).all()


@pytest.mark.parametrize("grid, ratio, step", [((4, 4), 0.75, 2), ((6, 9), 8 / 9, 3), ((8, 4), 0.9375, 4)])
def test_grid_masks_keep_one_patch_of_every_square(grid, ratio, step):
    mask = sample_mask(5, grid, ratio, "grid", generator=seeded())
    kept = 1 - mask.mask.view(5, *grid)
    squares = kept.unflatten(2, (-1, step)).unflatten(1, (-1, step)).sum(dim=(2, 4))
    assert (squares == 1).all()
    assert torch.equal(kept, kept[:1].expand_as(kept)), "the place within the square is the same everywhere"


def test_config_chooses_the_sampling():
    for sampling in ("random", "block", "grid"):
        config = tiny_config(image_size=32, mask_sampling=sampling)
        mask = MAEModel(config)(images(config), generator=seeded(3)).mask
        assert torch.equal(mask, sample_mask(2, (8, 8), 0.75, sampling, generator=seeded(3)).mask)


def test_ratio_of_the_call_comes_before_that_of_the_config():
    config = tiny_config(mask_ratio=0.75)
    model = MAEForPreTraining(config)
    assert model(images(config)).mask.sum() == 24
    assert model(images(config), mask_ratio=0.5).mask.sum() == 16
    assert model(images(config), mask_ratio=0.5, noise=torch.rand(2, 16)).mask.sum() == 16
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, :3] = True
    assert model(images(config), mask_ratio=0.5, bool_masked_pos=masked).mask.sum() == 6
