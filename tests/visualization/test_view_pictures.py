"""Pictures of views, of their correspondences and of embeddings."""

import numpy as np
import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel
from PIL import Image

from hubmodels.visualization import (
    correspondences,
    dense_correspondences,
    embedding_map,
    embedding_plane,
    to_pictures,
    view_pairs,
)

CONFIG = {
    "layer_type": "basic",
    "depths": [1, 1, 1, 1],
    "embedding_size": 8,
    "strides": [1, 2, 2, 1],
    "projection_hidden_size": 8,
    "projection_size": 4,
    "queue_length": 8,
}


def tiny(model_class):
    torch.manual_seed(0)
    return model_class(DenseCLConfig(**CONFIG))


@pytest.fixture
def pairs():
    return torch.randn(3, 2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def pixels_of(axis):
    return [np.asarray(image.get_array()) for image in axis.images]


def test_view_pairs_shows_every_view(pairs, tmp_path):
    path = tmp_path / "new" / "views.png"
    figure = view_pairs(pairs, path, mean=0.5, std=0.2)
    shown = np.stack([pixels_of(axis)[0] for axis in figure.axes]).reshape(3, 2, 64, 96, 3)
    for view in range(2):
        np.testing.assert_allclose(shown[:, view], to_pictures(pairs[:, view], 0.5, 0.2), atol=1e-6)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["view 1", "view 2"]
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert [entry.name for entry in path.parent.iterdir()] == ["views.png"], "nothing is left beside it"


def test_view_pairs_draws_the_crops_into_the_images(pairs):
    images = [torch.randint(0, 256, (3, 40 + 8 * number, 50), dtype=torch.uint8) for number in range(3)]
    boxes = torch.tensor([[[1, 2, 20, 30], [5, 6, 10, 12]]] * 3)
    figure = view_pairs(pairs, images=images, crop_boxes=boxes)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "view 1", "view 2"]
    np.testing.assert_allclose(pixels_of(figure.axes[3])[0], images[1].permute(1, 2, 0) / 255, atol=1e-6)
    outlines = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in figure.axes[0].patches]
    assert outlines == [(1.5, 0.5, 30, 20), (5.5, 4.5, 12, 10)]


def test_view_pairs_takes_pil_images(pairs):
    images = [Image.new(mode, (32, 20), color) for mode, color in (("RGB", (255, 0, 0)), ("L", 51), ("RGB", 0))]
    figure = view_pairs(pairs, images=images)
    assert pixels_of(figure.axes[0])[0][0, 0].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(pixels_of(figure.axes[3])[0][0, 0], 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": [torch.zeros(3, 4, 4, dtype=torch.uint8)]}, r"images must be as many .*\(3\), got 1"),
        ({"crop_boxes": torch.zeros(3, 2, 4)}, r"crop_boxes must have shape \(3, 2, 4\) and need images"),
    ],
)
def test_view_pairs_refuses_what_does_not_fit(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        view_pairs(pairs, **options)
    with pytest.raises(ValueError, match=r"\[B, views, C, H, W\], got \[3, 3, 64, 96\]"):
        view_pairs(pairs[:, 0])


@pytest.mark.parametrize("model_class", [DenseCLBackbone, DenseCLModel, DenseCLForPreTraining])
def test_equal_views_match_cell_by_cell(model_class, pairs):
    model = tiny(model_class).train()
    matches = correspondences(model, pairs[:, :1].expand(-1, 2, -1, -1, -1))
    assert matches.grid == (4, 6)
    assert torch.equal(matches.match_index, torch.arange(24).expand(3, 24))
    torch.testing.assert_close(matches.similarity, torch.ones(3, 24))
    assert model.training, "the mode is put back"


@torch.no_grad()
def test_keys_are_those_of_the_momentum_encoder(pairs):
    model = tiny(DenseCLForPreTraining).eval()
    for parameter in model.momentum_encoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    queries = model.encoder.feature_maps(pairs[:, 0])[-1].flatten(2)
    keys = model.momentum_encoder.feature_maps(pairs[:, 1])[-1].flatten(2)
    similarity = torch.cosine_similarity(queries[:, :, :, None], keys[:, :, None], dim=1)
    matches = correspondences(model, pairs)
    assert torch.equal(matches.match_index, similarity.argmax(dim=2))
    torch.testing.assert_close(matches.similarity, similarity.amax(dim=2))


def test_lines_join_matched_cells(pairs, tmp_path):
    model, path = tiny(DenseCLModel), tmp_path / "lines.png"
    figure = dense_correspondences(model, pairs, path, lines=5)
    matches = correspondences(model, pairs)
    for index, axis in enumerate(figure.axes[:3]):
        left, right = pixels_of(axis)
        np.testing.assert_allclose(left, to_pictures(pairs[index])[0], atol=1e-6)
        np.testing.assert_allclose(right, to_pictures(pairs[index])[1], atol=1e-6)
        (lines,) = axis.collections
        best = matches.similarity[index].topk(5)
        np.testing.assert_allclose(lines.get_array(), best.values)
        (x0, y0), (x1, y1) = lines.get_segments()[0]
        cell, match = int(best.indices[0]), int(matches.match_index[index, best.indices[0]])
        assert (x0, y0) == (16 * (cell % 6 + 0.5), 16 * (cell // 6 + 0.5))
        assert (x1 - 96 * 1.06, y1) == pytest.approx((16 * (match % 6 + 0.5), 16 * (match // 6 + 0.5)))
    assert path.stat().st_size > 1000


def test_correspondences_refuse_what_does_not_fit(pairs):
    with pytest.raises(TypeError, match="model must be a DenseCL model, got Linear"):
        correspondences(torch.nn.Linear(2, 2), pairs)
    with pytest.raises(ValueError, match="two views per image"):
        correspondences(tiny(DenseCLModel), pairs[:, :1])
    with pytest.raises(ValueError, match="lines must be at least 1, got 0"):
        dense_correspondences(tiny(DenseCLModel), pairs, lines=0)


def spread_features():
    """Most variance along the second axis, then along the fourth."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 5, generator=generator) * torch.tensor([0.1, 9.0, 0.1, 3.0, 0.1])


def test_the_plane_is_that_of_most_variance():
    features = spread_features()
    points, explained = embedding_plane(features)
    centred = features - features.mean(dim=0)
    assert np.corrcoef(points[:, 0], centred[:, 1])[0, 1] > 0.99
    assert np.corrcoef(points[:, 1], centred[:, 3])[0, 1] > 0.95
    assert explained[0] > 0.8 and explained.sum() > 0.99
    np.testing.assert_array_equal(points, embedding_plane(features)[0])


def test_embedding_map_colours_the_classes(tmp_path):
    labels = torch.arange(40) % 3
    path = tmp_path / "map.png"
    figure = embedding_map(spread_features(), labels, path, class_names=["cat", "dog", "tree"])
    (axis,) = figure.axes
    points, _ = embedding_plane(spread_features())
    for number, dots in enumerate(axis.collections):
        np.testing.assert_allclose(dots.get_offsets(), points[labels == number])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cat", "dog", "tree"]
    assert len({tuple(dots.get_facecolor()[0]) for dots in axis.collections}) == 3
    assert "%" in axis.get_xlabel()
    assert path.stat().st_size > 1000


def test_embedding_map_without_labels_and_with_thumbnails(tmp_path):
    assert embedding_map(spread_features()).axes[0].get_legend() is None
    thumbnails = torch.randn(40, 3, 8, 8)
    figure = embedding_map(spread_features(), [0] * 40, tmp_path / "map.png", thumbnails=thumbnails)
    assert len(figure.axes[0].artists) == 40


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (torch.randn(4), {}, r"features must have shape \[N, D\]"),
        (torch.full((4, 3), torch.nan), {}, "features must be finite"),
        (torch.randn(4, 3), {"labels": [0, 1]}, "labels must be 4 integers"),
        (torch.randn(4, 3), {"labels": [0.5] * 4}, "labels must be 4 integers"),
        (torch.randn(4, 3), {"labels": [0, 1, 2, 3], "class_names": ["a"]}, "class_names has 1 names"),
        (torch.randn(4, 3), {"thumbnails": torch.zeros(2, 3, 4, 4)}, "thumbnails must be 4 images"),
    ],
)
def test_embedding_map_refuses_what_does_not_fit(features, options, message):
    with pytest.raises(ValueError, match=message):
        embedding_map(features, **options)


def test_names_of_classes_are_no_syntax_of_matplotlib(tmp_path):
    names = ["_background", r"$a$ \foo", "dog"]
    figure = embedding_map(torch.randn(6, 3), [0, 1, 2, 0, 1, 2], tmp_path / "map.png", class_names=names)
    texts = [text.get_text().replace(r"\$", "$") for text in figure.axes[0].get_legend().get_texts()]
    assert texts == names
