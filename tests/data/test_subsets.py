"""Parts of a data set for training with few labels."""

import numpy as np
import pytest

import hubmodels
from hubmodels.data import listed_indices, load_image_dataset, subset_indices
from hubmodels.training import Recipe, RecipeError
from hubmodels.training.assembly import load_data

LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)


def counts(indices):
    return np.bincount(LABELS[indices], minlength=3).tolist()


def test_classes_are_balanced():
    chosen = subset_indices(LABELS, 0.1)
    assert sorted(counts(chosen)) == [3, 3, 4]
    assert np.array_equal(chosen, np.unique(chosen))
    assert counts(subset_indices(LABELS, 0.6)) == [25, 25, 10], "a class gives what it has"
    assert counts(subset_indices(LABELS, 0.01)) == [1, 1, 1], "no class is left out"
    assert len(subset_indices(LABELS, 1.0)) == 100
    assert set(chosen) <= set(subset_indices(LABELS, 0.5))
    assert not np.array_equal(chosen, subset_indices(LABELS, 0.1, seed=1))
    assert np.array_equal(chosen, subset_indices(LABELS.tolist(), 0.1))
    assert hubmodels.subset_indices is subset_indices


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_parts_are_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
        subset_indices(LABELS, fraction)
    with pytest.raises(ValueError, match=r"labels must be class numbers \[N\]"):
        subset_indices([], 0.5)


@pytest.fixture
def root(write_images):
    names = [f"{split}/{name}/{name}_{n}.png" for split in ("train", "val") for name in ("a", "b") for n in range(10)]
    return write_images(dict.fromkeys(names, (4, 4)))


def test_recipes_take_a_part_or_a_list(root):
    def data(**options):
        values = {"method": "simclr", "task": "finetune", "data": {"source": str(root), **options}}
        return load_data(Recipe.from_dict(values)).train

    assert sorted(data(fraction=0.5).labels.tolist()) == [0] * 5 + [1] * 5
    (root / "list.txt").write_text("b_3.png\na_7.png\n\n")
    train = data(file_list=str(root / "list.txt"), fraction=0.5)
    assert [train.name(i).rsplit("/", 1)[1] for i in range(len(train))] == ["a_7.png", "b_3.png"]
    with pytest.raises(RecipeError, match=r"only one of data.size and data.fraction or data.file_list"):
        data(size=3, fraction=0.5)


def test_lists_that_do_not_fit_are_refused(root):
    train = load_image_dataset(root, "train")
    (root / "list.txt").write_text("a_1.png\nc_1.png\nd_1.png\n")
    with pytest.raises(ValueError, match=r"2 of the 3 images .* are not among the 20 image files, such as 'c_1.png'"):
        listed_indices(train, root / "list.txt")
    (root / "list.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        listed_indices(train, root / "list.txt")
    with pytest.raises(ValueError, match=r"positions must be in \[0, 20\)"):
        train.select([20])
