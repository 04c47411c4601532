"""`train`: from pictures to a loadable folder."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from stopping import assert_same_bits, stopped_at_step_5, weights
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining

import hubmodels
from hubmodels.files import PARTIAL
from hubmodels.repository import prepare_repository
from hubmodels.training import HubTrainer, OnlineProbe, Recipe, RecipeError, read_jsonl, train
from hubmodels.training import run as run_module
from hubmodels.training.assembly import (
    RepeatedStream,
    RunData,
    build_collators,
    build_model,
    evaluation_transform,
    load_data,
)
from hubmodels.training.methods import method_training
from hubmodels.training.methods.mae import MAETraining
from hubmodels.training.planning import (
    Measurement,
    choose_recipe,
    finetuning_recipe,
    make_plan,
    measure,
    readable_time,
    with_fitting_batch,
)
from hubmodels.training.run import next_command
from tests.launching import run_python

TINY = [
    "model.image_size=16",
    "model.patch_size=4",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "schedule.epochs=3",
    "schedule.batch_size=8",
    "schedule.warmup_epochs=1",
    "run.tensorboard=false",
]
TINY_PRETRAIN = [
    *TINY,
    "model.decoder_hidden_size=16",
    "model.decoder_num_hidden_layers=1",
    "model.decoder_num_attention_heads=2",
    "model.decoder_intermediate_size=32",
    "probe.every_epochs=1",
    "probe.k=3",
    "probe.linear_epochs=2",
]


@pytest.mark.parametrize(
    ("name", "section", "more"),
    [
        ("mae/small_pretrain", "model", []),
        ("positional_label/small_pretrain", "model.backbone_config", ["model.position_dropout=0.0"]),
    ],
)
@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_recipes_mask_as_the_model_samples(name, section, more, sampling):
    """Each image by its own draws, which its place in a batch, the worker and a resumed run do not change."""
    recipe = Recipe.load(name, [f"{section}.mask_sampling={sampling}", *more])
    model = build_model(recipe, [])
    items = [{"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "index": index} for index in range(4)]
    for collator in build_collators(recipe, model.config):
        batch = collator(items)
        masks = model(**batch).mask.unflatten(1, (8, 8))
        assert (masks.sum(dim=(1, 2)) == 48).all()
        assert torch.equal(collator(items[2:])["noise"], batch["noise"][2:])
        on_grid = torch.ones(8, 8)
        on_grid[::2, ::2] = 0
        assert (masks == on_grid).all() == (sampling == "grid")
        borders = (masks.diff(dim=1).abs().sum() + masks.diff(dim=2).abs().sum()) / len(masks)
        assert (borders < 32) == (sampling == "block")  # 42 on average where patches are masked independently
        before = masks
        collator.set_epoch(1)
        changes = collator.train and sampling != "grid"
        assert torch.equal(model(**collator(items)).mask.unflatten(1, (8, 8)), before) != changes


@pytest.fixture(scope="module")
def pretrained(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "pretrained"
    return train(data=pictures, output=output, recipe="small_pretrain", overrides=TINY_PRETRAIN)


def test_pretraining_ends_with_a_loadable_folder_a_sheet_and_a_log(pretrained):
    model = AutoModelForPreTraining.from_pretrained(pretrained.folder)
    assert model.config.hidden_size == 16
    processor = AutoImageProcessor.from_pretrained(pretrained.folder)
    batch = processor(Image.new("RGB", (40, 30)), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert Image.open(pretrained.folder / "reconstructions.png").size[0] > 100
    log = read_jsonl(pretrained.folder / "log.jsonl")
    assert [line["epoch"] for line in log if "knn_accuracy" in line] == [1, 2, 3]
    assert {"eval_loss", "knn_accuracy", "linear_accuracy", "train_loss"} <= pretrained.metrics.keys()
    assert not any(path.name.startswith(".") for path in pretrained.folder.iterdir())
    Recipe.load(pretrained.folder / "recipe.yaml")


def test_what_a_run_knows_of_the_data_is_not_published(pretrained, tmp_path):
    assert (pretrained.folder / "data.jsonl").is_file()
    prepare_repository(pretrained.folder, tmp_path / "repository")
    assert not list((tmp_path / "repository").glob("*.jsonl"))


def test_the_same_call_again_leaves_a_finished_run_alone(pretrained, pictures, monkeypatch):
    before = (pretrained.folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.chdir(pictures.parent)
    for data in (pictures, f"{pictures}/", f"./{pictures.name}/"):
        train(data=data, output=pretrained.folder, recipe="small_pretrain", overrides=TINY_PRETRAIN)
    assert (pretrained.folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_output_that_holds_something_else_is_refused(pretrained, pictures, tmp_path):
    arguments = {"data": pictures, "recipe": "small_pretrain"}
    with pytest.raises(FileExistsError, match=r"another recipe \(schedule.epochs: 3 there, 4 asked\)"):
        train(**arguments, output=pretrained.folder, overrides=[*TINY_PRETRAIN, "schedule.epochs=4"])
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty and holds no run"):
        train(**arguments, output=tmp_path, overrides=TINY_PRETRAIN)
    with pytest.raises(FileExistsError, match="is a file"):
        train(**arguments, output=tmp_path / "thesis.txt", overrides=TINY_PRETRAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("wrong", ["optimizer.name=adamwx", "optimizer.options.beta=1"])
def test_a_start_that_fails_leaves_the_folder_to_the_corrected_command(wrong, pictures, tmp_path):
    arguments = {"data": pictures, "output": tmp_path / "run", "recipe": "small_pretrain"}
    short = [*TINY_PRETRAIN, "schedule.epochs=1", "probe.every_epochs=0"]
    with pytest.raises(ValueError, match=r"adamwx|beta"):
        train(**arguments, overrides=[*short, wrong])
    assert (train(**arguments, overrides=short).folder / "config.json").is_file()


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_run_that_is_killed_while_its_folder_is_begun_can_be_started_again(place, pictures, tmp_path, monkeypatch):
    arguments = {"data": pictures, "output": tmp_path / "run", "recipe": "small_pretrain"}
    arguments["overrides"] = [*TINY_PRETRAIN, "schedule.epochs=1", "probe.every_epochs=0"]

    def killed(*paths):
        if place % 2:
            replace_file(*paths)
        calls.append(paths)
        if len(calls) > place // 2:
            raise KeyboardInterrupt

    calls, replace_file = [], os.replace
    with monkeypatch.context() as patch:
        patch.setattr("hubmodels.files.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(**arguments)
    leftover = tmp_path / "run" / f"{PARTIAL}x"  # which the interrupt removes, but not the end of the process
    leftover.mkdir()
    (leftover / "recipe.yaml").touch()
    assert (train(**arguments).folder / "config.json").is_file()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_that_is_killed_in_its_picture_is_not_complete(pictures, tmp_path, monkeypatch):
    arguments = {"data": pictures, "output": tmp_path / "run", "recipe": "small_pretrain"}
    arguments["overrides"] = [*TINY_PRETRAIN, "schedule.epochs=1", "probe.every_epochs=0"]

    def killed(*parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MAETraining, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            train(**arguments)
    assert not (tmp_path / "run" / "config.json").exists()
    result = train(**arguments)
    assert (result.folder / "reconstructions.png").is_file()
    assert result.metrics["eval_loss"] > 0
    assert "train_loss" not in result.metrics  # no step was left to take the mean of


@pytest.mark.parametrize("moment", ["measured", "saved"])
def test_a_run_that_is_killed_in_its_last_epoch_has_every_measurement_once(moment, pictures, tmp_path, monkeypatch):
    arguments = {"data": pictures, "output": tmp_path / "run", "recipe": "small_pretrain"}
    arguments["overrides"] = TINY_PRETRAIN
    measure, calls = OnlineProbe.measure, []

    def killed_while_measuring(probe, model):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(probe, model)

    def killed_after_saving(trainer, *parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "measured":
            patch.setattr(OnlineProbe, "measure", killed_while_measuring)
        else:
            patch.setattr(HubTrainer, "_finalize_training", killed_after_saving)
        with pytest.raises(KeyboardInterrupt):
            train(**arguments)
    result = train(**arguments)
    log = read_jsonl(result.folder / "log.jsonl")
    assert [line["step"] for line in log if "knn_accuracy" in line] == [3, 6, 9]
    assert "linear_accuracy" in result.metrics


def test_pre_training_is_evaluated_on_every_test_image(pictures, tmp_path):
    few = shutil.copytree(pictures, tmp_path / "data")
    for path in sorted((few / "test").rglob("*.png"))[1::2]:
        path.unlink()
    result = train(
        data=few,
        output=tmp_path / "run",
        recipe="small_pretrain",
        overrides=[*TINY_PRETRAIN, "schedule.epochs=1", "probe.every_epochs=0"],
    )
    assert result.metrics["eval_loss"] > 0  # of 6 images, fewer than a batch


def test_a_recipe_of_the_user_is_not_overwritten(pictures, tmp_path):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "recipe.yaml"
    own.write_text(Recipe.load("mae/small_pretrain", ["run.seed=7"]).to_yaml())
    text = own.read_text()
    with pytest.raises(FileExistsError, match="holds a run of another recipe"):
        train("mae", pictures, tmp_path / "run", recipe="mae/small_pretrain")
    assert own.read_text() == text


def test_a_run_is_not_put_among_its_images(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    for data, recipe in (("train/dark", "small_pretrain"), ("train", "small_finetune"), (pictures, "small_finetune")):
        with pytest.raises(RecipeError, match=r"outside of the training images in .*, got train/dark/run"):
            train(data=data, output="train/dark/run", recipe=recipe, overrides=TINY)
    assert not (pictures / "train" / "dark" / "run").exists()


def test_a_run_does_not_go_on_with_other_classes_or_images(pictures, tmp_path, monkeypatch):
    data = shutil.copytree(pictures, tmp_path / "data")
    arguments = {"data": data, "output": tmp_path / "run", "recipe": "small_finetune"}
    arguments["overrides"] = [*TINY, "optimizer.base_learning_rate=0.3"]
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **arguments)
    for split in ("train", "test"):
        (data / split / "light").rename(data / split / "bright")
    with pytest.raises(RecipeError, match=r"the classes were \['dark', 'light'\] and are \['bright', 'dark'\]"):
        train(**arguments)
    for split in ("train", "test"):
        (data / split / "bright").rename(data / split / "light")
    first = data / "train" / "dark" / "0.png"
    first.rename(data / "train" / "light" / "first.png")
    with pytest.raises(RecipeError, match="the names or the labels of the training images are others"):
        train(**arguments)
    (data / "train" / "light" / "first.png").unlink()
    with pytest.raises(RecipeError, match="there were 24 training images and are 23"):
        train(**arguments)


def test_a_stopped_run_continues_to_the_same_weights(pretrained, pictures, tmp_path, monkeypatch):
    arguments = {"data": pictures, "output": tmp_path / "run", "recipe": "small_pretrain", "overrides": TINY_PRETRAIN}
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **arguments)
    assert not (tmp_path / "run" / "config.json").exists()
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    result = train(**arguments)
    assert_same_bits(weights(result.folder), weights(pretrained.folder))
    steps = [line["step"] for line in read_jsonl(result.folder / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 10))


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("small_finetune", {"vit.layers.0", "vit.layers.1", "vit.embeddings", "fc_norm", "classifier"}),
        ("small_partial_finetune", {"vit.layers.1", "fc_norm", "classifier"}),
        ("small_linear_probe", {"classifier"}),
    ],
)
def test_labelled_tasks_start_from_a_run_and_train_what_they_say(pretrained, pictures, tmp_path, recipe, trained):
    extra = ["trainable_blocks=1"] if recipe == "small_partial_finetune" else []
    # The shape comes from the backbone: the recipe's own 128-wide encoder does not fit and is not asked for.
    schedule = [override for override in TINY if not override.startswith("model.")]
    head = [] if recipe == "small_linear_probe" else ["model.classifier_init_std=0.02"]
    result = train(
        recipe=recipe,
        data=pictures,
        output=tmp_path / "run",
        backbone=str(pretrained.folder),
        overrides=[*schedule, *head, *extra, "optimizer.base_learning_rate=0.3"],
    )
    assert 0 <= result.metrics["eval_accuracy"] <= 1
    model = AutoModelForImageClassification.from_pretrained(result.folder)
    assert model.config.id2label == {0: "dark", 1: "light"}
    before, after = weights(pretrained.folder), weights(result.folder)
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    changed = {name for name in changed if not name.startswith("probe_norm")}
    for name in changed:
        assert any(name.startswith(part) for part in trained), name
    for part in trained:
        assert any(name.startswith(part) for name in changed), part


@pytest.mark.parametrize(
    ("method", "size", "name"),
    [
        ("mae", 32, "mae/small_finetune"),
        ("mae", 96, "mae/photos_96_finetune"),
        ("mae", 224, "mae/photos_224_finetune"),
        ("mae", [32, 64], "mae/photos_96_finetune"),
        ("simclr", 224, "simclr/small_finetune"),
        ("simclr", None, "simclr/small_finetune"),
        ("densecl", 96, None),
    ],
)
def test_pretrained_models_are_fine_tuned_with_the_recipe_of_their_size(method, size, name):
    assert finetuning_recipe(method, size) == name


def test_the_next_command_is_quoted_for_a_shell(pictures):
    recipe = Recipe.load("small_pretrain", ["data.source=my photos"])
    unlabelled = type("Images", (), {"class_names": []})
    command = next_command(recipe, RunData(unlabelled, None, 8, ""), Path("a run"))
    assert shlex.split(command)[2:6] == ["mae/small_finetune", "--backbone", "a run", "--data"]
    assert shlex.split(command)[-1] == "a run-finetuned"
    labelled = RunData(type("Images", (), {"class_names": ["a", "b"]}), None, 8, "")
    assert shlex.split(next_command(recipe, labelled, Path("a run")))[2:5] == ["a run", "--data", "my photos"]


def test_the_home_folder_is_meant_by_its_sign(pretrained, pictures, monkeypatch):
    monkeypatch.setenv("HOME", str(pretrained.folder.parent))
    arguments = {"data": pictures, "recipe": "small_pretrain", "overrides": TINY_PRETRAIN}
    assert train(**arguments, output=f"~/{pretrained.folder.name}").folder == pretrained.folder


def test_one_call_chooses_the_recipe_and_prints_the_plan_first(pictures, tmp_path, capsys):
    """The recipe's own small model, for one short epoch."""
    result = hubmodels.train(
        "mae",
        data=pictures / "train",
        output=tmp_path / "run",
        overrides=["schedule.epochs=1", "schedule.warmup_epochs=0", "run.tensorboard=false"],
    )
    printed = capsys.readouterr().out
    plan, rest = printed.split("'loss'", 1)
    for row in ("small_pretrain", "24 images", "estimated memory", "estimated time", "random weights"):
        assert row in plan
    assert f"next: hubmodels evaluate {result.folder}" in rest
    assert Recipe.load(result.folder / "recipe.yaml").schedule.batch_size == 4


def test_recipes_chosen_for_pictures_and_machine():
    assert choose_recipe(28, has_gpu=False) == "small_pretrain"
    assert choose_recipe(96, has_gpu=True) == "photos_96_pretrain"
    assert choose_recipe(600, has_gpu=False) == "photos_96_pretrain"
    assert choose_recipe(600, has_gpu=True) == "photos_224_pretrain"
    assert with_fitting_batch(Recipe.load("photos_224_pretrain"), 100_000).schedule.batch_size == 512
    assert with_fitting_batch(Recipe.load("photos_224_pretrain"), 100).schedule.batch_size == 16


def test_the_batch_is_divided_among_processes_and_passes(monkeypatch):
    from hubmodels.training import planning

    monkeypatch.setattr(planning, "_free_memory", lambda device: 10 * 2**30)
    cost = Measurement(seconds=0.01, loading_seconds=0.001, activation_bytes=2**26, fixed_bytes=2**30)
    recipe = Recipe.load("paper_finetune_base", ["run.workers=0", "schedule.epochs=10"])
    data = RunData([], None, 10_240, "")
    plan = make_plan(recipe, data, cost, processes=2, device=torch.device("cpu"))
    assert plan.device_batch_size * plan.accumulation * plan.processes == 1024
    assert plan.device_batch_size == 32  # (6 GB / 2 - 1 GB) / 64 MB
    assert plan.seconds == pytest.approx(10 * 10_240 / 2 * 0.011)
    assert plan.memory_bytes == 2**30 + 32 * 2**26
    whole = replace(cost, uses_batch_statistics=True)
    assert make_plan(recipe, data, whole, 2, torch.device("cpu")).device_batch_size == 512
    recipe.run.device_batch_size = 100
    assert make_plan(recipe, data, whole, 2, torch.device("cpu")).device_batch_size == 64
    assert make_plan(recipe, data, cost, 2, torch.device("cpu")).device_batch_size == 64
    with pytest.raises(RecipeError, match="cannot be divided among 3 processes"):
        make_plan(recipe, data, cost, 3, torch.device("cpu"))
    with pytest.raises(RecipeError, match=r"set schedule\.batch_size to at most 500"):
        make_plan(recipe, RunData([], None, 500, ""), cost, 1, torch.device("cpu"))
    recipe.run.device_batch_size = 1
    with pytest.raises(RecipeError, match=r"device_batch_size must be at least 2 with .* got 1"):
        make_plan(recipe, data, cost, 2, torch.device("cpu"))
    recipe.schedule.batch_size = 6
    with pytest.raises(RecipeError, match="gives 3 images a process: mixup and cutmix need an even number"):
        make_plan(recipe, data, cost, 2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "start", "depends"),
    [
        ("mae/small_finetune", "mae-small-32", False),
        ("mae/small_linear_probe", "mae-small-32", True),
        ("simclr/small_finetune", "simclr-small-32", True),
        ("simclr/small_linear_probe", "simclr-small-32", False),
    ],
)
def test_batches_that_are_normalised_by_their_own_statistics_are_noticed(recipe, start, depends):
    recipe = Recipe.load(recipe)
    recipe.init_from = str(hubmodels.packaged_path(start))
    kept = set(recipe.model) - set(method_training(recipe.method).shape_keys)
    recipe.model = {key: recipe.model[key] for key in kept}
    model = build_model(recipe, ["dark", "light"])
    batch = {"pixel_values": torch.rand(4, 3, 32, 32), "labels": torch.tensor([0, 1, 0, 1])}
    cost = measure(model, lambda samples: batch, [None] * 4, torch.device("cpu"), "fp32")
    assert cost.uses_batch_statistics == depends


def test_durations_read_well():
    assert [readable_time(seconds) for seconds in (40, 720, 3.5 * 3600, 3 * 86400)] == [
        "40 s",
        "12 min",
        "3.5 h",
        "3.0 days",
    ]


def test_errors_say_what_would_fit(pictures, pretrained, tmp_path):
    with pytest.raises(RecipeError, match="give the pictures to train on"):
        train("mae", output=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"there is no data: give data\.source"):
        train(recipe="small_pretrain", output=tmp_path / "run")
    flat = pictures / "train" / "dark"
    with pytest.raises(RecipeError, match=r"needs labels, and .* has none"):
        train(recipe="small_finetune", data=flat, output=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"unknown key model.hidden \(keys here: .*hidden_size"):
        train(recipe="small_pretrain", data=flat, output=tmp_path / "run", overrides=["model.hidden=3"])
    with pytest.raises(RecipeError, match="is no plain ViT"):
        train(recipe="small_pretrain", data=flat, output=tmp_path / "run", backbone="resnet18")
    assert not (tmp_path / "run").exists()


def test_a_timm_name_gives_the_shape():
    recipe, _ = run_module._resolve_recipe(
        "mae", "pictures/", "vit_small_patch16_224", "photos_224_pretrain", ["model.num_hidden_layers=2"]
    )
    assert recipe.init_from is None
    assert recipe.model["hidden_size"] == 384
    assert recipe.model["num_attention_heads"] == 6
    assert recipe.model["num_hidden_layers"] == 2
    assert recipe.model["decoder_hidden_size"] == 256


def test_labelled_data_without_a_test_split_holds_some_out(pictures):
    recipe = Recipe.load("small_finetune", [f"data.source={pictures / 'train'}"])
    data = load_data(recipe)
    train_indices = {data.train[i]["index"] for i in range(len(data.train))}
    test_indices = {data.test[i]["index"] for i in range(len(data.test))}
    assert not train_indices & test_indices
    assert len(train_indices | test_indices) == 24
    assert data.note == "20% of the training images, held out"


def test_where_test_labels_are_withheld_the_validation_split_is_measured(tmp_path):
    picture = Image.new("RGB", (16, 16))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    splits = {"train": [0, 1] * 6, "validation": [1, 0], "test": [-1, -1]}
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"image": [picture] * len(labels), "label": labels}, features)
            for split, labels in splits.items()
        }
    ).save_to_disk(tmp_path / "data")
    given = [f"data.source={tmp_path / 'data'}"]
    data = load_data(Recipe.load("small_finetune", given))
    assert (len(data.train), data.test.labels.tolist(), data.note) == (12, [1, 0], "test split")
    with pytest.raises(RecipeError, match=r"data.test_split: 'test' of .*data has no labels"):
        load_data(Recipe.load("small_finetune", [*given, "data.test_split=test"]))


def test_the_processor_does_what_evaluation_does(pictures):
    recipe = Recipe.load("photos_96_finetune", [f"data.source={pictures}", "model.image_size=16"])
    config = type("Config", (), {"image_size": 16, "num_channels": 3})()
    evaluation = evaluation_transform(recipe, config)
    processor = method_training(recipe.method).processor(recipe, config, evaluation)
    picture = np.random.default_rng(1).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    image = torch.from_numpy(picture).permute(2, 0, 1)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(evaluation([image], None), expected, atol=0.04, rtol=0)


def test_a_stream_differs_from_pass_to_pass():
    class Stream:
        class_names = ()

        def shuffle(self, seed):
            return self

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([{"index": index, "epoch": self.epoch} for index in range(3)])

    iterator = iter(RepeatedStream(Stream(), seed=0))
    items = [next(iterator) for _ in range(7)]
    assert len({item["index"] for item in items}) == 7
    assert [item["epoch"] for item in items] == [0, 0, 0, 1, 1, 1, 2]


def test_streams_train_and_resume(pictures, tmp_path, monkeypatch):
    # `datasets` waits that many seconds at the end of a pass over a shuffled Parquet stream.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    files = sorted((pictures / "train").rglob("*.png"))
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": file.read_bytes()} for file in files]}, features)
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "train.parquet")
    streaming = [*TINY_PRETRAIN, "data.streaming=true", "data.size=24", "run.checkpoints=9"]
    arguments = {"data": tmp_path / "table", "recipe": "small_pretrain", "overrides": streaming}
    whole = train(**arguments, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **arguments, output=tmp_path / "parts")
    parts = train(**arguments, output=tmp_path / "parts")
    assert_same_bits(weights(whole.folder), weights(parts.folder))
    assert [line["step"] for line in read_jsonl(parts.folder / "log.jsonl") if "loss" in line] == list(range(1, 10))


@pytest.mark.slow
def test_the_same_recipe_file_under_accelerate_launch(pictures, tmp_path):
    one = train(data=pictures, output=tmp_path / "one", recipe="small_pretrain", overrides=TINY_PRETRAIN)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((one.folder / "recipe.yaml").read_text())
    script = tmp_path / "launch.py"
    script.write_text(f"import hubmodels; hubmodels.train(recipe={str(recipe)!r}, output={str(tmp_path / 'two')!r})\n")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_cpu_threads_per_process", 1]
    run_python(*launch, "--main_process_port", 0, script)
    expected, actual = weights(one.folder), weights(tmp_path / "two")
    for name in expected:
        if not name.endswith("k_proj.bias"):  # their true gradient is 0, Adam makes steps of its rounding noise
            torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0)
    losses = [
        [line["loss"] for line in read_jsonl(folder / "log.jsonl") if "loss" in line]
        for folder in (one.folder, tmp_path / "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["model_type"] == "mae"
