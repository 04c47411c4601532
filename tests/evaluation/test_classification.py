"""Per-class reports and intervals."""

import io
import json
from statistics import NormalDist

import pytest
import torch
from rich.console import Console
from sklearn import metrics

from hubmodels.evaluation import classification_report, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (3, 10), (10, 10), (731, 1000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval(correct, total, confidence):
    """Its ends are the shares whose distance to the measured one is z of their own standard errors (Wilson, 1927)."""
    z, share = NormalDist().inv_cdf(0.5 + confidence / 2), correct / total
    interval = wilson_interval(correct, total, confidence)
    assert 0 <= interval[0] <= share <= interval[1] <= 1
    for end in interval:
        assert abs(end - share) == pytest.approx(z * (end * (1 - end) / total) ** 0.5, abs=1e-12)


def test_wilson_interval_of_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"correct must be in \[0, total\], got 3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence must be in"):
        wilson_interval(1, 2, 95)


def random_case(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (300,), generator=generator)
    scores = torch.randn(300, num_classes, generator=generator)
    scores[torch.arange(300), labels] += 1.0
    return labels, scores


@pytest.mark.parametrize("num_classes", [3, 8])
def test_report_agrees_with_scikit_learn(num_classes):
    labels, scores = random_case(num_classes)
    names = [f"class {i}" for i in range(num_classes)]
    report = classification_report(labels, scores, names)
    predictions = scores.argmax(dim=1)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert report.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert [list(row) for row in report.confusion] == metrics.confusion_matrix(labels, predictions).tolist()
    expected = metrics.classification_report(labels, predictions, target_names=names, output_dict=True)
    for result in report.classes:
        assert result.accuracy == pytest.approx(expected[result.name]["recall"])
        assert result.precision == pytest.approx(expected[result.name]["precision"])
        assert result.images == expected[result.name]["support"]
        assert result.interval == wilson_interval(result.correct, result.images)
    top5 = metrics.top_k_accuracy_score(labels, scores, k=5) if num_classes > 5 else None
    assert report.top5_accuracy == (None if top5 is None else pytest.approx(top5))


def test_classes_without_images():
    report = classification_report(torch.tensor([0, 0]), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), ["a", "b", "c"])
    assert report.classes[1].accuracy is None and report.classes[1].precision == 0.0
    assert report.classes[2].interval == (0.0, 1.0) and report.classes[2].precision is None
    assert report.balanced_accuracy == report.accuracy == 0.5


def test_table_and_json(tmp_path):
    report = classification_report(*random_case(3), ["cat", "dog", "horse"])
    output = io.StringIO()
    Console(file=output, width=120).print(report.table())
    text = output.getvalue()
    assert f"accuracy {report.accuracy:.2%}" in text and "95 % interval" in text
    assert all(name in text for name in ("cat", "dog", "horse"))
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["classes"][1]["name"] == "dog" and saved["accuracy"] == report.accuracy
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (torch.zeros(0, dtype=torch.long), torch.zeros(0, 2), "expected labels"),
        (torch.tensor([0]), torch.zeros(1, 3), r"scores \[N, 2\]"),
        (torch.tensor([2]), torch.zeros(1, 2), r"labels must be in \[0, 2\), got 2 to 2"),
        (torch.tensor([-1]), torch.zeros(1, 2), "labels must be in"),
        (torch.tensor([0, 1]), torch.tensor([[float("nan"), 0.0], [0, 1]]), "must be finite, 1 images"),
    ],
)
def test_bad_inputs(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        classification_report(labels, scores, ["a", "b"])


def test_names_are_no_markup_and_may_have_other_bytes():
    names = ["cat [indoor]", "a[/b]", "[b]bold", "back\\\\[i]", "caf\udce9"]
    report = classification_report(torch.arange(5), torch.eye(5), names)
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table())
    text = console.file.getvalue()
    assert all(name in text for name in names[:4]) and "caf\\udce9" in text
    text.encode("utf-8")


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="needs at least two classes, got cat"):
        classification_report(torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1), ["cat"])
