"""The report of suspicious labels: order, figures, outputs, a page that holds what it should, the command."""

import base64
import csv
import io
import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
)
from matplotlib import font_manager, rcParams
from PIL import Image
from rich.console import Console
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

from hubmodels.cli import app
from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.data.images import ImageDataset
from hubmodels.data.sources import ArraySource
from hubmodels.evaluation import NoisyLabelReport
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.visualization import figures, noisy_label_sheet

NAMES = ["cat", "dog <b>", "emu"]


@pytest.fixture
def dataset():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 10), np.uint8)
    clean = ImageDataset(ArraySource(pixels), np.array([0, 1, 2, 0, 1, 2]), NAMES)
    return clean.with_noisy_labels([0, 2, 2, 1, 1, 2])  # the second and the fourth are wrong


@pytest.fixture
def report(dataset):
    probabilities = np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [7, 2, 1], [1, 8, 1], [4, 3, 3]]) / 10
    return NoisyLabelReport(dataset, np.array([0.9, 0.1, 0.95, 0.1, 0.9, 0.3]), probabilities)


def test_the_order_is_by_probability_then_by_what_the_model_gives(report):
    assert report.order.tolist() == [1, 3, 5, 4, 0, 2] or report.order.tolist() == [1, 3, 5, 0, 4, 2]
    first = report.top(2)[0]
    assert (first.rank, first.index, first.given, first.suggested) == (1, 1, "emu", "dog <b>")
    assert (first.clean_probability, first.given_probability, first.suggested_probability) == (0.1, 0.1, 0.8)
    assert report.num_wrong == 3
    assert report.estimated_noise == pytest.approx(1 - np.mean([0.9, 0.1, 0.95, 0.1, 0.9, 0.3]))
    assert report.confusions() == [("dog <b>", "cat", 1), ("emu", "cat", 1), ("emu", "dog <b>", 1)]


def test_the_light_mode_learns_by_the_probabilities_as_a_column(report, tmp_path, monkeypatch):
    pixels = [np.full((3, 16, 16), number / 6, np.float32) for number in range(6)]
    table = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": report.labels})
    table = table.add_column("clean_prob", report.clean_prob)
    config = SANMConfig(widths=[4], depths=[1], image_size=16, num_labels=3, framework="ce")
    model, seen = SANMForImageClassification(config), {}
    trained = model._with_masked_views

    def recorded(outputs, pixel_values, targets, clean_prob, *others):
        seen.update(zip((pixel_values[:, 0, 0, 0] * 6).round().int().tolist(), clean_prob.tolist(), strict=True))
        return trained(outputs, pixel_values, targets, clean_prob, *others)

    monkeypatch.setattr(model, "_with_masked_views", recorded)
    arguments = {"per_device_train_batch_size": 3, "num_train_epochs": 1, "use_cpu": True, "save_strategy": "no"}
    Trainer(model, TrainingArguments(str(tmp_path), report_to=[], **arguments), train_dataset=table).train()
    assert [seen[number] for number in range(6)] == pytest.approx(report.clean_prob.tolist())


def test_detection_quality(report, dataset):
    quality = report.detection_quality()
    assert (quality.average_precision, quality.auc, quality.wrong) == (1.0, 1.0, 2)
    assert quality.precision.tolist() == pytest.approx([1, 1, 2 / 3, 2 / 4, 2 / 5, 2 / 6])
    assert quality.recall.tolist() == [0.5, 1, 1, 1, 1, 1]
    worse = report.detection_quality([0, 2, 2, 1, 1, 0])
    assert worse.average_precision == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="0 of 6 labels are wrong"):
        report.detection_quality(dataset.labels)
    plain = NoisyLabelReport(dataset.relabelled([0, 1, 2], NAMES), report.clean_prob, report.probabilities)
    assert plain.detection_quality().wrong == 2


def test_outputs(report, tmp_path):
    paths = report.save(tmp_path / "out", count=3)
    assert [path.name for path in paths] == [f"noisy_labels.{s}" for s in ("html", "png", "csv", "json")]
    rows = list(csv.DictReader((tmp_path / "out" / "noisy_labels.csv").open()))
    assert [row["index"] for row in rows][:3] == ["1", "3", "5"] and len(rows) == 6
    summary = json.loads((tmp_path / "out" / "noisy_labels.json").read_text())
    assert (summary["images"], summary["probably_wrong"], len(summary["labels"])) == (6, 3, 3)
    assert Image.open(paths[1]).size[0] > 100
    with pytest.raises(FileExistsError, match=r"noisy_labels.html.* exists; choose another folder"):
        report.save(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_the_page_is_self_contained_and_escapes_names(report, tmp_path):
    page = report.write_html(tmp_path / "page.html", count=4, title="Check <me>").read_text()
    assert page.count("<figure ") == 4
    assert "dog &lt;b&gt;" in page and "<b>" not in page and "Check &lt;me&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    assert np.array_equal(decoded, report.picture(1))
    assert "3 of 6 labels are more probably wrong than right" in page


def test_large_pictures_become_small_on_the_page(tmp_path):
    pixels = np.zeros((2, 1, 500, 300), np.uint8)
    dataset = ImageDataset(ArraySource(pixels), np.array([0, 1]), ["a", "b"])
    page = (
        NoisyLabelReport(dataset, np.array([0.2, 0.9]), np.full((2, 2), 0.5))
        .write_html(tmp_path / "p.html")
        .read_text()
    )
    picture = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (115, 192)


def test_shapes_that_do_not_fit_are_refused(dataset):
    with pytest.raises(ValueError, match=r"shape \(6,\) and probabilities of shape \(6, 3\), got \(5,\) and \(6, 2\)"):
        NoisyLabelReport(dataset, np.ones(5), np.ones((6, 2)))
    with pytest.raises(ValueError, match="no labels to check"):
        NoisyLabelReport(ImageDataset(ArraySource(np.zeros((2, 3, 4, 4), np.uint8))), np.ones(2), np.ones((2, 3)))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """An untrained ensemble for the packaged clothes."""
    names = load_image_dataset("fashion-mnist-small", "train").class_names
    torch.manual_seed(0)
    config = SANMConfig(widths=[4, 8], depths=[1, 1], id2label=dict(enumerate(names)), image_size=28)
    folder = tmp_path_factory.mktemp("classifier")
    SANMEnsembleForImageClassification(config).save_pretrained(folder)
    SANMImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_a_model_judges_every_label_by_both_networks(classifier):
    images = load_image_dataset("fashion-mnist-small", "test").subset(300)
    report = NoisyLabelReport.from_model(classifier, images, progress=False)
    model = SANMEnsembleForImageClassification.from_pretrained(classifier)
    from hubmodels.evaluation.evaluate import classifier_and_transform

    transform = classifier_and_transform(classifier)[1]
    predictions = predict_samples([model.net1, model.net2], images, transform)
    assert predictions.losses.shape == (2, 300)
    np.testing.assert_allclose(report.probabilities, predictions.probabilities, atol=1e-6)
    rows = range(5)
    pixel_values = transform([images[row]["image"] for row in rows])
    with torch.no_grad():
        scores = model.eval()(pixel_values).logits
    np.testing.assert_allclose(report.probabilities[:5], scores.softmax(1), atol=1e-5)
    with pytest.raises(ValueError, match="needs its transform"):
        NoisyLabelReport.from_model(model, images)
    own = NoisyLabelReport.from_model(model, images, transform=EvalTransform(28, crop_fraction=1.0), progress=False)
    assert len(own) == 300 and "300 labels" in repr(own)


def test_the_command_writes_the_report(classifier, tmp_path):
    arguments = ["label-errors", str(classifier), "--data", "fashion-mnist-small", "--split", "test", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "report"), "--images", "4"])
    assert result.exit_code == 0, result.output
    assert "labels are probably wrong" in result.output and "noisy_labels.html" in result.output
    arguments[1] = "nowhere/at/all"  # files in the way are found before anything is loaded
    again = CliRunner().invoke(app, [*arguments, str(tmp_path / "report")])
    assert again.exit_code == 2 and "exists; choose another folder" in again.output


def test_questions_that_cannot_be_answered(report):
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.6, got 0"):
        report.picture(0)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        report.top(-1)
    with pytest.raises(ValueError, match=r"clean_labels must be 6 class numbers, got int64 of shape \[5\]"):
        report.detection_quality([0] * 5)
    with pytest.raises(ValueError, match="clean_labels must be 6 class numbers, got <U3"):
        report.detection_quality(["cat"] * 6)
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got values from nan"):
        NoisyLabelReport(report.dataset, report.clean_prob, np.full((6, 3), np.nan))


def test_names_of_other_bytes_are_written_and_printed(tmp_path):
    folder = tmp_path / "images"
    for number, name in enumerate((b"0/caf\xe9.png", b"0/a.png", b"\xe9/b.png")):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("L", (8, 8), 50 * number).save(file, "PNG")
    images = load_image_dataset(folder)
    report = NoisyLabelReport(images, np.array([0.1, 0.2, 0.3]), np.full((3, 2), 0.5))
    report.save(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "noisy_labels.csv").open(encoding="utf-8")))
    assert {Path(row["name"]).name for row in rows} == {"caf\\udce9.png", "a.png", "b.png"}
    assert {row["given"] for row in rows} == {"0", "\\udce9"}
    console = Console(file=io.StringIO(), width=300)
    console.print(report.table())
    console.file.getvalue().encode("utf-8")


def test_names_are_no_markup_in_the_table(dataset):
    names = ["a\\[b]x", "a\\[/b]x", "[red]z"]
    report = NoisyLabelReport(dataset.relabelled([0, 1, 2], names), np.full(6, 0.5), np.full((6, 3), 0.3))
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table())
    assert all(name in console.file.getvalue() for name in names)


def test_no_images_are_refused_before_anything_is_written(report, classifier, tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        report.save(tmp_path / "out", count=0)
    arguments = ["label-errors", str(classifier), "--data", "fashion-mnist-small", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*arguments, "--images", "0"]).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_unknown_true_labels_are_refused(report):
    with pytest.raises(ValueError, match="clean_labels must be class numbers from 0, 2 are negative"):
        report.detection_quality([0, -1, 2, 0, -1, 2])


def test_options_of_the_filters_have_their_names_as_values(tmp_path):
    """Without them browsers trim names."""
    names = [" lead", 'two  "spaces"']
    images = ImageDataset(ArraySource(np.zeros((2, 1, 8, 8), np.uint8)), np.array([0, 1]), names)
    report = NoisyLabelReport(images, np.array([0.2, 0.9]), np.full((2, 2), 0.5))
    page = report.write_html(tmp_path / "p.html").read_text()
    assert page.count('<option value=" lead"> lead</option>') == 2
    assert page.count('<option value="two  &quot;spaces&quot;">') == 2


def test_grey_pictures_keep_their_brightness():
    pixels = np.full((2, 1, 8, 8), 100, np.uint8)
    images = ImageDataset(ArraySource(pixels), np.array([0, 1]), ["a", "b"])
    figure = noisy_label_sheet(NoisyLabelReport(images, np.array([0.2, 0.9]), np.full((2, 2), 0.5)))
    assert figure.axes[0].images[0].get_clim() == (0, 255)


def test_names_of_other_scripts_are_drawn_where_a_font_has_them(tmp_path, monkeypatch, messages, recwarn):
    """matplotlib comes with a font that has the first of these letters, and with none that has the cats and dogs."""
    monkeypatch.setattr(figures, "FALLBACK_FONTS", ("No Such Font", "STIXGeneral"))
    images = ImageDataset(ArraySource(np.zeros((2, 1, 8, 8), np.uint8)), np.array([0, 1]), ["\u1d84 $a", "猫 犬 猫"])
    report = NoisyLabelReport(images, np.array([0.2, 0.9]), np.full((2, 2), 0.5))
    figure = noisy_label_sheet(report, tmp_path / "sheet.png")
    title = figure.axes[0].title
    assert title.get_text() == "\u1d84 \\$a\n→ □ □ □\nright: 20%"
    assert title.get_fontfamily() == [*rcParams["font.family"], "STIXGeneral"]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert messages.text.count("no installed font can draw") == 1
    assert "can draw 犬 猫: boxes stand for them in the picture; noisy_labels.html shows them" in messages.text
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    monkeypatch.setattr(
        font_manager.fontManager,
        "ttflist",
        [*font_manager.fontManager.ttflist, font_manager.FontEntry(fname=str(damaged), name="Damaged")],
    )
    monkeypatch.setattr(figures, "FALLBACK_FONTS", ("Damaged",))
    assert figures.drawable(["\u1d84"]) == (["□"], rcParams["font.family"])
    assert "can draw \u1d84: boxes stand for them in the picture\n" in messages.text
    figures.drawable(["".join(map(chr, range(0x4E00, 0x4E00 + 30)))])
    assert "and 10 more: boxes" in messages.text
