"""Writing files completely or not at all, and evaluation mode for a while."""

import pytest
import torch

from hubmodels.evaluation_mode import evaluation_mode
from hubmodels.files import printable, replacing, write_text


def test_a_file_is_complete_or_as_it_was(tmp_path):
    path = write_text(tmp_path / "new" / "notes.txt", "first é")
    assert path.read_text(encoding="utf-8") == "first é"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "caf\udce9")
    with pytest.raises(KeyboardInterrupt), replacing(path) as written:
        written.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "first é"
    assert [entry.name for entry in path.parent.iterdir()] == ["notes.txt"]


def test_names_of_other_bytes_become_printable():
    assert printable("é [b] 犬 \\") == "é [b] 犬 \\"
    assert printable("caf\udce9.png").encode("utf-8") == rb"caf\udce9.png"


@pytest.mark.parametrize("fails", [False, True])
def test_every_part_gets_its_mode_back(fails):
    models = [torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)) for _ in range(2)]
    models[0][0].eval()
    models[1].eval()
    try:
        with evaluation_mode(*models):
            assert not any(part.training for model in models for part in model.modules())
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert [[part.training for part in model.modules()] for model in models] == [[True, False, True], [False] * 3]
