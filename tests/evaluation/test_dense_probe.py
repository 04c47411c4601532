"""The dense probe on maps whose answer is known."""

import math

import pytest
import torch

from hubmodels.evaluation import box_masks, dense_probe


def maps_of(masks, num_classes, seed, noise=0.3):
    """Feature maps that carry the class of every position, rotated and with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(num_classes, 12, generator=generator)
    generator.manual_seed(seed)
    maps = directions[masks].permute(0, 3, 1, 2)
    return maps + noise * torch.randn(maps.shape, generator=generator)


def masks_of(count, num_classes, seed):
    return torch.randint(num_classes, (count, 6, 6), generator=torch.Generator().manual_seed(seed))


def test_classes_that_are_there_are_found():
    train, test = masks_of(200, 4, 1), masks_of(30, 4, 2)
    result = dense_probe(maps_of(train, 4, 3), train, maps_of(test, 4, 4), test, num_classes=4)
    assert result.mean_iou > 0.9
    assert result.predictions.shape == test.shape


def test_noise_tells_nothing_and_the_seed_decides():
    train, test = masks_of(60, 3, 1), masks_of(30, 3, 2)
    noise = torch.Generator().manual_seed(7)
    train_maps, test_maps = torch.randn(60, 12, 6, 6, generator=noise), torch.randn(30, 12, 6, 6, generator=noise)
    result = dense_probe(train_maps, train, test_maps, test, num_classes=3, seed=1)
    assert result.mean_iou < 0.35
    again = dense_probe(train_maps, train, test_maps, test, num_classes=3, seed=1)
    assert torch.equal(again.predictions, result.predictions)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    train, test = masks_of(100, 3, 1), masks_of(20, 2, 2)
    result = dense_probe(maps_of(train, 5, 3), train, maps_of(test, 5, 4), test, num_classes=5)
    assert all(math.isnan(value) for value in result.class_iou[2:])
    assert result.mean_iou == pytest.approx(sum(result.class_iou[:2]) / 2)


def test_the_smallest_box_wins():
    boxes = [torch.tensor([[8.0, 8, 16, 16], [0, 0, 32, 32]]), torch.empty(0, 4)]
    labels = [torch.tensor([2, 1]), torch.empty(0, dtype=torch.int64)]
    masks = box_masks(boxes, labels, image_size=32, grid=(4, 4))
    assert masks[0].tolist() == [[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert not masks[1].any()


def test_bad_input_is_named():
    masks = masks_of(4, 3, 0)
    maps = maps_of(masks, 3, 0)
    with pytest.raises(ValueError, match=r"test_maps must be \[N, D, h, w\]"):
        dense_probe(maps, masks, maps, masks[:, :5], num_classes=3)
    with pytest.raises(ValueError, match=r"train_masks must hold classes in \[0, 2\), got 2"):
        dense_probe(maps, masks, maps, masks, num_classes=2)
    with pytest.raises(ValueError, match="every box needs a label of 1 or more"):
        box_masks([torch.zeros(1, 4)], [torch.tensor([0])], 32, (4, 4))


def test_a_class_that_is_predicted_but_not_there_has_an_intersection_of_0():
    train = masks_of(100, 3, 1)
    maps = maps_of(train, 3, 3)
    hidden = train.clamp(max=1)  # the third class is called the second in the test
    result = dense_probe(maps, train, maps, hidden, num_classes=4)
    assert result.class_iou[2] == 0 and math.isnan(result.class_iou[3])
    assert result.mean_iou == pytest.approx(sum(result.class_iou[:2]) / 2)


def test_maps_of_half_precision_and_broken_ones():
    train, test = masks_of(100, 3, 1), masks_of(20, 3, 2)
    maps, test_maps = maps_of(train, 3, 3), maps_of(test, 3, 4)
    assert dense_probe(maps.half(), train, test_maps.half(), test, num_classes=3).mean_iou > 0.8
    test_maps[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="test_maps must be finite, those of 1 of 20 images are not"):
        dense_probe(maps, train, test_maps, test, num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        dense_probe(maps, train * 0, maps, train * 0, num_classes=1)
