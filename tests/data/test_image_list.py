"""Lists of images with labels."""

import numpy as np
import pytest
from PIL import Image

from hubmodels.data import load_image_dataset
from hubmodels.data.image_list import read_image_list
from hubmodels.data.splits import MissingSplitError


@pytest.fixture
def root(tmp_path):
    """Four images in a folder, a list of three of them, and the labels of all in another order."""
    (tmp_path / "images" / "0").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (6, 5), (number, 0, 0)).save(tmp_path / "images" / "0" / f"a {number}.png")
    names = [f"images/0/a {number}.png" for number in range(4)]
    (tmp_path / "train.txt").write_text("\n".join(names[:3]) + "\n")
    (tmp_path / "kv.txt").write_text("\n".join(f"{names[i]} {i + 1}" for i in (3, 1, 0, 2)))
    return tmp_path


def test_labels_are_joined_by_path(root):
    images = load_image_dataset(root / "train.txt", label_column=str(root / "kv.txt"))
    assert images.labels.tolist() == [1, 2, 3]
    assert [int(images[i]["image"][0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert images.num_classes == 4


def test_labels_beside_the_list_are_found(root, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_image_dataset(root / "train.txt", label_column="kv.txt").labels.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"label_column .* there is no other.txt and no .*/other.txt"):
        load_image_dataset(root / "train.txt", label_column="other.txt")


def test_a_list_with_numbers_and_one_without(root):
    assert load_image_dataset(root / "kv.txt").labels.tolist() == [4, 2, 1, 3]
    assert load_image_dataset(root / "train.txt", "train").labels is None
    paths, labels = read_image_list(root / "kv.txt", root=root)
    assert paths[0].name == "a 3.png" and labels.dtype == np.int64


def test_lists_that_do_not_fit_are_refused(root):
    with pytest.raises(MissingSplitError, match="has no split 'test'"):
        load_image_dataset(root / "kv.txt", "test")
    (root / "few.txt").write_text("images/0/a 0.png 1\n")
    with pytest.raises(ValueError, match=r"has no label of 2 images of .*, such as images/0/a 1.png"):
        read_image_list(root / "train.txt", root / "few.txt")
    with pytest.raises(ValueError, match="it has paths only"):
        read_image_list(root / "train.txt", root / "train.txt")
    (root / "mixed.txt").write_text("images/0/a 0.png 1\nimages/0/b.png\n")
    with pytest.raises(ValueError, match=r"with and without a class number; line 2 is 'images/0/b.png'"):
        read_image_list(root / "mixed.txt")
    (root / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        read_image_list(root / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"the first image of .* is not there"):
        read_image_list(root / "kv.txt", root=root / "elsewhere")
