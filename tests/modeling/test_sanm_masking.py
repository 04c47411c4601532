"""Masking against a plain loop over images, its options and errors; label quality."""

import numpy as np
import pytest
import torch
from hubmodels.modeling.sanm import (
    AdversarialNoisyMasking,
    SANMConfig,
    mask_labels,
)

HEIGHT, WIDTH, CLASSES = 24, 40, 5


def inputs(count=9, channels=3, size=(HEIGHT, WIDTH), grid=(3, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=generator)
    maps = torch.randn(count, 7, *grid, generator=generator)
    targets = torch.rand(count, CLASSES, generator=generator)
    trust = torch.rand(count, generator=generator)
    return images, maps, trust, targets / targets.sum(dim=1, keepdim=True)


def linear(values, length):
    """OpenCV's linear resizing of the last axis, entry by entry: float32, rounded once after the product."""
    old = values.shape[-1]
    out = np.empty((*values.shape[:-1], length), np.float32)
    for i in range(length):
        position = (i + 0.5) * (old / length) - 0.5
        start = int(np.floor(position))
        weight = np.float32(position - start)
        if start < 0:
            start, weight = 0, np.float32(0)
        if start >= old - 1:
            start, weight = old - 1, np.float32(0)
        slope = values[..., min(start + 1, old - 1)] - values[..., start]
        out[..., i] = values[..., start].astype(np.float64) + slope.astype(np.float64) * np.float64(weight)
    return out


def looped(images, maps, trust, targets, draws, center=False):
    """The official procedure, image by image."""
    channels, height, width = images.shape[1:]
    views = [[], []]
    masked_targets = targets.clone()
    for n, image in enumerate(images):
        energy = (maps[n] ** 2).sum(0)
        energy = (energy / energy.norm().clamp(min=1e-12)).numpy()
        heat = linear(linear(energy, width).T.copy(), height).T
        heat = np.uint8(255 * (heat - heat.min()) / (heat.max() - heat.min() + 1e-12))
        ratio = float(draws[n, 0]) + 0.03 * (1 - float(trust[n]))
        area = 0.5 * ratio * height * width
        box = round((area * float(draws[n, 1])) ** 0.5), round((area / float(draws[n, 1])) ** 0.5)
        for view, place in enumerate((heat.argmax(), heat.argmin())):
            top, left = divmod(int(place), width)
            if center:
                top, left = max(top - box[0] // 2, 0), max(left - box[1] // 2, 0)
            top, left = min(top, height - box[0]), min(left, width - box[1])
            fill = draws[n, 2 + view * channels : 2 + (view + 1) * channels].float()
            masked = image.clone()
            masked[:, top : top + box[0], left : left + box[1]] = fill[:, None, None]
            views[view].append(masked)
        largest = int(targets[n].argmax())
        masked_targets[n] += ratio / (CLASSES - 1)
        masked_targets[n, largest] -= ratio + ratio / (CLASSES - 1)
    return torch.stack(views[0]), torch.stack(views[1]), masked_targets


@pytest.mark.parametrize("position", ["corner", "center"])
@pytest.mark.parametrize(
    ("size", "grid", "channels"),
    [((24, 40), (3, 5), 3), ((32, 32), (4, 4), 1), ((30, 20), (7, 3), 4), ((9, 9), (1, 1), 3)],
)
def test_all_images_at_once_equal_a_loop(size, grid, channels, position):
    batch = inputs(channels=channels, size=size, grid=grid)
    masking = AdversarialNoisyMasking(position=position)
    draws = masking.draw(9, channels, generator=torch.Generator().manual_seed(1))
    views = masking(*batch, draws=draws)
    expected = looped(*batch, draws, center=position == "center")
    torch.testing.assert_close((views.max_views, views.min_views), expected[:2], rtol=0, atol=0)
    torch.testing.assert_close(views.targets, expected[2])
    torch.testing.assert_close(views.targets.sum(1), batch[3].sum(1))


def test_draws_come_from_the_generator_and_its_ranges():
    masking, batch = AdversarialNoisyMasking(), inputs()
    first, again, other = (masking(*batch, generator=torch.Generator().manual_seed(s)).max_views for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    draws = masking.draw(2000, 3, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (2000, 8) and draws.dtype == torch.float64
    for column, (low, high) in enumerate([(0.02, 0.07), (0.8, 1.25), *[(0, 1)] * 6]):
        assert low <= draws[:, column].min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < draws[:, column].max() <= high


def test_wrong_labels_lose_more():
    images, maps, _, targets = inputs()
    masking = AdversarialNoisyMasking()
    draws = masking.draw(9, 3, generator=torch.Generator().manual_seed(0))
    trusted = masking(images, maps, torch.ones(9), targets, draws=draws)
    doubted = masking(images, maps, torch.zeros(9), targets, draws=draws)
    torch.testing.assert_close(doubted.ratios - trusted.ratios, torch.full((9, 2), 0.03))
    areas = [views.boxes[..., 2:].prod(-1).sum() for views in (trusted, doubted)]
    assert areas[1] > areas[0]


def test_controls():
    batch = inputs()
    images, _, _, targets = batch
    draws = AdversarialNoisyMasking().draw(9, 3, generator=torch.Generator().manual_seed(0))
    usual = AdversarialNoisyMasking()(*batch, draws=draws)
    nothing = AdversarialNoisyMasking(mask="none", mask_labels=False)(*batch, draws=draws)
    assert torch.equal(nothing.max_views, images) and torch.equal(nothing.targets, targets)
    scattered = AdversarialNoisyMasking(mask="random")
    more = scattered.draw(9, 3, generator=torch.Generator().manual_seed(0))
    more[:, :8] = draws
    random = scattered(*batch, draws=more)
    assert torch.equal(random.boxes[..., 2:], usual.boxes[..., 2:])
    assert not torch.equal(random.boxes[..., :2], usual.boxes[..., :2])
    ends = random.boxes[..., :2] + random.boxes[..., 2:]
    assert (ends <= torch.tensor([HEIGHT, WIDTH])).all() and (random.boxes >= 0).all()


def test_views_with_areas_of_their_own():
    batch = inputs()
    masking = AdversarialNoisyMasking((0.06, 0.13), quality_slope=0.1, area_factor=1.0, separate_areas=True)
    draws = masking.draw(9, 3, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (9, 10)
    views = masking(*batch, draws=draws)
    assert not torch.equal(views.boxes[:, 0, 2:], views.boxes[:, 1, 2:])
    expected = (draws[:, [0, 8]] + 0.1 * (1 - batch[2])[:, None]).float()
    torch.testing.assert_close(views.ratios, expected)
    for targets, ratios in ((views.targets, expected[:, 0]), (views.min_targets, expected[:, 1])):
        torch.testing.assert_close(targets, mask_labels(batch[3], ratios))


def test_nothing_waits_for_the_device():
    """On the meta device every look at a value fails, as every look at one on a GPU waits."""
    batch = [tensor.to("meta") for tensor in inputs()]
    views = AdversarialNoisyMasking()(*batch)
    assert views.max_views.shape == (9, 3, HEIGHT, WIDTH)


def test_clipped_labels_do_not_become_negative():
    targets, ratios = torch.tensor([[0.3, 0.3, 0.4], [0.0, 1.0, 0.0]]), torch.tensor([0.5, 0.5])
    assert mask_labels(targets, ratios)[0].min() < 0
    torch.testing.assert_close(
        mask_labels(targets, ratios, clip=True), torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
    )
    config = SANMConfig(clip_labels=True, mask_position="center", min_aspect=1.0)
    masking = AdversarialNoisyMasking.from_config(config)
    assert (masking.clip_labels, masking.position, masking.min_aspect) == (True, "center", 1.0)


def test_constant_maps_and_long_images():
    images, maps, trust, targets = inputs()
    views = AdversarialNoisyMasking()(images, torch.ones_like(maps), trust, targets)
    assert (views.boxes[..., :2] == 0).all() and (views.activation == 0).all()
    images, maps, trust, targets = inputs(64, size=(6, 120), grid=(1, 4))
    masking, draws = AdversarialNoisyMasking(), torch.Generator().manual_seed(0)
    boxes = masking(images, maps, torch.ones(64), targets, generator=draws).boxes
    assert (boxes[..., 2] < 6).all() and (boxes[..., 2] == 5).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(9, 3, 24)}, r"must be 4-D"),
        ({"feature_maps": torch.zeros(9, 7)}, r"must be 4-D, .* got shapes \(9, 3, 24, 40\) and \(9, 7\)"),
        ({"clean_prob": torch.ones(8)}, r"same N images, got images 9, feature_maps 9, clean_prob 8, targets 9"),
        ({"clean_prob": torch.full((9,), 1.5)}, r"clean_prob must be in \[0, 1\], got values from 1.5 to 1.5"),
        ({"clean_prob": torch.full((9,), float("nan"))}, r"clean_prob must be in \[0, 1\]"),
        ({"targets": torch.zeros(9)}, r"targets \[N, K\], got shapes \(9,\) and \(9,\)"),
        ({"targets": torch.ones(9, 1)}, r"at least 2 classes"),
        ({"draws": torch.zeros(9, 7)}, r"draws must have shape \(9, 8\), got \(9, 7\)"),
    ],
)
def test_errors(changes, message):
    names = ("images", "feature_maps", "clean_prob", "targets")
    with pytest.raises(ValueError, match=message):
        AdversarialNoisyMasking()(**(dict(zip(names, inputs(), strict=True)) | changes))


def test_boxes_that_never_fit_are_refused():
    images, maps, trust, targets = inputs(size=(2, 900), grid=(1, 4))
    masking = AdversarialNoisyMasking((0.5, 0.6), area_factor=1.0)
    with pytest.raises(ValueError, match=r"not smaller than the images .* after 100 draws"):
        masking(images, maps, trust, targets)
    with pytest.raises(ValueError, match="draws make a box that is not smaller"):
        masking(images, maps, trust, targets, draws=masking.draw(9, 3))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"area_range": (0.1, 0.05)}, "area_range must be"),
        ({"area_range": (0.0, 0.5)}, "area_range must be"),
        ({"min_aspect": 1.5}, r"min_aspect must be in \(0, 1\], got 1.5"),
        ({"quality_slope": -0.1}, "quality_slope must be"),
        ({"area_factor": 0.0}, "area_factor must be"),
        ({"position": "middle"}, r"position must be one of \('corner', 'center'\), got 'middle'"),
        ({"mask": "grad"}, "mask must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        AdversarialNoisyMasking(**setting)


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (32, 32)])
def test_boxes_without_height_or_width_fill_nothing(size):
    """Tiny shares, or tiny images: the official slices are empty then."""
    images, maps, trust, targets = inputs(count=16, size=size, grid=(2, 2))
    masking = AdversarialNoisyMasking(area_factor=0.5 if size[0] < 32 else 0.01)
    draws = masking.draw(16, 3, generator=torch.Generator().manual_seed(1))
    views = masking(images, maps, trust, targets, draws=draws)
    for number, view in enumerate((views.max_views, views.min_views)):
        painted = (view != images).any(dim=1).sum(dim=(1, 2))
        assert torch.equal(painted, views.boxes[:, number, 2] * views.boxes[:, number, 3])
    assert (views.boxes[..., 2:] == 0).any() and (views.boxes[..., 2:] > 0).any()


def test_a_batch_without_images_gives_views_without_images():
    images, maps, trust, targets = (tensor[:0] for tensor in inputs())
    assert AdversarialNoisyMasking()(images, maps, trust, targets).max_views.shape == (0, 3, HEIGHT, WIDTH)


def test_integers_are_refused():
    images, maps, trust, targets = inputs()
    with pytest.raises(ValueError, match=r"images must be floats, got torch.uint8"):
        AdversarialNoisyMasking()(images.to(torch.uint8), maps, trust, targets)
    with pytest.raises(ValueError, match=r"targets must be floats, got torch.int64"):
        AdversarialNoisyMasking()(images, maps, trust, targets.long())
