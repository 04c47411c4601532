"""`prepare_repository`: what a repository carries, and what is refused."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from saved_folders import snapshot, write_saved_folder

from hubmodels import catalog, repository
from hubmodels.repository import auto_map_of, code_files, prepare_repository


@pytest.fixture
def folder(tmp_path):
    return write_saved_folder(tmp_path / "saved")


def read_json(path):
    return json.loads(path.read_text())


def test_repository_is_self_contained(folder, tmp_path):
    before = snapshot(folder)
    out = prepare_repository(folder, tmp_path / "new" / "repository")
    method = catalog.get_method("mae")
    for path in code_files(method):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not (out / "__init__.py").exists()
    processors = {auto for auto in method.auto_classes if auto == "AutoImageProcessor"}
    assert set(read_json(out / "config.json")["auto_map"]) == set(method.auto_classes) - processors
    assert read_json(out / "preprocessor_config.json")["auto_map"] == {
        "AutoImageProcessor": "image_processing_mae.MAEImageProcessor"
    }
    for reference in read_json(out / "config.json")["auto_map"].values():
        assert (out / f"{reference.split('.')[0]}.py").is_file()
    assert ModelCard.load(out / "README.md").data.library_name == "transformers"
    assert snapshot(folder) == before
    assert [path.name for path in out.parent.iterdir()] == ["repository"]


@pytest.mark.parametrize("method", catalog.METHODS, ids=lambda method: method.name)
def test_code_of_every_method_is_self_contained(method):
    """transformers copies files named by single-dot imports; anything else would be missing at the stranger's."""
    files = code_files(method)
    names = {path.stem for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in names, f"{path.name}:{node.lineno}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not any(name.split(".")[0] == "hubmodels" for name in modules), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("method", catalog.METHODS, ids=lambda method: method.name)
def test_auto_map_names_the_classes_of_the_catalog(method):
    assert {auto: ref.split(".")[1] for auto, ref in auto_map_of(method).items()} == dict(method.auto_classes)


def test_places_on_this_machine_and_the_report_on_labels_stay_at_home(folder, tmp_path):
    config = read_json(folder / "config.json")
    inner = {"model_type": "vit", "_name_or_path": str(tmp_path)}
    hub = {"model_type": "vit", "_name_or_path": "google/vit-base-patch16-224"}
    (folder / "config.json").write_text(json.dumps(config | {"inner": inner, "others": [hub]}))
    for suffix in ("json", "csv", "html", "png"):
        (folder / f"noisy_labels.{suffix}").write_text("private")
    out = prepare_repository(folder, tmp_path / "out")
    published = read_json(out / "config.json")
    assert published["inner"]["_name_or_path"] == ""
    assert published["others"] == [hub]
    assert not list(out.glob("noisy_labels*"))


def test_sharded_weights_are_published_whole(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"vit.embeddings.cls_token": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    out = prepare_repository(folder, tmp_path / "out")
    assert (out / "model-00001-of-00001.safetensors").is_file()
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of-00001"):
        prepare_repository(folder, tmp_path / "out2")


def test_only_files_of_a_repository_leave_the_house(folder, tmp_path):
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", ".env", "id_rsa", "run.log", "LICENSE"):
        (folder / name).write_text("private")
    (folder / "checkpoint-5").mkdir()
    out = prepare_repository(folder, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert names & {"training_args.bin", "optimizer.pt", "trainer_state.json", ".env", "id_rsa", "run.log"} == set()
    assert {"LICENSE", "model.safetensors"} <= names and "checkpoint-5" not in names


def test_secrets_and_pictures_of_the_user_stay_at_home(folder, tmp_path):
    private = (
        "token.txt",
        "secrets.yaml",
        "credentials.json",
        "me.jpg",
        "views.png",
        "huge.safetensors",
        "LICENSE_key",
    )
    for name in (*private, "curve.png", "vocab.txt"):
        (folder / name).write_text("private")
    (folder / "README.md").write_text("# Mine\n\n![learning curve](curve.png)\n")
    out = prepare_repository(folder, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert {"curve.png", "vocab.txt"} <= names and not names & set(private)


def test_recipes_are_published_without_places_on_the_machine(folder, tmp_path):
    recipe = {
        "method": "mae",
        "data": {"source": "my photos", "file_list": "/lists/a.txt"},
        "init_from": "mae-small-32",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = prepare_repository(folder, tmp_path / "out")
    published = yaml.safe_load((out / "recipe.yaml").read_text())
    assert published == {"method": "mae", "data": {"source": None, "file_list": None}, "init_from": "mae-small-32"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"source": "me/flowers"}}))
    again = prepare_repository(folder, tmp_path / "again")
    assert yaml.safe_load((again / "recipe.yaml").read_text()) == {"data": {"source": "me/flowers"}}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pth", "extra.pkl", "last.ckpt"])
def test_pickles_are_refused(folder, tmp_path, name):
    (folder / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=f"pickled.*{name}"):
        prepare_repository(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickle_in_disguise_and_truncated_weights_are_refused(folder, tmp_path):
    weights = folder / "model.safetensors"
    for damaged in (b"\x80\x04N.", weights.read_bytes()[:-100]):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file"):
            prepare_repository(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("preprocessor_config.json", r"MAEImageProcessor\(...\).save_pretrained"),
    ],
)
def test_missing_files_are_named(folder, tmp_path, missing, says):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=says):
        prepare_repository(folder, tmp_path / "out")


def test_missing_folder_and_broken_config(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        prepare_repository(tmp_path / "nowhere", tmp_path / "out")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        prepare_repository(folder, tmp_path / "out")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        prepare_repository(folder, tmp_path / "out")


def test_model_that_nobody_could_load_is_refused(folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"model_type": "my_own", "architectures": ["Mine"]}))
    with pytest.raises(ValueError, match=r"'my_own' is neither a method of hubmodels \(mae"):
        prepare_repository(folder, tmp_path / "out")


def test_stock_architecture_is_published_without_code(folder, tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    out = prepare_repository(folder, tmp_path / "out")
    assert read_json(out / "config.json") == config
    assert not list(out.glob("*.py"))
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification" and "trust_remote_code" not in card.text


def test_existing_output_is_not_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare_repository(folder, out)
    before = snapshot(out)
    with pytest.raises(FileExistsError, match="out exists already"):
        prepare_repository(folder, out)
    assert snapshot(out) == before


def test_failure_half_way_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(repository, "_write_card", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare_repository(folder, tmp_path / "room" / "out")
    assert list((tmp_path / "room").iterdir()) == []


def test_nested_processor_configs_get_their_auto_map(folder, tmp_path):
    (folder / "preprocessor_config.json").unlink()
    nested = {"processor_class": "SomeProcessor", "image_processor": {"image_processor_type": "MAEImageProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    content = read_json(prepare_repository(folder, tmp_path / "out") / "processor_config.json")
    assert "auto_map" not in content
    assert content["image_processor"]["auto_map"] == {"AutoImageProcessor": "image_processing_mae.MAEImageProcessor"}


def test_converted_official_weights_keep_their_licence(tmp_path):
    from hubmodels.conversion import convert

    official = Path(__file__).parents[1] / "golden" / "mae" / "finetune_cls_token_cutmix" / "checkpoint.pth"
    folder = convert("mae", official, tmp_path / "converted", num_heads=4)
    out = prepare_repository(folder, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.text == ModelCard.load(folder / "README.md").text
    assert len(read_json(out / "config.json")["auto_map"]) == 5
