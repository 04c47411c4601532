"""The catalog agrees with the code and the weights it describes."""

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest
import safetensors
import torch

from hubmodels import catalog

ROOT = Path(__file__).resolve().parent.parent
OFFICIAL_MAE = [c for c in catalog.CHECKPOINTS if c.method == "mae" and not c.is_packaged]
OFFICIAL_DENSECL = [c for c in catalog.CHECKPOINTS if c.method == "densecl" and not c.is_packaged]
PACKAGED = [c for c in catalog.CHECKPOINTS if c.is_packaged]


def test_names_are_unique():
    names = [record.name for record in (*catalog.METHODS, *catalog.CHECKPOINTS)]
    assert len(names) == len(set(names))


def test_records_refer_to_records():
    for checkpoint in catalog.CHECKPOINTS:
        method = catalog.get_method(checkpoint.method)
        assert checkpoint.task in method.tasks
        assert checkpoint.base_model is None or catalog.get_checkpoint(checkpoint.base_model)


def test_methods_are_the_folders_of_modeling():
    folders = sorted(path.parent.name for path in (ROOT / "modeling").glob("*/__init__.py"))
    assert sorted(method.name for method in catalog.METHODS) == folders


@pytest.mark.parametrize("method", catalog.METHODS, ids=lambda method: method.name)
def test_auto_classes_exist(method):
    defined = {
        node.name
        for path in (ROOT / "modeling" / method.name).glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert set(method.auto_classes.values()) <= defined


def test_the_thirteen_official_mae_files_are_listed():
    assert len(OFFICIAL_MAE) == 13
    assert len({checkpoint.source for checkpoint in OFFICIAL_MAE}) == 13
    for checkpoint in OFFICIAL_MAE:
        assert checkpoint.source.startswith("https://dl.fbaipublicfiles.com/mae/")
        assert checkpoint.source.endswith(f"/{checkpoint.name}.pth")
        assert checkpoint.licence == "cc-by-nc-4.0"


@pytest.mark.parametrize("checkpoint", OFFICIAL_MAE, ids=lambda checkpoint: checkpoint.name)
def test_parameter_counts_of_the_official_files(checkpoint):
    """Built without memory on the meta device, from the published sizes (width, depth, heads, patch)."""
    mae = importlib.import_module("hubmodels.modeling.mae")
    sizes = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}
    width, depth, heads, patch = next(size for name, size in sizes.items() if f"_vit_{name}" in checkpoint.name)
    config = mae.MAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        num_labels=1000,
    )
    if checkpoint.task == "image-classification":
        model_class = mae.MAEForImageClassification
    elif "_pretrain_" in checkpoint.name and not checkpoint.name.endswith("_full"):
        model_class = mae.MAEModel
    else:
        model_class = mae.MAEForPreTraining
    with torch.device("meta"):
        model = model_class(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == checkpoint.parameters


@pytest.mark.parametrize("checkpoint", OFFICIAL_DENSECL, ids=lambda checkpoint: checkpoint.name)
def test_the_official_densecl_files_are_backbones_of_their_size(checkpoint):
    """The number of values of a ResNet-50 or ResNet-101, with the statistics of its normalisation."""
    densecl = importlib.import_module("hubmodels.modeling.densecl")
    depths = {"r50": [3, 4, 6, 3], "r101": [3, 4, 23, 3]}[checkpoint.name.split("_")[1]]
    with torch.device("meta"):
        model = densecl.DenseCLBackbone(densecl.DenseCLConfig(depths=depths))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == checkpoint.parameters
    assert checkpoint.source.endswith(f"/xinlongwang/DenseCL/resolve/main/{checkpoint.name}.pth")


def test_the_four_official_densecl_files_are_listed():
    assert len(OFFICIAL_DENSECL) == 4


@pytest.mark.parametrize("checkpoint", PACKAGED, ids=lambda checkpoint: checkpoint.name)
def test_packaged_weights_match_their_record(checkpoint):
    folder = catalog.packaged_path(checkpoint.name)
    assert (folder / "config.json").is_file()
    assert (folder / "README.md").is_file()
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    count = 0
    for shape in shapes:
        values = 1
        for length in shape:
            values *= length
        count += values
    assert count == checkpoint.parameters


def test_packaged_figures_name_the_command_that_made_them():
    for checkpoint in catalog.CHECKPOINTS:
        for metric in checkpoint.metrics:
            assert metric.source != "measured" or metric.command.startswith(("hubmodels ", "make ", "python "))


def test_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalog.METHODS[0].name = "other"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown method 'mea'; known methods: mae"):
        catalog.get_method("mea")
    with pytest.raises(ValueError, match=r"unknown checkpoint 'mae_vit_base'; did you mean: .*_vit_base"):
        catalog.get_checkpoint("mae_vit_base")


def test_search_matches_whole_names():
    methods, checkpoints = catalog.search("mae")
    assert [method.name for method in methods] == ["mae"]
    assert checkpoints == ()
    assert len(catalog.search("*_huge*")[1]) == 4


def test_official_files_have_no_packaged_path():
    with pytest.raises(ValueError, match=r"does not ship with the package; download https://.*hubmodels convert mae"):
        catalog.packaged_path("mae_pretrain_vit_base")


def test_missing_packaged_folder_is_named(monkeypatch, tmp_path):
    record = dataclasses.replace(catalog.CHECKPOINTS[0], name="shipped", source="shipped")
    monkeypatch.setattr(catalog, "CHECKPOINTS", (record,))
    monkeypatch.setattr(catalog, "CHECKPOINT_ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="shipped"):
        catalog.packaged_path("shipped")
    (tmp_path / "shipped").mkdir()
    assert catalog.packaged_path("shipped") == tmp_path / "shipped"


@pytest.mark.parametrize("name", ["./run", "~/no/run", "/no/run", "run/", "runs/mae/last", Path("run")])
def test_missing_model_folder_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"no model folder '{name}'"):
        catalog.model_source(name)


def test_misspelt_packaged_name_suggests_the_right_one():
    with pytest.raises(FileNotFoundError, match="did you mean mae-small-32"):
        catalog.model_source("mae-smal-32")


def test_model_file_points_to_its_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(FileNotFoundError, match="is a file; a model is given as its folder"):
        catalog.model_source(file)


def test_model_folder_and_repository_are_what_from_pretrained_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert catalog.model_source("~/run") == str(tmp_path / "run")
    assert catalog.model_source("facebook/dinov2-small") == "facebook/dinov2-small"
    assert catalog.model_source("gpt2") == "gpt2"
