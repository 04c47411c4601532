"""Transforms: values, determinism, channels and errors."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from hubmodels.data.processing import ProcessorTransform
from hubmodels.data.randomness import uniforms
from hubmodels.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    FinetuneTransform,
    ImageTransform,
    LinearProbeTransform,
    PretrainTransform,
    channel_statistics,
)

TRANSFORMS = [
    PretrainTransform(24),
    LinearProbeTransform(24),
    EvalTransform(24),
    FinetuneTransform(24),
    FinetuneTransform(24, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5),
    FinetuneTransform(24, crop_padding=4),
    FinetuneTransform(24, crop_padding=4, resize=26),
]
IDS = ["pretrain", "probe", "eval", "finetune", "randaugment", "padded", "resized and padded"]


def images(count: int = 6, channels: int = 3, size: tuple[int, int] = (32, 28)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)
def test_samples_do_not_depend_on_their_batch(transform):
    batch, table = images(), uniforms(0, 1, np.arange(6), transform.draws)
    together = transform(batch, table)
    assert together.shape == (6, 3, 24, 24) and together.dtype == torch.float32
    for index in range(6):
        alone = transform([batch[index]], table[index : index + 1])
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)
def test_images_of_varying_sizes(transform):
    mixed = [images(1, size=size)[0] for size in ((32, 28), (90, 40), (33, 61))]
    table = uniforms(0, 0, np.arange(3), transform.draws)
    together = transform(mixed, table)
    for index, image in enumerate(mixed):
        assert torch.equal(transform([image], table[index : index + 1])[0], together[index])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)
def test_pickling(transform):
    table = uniforms(0, 0, np.arange(6), transform.draws)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(images(), table), transform(images(), table))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)
def test_global_generators_and_inputs_are_left_alone(transform):
    batch = images()
    random.seed(123)
    np.random.seed(123)
    torch.manual_seed(123)
    before, states = batch.clone(), (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    transform(batch, uniforms(0, 0, np.arange(6), transform.draws))
    assert torch.equal(batch, before)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_flip_is_the_last_draw():
    table = uniforms(0, 0, np.arange(6), PretrainTransform.draws)
    kept, flipped = table.copy(), table.copy()
    kept[:, -1], flipped[:, -1] = 0.5, 0.49
    transform = PretrainTransform(24)
    assert torch.equal(transform(images(), kept).flip(3), transform(images(), flipped))
    assert torch.equal(PretrainTransform(24, flip=0.0)(images(), flipped), transform(images(), kept))


@pytest.mark.parametrize("size", [(60, 84), (84, 60), (50, 50), (20, 30), (109, 37), (32, 33), (31, 20)])
def test_evaluation_agrees_with_torchvision(size):
    image = images(1, size=size)[0]
    reference = tv.Compose(
        [
            tv.Resize(int(32 / (224 / 256)), interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(32),
            tv.ToTensor(),
            tv.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    expected = reference(Image.fromarray(image.permute(1, 2, 0).numpy()))
    torch.testing.assert_close(EvalTransform(32)([image])[0], expected, atol=1e-6, rtol=0)


def test_evaluation_of_other_shapes():
    assert EvalTransform((48, 32), crop_fraction=1.0).resized_size(100, 100) == (48, 48)
    assert EvalTransform((48, 32), crop_fraction=1.0).resized_size(100, 50) == (64, 32)
    assert EvalTransform((48, 32))([images(1, size=(50, 90))[0]]).shape == (1, 3, 48, 32)
    assert EvalTransform(256).crop_fraction == 1.0
    assert EvalTransform(224).resized_size(300, 400)[0] == 256


def test_evaluation_keeps_images_of_the_models_size():
    batch = images(size=(32, 32))
    transform = EvalTransform(32, crop_fraction=1.0, mean=0.0, std=1.0)
    assert torch.equal(transform(batch), batch.float() / 255)


def test_padding():
    transform = EvalTransform(32, crop_fraction=1.0, mean=0.0, std=1.0, pad=2)
    result = transform(images(channels=1, size=(28, 28)))
    assert result.shape == (6, 3, 32, 32)
    assert torch.equal(
        result[:, :, 2:-2, 2:-2], (images(channels=1, size=(28, 28)).float() / 255).expand(-1, 3, -1, -1)
    )
    assert result[:, :, :2].abs().max() == 0 and result[..., -2:].abs().max() == 0


@pytest.mark.parametrize("transform_class", [PretrainTransform, EvalTransform, FinetuneTransform])
def test_grey_images(transform_class):
    table = uniforms(0, 0, np.arange(6), transform_class.draws)
    grey = images(channels=1)
    plain = {"mean": 0.5, "std": 0.25}
    copied = transform_class(24, **plain)(grey, table)
    assert torch.equal(copied[:, 0], copied[:, 2])
    single = transform_class(24, num_channels=1, **plain)(grey, table)
    assert single.shape == (6, 1, 24, 24) and torch.equal(single[:, 0], copied[:, 0])


def test_grey_and_colour_in_one_batch():
    mixed = [images(1, channels=1)[0], images(1)[0]]
    result = EvalTransform(24, mean=0.0, std=1.0)(mixed)
    assert torch.equal(result[0, 0], result[0, 2]) and not torch.equal(result[1, 0], result[1, 2])


def test_multispectral_images():
    transform = PretrainTransform(24, num_channels=5, mean=0.3, std=(1, 2, 3, 4, 5))
    table = uniforms(0, 0, np.arange(6), transform.draws)
    assert transform(images(channels=5), table).shape == (6, 5, 24, 24)


def test_padded_crops_are_windows_of_the_padded_image():
    transform = FinetuneTransform(32, crop_padding=4, flip=0.0, mean=0.0, std=1.0)
    batch = images(size=(32, 32))
    table = uniforms(0, 0, np.arange(6), transform.draws)
    padded = torch.nn.functional.pad(batch, (4,) * 4)
    for image, result, row in zip(padded, transform(batch, table), table, strict=True):
        top, left = int(row[0] * 9), int(row[1] * 9)
        assert torch.equal(result, image[:, top : top + 32, left : left + 32].float() / 255)


def test_randaugment_and_erasing_change_with_the_seed_alone():
    transform = FinetuneTransform(32, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=1.0, crop_padding=0, flip=0.0)
    batch = images(size=(32, 32))
    first, other = (uniforms(0, epoch, np.arange(6), transform.draws) for epoch in (0, 1))
    assert torch.equal(transform(batch, first), transform(batch, first))
    assert not torch.equal(transform(batch, first), transform(batch, other))


def test_random_erasing_probability():
    plain, erasing = (FinetuneTransform(32, random_erasing=p, crop_padding=0, flip=0.0) for p in (0.0, 0.25))
    batch = images(1, size=(32, 32)).expand(400, -1, -1, -1)
    table = uniforms(0, 0, np.arange(400), plain.draws)
    changed = (plain(batch, table) != erasing(batch, table)).flatten(1).any(dim=1)
    assert 70 <= int(changed.sum()) <= 130


def test_processor_transform_agrees_with_the_processor():
    from hubmodels.modeling.mae import MAEImageProcessor

    processor = MAEImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    batch = images(size=(60, 84))
    result = ProcessorTransform(processor)(batch)
    exact = EvalTransform(32)(batch)
    # torchvision's tensor resize differs from Pillow's by at most 2 of 255 levels.
    assert (result - exact).abs().max() <= 2 / 255 / min(IMAGENET_STD) + 1e-6
    grey = ProcessorTransform(processor)(images(channels=1, size=(28, 28)))
    assert grey.shape == (6, 3, 32, 32)
    with pytest.raises(ValueError, match="expected 3 channels, got 2"):
        ProcessorTransform(processor)(images(channels=2))


def test_statistics():
    assert channel_statistics(3) == (IMAGENET_MEAN, IMAGENET_STD)
    assert channel_statistics(1)[0] == (pytest.approx(0.449),)
    assert channel_statistics(2, 0.5, (0.1, 0.2)) == ((0.5, 0.5), (0.1, 0.2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainTransform(0), "size must be a positive int"),
        (lambda: PretrainTransform((4, 4, 4)), "size must be a positive int or a pair"),
        (lambda: PretrainTransform(32, scale=(0.5, 0.2)), r"scale must be \(min, max\)"),
        (lambda: PretrainTransform(32, scale=(0.0, 1.0)), "scale must be"),
        (lambda: PretrainTransform(32, ratio=(0.0, 1.0)), "ratio must be"),
        (lambda: PretrainTransform(32, flip=1.5), r"flip must be in \[0, 1\], got 1.5"),
        (lambda: PretrainTransform(32, num_channels=0), "num_channels must be >= 1, got 0"),
        (lambda: PretrainTransform(32, mean=(0.1, 0.2)), "mean must have 1 or num_channels=3 values, got 2"),
        (lambda: PretrainTransform(32, std=0.0), "std must be positive"),
        (lambda: PretrainTransform(32, pad=-1), "pad must be >= 0, got -1"),
        (lambda: EvalTransform(32, crop_fraction=1.2), r"crop_fraction must be in \(0, 1\], got 1.2"),
        (lambda: FinetuneTransform(32, auto_augment="augmix"), "auto_augment must be a RandAugment string"),
        (lambda: FinetuneTransform(32, auto_augment="rand-m9", num_channels=1), "auto_augment needs num_channels=3"),
        (lambda: FinetuneTransform(32, random_erasing=-0.1), "random_erasing must be"),
        (lambda: FinetuneTransform(32, crop_padding=-1), "crop_padding must be >= 0"),
        (lambda: FinetuneTransform(32, crop_padding=4, resize=31), "resize must be at least the size"),
        (lambda: FinetuneTransform(32, resize=32), "resize=32 goes with crop_padding"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "batch", "message"),
    [
        (EvalTransform(24), [], "images is empty"),
        (EvalTransform(24), images(channels=2), "expected 3 channels, got 2"),
        (EvalTransform(24, num_channels=1), images(), "expected 1 channels, got 3"),
        (EvalTransform(24), images().float(), "images must be uint8"),
        (PretrainTransform(24), images(), r"uniforms must have shape \(6, 23\), got \(6, 0\)"),
    ],
)
def test_wrong_inputs(transform, batch, message):
    with pytest.raises(ValueError, match=message):
        transform(batch)


@pytest.mark.parametrize("size", [32, (32, 40)])
def test_padded_crops_of_any_image_show_what_the_evaluation_sees(size):
    """Without padding a square image leaves no choice; other images are cut along their long side."""
    transform = FinetuneTransform(size, crop_padding=0, resize=32, flip=0.0)
    table = uniforms(0, 0, np.arange(6), transform.draws)
    for shape in ((16, 16), (80, 80)):
        batch = images(size=shape)
        if size == 32:
            torch.testing.assert_close(transform(batch, table), EvalTransform(32, crop_fraction=1.0)(batch))
        assert transform(batch, table).shape == (6, 3, *transform.size)
    mixed = [images(1, size=shape)[0] for shape in ((28, 90), (90, 28), (31, 33), (32, 32), (300, 200), (8, 9))]
    assert transform(mixed, table).shape == (6, 3, *transform.size)


def test_image_too_small_for_a_padded_crop():
    transform = FinetuneTransform(32, crop_padding=1)
    with pytest.raises(ValueError, match="at least 32x32, got 30x30"):
        transform(images(size=(28, 28)), uniforms(0, 0, np.arange(6), transform.draws))


def test_base_class_shows_its_settings():
    assert "size=(24, 24)" in repr(ImageTransform(24))
