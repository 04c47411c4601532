"""Labels in columns: names that agree between splits, missing ones, and tables of image files as CSV."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hubmodels.data import load_image_dataset
from hubmodels.data.class_names import match_classes
from hubmodels.data.splits import MissingSplitError


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((5, 4, 3), number, dtype=np.uint8)) for number in range(count)]


def table(labels: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": pictures(len(labels)), "label": labels})


@pytest.fixture
def folder(tmp_path):
    """Files 0.png to 3.png of the grey of their number, flat."""
    for number, picture in enumerate(pictures(4)):
        picture.save(tmp_path / f"{number}.png")
    return tmp_path


def first_pixels(dataset) -> list[int]:
    return [int(item["image"][0, 0, 0]) for item in dataset]


@pytest.mark.parametrize(
    "train, test, names, numbers",
    [(["bird", "cat", "dog"], ["dog", "cat"], ["bird", "cat", "dog"], [2, 1]), ([0, 3], [1, 0], list("0123"), [1, 0])],
)
def test_splits_number_their_classes_alike(train, test, names, numbers):
    both = datasets.DatasetDict({"train": table(train), "test": table(test)})
    first, second = (load_image_dataset(both, split) for split in ("train", "test"))
    assert first.class_names == second.class_names == names
    assert second.labels.tolist() == numbers


@pytest.mark.parametrize("labels", [[0, 1, -1, 1], [0, 1, None, 1], ["a", "b", "", "a"], ["a", "b", None, "a"]])
def test_missing_labels_are_counted(labels):
    dataset = load_image_dataset(table(labels))
    assert dataset.labels is None
    assert dataset.unlabelled_reason.startswith("1 of the 4 labels in its column 'label' are missing, the first of im")
    assert "image 2" in dataset.unlabelled_reason


def test_csv_with_names_and_splits(folder):
    lines = ["file_name;label;split", "3.png;dog;train", "1.png;cat;test", "0.png;bird;train"]
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")  # as spreadsheets write it
    train, test = (load_image_dataset(folder / "labels.csv", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["bird", "cat", "dog"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0], [1])
    assert (first_pixels(train), train.name(1)) == ([3, 0], str(folder / "0.png"))
    with pytest.raises(MissingSplitError, match="no split 'validation'"):
        load_image_dataset(folder / "labels.csv", "validation")


def test_csv_with_numbers_and_columns_that_are_asked_for(folder):
    (folder / "t.csv").write_text("where,first,second\n0.png,0,2\n1.png,1,\n")
    options = {"image_column": "where", "label_column": "first"}
    assert load_image_dataset(folder / "t.csv", **options).labels.tolist() == [0, 1]
    assert (
        "1 of the 2 labels"
        in load_image_dataset(folder / "t.csv", image_column="where", label_column="second").unlabelled_reason
    )
    with pytest.raises(ValueError, match="no column 'file_name' of image files; its columns are where, first, second"):
        load_image_dataset(folder / "t.csv")
    (folder / "t.csv").write_text("path,label\nnone.png,0\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 images of .*t.csv are not there"):
        load_image_dataset(folder / "t.csv")
    (folder / "t.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match="lists no images"):
        load_image_dataset(folder / "t.csv")


def test_metadata_of_a_folder(folder):
    (folder / "metadata.csv").write_text("file_name,label,checked\n1.png,b,a\n0.png,a,a\n")
    dataset = load_image_dataset(folder)
    assert (dataset.class_names, dataset.labels.tolist(), first_pixels(dataset)) == (["a", "b"], [1, 0], [1, 0])
    assert load_image_dataset(folder, label_column="checked").labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match="no column 'none'; its columns are file_name, label, checked"):
        load_image_dataset(folder, label_column="none")


def test_metadata_inside_of_splits_beside_class_folders(folder):
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            pictures(1)[0].save(folder / split / label / "0.png")
        (folder / split / "metadata.csv").write_text("file_name,better\na/0.png,b\nb/0.png,b\n")
    assert load_image_dataset(folder, "test").labels.tolist() == [0, 1]
    assert load_image_dataset(folder, "test", label_column="better").labels.tolist() == [0, 0]


def test_columns_of_folders_without_metadata_are_refused(folder):
    with pytest.raises(ValueError, match="without the column 'label': its labels are its class folders; other labels"):
        load_image_dataset(folder, label_column="label")


def test_stray_image_beside_class_folders_is_named(folder):
    (folder / "dogs").mkdir()
    pictures(1)[0].save(folder / "dogs" / "0.png")
    assert load_image_dataset(folder).unlabelled_reason.startswith(f"{folder / '0.png'} and others lie beside the fold")


def test_numbers_match_the_first_classes_of_a_model():
    matched, shown = match_classes(load_image_dataset(table([0, 2, 1])), ["a", "b", "c", "d"])
    assert (matched.labels.tolist(), shown) == ([0, 2, 1], ["a", "b", "c", "d"])
    words = load_image_dataset(table([str(number) for number in range(12)]))  # sorted as words: 0, 1, 10, 11, 2 ...
    assert match_classes(words, [f"LABEL_{number}" for number in range(12)])[0].labels.tolist() == list(range(12))
    with pytest.raises(ValueError, match="classes of the data that the split does not know: c"):
        match_classes(load_image_dataset(table(["a", "b", "c"])), ["a", "b"], "the split")


def test_unrelated_classes_are_not_matched_by_place():
    with pytest.raises(ValueError, match=r"the model knows none of the classes of the data \(x, y\), but a, b"):
        match_classes(load_image_dataset(table(["x", "y"])), ["a", "b"])
    assert match_classes(load_image_dataset(table(["x", "y"])), ["LABEL_0", "LABEL_1"])[1] == ["x", "y"]
    folders = load_image_dataset(table(["n01440764", "n01443537"]))
    assert match_classes(folders, ["tench", "goldfish"])[0].labels.tolist() == [0, 1]


def test_csv_with_other_words_than_splits_and_numbers(folder):
    (folder / "t.csv").write_text("path,label,split\r\n0.png,a,Train\r\n1.png,b, TEST\r\n")
    assert load_image_dataset(folder / "t.csv", "test").labels.tolist() == [1]
    (folder / "t.csv").write_text("path,label,split\n0.png,a,train\n1.png,b,\n")
    with pytest.raises(ValueError, match=r"splits must be among .*train.*, got ''"):
        load_image_dataset(folder / "t.csv")
    (folder / "t.csv").write_text("path, label\n0.png, 007\n1.png, 010\n")
    assert load_image_dataset(folder / "t.csv").class_names == ["007", "010"]
    (folder / "t.csv").write_text("path,label\n0.png,10000000\n1.png,10000001\n")
    with pytest.raises(ValueError, match="must number its classes from 0 on, at most 100,000 of them, got 10000001"):
        load_image_dataset(folder / "t.csv")
    (folder / "t.csv").write_bytes("path,label\n0.png,ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv must be UTF-8 text"):
        load_image_dataset(folder / "t.csv")
    (folder / "t.csv").write_text("path,label\n0.png,a\n9.png,b\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images of .*t.csv are not there: .*9.png"):
        load_image_dataset(folder / "t.csv")


def test_parts_of_a_data_set_join_again():
    whole = load_image_dataset(table([0, 1] * 5)).with_noisy_labels([1, 1] * 5)
    part, rest = whole.split(0.2, seed=0)
    true = part.with_true_labels()
    assert true.labels.tolist() == [int(item["index"]) % 2 for item in part] and true.clean_labels is None
    joined = rest.together_with(true)
    assert joined.labels.tolist() == [1] * 10 and joined.indices.tolist() == list(range(10))
    assert true.is_part_of(whole)
    with pytest.raises(ValueError, match="other must be a part of the same data set"):
        whole.together_with(load_image_dataset(table([0])))
