"""The checkpoints that ship with the package: they load as users load them, and they know more than random weights."""

import pytest
import torch
from hubmodels.modeling.densecl.matching_densecl import match_accuracy
from hubmodels.modeling.positional_label import PositionalLabelForImageClassification
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from hubmodels import catalog
from hubmodels.data import inject_label_noise, load_image_dataset
from hubmodels.data.processing import ProcessorTransform
from hubmodels.evaluation import NoisyLabelReport, evaluate_classifier, extract_features, knn_accuracy
from hubmodels.evaluation.evaluate import classifier_and_transform
from hubmodels.training.methods import method_class
from hubmodels.visualization.views import correspondences

PAIR = "sanm-small-32"  # two networks, of which `AutoModelForImageClassification` alone makes one model
PACKAGED = [checkpoint.name for checkpoint in catalog.CHECKPOINTS if checkpoint.is_packaged]
BACKBONES = [
    name
    for name in PACKAGED
    if name != PAIR and "AutoBackbone" in catalog.get_method(catalog.get_checkpoint(name).method).auto_classes
]
LARGEST_FILE = 6 * 2**20


def images(split, number):
    return load_image_dataset("fashion-mnist-small", split).subset(number, seed=0)


def knn(model, folder):
    transform = ProcessorTransform(AutoImageProcessor.from_pretrained(folder))
    vectors = []
    for data in (images("train", 600), images("test", 300)):
        vectors += [extract_features(model, data, transform, progress=False)[0], data.labels]
    return knn_accuracy(*vectors)


def random_model(folder):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("name", ["mae-small-32", "simclr-small-32"])
def test_nearest_neighbours_are_better_than_those_of_random_weights(name):
    folder = catalog.packaged_path(name)
    assert knn(AutoModel.from_pretrained(folder), folder) > knn(random_model(folder), folder) + 0.15


def test_cells_of_two_views_are_matched_better_than_by_random_weights():
    folder = catalog.packaged_path("densecl-small-64")
    samples = images("test", 200)
    views = AutoImageProcessor.from_pretrained(folder)(
        [samples[index]["image"] for index in range(len(samples))],
        mode="pretrain",
        generator=torch.Generator().manual_seed(0),
    )

    def matched(model):
        found = correspondences(model, views.pixel_values)
        return float(match_accuracy(found.match_index, views.crop_boxes, views.flips, found.grid))

    assert matched(AutoModel.from_pretrained(folder)) > matched(random_model(folder)) + 0.03


@pytest.mark.parametrize("name", PACKAGED)
def test_nothing_is_missing_and_values_are_float32(name):
    folder = catalog.packaged_path(name)
    loads = AutoModelForImageClassification if name == PAIR else AutoModel
    model, report = loads.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (folder / "model.safetensors").stat().st_size <= LARGEST_FILE


@pytest.mark.parametrize("name", BACKBONES)
def test_pictures_of_any_size_become_feature_maps(name):
    folder = catalog.packaged_path(name)
    picture = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixel_values = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    backbone = method_class(catalog.get_checkpoint(name).method, "AutoBackbone").from_pretrained(folder)
    (feature_map,) = backbone(pixel_values).feature_maps
    assert feature_map.shape[:2] == (1, backbone.channels[-1])
    assert feature_map.isfinite().all()


def test_simclr_continues_with_its_trained_head():
    folder = catalog.packaged_path("simclr-small-32")
    _, report = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_densecl_holds_the_encoder_alone():
    folder = catalog.packaged_path("densecl-small-64")
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("name", ["simclr-small-32", "densecl-small-64"])
def test_statistics_of_normalisation_are_stored_exactly(name):
    """Variances below 6e-5 would lose digits in float16."""
    stored = load_file(catalog.packaged_path(name) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    assert {tensor.dtype for key, tensor in stored.items() if key.endswith(("_mean", "_var"))} == {torch.float32}


def test_positional_label_tells_places_and_gives_back_a_plain_vit():
    """Cells far above chance (1 of 64), and the same logits without the position head."""
    folder = catalog.packaged_path("positional-label-small-32")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    samples = images("test", 32)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([samples[i]["image"] for i in range(32)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixels, return_position=True)
        assert output.position_accuracy > 0.9
        torch.testing.assert_close(model.without_position_head()(pixels).logits, output.logits)
        plain = model.to_backbone_classifier()
        assert type(plain).__module__.startswith("transformers.")
        torch.testing.assert_close(plain(pixels).logits, output.logits, atol=1e-4, rtol=1e-4)


def test_networks_trained_on_wrong_labels_know_the_right_ones():
    folder = catalog.packaged_path(PAIR)
    model, transform = classifier_and_transform(folder)
    test = images("test", 300)
    assert evaluate_classifier(model, test, transform, test.class_names, progress=False).accuracy > 0.7
    train = load_image_dataset("fashion-mnist-small", "train")
    noisy = inject_label_noise(train.labels, "sym", 0.5, train.num_classes, seed=0).labels
    train = train.with_noisy_labels(noisy).subset(400, seed=0)
    report = NoisyLabelReport.from_model(model, train, transform=transform, progress=False)
    assert report.detection_quality().average_precision > 0.9
    scores = pipeline("image-classification", model=str(folder))(Image.new("RGB", (28, 28)), top_k=3)
    assert {score["label"] for score in scores} < set(train.class_names)


def test_a_classifier_takes_the_type_of_the_autoencoder_that_it_starts_from():
    folder = catalog.packaged_path("mae-small-32")
    model = PositionalLabelForImageClassification.from_pretrained(folder, position_label="relative", num_labels=10)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(pixels, mask_ratio=0.0).last_hidden_state[:, 1:]
        torch.testing.assert_close(model.encode(pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
