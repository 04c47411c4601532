import pytest

from tests.golden.harness import load_case


@pytest.fixture
def load_mae(tmp_path):
    """Converts the official checkpoint of a case of MAE and loads it with `from_pretrained`."""

    def load(name, model_class, **overrides):
        case = load_case("mae", name)
        official = case.manifest["official"]
        fields = ("num_heads", "decoder_num_heads", "norm_pix_loss")
        folder = case.convert(tmp_path / name, **{field: official[field] for field in fields if field in official})
        return case, model_class.from_pretrained(folder, **overrides)

    return load
