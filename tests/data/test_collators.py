"""The collator: contents, determinism and epochs."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from hubmodels.data import EvalTransform, ImageCollator, PretrainTransform, load_image_dataset

DATASET = load_image_dataset("fashion-mnist-small", split="train").subset(24, seed=0)
LENGTH = 16


def collator(train: bool = True, seed: int = 0) -> ImageCollator:
    return ImageCollator(PretrainTransform(16), seed=seed, train=train, noise_length=LENGTH)


def samples(collate: ImageCollator, **loading) -> dict[int, torch.Tensor]:
    """Everything a sample gets, by its index; loaded in any way."""
    result = {}

    def collate_with_indices(items):
        return [item["index"] for item in items], collate(items)

    for indices, batch in DataLoader(DATASET, collate_fn=collate_with_indices, **loading):
        for position, index in enumerate(indices):
            assert index not in result
            result[index] = torch.cat([batch["pixel_values"][position].flatten(), batch["noise"][position]])
    return result


def assert_same(first: dict[int, torch.Tensor], second: dict[int, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[index], second[index]) for index in first)


def test_batch():
    batch = collator()([DATASET[i] for i in range(5)])
    assert batch["pixel_values"].shape == (5, 3, 16, 16) and batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["labels"], DATASET.labels[:5]) and batch["labels"].dtype == torch.int64
    assert batch["noise"].shape == (5, LENGTH) and batch["noise"].dtype == torch.float32
    assert set(ImageCollator(EvalTransform(16), 0, False)([DATASET[0]])) == {"pixel_values", "labels"}


def test_unlabelled_items_give_no_labels():
    item = {"image": DATASET[0]["image"], "index": 0}
    assert "labels" not in collator()([item])


@pytest.mark.parametrize(
    "loading",
    [
        {"batch_size": 5},
        {"batch_size": 8, "num_workers": 2},
        {"batch_size": 3, "sampler": RandomSampler(DATASET, generator=torch.Generator().manual_seed(5))},
    ],
    ids=["batch size", "workers", "order"],
)
def test_samples_do_not_depend_on_how_they_are_loaded(loading):
    assert_same(samples(collator(), batch_size=24), samples(collator(), **loading))


def test_samples_do_not_depend_on_the_number_of_processes():
    parts: dict[int, torch.Tensor] = {}
    for rank in range(2):
        sampler = DistributedSampler(DATASET, num_replicas=2, rank=rank, seed=1)
        parts |= samples(collator(), batch_size=4, sampler=sampler)
    assert_same(samples(collator(), batch_size=24), parts)


def test_epochs_and_seeds_change_training_samples():
    items = [DATASET[i] for i in range(6)]
    collate = collator()
    first = collate(items)
    collate.set_epoch(1)
    second = collate(items)
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    assert not torch.equal(first["noise"], second["noise"])
    assert not torch.equal(first["noise"], collator(seed=1)(items)["noise"])
    collate.set_epoch(0)
    assert torch.equal(collate(items)["pixel_values"], first["pixel_values"])


def test_evaluation_has_the_same_masks_in_every_epoch():
    items = [DATASET[i] for i in range(6)]
    collate = collator(train=False)
    first = collate(items)
    collate.set_epoch(7)
    assert collate.epoch == 0 and torch.equal(collate(items)["noise"], first["noise"])


def test_living_workers_see_the_epoch():
    collate = collator()
    loader = DataLoader(DATASET, 24, collate_fn=collate, num_workers=1, persistent_workers=True)
    noise = []
    for epoch in range(2):
        collate.set_epoch(epoch)
        noise.append(next(iter(loader))["noise"])
    collate.set_epoch(1)
    assert not torch.equal(*noise)
    assert torch.equal(noise[1], collate([DATASET[i] for i in range(24)])["noise"])


def test_masking_noise_is_independent_of_the_augmentation():
    items = [DATASET[i] for i in range(6)]
    other = ImageCollator(EvalTransform(16), seed=0, train=True, noise_length=LENGTH)
    assert torch.equal(collator()(items)["noise"], other(items)["noise"])


def test_noise_length_out_of_range():
    with pytest.raises(ValueError, match="noise_length must be >= 1 or None, got 0"):
        ImageCollator(EvalTransform(16), 0, True, noise_length=0)
