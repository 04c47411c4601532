"""Folders of images: classes, splits, errors, decoding and the cache."""

import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from hubmodels.data import load_image_dataset
from hubmodels.data.images import ImageDataset
from hubmodels.data.sources import FileSource, ImageCache, pixels_of
from hubmodels.data.splits import MissingSplitError


def test_flat_folder_is_unlabelled(write_images):
    folder = write_images({"b.png": (8, 6), "a.JPG": (5, 4), "notes.txt/c.png": (3, 3)})
    (folder / "readme.md").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"not an image")
    dataset = load_image_dataset(folder)
    assert [item["image"].shape for item in dataset] == [(3, 5, 4), (3, 8, 6), (3, 3, 3)]
    assert dataset.labels is None and dataset.class_names == [] and dataset.num_classes == 0
    assert "label" not in dataset[0] and dataset[2]["index"] == 2


def test_class_folders(write_images):
    folder = write_images({"dog/1.png": (4, 4), "cat/x/2.png": (4, 4), "cat/1.png": (4, 4), ".git/3.png": (4, 4)})
    dataset = load_image_dataset(str(folder))
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert [item["label"] for item in dataset] == [0, 0, 1]
    assert repr(dataset) == "ImageDataset(3 images, 2 classes)"


def test_splits_and_common_classes(write_images):
    folder = write_images(
        {"train/a/1.png": (4, 4), "train/c/1.png": (4, 4), "val/b/1.png": (4, 4), "val/c/1.png": (4, 4)}
    )
    train, validation = load_image_dataset(folder), load_image_dataset(folder, split="validation")
    assert train.class_names == validation.class_names == ["a", "b", "c"]
    assert train.labels.tolist() == [0, 2] and validation.labels.tolist() == [1, 2]


def test_unlabelled_splits(write_images):
    folder = write_images({"train/1.png": (4, 4), "test/1.png": (4, 4), "test/2.png": (4, 4)})
    assert len(load_image_dataset(folder, split="test")) == 2


def test_a_class_may_be_called_test(write_images):
    folder = write_images({"test/1.png": (4, 4), "control/1.png": (4, 4)})
    assert load_image_dataset(folder).class_names == ["control", "test"]


def test_missing_split(write_images):
    folder = write_images({"train/a/1.png": (4, 4), "val/a/1.png": (4, 4)})
    with pytest.raises(MissingSplitError, match="has no split 'test'; its splits are train, val"):
        load_image_dataset(folder, split="test")
    with pytest.raises(MissingSplitError, match="has no split 'test': it holds no split folders"):
        load_image_dataset(folder / "train", split="test")


def test_empty_class(write_images):
    folder = write_images({"dog/1.png": (4, 4)})
    (folder / "cat").mkdir()
    with pytest.raises(ValueError, match=r"class folders without images: .*cat"):
        load_image_dataset(folder)


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        load_image_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n but no more"])
def test_unreadable_image_is_named(write_images, content):
    folder = write_images({"a.png": (4, 4), "b.png": (4, 4)})
    (folder / "b.png").write_bytes(content)
    dataset = load_image_dataset(folder)
    with pytest.raises(ValueError, match=r"cannot read image .*b\.png"):
        dataset[1]


def test_truncated_image_is_named(write_images):
    folder = write_images({"a.png": (64, 64)})
    path = folder / "a.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png"):
        load_image_dataset(folder)


def test_streaming_a_folder_is_refused(write_images):
    with pytest.raises(ValueError, match="streaming=True applies to Parquet files and the Hub"):
        load_image_dataset(write_images({"a.png": (4, 4)}), streaming=True)


@pytest.mark.parametrize("source", ["no/such/folder/", "./missing", "photos/of me"])
def test_missing_source(source):
    with pytest.raises(
        FileNotFoundError, match=r"not a folder or file, not a packaged data set \(fashion-mnist-small\)"
    ):
        load_image_dataset(source)


def test_file_that_is_no_table(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a folder of images, a Parquet file or a table of images \(.csv, .txt\)"):
        load_image_dataset(tmp_path / "images.zip")


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3), ("I;16", 1)]
)
def test_pixel_modes(mode, channels):
    image = Image.new(mode, (5, 4))
    pixels = pixels_of(image)
    assert pixels.shape == (channels, 4, 5) and pixels.dtype == np.uint8


def test_sixteen_bit_images_keep_their_upper_bits():
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert pixels_of(image).tolist() == [[[0, 0, 1, 255]]]


def test_floating_point_images_are_refused():
    with pytest.raises(ValueError, match="floating-point pixels"):
        pixels_of(Image.new("F", (2, 2)))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image_dataset(tmp_path)[0]["image"].shape == (3, 20, 10)


def test_reduced_decoding(tmp_path):
    Image.new("RGB", (1600, 800), "red").save(tmp_path / "a.jpg")
    image = load_image_dataset(tmp_path, decode_size=200)[0]["image"]
    assert image.shape == (3, 200, 400)
    assert load_image_dataset(tmp_path)[0]["image"].shape == (3, 800, 1600)


def test_images_are_decoded_once(write_images):
    dataset = load_image_dataset(write_images({f"{i}.png": (8, 8) for i in range(4)}))
    first = [dataset[i]["image"].clone() for i in range(4)]
    with mock.patch.object(FileSource, "decode", side_effect=AssertionError("decoded again")):
        assert all(torch.equal(dataset[i]["image"], first[i]) for i in range(4))


def test_items_are_copies(write_images):
    for dataset in (load_image_dataset(write_images({"a.png": (8, 8)})), load_image_dataset("fashion-mnist-small")):
        before = dataset[0]["image"].clone()
        dataset[0]["image"].fill_(3)
        assert torch.equal(dataset[0]["image"], before)


def test_cache_keeps_one_shape_and_its_limit(write_images):
    folder = write_images({"a.png": (8, 8), "b.png": (9, 8)})
    dataset = load_image_dataset(folder)
    assert [dataset[i]["image"].shape[1] for i in (0, 1, 0, 1)] == [8, 9, 8, 9]
    with mock.patch("hubmodels.data.images.CACHE_BYTES", 2 * 8 * 8 * 3 - 1):
        assert load_image_dataset(folder)._cache is None


def test_cache_is_shared_with_forked_workers_and_empty_in_copies():
    cache = ImageCache(2, (1, 2, 2))
    cache.put(1, np.full((1, 2, 2), 7, dtype=np.uint8))
    assert cache.get(0) is None and cache.get(1).tolist() == [[[7, 7], [7, 7]]]
    assert pickle.loads(pickle.dumps(cache)).get(1) is None


def test_workers_fill_the_cache(write_images):
    dataset = load_image_dataset(write_images({f"{i}.png": (8, 8) for i in range(4)}))
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=2, collate_fn=list, multiprocessing_context="fork", batch_size=2
    )
    assert sum(len(batch) for batch in loader) == 4
    assert all(dataset._cache.get(index) is not None for index in range(4))


def test_typical_size(write_images):
    dataset = load_image_dataset(write_images({"a.png": (4, 9), "b.png": (6, 5), "c.png": (20, 7)}))
    assert dataset.typical_size() == (6, 7)
    assert dataset.subset(1).typical_size() in ((4, 9), (6, 5), (20, 7))


def test_labels_must_fit(write_images):
    source = load_image_dataset(write_images({"a.png": (4, 4), "b.png": (4, 4)}))._source
    with pytest.raises(ValueError, match="expected 2 labels, one per image, got 1"):
        ImageDataset(source, np.array([0]), ["a"])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\), got 0 to 1"):
        ImageDataset(source, np.array([0, 1]), ["a"])
    with pytest.raises(ValueError, match="given together"):
        ImageDataset(source, np.array([0, 1]))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "plane", "train"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert load_image_dataset(tmp_path).class_names == ["car", "plane", "train"]
    (tmp_path / "test").mkdir()  # with a second split they are no classes
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / "0.png")
    assert len(load_image_dataset(tmp_path)) == 1


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere").mkdir()
    data = tmp_path / "data"
    (data / "x").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "1.png")
    Image.new("RGB", (4, 4)).save(data / "x" / "0.png")
    (data / "x" / "more").symlink_to(tmp_path / "elsewhere")
    (data / "x" / "round").symlink_to(data / "x")
    assert len(load_image_dataset(data)) == 2
