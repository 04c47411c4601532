"""The quickstart from end to end, with a few images and one epoch."""

import pytest
from transformers import AutoModelForImageClassification

from hubmodels import quickstart


@pytest.fixture
def tiny_budget(monkeypatch):
    for name, value in {"TRAIN_IMAGES": 20, "TEST_IMAGES": 20, "EPOCHS": 1, "BATCH_SIZE": 10}.items():
        monkeypatch.setattr(quickstart, name, value)


def test_tour_leaves_a_model_a_repository_and_pictures(tiny_budget, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = quickstart.main("tour", seeds=(0,))
    printed = capsys.readouterr().out
    assert "outputs agree" in printed
    assert "pre-trained" in printed and "from scratch" in printed
    assert (folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert {"README.md", "config.json", "model.safetensors", "modeling_mae.py"} <= {
        path.name for path in (folder / "repository").iterdir()
    }
    model = AutoModelForImageClassification.from_pretrained(folder / "model")
    assert model.config.id2label[0] == "T-shirt/top"
    assert [path.name for path in tmp_path.iterdir()] == ["tour"]
    assert sorted(path.name for path in folder.iterdir()) == ["model", "reconstructions.png", "repository"]


def test_existing_output_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine exists"):
        quickstart.main(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
