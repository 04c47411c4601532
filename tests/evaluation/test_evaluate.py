"""Evaluation of saved models by one call."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hubmodels.modeling.mae import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor
from PIL import Image
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
from typer.testing import CliRunner

import hubmodels
from hubmodels import packaged_path
from hubmodels.cli import app
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.data.processing import processor_statistics
from hubmodels.evaluation import NoisyLabelReport, evaluate, evaluate_classifier
from hubmodels.evaluation.evaluate import classifier_and_transform

CONFIG = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
}
COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    MAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save(MAEForPreTraining(MAEConfig(**CONFIG)), tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Thirty noisy pictures each of blue, green and red, in train/ and test/."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + rng.integers(0, 50, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def colour_classifier(id2label: dict[int, str]) -> MAEForImageClassification:
    """A classifier that reads the colour: its encoder passes the mean of each channel on."""
    model = MAEForImageClassification(MAEConfig(**CONFIG, id2label=id2label))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        projection = model.vit.embeddings.patch_embeddings.projection.weight
        for channel in range(3):
            projection[channel, channel] = 1.0
        model.fc_norm.weight.fill_(1.0)
        order = {"red": 0, "green": 1, "blue": 2}
        for label in range(3):
            model.classifier.weight[label, order.get(id2label[label], 2 - label)] = 1.0
    return model


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_frozen_features(pretrained, photos, protocol, tmp_path):
    outcome = evaluate(pretrained, photos, protocol=protocol, epochs=10, k=5, progress=False)
    assert outcome.report.accuracy > 0.95 and outcome.report.images == 30
    assert outcome.split == "test" and outcome.settings["train_images"] == 60
    assert [result.name for result in outcome.report.classes] == list(COLOURS)
    outcome.save(tmp_path / "outcome.json")
    saved = json.loads((tmp_path / "outcome.json").read_text())
    assert saved["protocol"] == protocol and saved["report"]["accuracy"] == outcome.report.accuracy


def test_the_package_offers_it():
    assert hubmodels.evaluate is evaluate


def test_without_a_test_split_a_fifth_is_held_out(pretrained, photos):
    outcome = evaluate(pretrained, photos / "train", protocol="knn", k=5, progress=False)
    assert outcome.report.images == 12 and outcome.settings["train_images"] == 48
    assert outcome.split == "20% of train held out, seed 0"
    assert [result.images for result in outcome.report.classes] == [4, 4, 4]


def withheld_test_labels(photos):
    train = load_image_dataset(photos, split="train")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
    images = [Image.fromarray(train[i]["image"].permute(1, 2, 0).numpy()) for i in range(60)]
    labels = train.labels.tolist()
    return datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"image": images, "label": labels}, features),
            "validation": datasets.Dataset.from_dict({"image": images[::4], "label": labels[::4]}, features),
            "test": datasets.Dataset.from_dict({"image": images[:6], "label": [-1] * 6}, features),
        }
    )


def test_where_test_labels_are_withheld_the_validation_split_is_measured(pretrained, photos):
    data = withheld_test_labels(photos)
    outcome = evaluate(pretrained, data, protocol="knn", k=5, progress=False)
    assert (outcome.split, outcome.report.images) == ("validation", 15)
    for given in ({"data": data, "split": "test"}, {"data": datasets.DatasetDict({"test": data["test"]})}):
        with pytest.raises(ValueError, match="6 of the 6 labels in its column 'label' are missing"):
            evaluate(pretrained, protocol="knn", progress=False, **given)


@pytest.mark.parametrize("names", [("blue", "green", "red"), ("red", "green", "blue")])
def test_classes_are_matched_by_name(photos, names, tmp_path):
    folder = save(colour_classifier(dict(enumerate(names))), tmp_path)
    report = evaluate(folder, photos, progress=False).report
    assert report.accuracy == 1.0
    assert [result.name for result in report.classes] == list(names)


def test_a_model_without_class_names_is_matched_by_number(photos, tmp_path):
    folder = save(colour_classifier({i: f"LABEL_{i}" for i in range(3)}), tmp_path)
    report = evaluate(folder, photos / "train", progress=False).report
    assert report.accuracy == 1.0 and report.images == 60
    assert [result.name for result in report.classes] == list(COLOURS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("red", "green", "yellow"), "classes of the data that the model does not know: blue"),
        (("a", "b"), "the model has 2 classes, the data 3"),
    ],
)
def test_classes_that_differ(photos, names, message, tmp_path):
    folder = save(MAEForImageClassification(MAEConfig(**CONFIG, id2label=dict(enumerate(names)))), tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate(folder, photos, progress=False)


def test_a_model_without_classifier_is_refused(pretrained, photos):
    with pytest.raises(ValueError, match=r"holds no trained classifier \(its weights lack classifier.bias"):
        evaluate(pretrained, photos, progress=False)
    with pytest.raises(ValueError, match=r"is a model of type densecl, which has no classifier; choose protocol 'knn'"):
        evaluate("densecl-small-64", photos, progress=False)


def test_packaged_checkpoints_are_named(photos):
    outcome = evaluate("simclr-small-32", photos, protocol="knn", k=2, progress=False)
    assert outcome.model == "simclr-small-32"
    assert outcome.report.accuracy == evaluate(packaged_path("simclr-small-32"), photos, "knn", k=2).report.accuracy
    with pytest.raises(ValueError, match=r"'mae_pretrain_vit_base' does not ship with the package; download"):
        evaluate("mae_pretrain_vit_base", photos)


def test_unlabelled_data_is_refused(pretrained, photos):
    with pytest.raises(ValueError, match="has no labels: evaluation needs one folder per class"):
        evaluate(pretrained, photos / "train" / "red", protocol="knn", progress=False)


def test_missing_split_and_unknown_protocol(pretrained, photos):
    with pytest.raises(ValueError, match="has no split 'val'; its splits are test, train"):
        evaluate(pretrained, photos, protocol="knn", split="val", progress=False)
    with pytest.raises(ValueError, match="protocol must be one of finetuned, knn, linear, got 'probe'"):
        evaluate(pretrained, photos, protocol="probe")


def test_classifier_on_items(photos):
    model = colour_classifier(dict(enumerate(COLOURS))).train()
    dataset = load_image_dataset(photos, split="test")
    transform = EvalTransform(16, crop_fraction=1.0)
    assert evaluate_classifier(model, dataset, transform, batch_size=7, progress=False).accuracy == 1.0
    assert model.training
    with pytest.raises(ValueError, match="the data has no labels"):
        evaluate_classifier(model, load_image_dataset(photos / "test" / "red"), transform, progress=False)


def test_timm_models_of_transformers(photos, tmp_path):
    names = {"id2label": dict(enumerate(COLOURS)), "label2id": {name: i for i, name in enumerate(COLOURS)}}
    settings = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    config = TimmWrapperConfig(
        architecture="resnet10t", num_labels=3, pretrained_cfg=settings | {"interpolation": "bicubic"}, **names
    )
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    assert evaluate(tmp_path, photos, progress=False).report.images == 30
    assert evaluate(tmp_path, photos, "knn", k=5, progress=False).report.accuracy > 0.9
    model, transform = classifier_and_transform(tmp_path)
    dataset = load_image_dataset(photos, split="test")
    assert len(NoisyLabelReport.from_model(model, dataset, transform=transform, progress=False)) == 30
    pixels = transform([torch.full((3, 20, 24), 255, dtype=torch.uint8), torch.zeros(1, 16, 16, dtype=torch.uint8)])
    torch.testing.assert_close(pixels, torch.tensor([2.0, -2.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16))
    assert processor_statistics(transform.processor) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_that_are_stored_in_half_precision(photos, dtype, tmp_path):
    folder = save(colour_classifier(dict(enumerate(COLOURS))).to(dtype), tmp_path)
    assert evaluate(folder, photos, progress=False).report.accuracy == 1.0
    assert evaluate(folder, photos, protocol="knn", k=5, progress=False).report.accuracy > 0.95
    report = NoisyLabelReport.from_model(folder, photos, split="test", progress=False)
    assert report.probabilities.argmax(axis=1).tolist() == report.labels.tolist()


def test_the_column_of_labels(photos, tmp_path):
    folder = save(colour_classifier(dict(enumerate(COLOURS))), tmp_path / "model")
    rows = [f"{path},{path.parent.name},{number % 2}" for number, path in enumerate(sorted(photos.glob("test/*/*")))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file_name,colour,parity", *rows]))
    assert evaluate(folder, table, label_column="colour", progress=False).report.accuracy == 1.0
    result = CliRunner().invoke(app, ["evaluate", str(folder), "--data", str(table), "--label-column", "colour"])
    assert result.exit_code == 0 and "accuracy 100.00%" in result.stdout


def test_a_single_class_is_refused_before_the_model_runs(pretrained, photos, tmp_path, monkeypatch):
    (tmp_path / "only").symlink_to(photos / "train" / "red")
    monkeypatch.setattr(sys.modules["hubmodels.evaluation.evaluate"], "extract_features", None)
    with pytest.raises(ValueError, match="needs at least two classes, got only"):
        evaluate(pretrained, tmp_path, protocol="knn", progress=False)


def test_the_evaluation_needs_nothing_of_the_training():
    code = "import sys, hubmodels.evaluation; print([n for n in sys.modules if n.startswith('hubmodels.training')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
