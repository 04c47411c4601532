"""Outputs are complete or absent."""

import pytest
from hubmodels.conversion.output import new_file, new_folder


def test_folder_appears_only_when_complete(tmp_path):
    out = tmp_path / "parent" / "out"
    with new_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_failure_half_way_leaves_nothing(tmp_path, interruption):
    with pytest.raises(interruption), new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        raise interruption
    with pytest.raises(interruption), new_file(tmp_path / "out.pth") as file:
        file.write_text("a")
        raise interruption
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    full, empty, single = tmp_path / "full", tmp_path / "empty", tmp_path / "single"
    for folder in (full, empty):
        folder.mkdir()
    for file in (full / "mine.txt", single):
        file.write_text("mine")
    for out, context in ((full, new_folder), (single, new_folder), (single, new_file), (full, new_file)):
        with pytest.raises(FileExistsError, match="already exists"), context(out):
            pass
    assert (full / "mine.txt").read_text() == single.read_text() == "mine"
    with new_folder(empty) as folder:
        (folder / "a.txt").write_text("a")
    assert (empty / "a.txt").exists()


def test_what_appears_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileExistsError), new_folder(out):
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    assert (out / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
