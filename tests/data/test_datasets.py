"""The packaged set, `datasets` tables, streams and subsets."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hubmodels.data import StreamingImageDataset, load_image_dataset
from hubmodels.data.make_fashion_mnist_small import CLASS_NAMES, balanced_subset, read_idx
from hubmodels.data.splits import MissingSplitError

COUNT = 12


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((6, 5, 3), number, dtype=np.uint8))


def table(label: str = "label", values: list | None = None) -> datasets.Dataset:
    """Twelve images; image i has the value i everywhere and the class i % 3."""
    columns = {"image": [picture(i) for i in range(COUNT)], label: values or [i % 3 for i in range(COUNT)]}
    features = None
    if values is None:
        features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict(columns, features=features)


def values_of(dataset) -> list[int]:
    return [int(item["image"][0, 0, 0]) for item in dataset]


@pytest.mark.parametrize("split", ["train", "test"])
def test_packaged_set(split):
    dataset = load_image_dataset("fashion-mnist-small", split=split)
    assert len(dataset) == 2000 and dataset.class_names == list(CLASS_NAMES)
    assert torch.equal(dataset.labels.bincount(), torch.full((10,), 200))
    item = dataset[1999]
    assert item["image"].shape == (1, 28, 28) and item["image"].dtype == torch.uint8 and item["index"] == 1999
    assert dataset.typical_size() == (28, 28)
    assert not torch.equal(dataset.labels, dataset.labels.sort().values)


def test_packaged_set_has_no_common_images():
    train, test = (
        {item["image"].numpy().tobytes() for item in load_image_dataset("fashion-mnist-small", s)}
        for s in ("train", "test")
    )
    assert not train & test


def test_packaged_set_without_that_split():
    with pytest.raises(MissingSplitError, match="has no split 'validation'; its splits are train, test"):
        load_image_dataset("fashion-mnist-small", split="validation")


def test_making_a_subset(tmp_path):
    import gzip

    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x02" + np.array([2, 3], ">i4").tobytes() + bytes(range(6))))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"PK.."))
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(path)
    images, labels = np.arange(40)[:, None, None], np.arange(40) % 4
    chosen, chosen_labels = balanced_subset(images, labels, 3)
    assert np.bincount(chosen_labels).tolist() == [3] * 4
    assert np.array_equal(chosen[:, 0, 0] % 4, chosen_labels)


def test_datasets_object():
    dataset = load_image_dataset(table())
    assert values_of(dataset) == list(range(COUNT))
    assert dataset.class_names == ["a", "b", "c"] and dataset.labels.tolist() == [i % 3 for i in range(COUNT)]


def test_saved_to_disk(tmp_path):
    datasets.DatasetDict({"train": table(), "valid": table().select(range(5))}).save_to_disk(str(tmp_path / "saved"))
    assert len(load_image_dataset(tmp_path / "saved")) == COUNT
    assert len(load_image_dataset(tmp_path / "saved", split="val")) == 5
    with pytest.raises(MissingSplitError, match="no split 'test'; its splits are train, valid"):
        load_image_dataset(tmp_path / "saved", split="test")
    with pytest.raises(ValueError, match="was saved by save_to_disk"):
        load_image_dataset(tmp_path / "saved", streaming=True)


def test_a_table_without_splits_is_no_test_data(tmp_path):
    table().save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path / "saved", table()):
        assert len(load_image_dataset(source)) == len(load_image_dataset(source, split="train")) == COUNT
        with pytest.raises(MissingSplitError, match="no split 'test': it is a single table, which counts as 'train'"):
            load_image_dataset(source, split="test")
    named = datasets.Dataset.from_list(table().to_list(), features=table().features, split="validation")
    assert len(load_image_dataset(named, split="val")) == len(load_image_dataset(named)) == COUNT
    with pytest.raises(MissingSplitError, match="counts as 'validation'"):
        load_image_dataset(named, split="train")


def test_parquet(tmp_path):
    table().to_parquet(tmp_path / "train.parquet")
    table().select(range(4)).to_parquet(tmp_path / "test.parquet")
    assert values_of(load_image_dataset(tmp_path)) == list(range(COUNT))
    assert len(load_image_dataset(tmp_path, split="test")) == 4
    assert load_image_dataset(tmp_path / "test.parquet").class_names == ["a", "b", "c"]


def test_string_labels_and_named_columns():
    dataset = load_image_dataset(table("kind", ["dog", "cat"] * 6), label_column="kind")
    assert dataset.class_names == ["cat", "dog"] and dataset.labels.tolist() == [1, 0] * 6
    assert load_image_dataset(table("kind", ["dog", "cat"] * 6)).labels is None


def test_plain_integer_labels():
    assert load_image_dataset(table("label", [0, 2] * 6)).class_names == ["0", "1", "2"]


def test_withheld_labels_mean_unlabelled():
    assert load_image_dataset(table("label", [-1] * COUNT)).labels is None


def test_bytes_column():
    buffer = io.BytesIO()
    picture(9).save(buffer, "png")
    dataset = load_image_dataset(datasets.Dataset.from_dict({"img": [buffer.getvalue()]}))
    assert values_of(dataset) == [9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "photo"}, "has no column 'photo'; its columns are image, label"),
        ({"label_column": "kind"}, "has no column 'kind'; its columns are image, label"),
    ],
)
def test_missing_columns(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(table(), **arguments)


def test_unusable_tables():
    with pytest.raises(ValueError, match="has no image column; its columns are text"):
        load_image_dataset(datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="holds no images"):
        load_image_dataset(table().select([]))
    with pytest.raises(ValueError, match="must hold integers or strings, got float"):
        load_image_dataset(table("label", [0.5] * COUNT))
    with pytest.raises(ValueError, match="source must be a path, a name or a datasets object, got int"):
        load_image_dataset(3)


def test_unreadable_entry_is_named():
    broken = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}]}, features=datasets.Features({"image": datasets.Image()})
    )
    with pytest.raises(ValueError, match="cannot read image number 0 of Dataset"):
        load_image_dataset(broken)
    with pytest.raises(ValueError, match="cannot read image number 0 of IterableDataset"):
        next(iter(load_image_dataset(broken.to_iterable_dataset())))


@pytest.fixture
def stream(tmp_path) -> StreamingImageDataset:
    table().to_parquet(tmp_path / "train.parquet")
    return load_image_dataset(tmp_path, streaming=True)


def test_streaming(stream):
    items = list(stream)
    assert values_of(items) == [item["index"] for item in items] == list(range(COUNT))
    assert [item["label"] for item in items] == [i % 3 for i in range(COUNT)]
    assert stream.class_names == ["a", "b", "c"] and stream.num_classes == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_streaming_in_workers_yields_every_image_once(stream, workers):
    items = [item for batch in DataLoader(stream, 2, num_workers=workers, collate_fn=list) for item in batch]
    assert sorted((item["index"], int(item["image"][0, 0, 0])) for item in items) == [(i, i) for i in range(COUNT)]


def test_hub_data_sets(monkeypatch):
    splits = {"train": table(), "test": table().select(range(4))}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, config_name: list(splits))
    monkeypatch.setattr(datasets, "load_dataset", lambda source, config, split, streaming: splits[split])
    assert len(load_image_dataset("someone/pictures")) == COUNT
    assert len(load_image_dataset("someone/pictures", split="test")) == 4
    with pytest.raises(MissingSplitError, match="someone/pictures has no split 'val'; its splits are train, test"):
        load_image_dataset("someone/pictures", split="val")


def test_unreachable_hub_data_set(monkeypatch):
    def unreachable(source, config_name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    with pytest.raises(FileNotFoundError, match="could be opened on the Hub: no network"):
        load_image_dataset("someone/pictures")


def test_shuffled_stream():
    shuffled = load_image_dataset(table().to_iterable_dataset()).shuffle(seed=1, buffer_size=COUNT)
    first = values_of(shuffled)
    assert first == values_of(shuffled) and first != list(range(COUNT)) and sorted(first) == list(range(COUNT))
    shuffled.set_epoch(1)
    assert values_of(shuffled) != first


def test_subsets_are_stratified_nested_and_seeded():
    dataset = load_image_dataset("fashion-mnist-small", split="train")
    small, large = dataset.subset(0.01, seed=3), dataset.subset(0.1, seed=3)
    assert small.labels.bincount().tolist() == [2] * 10 and large.labels.bincount().tolist() == [20] * 10
    indices = [{item["index"] for item in part} for part in (small, large)]
    assert indices[0] < indices[1]
    assert indices[1] == {item["index"] for item in dataset.subset(200, seed=3)}
    assert indices[1] != {item["index"] for item in dataset.subset(200, seed=4)}
    for item in small:
        assert torch.equal(item["image"], dataset[item["index"]]["image"])


def test_rare_classes_are_kept():
    dataset = load_image_dataset(table("label", [0] * 10 + [1, 2]))
    assert set(dataset.subset(3).labels.tolist()) == {0, 1, 2}


def test_unstratified_and_unlabelled_subsets():
    dataset = load_image_dataset("fashion-mnist-small", split="train")
    assert dataset.subset(100, stratified=False).labels.bincount(minlength=10).tolist() != [10] * 10
    unlabelled = load_image_dataset(table("kind", ["x"] * COUNT))
    assert len(unlabelled.subset(0.5)) == 6


def test_splitting():
    dataset = load_image_dataset("fashion-mnist-small", split="test")
    held_out, rest = dataset.split(0.2, seed=1)
    parts = [{item["index"] for item in part} for part in (held_out, rest)]
    assert len(parts[0]) == 400 and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 2000
    assert held_out.labels.bincount().tolist() == [40] * 10
    with pytest.raises(ValueError, match="leaves nothing"):
        dataset.split(1.0)


def test_subset_of_a_subset():
    dataset = load_image_dataset(table())
    part = dataset.subset(6).subset(3)
    assert len(part) == 3 and all(item["index"] == int(item["image"][0, 0, 0]) for item in part)
    assert torch.equal(part.labels, torch.tensor([item["label"] for item in part]))


@pytest.mark.parametrize("size", [0.0, 1.5, 0, COUNT + 1, -1])
def test_subset_size_out_of_range(size):
    with pytest.raises(ValueError, match="size must be"):
        load_image_dataset(table()).subset(size)


def test_relabelling():
    dataset = load_image_dataset(table()).relabelled([2, 0, 1], ["b", "c", "a"])
    assert dataset.labels.tolist()[:3] == [2, 0, 1] and dataset[0]["label"] == 2
    with pytest.raises(ValueError, match="unlabelled"):
        load_image_dataset(table("kind", ["x"] * COUNT)).relabelled([0], ["a"])
