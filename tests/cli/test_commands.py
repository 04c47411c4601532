"""The command line: what it prints, what it passes on, and how it reports errors."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hubmodels import catalog
from hubmodels.cli import ERROR_EXIT_CODE, app


@pytest.fixture
def invoke():
    """Run the command line in this process and return click's result."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def replace(monkeypatch):
    """Put a recording stand-in in the place of a heavy function, and return the list of its calls."""

    def replace(module: str, function: str, result=None, error: Exception | None = None) -> list[tuple[tuple, dict]]:
        calls: list[tuple[tuple, dict]] = []

        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))
            if error is not None:
                raise error
            return result

        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: stand_in}))
        return calls

    return replace


def test_list_names_every_record(invoke):
    result = invoke("list")
    assert result.exit_code == 0
    for record in (*catalog.METHODS, *catalog.CHECKPOINTS):
        assert record.name in result.stdout


def test_list_json_is_the_catalog(invoke):
    records = json.loads(invoke("list", "--json").stdout)
    assert [method["name"] for method in records["methods"]] == [method.name for method in catalog.METHODS]
    assert [c["name"] for c in records["checkpoints"]] == [c.name for c in catalog.CHECKPOINTS]
    base = next(c for c in records["checkpoints"] if c["name"] == "mae_finetuned_vit_base")
    assert base["parameters"] == 86_567_656
    assert base["licence"] == "cc-by-nc-4.0"
    assert base["packaged"] is False
    assert base["metrics"][0]["value"] == 83.664


def test_list_takes_a_wildcard(invoke):
    records = json.loads(invoke("list", "*ganloss", "--json").stdout)
    assert records["methods"] == []
    assert [c["name"] for c in records["checkpoints"]] == ["mae_visualize_vit_large_ganloss"]


def test_info_of_a_method(invoke):
    output = invoke("info", "mae").stdout
    assert "https://arxiv.org/abs/2111.06377" in output
    assert "AutoModelForPreTraining -> MAEForPreTraining" in output
    assert "mae_pretrain_vit_huge" in output
    recipes = [path.stem for path in (Path(catalog.__file__).parent / "recipes" / "mae").glob("*.yaml")]
    assert all(recipe in output for recipe in recipes)


def test_info_of_a_checkpoint(invoke):
    output = invoke("info", "mae_finetuned_vit_large").stdout
    assert "304,326,632" in output
    assert "https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_large.pth" in output
    assert "85.952" in output
    assert "hubmodels convert mae mae_finetuned_vit_large.pth" in output


def test_info_json_of_several(invoke):
    records = json.loads(invoke("info", "mae_pretrain_vit_?ase*", "--json").stdout)
    assert [c["name"] for c in records["checkpoints"]] == ["mae_pretrain_vit_base", "mae_pretrain_vit_base_full"]


@pytest.mark.parametrize("command", ["list", "info"])
def test_unknown_name_is_one_error_line(invoke, command):
    result = invoke(command, "nothing_like_this")
    assert result.exit_code == ERROR_EXIT_CODE
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert "'nothing_like_this'" in result.stderr and "mae" in result.stderr


def test_error_line_is_red_on_a_terminal():
    result = CliRunner().invoke(app, ["info", "nothing"], color=True)
    assert result.stderr.startswith("\x1b[31merror: ")


class DeclaredElsewhereError(Exception):
    """An exception class as hubmodels' own modules declare them."""


DeclaredElsewhereError.__module__ = "hubmodels.somewhere"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mask_ratio must be in [0, 1),\n  got 2"),
        FileNotFoundError("no such file"),
        DeclaredElsewhereError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_user_errors_become_one_line(invoke, replace, error):
    replace("hubmodels.conversion", "convert", error=error)
    result = invoke("convert", "mae", "in.pth", "out")
    assert result.exit_code == ERROR_EXIT_CODE
    assert result.stderr == "error: " + " ".join(str(error).split()) + "\n"


def test_debug_lets_the_error_through(invoke, replace):
    error = ValueError("bad heads")
    replace("hubmodels.conversion", "convert", error=error)
    assert invoke("--debug", "convert", "mae", "in.pth", "out").exception is error


def test_bugs_keep_their_traceback(invoke, replace):
    error = TypeError("a bug")
    replace("hubmodels.conversion", "convert", error=error)
    assert invoke("convert", "mae", "in.pth", "out").exception is error


def test_missing_argument_is_a_usage_error(invoke):
    result = invoke("convert", "mae")
    assert result.exit_code == 2
    assert "checkpoint" in result.stderr.lower()


def test_convert_passes_its_arguments(invoke, replace):
    calls = replace("hubmodels.conversion", "convert")
    result = invoke(
        "convert", "mae", "in.pth", "out", "--num-heads", "3", "--decoder-num-heads", "2", "--no-norm-pix-loss"
    )
    assert result.exit_code == 0
    options = {"num_heads": 3, "decoder_num_heads": 2, "norm_pix_loss": False}
    assert calls == [(("mae", Path("in.pth"), Path("out")), options)]


@pytest.mark.parametrize(
    ("text", "heads"), [("4", 4), ("2,4", [2, 4]), ("2, 4", [2, 4]), ("4,", [4]), ("[2,4]", [2, 4]), ("four", "four")]
)
def test_convert_takes_heads_of_one_stage_or_of_several(text, heads, invoke, replace):
    calls = replace("hubmodels.conversion", "convert")
    assert invoke("convert", "positional_label", "in.pth", "out", "--num-heads", text).exit_code == 0
    assert calls[0][1] == {"num_heads": heads}


@pytest.mark.parametrize(("text", "size"), [("224", 224), ("8,32", [8, 32]), ("8, 32", [8, 32]), ("[8,32]", [8, 32])])
def test_convert_takes_the_size_of_images(text, size, invoke, replace):
    calls = replace("hubmodels.conversion", "convert")
    assert invoke("convert", "positional_label", "in.pth", "out", "--image-size", text).exit_code == 0
    assert calls[0][1] == {"image_size": size}


def test_convert_takes_options_of_any_method(invoke, replace):
    calls = replace("hubmodels.conversion", "convert")
    arguments = ("convert", "densecl", "in.pth", "out", "--set", "strides=[1,2,2,1]", "--set", "momentum=0.99")
    assert invoke(*arguments).exit_code == 0
    assert calls[0][1] == {"strides": [1, 2, 2, 1], "momentum": 0.99}
    assert invoke(*arguments[:4], "--set", "momentum=1e-1").exit_code == 0
    assert calls[1][1] == {"momentum": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "strides"), "error: --set takes key=value, got 'strides'\n"),
        (("--set", "strides=[1,2"), "error: the value of --set strides is not valid YAML: '[1,2'\n"),
        (("--num-heads", "4", "--set", "num_heads=4"), "error: num_heads was given twice\n"),
        (("--set", "momentum=fast"), "error: momentum must be of type float, got 'fast'\n"),
        (("--num-heads", "a,b"), "error: unknown option num_heads for densecl; it accepts: strides"),
    ],
)
def test_wrong_options_of_convert_are_one_line(arguments, message, invoke, tmp_path):
    (tmp_path / "in.pth").touch()
    result = invoke("convert", "densecl", tmp_path / "in.pth", tmp_path / "out", *arguments)
    assert result.exit_code == ERROR_EXIT_CODE
    assert result.stderr.startswith(message)


def test_unknown_options_of_a_converter_are_user_errors(invoke, tmp_path):
    file = tmp_path / "in.pth"
    file.touch()
    result = invoke("convert", "densecl", file, tmp_path / "out", "--set", "num_stages=3")
    assert result.exit_code == ERROR_EXIT_CODE
    assert "unknown option num_stages for densecl; it accepts: strides" in result.stderr


def test_export_passes_its_layout(invoke, replace):
    calls = replace("hubmodels.conversion", "to_official")
    assert invoke("export", "folder", "out.pkl", "--layout", "detectron2").exit_code == 0
    assert calls == [((Path("folder"), Path("out.pkl")), {"layout": "detectron2"})]


def test_train_tells_a_method_from_a_recipe(invoke, replace):
    calls = replace("hubmodels.training", "train")
    assert invoke("train", "mae", "--data", "photos", "--out", "run", "--yes").exit_code == 0
    assert invoke("train", "run.yaml", "--set", "optimiser.lr=1e-3", "--set", "seed=1").exit_code == 0
    method, recipe = (kwargs for _, kwargs in calls)
    assert method["method"] == "mae" and "recipe" not in method
    assert method["data"] == "photos" and method["output"] == Path("run") and method["yes"] is True
    assert recipe["recipe"] == "run.yaml" and "method" not in recipe
    assert recipe["overrides"] == ["optimiser.lr=1e-3", "seed=1"]


def test_train_passes_its_backbone(invoke, replace):
    calls = replace("hubmodels.training", "train")
    assert invoke("train", "simclr", "--data", "photos", "--backbone", "simclr-small-32").exit_code == 0
    assert calls[0][1]["backbone"] == "simclr-small-32"


def test_publish_passes_its_flags(invoke, replace):
    calls = replace("hubmodels.publishing", "publish", result="https://hub/me/model")
    result = invoke("publish", "folder", "me/model", "--private", "--update")
    assert result.stdout == "published https://hub/me/model\n"
    assert calls == [((Path("folder"), "me/model"), {"private": True, "update": True, "revision": None})]


def test_export_passes_its_arguments(invoke, replace):
    calls = replace("hubmodels.conversion", "to_official")
    assert invoke("export", "folder", "out.pth").stdout == "wrote out.pth\n"
    assert calls == [((Path("folder"), Path("out.pth")), {"layout": None})]


def test_quickstart_passes_its_seeds(invoke, monkeypatch):
    import hubmodels

    calls = []
    tour = SimpleNamespace(main=lambda **kwargs: calls.append(kwargs))
    monkeypatch.setattr(hubmodels, "quickstart", tour, raising=False)
    assert invoke("quickstart", "--output", "there", "--seed", "1", "--seed", "2").exit_code == 0
    assert invoke("quickstart").exit_code == 0
    assert calls == [{"output": Path("there"), "seeds": (1, 2)}, {"output": Path("quickstart-output")}]


@pytest.fixture
def pretrained_folder(tmp_path):
    """A tiny MAE with its decoder and processor, saved."""
    from hubmodels.modeling.mae import MAEForPreTraining, MAEImageProcessor

    from tests.modeling.tiny_mae import tiny_config

    folder = tmp_path / "model"
    model = MAEForPreTraining(tiny_config())
    model.decoder.decoder_pred.bias.data.fill_(0.1)  # a trained decoder has biases
    model.save_pretrained(folder)
    side = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    MAEImageProcessor(**side).save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):

    path = tmp_path / "picture.png"
    Image.effect_noise((40, 30), 50).save(path)
    return path


def test_evaluate_measures_frozen_features(invoke, pretrained_folder, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "test"):
        for name, colour in (("dark", 20), ("light", 230)):
            save_pictures(data / split / name, colour)
    saved = tmp_path / "outcome.json"
    arguments = ("evaluate", pretrained_folder, "--data", data, "--protocol", "knn")
    result = invoke(*arguments, "--save", saved)
    assert result.exit_code == 0, result.output
    assert "accuracy 100.00%" in result.stdout and "dark" in result.stdout
    assert json.loads(saved.read_text())["report"]["accuracy"] == 1.0
    printed = json.loads(invoke(*arguments, "--json").stdout)
    assert printed == json.loads(saved.read_text())
    assert invoke(*arguments, "--save", saved).exit_code == ERROR_EXIT_CODE


def test_evaluate_lists_the_protocols(invoke, pretrained_folder):
    result = invoke("evaluate", pretrained_folder, "--data", "x", "--protocol", "magic")
    assert result.exit_code == ERROR_EXIT_CODE
    assert result.stderr.splitlines()[-1] == "error: protocol must be one of finetuned, knn, linear, got 'magic'"


def save_pictures(folder: Path, colour: int) -> None:

    folder.mkdir(parents=True)
    for shade in range(24):
        Image.new("RGB", (16, 16), (colour - shade // 2,) * 3).save(folder / f"{shade}.png")


def test_demo_draws_a_picture(invoke, pretrained_folder, picture, tmp_path):

    output = tmp_path / "sheet.png"
    result = invoke("demo", picture, "--model", pretrained_folder, "--output", output)
    assert result.exit_code == 0, result.output
    with Image.open(output) as sheet:
        assert sheet.width > sheet.height


def test_demo_overwrites_nothing(invoke, pretrained_folder, picture):
    result = invoke("demo", picture, "--model", pretrained_folder, "--output", picture)
    assert result.exit_code == ERROR_EXIT_CODE
    assert "exists" in result.stderr


def test_demo_refuses_an_encoder_without_decoder(invoke, pretrained_folder, picture, tmp_path):
    from hubmodels.modeling.mae import MAEImageProcessor, MAEModel

    encoder = tmp_path / "encoder"
    MAEModel.from_pretrained(pretrained_folder).save_pretrained(encoder)
    MAEImageProcessor.from_pretrained(pretrained_folder).save_pretrained(encoder)
    result = invoke("demo", picture, "--model", encoder, "--output", tmp_path / "sheet.png")
    assert result.exit_code == ERROR_EXIT_CODE
    assert "the decoder of model is untrained" in result.stderr
    assert not (tmp_path / "sheet.png").exists()


def test_demo_names_an_unreadable_picture(invoke, pretrained_folder, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    result = invoke("demo", text, "--model", pretrained_folder, "--output", tmp_path / "sheet.png")
    assert result.exit_code == ERROR_EXIT_CODE
    assert "notes.png" in result.stderr


def test_demo_takes_16_bit_pictures_as_training_does(invoke, pretrained_folder, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    outputs = []
    for name, picture in (("16", Image.fromarray(ramp)), ("8", Image.fromarray((ramp >> 8).astype(np.uint8)))):
        picture.save(tmp_path / f"{name}.png")
        outputs.append(tmp_path / f"{name}_sheet.png")
        result = invoke("demo", tmp_path / f"{name}.png", "--model", pretrained_folder, "--output", outputs[-1])
        assert result.exit_code == 0, result.output
    assert np.array_equal(*(np.array(Image.open(output)) for output in outputs))


def test_an_error_of_a_loading_process_is_its_last_line(invoke, monkeypatch):
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
    )
    monkeypatch.setattr(
        catalog, "search", mock.Mock(side_effect=ValueError(f"{text}ValueError: cannot read image x.png"))
    )
    result = invoke("info", "mae*")
    assert result.exit_code == ERROR_EXIT_CODE
    assert result.stderr.strip() == "error: ValueError: cannot read image x.png"


def test_demo_sends_to_the_official_file(invoke, picture, tmp_path):
    result = invoke("demo", picture, "--model", "mae_visualize_vit_base", "--output", tmp_path / "sheet.png")
    assert result.exit_code == ERROR_EXIT_CODE
    assert "hubmodels convert mae mae_visualize_vit_base.pth" in result.stderr


def test_module_runs_as_a_script():
    """`accelerate launch -m hubmodels.cli train RECIPE` runs the module like this."""
    command = [sys.executable, "-m", "hubmodels.cli", "list", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(result.stdout)["methods"][0]["name"] == "mae"
