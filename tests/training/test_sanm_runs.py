"""`train` with SANM: two networks from labelled folders to an ensemble and a report, resumable; the light mode."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
)
from PIL import Image
from safetensors.torch import save_file
from stopping import assert_same_bits, stopped_at_step_5, weights
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from hubmodels import packaged_path
from hubmodels.data import load_image_dataset, save_noisy_labels
from hubmodels.evaluation import NoisyLabelReport
from hubmodels.training import Recipe, RecipeError, read_jsonl, sanm_trainer, train
from hubmodels.training import run as run_module
from hubmodels.training.assembly import build_collators, load_data
from hubmodels.training.methods import method_training
from hubmodels.training.methods.sanm import preset_lambda_u

COMMON = [
    "model.widths=[2,4]",
    "model.depths=[1,1]",
    "model.image_size=18",
    "schedule.batch_size=4",
    "data.noise_mode=sym",
    "data.noise_rate=0.5",
    "run.tensorboard=false",
    "run.workers=0",
]
CO = [
    *COMMON,
    "schedule.epochs=4",
    "noisy_labels.warm_up_epochs=1",
    "noisy_labels.min_labelled=4",
    "noisy_labels.decay_epochs=[3]",
    "noisy_labels.report_images=5",
]
LIGHT = [*COMMON, "schedule.epochs=3", "schedule.batch_size=8", "noisy_labels.warm_up_epochs=1"]
RECIPES = {"small_cotrain": CO, "small_light": LIGHT}


def arguments(recipe, pictures, output, *more):
    return {"method": "sanm", "data": pictures, "output": output, "recipe": f"sanm/{recipe}"} | {
        "overrides": [*RECIPES[recipe], *more]
    }


@pytest.fixture(scope="module", params=sorted(RECIPES))
def finished(request, pictures, tmp_path_factory):
    """Name of the recipe and a finished run."""
    return request.param, train(**arguments(request.param, pictures, tmp_path_factory.mktemp("sanm") / "run"))


def test_a_run_ends_with_a_loadable_classifier_and_a_report(finished, pictures):
    recipe, run = finished
    model = AutoModelForImageClassification.from_pretrained(run.folder)
    kinds = {"small_cotrain": SANMEnsembleForImageClassification, "small_light": SANMForImageClassification}
    assert type(model) is kinds[recipe]
    assert model.config.id2label == {0: "dark", 1: "light"}
    processor = AutoImageProcessor.from_pretrained(run.folder)
    assert processor(load_image_dataset(pictures, "test")[0]["image"]).pixel_values[0].shape == (3, 18, 18)
    found = pipeline("image-classification", model=str(run.folder))(Image.new("RGB", (40, 30)))
    assert {entry["label"] for entry in found} == {"dark", "light"}
    report = json.loads((run.folder / "noisy_labels.json").read_text())
    assert report["images"] == 24
    assert Image.open(run.folder / "masks.png").size[0] > 300
    assert all((run.folder / f"noisy_labels.{suffix}").is_file() for suffix in ("html", "png", "csv"))
    accuracies = [line for line in read_jsonl(run.folder / "log.jsonl") if "eval_accuracy" in line]
    assert len(accuracies) >= 3


def test_the_log_tells_of_the_split(finished):
    recipe, run = finished
    log = read_jsonl(run.folder / "log.jsonl")
    suffix = "_net2" if recipe == "small_cotrain" else ""
    shares = [line[f"labelled_share{suffix}"] for line in log if f"labelled_share{suffix}" in line]
    assert len(shares) == (3 if recipe == "small_cotrain" else 2)
    assert all(0 < share <= 1 for share in shares)
    assert any(f"quality_auc{suffix}" in line for line in log)
    if recipe == "small_cotrain":
        assert any(
            {"labelled_loss", "unlabelled_loss", "penalty", "reconstruction_loss"} <= line.keys() for line in log
        )


def test_a_stopped_run_continues_to_the_same_weights(finished, pictures, tmp_path, monkeypatch):
    """Networks, momenta, loss histories, splits and random numbers."""
    recipe, run = finished
    given = arguments(recipe, pictures, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **given)
    result = train(**given)
    assert_same_bits(weights(result.folder), weights(run.folder))
    assert (result.folder / "noisy_labels.csv").read_text() == (run.folder / "noisy_labels.csv").read_text()


def stopped_after_epoch(epoch, monkeypatch, **given):
    class Stop(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch == epoch:
                raise KeyboardInterrupt

    make_callbacks = run_module._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_callbacks", lambda *parts: [*make_callbacks(*parts), Stop()])
        train(**given)


def test_a_run_with_a_loss_history_that_stopped_in_co_training_continues_to_the_same_weights(
    pictures, tmp_path, monkeypatch
):
    """At 90 % noise the losses of past epochs count."""
    more = ("data.noise_rate=0.9", "noisy_labels.report_images=0", "noisy_labels.lambda_u=3.0")
    whole = train(**arguments("small_cotrain", pictures, tmp_path / "whole", *more))
    given = arguments("small_cotrain", pictures, tmp_path / "stopped", *more)
    with pytest.raises(KeyboardInterrupt):
        stopped_after_epoch(3, monkeypatch, **given)
    assert_same_bits(weights(train(**given).folder), weights(whole.folder))


def test_the_ramp_counts_iterations_as_the_official_code(pictures, tmp_path, monkeypatch):
    """`labelled // batch + 1` in an epoch, also where the batches come out even."""
    seen = []
    loss = sanm_trainer.co_training_loss

    def recorded(network, peer, labelled, unlabelled, masking, settings, moment, randomness):
        seen.append(moment)
        return loss(network, peer, labelled, unlabelled, masking, settings, moment, randomness)

    monkeypatch.setattr(sanm_trainer, "co_training_loss", recorded)
    monkeypatch.setattr(sanm_trainer, "labelled_mask", lambda *parts: np.arange(24) < 12)
    more = ("schedule.epochs=2", "noisy_labels.report_images=0")
    train(**arguments("small_cotrain", pictures, tmp_path / "run", *more))
    assert seen == pytest.approx(2 * [1, 1.25, 1.5])


@pytest.mark.parametrize(
    ("classes", "kind", "rate", "weight"),
    [
        *[(10, "sym", 0.2, 0), (10, "sym", 0.5, 25), (10, "sym", 0.8, 25), (10, "sym", 0.9, 50), (10, "asym", 0.4, 0)],
        *[(100, "sym", 0.2, 25), (100, "sym", 0.5, 150), (100, "sym", 0.9, 150), (100, "asym", 0.4, 150)],
        (10, "sym", None, 25),
    ],
)
def test_published_weights_of_the_unlabelled_loss(classes, kind, rate, weight):
    assert preset_lambda_u(classes, kind, rate) == weight


def test_the_recipe_that_fits_is_chosen(pictures):
    recipe, title = run_module._resolve_recipe("sanm", pictures, None, None, [])
    assert title == "small_cotrain"
    assert recipe.schedule.batch_size <= 6
    # 24 images train for as long as is allowed, and the rate falls after 7 of 10 parts of co-training.
    assert recipe.noisy_labels.warm_up_epochs == 60
    assert recipe.schedule.epochs == 120
    assert recipe.noisy_labels.decay_epochs == [60 + 42]
    usual = Recipe.load("sanm/small_cotrain")
    some = Recipe.load("sanm/small_cotrain")
    method_training("sanm").fit_to(some, 2_000)  # 16 steps of warm-up an epoch, 31 of co-training
    assert (some.noisy_labels.warm_up_epochs, some.schedule.epochs) == (38, 38 + 38)
    many = Recipe.load("sanm/small_cotrain")
    method_training("sanm").fit_to(many, 50_000)
    assert many == usual


@pytest.mark.parametrize("name", ["paper_cifar10", "paper_cifar100", "paper_clothing1m", "photos_96_cotrain"])
def test_recipes_describe_models(name):
    recipe = Recipe.load(f"sanm/{name}")
    config = SANMConfig(**recipe.model)
    sizes = {"paper_cifar10": (512, "resnet18"), "paper_cifar100": (512, "resnet18")}
    sizes |= {"paper_clothing1m": (2048, "resnet50"), "photos_96_cotrain": (256, "auto")}
    assert (config.hidden_sizes[-1], config.decoder_type) == sizes[name]


def test_the_procedure_of_the_clothing1m_script_runs(pictures, tmp_path):
    """Crops and flips only, four mixed views, separate areas, a bottleneck network with pooling."""
    more = ["model.layer_type=bottleneck", "model.pool=true", "model.image_size=32", "model.separate_areas=true"]
    more += ["noisy_labels.mixing=weak", "noisy_labels.kind=asym", "model.framework=c2d", "schedule.epochs=2"]
    run = train(**arguments("small_cotrain", pictures, tmp_path / "run", *more, "noisy_labels.report_images=0"))
    losses = [line for line in read_jsonl(run.folder / "log.jsonl") if "unlabelled_loss" in line]
    assert losses and all(line["unlabelled_loss"] == 0 for line in losses)


def test_grey_images_stay_grey(tmp_path):
    more = [
        "model.num_channels=1",
        "model.image_size=28",
        "transform.mean=[0.3]",
        "transform.std=[0.3]",
        "data.size=30",
    ]
    overrides = [*LIGHT, *more, "schedule.epochs=1", "noisy_labels.evaluate_every=9"]
    run = train("sanm", "fashion-mnist-small", tmp_path / "run", recipe="sanm/small_light", overrides=overrides)
    report = NoisyLabelReport.from_model(run.folder, load_image_dataset("fashion-mnist-small", "test").subset(20))
    assert len(report) == 20


def test_the_light_mode_logs_the_split_at_the_threshold_of_the_recipe(pictures, tmp_path):
    run = train(**arguments("small_light", pictures, tmp_path / "run", "noisy_labels.p_threshold=1.0e-25"))
    last = max(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    states = torch.load(last / "callbacks.pt", weights_only=True)
    trusted = next(state["clean_prob"] for state in states if "clean_prob" in state)
    share = [line["labelled_share"] for line in read_jsonl(run.folder / "log.jsonl") if "labelled_share" in line][-1]
    assert share == pytest.approx((trusted > 1e-25).double().mean().item())
    assert share != (trusted > 0.5).double().mean().item()


def test_networks_start_from_one_encoder_with_heads_of_their_own(pictures, tmp_path):
    encoder = SANMForImageClassification(SANMConfig(widths=[2, 4], depths=[1, 1], image_size=18, layer_type="basic"))
    encoder.save_pretrained(tmp_path / "encoder")
    given = arguments(
        "small_cotrain", pictures, tmp_path / "run", "schedule.epochs=1", "optimizer.base_learning_rate=1.0e-12"
    )
    given["overrides"] = [override for override in given["overrides"] if not override.startswith("model")]
    run = train(**given, backbone=str(tmp_path / "encoder"))
    model = SANMEnsembleForImageClassification.from_pretrained(run.folder)
    for network in (model.net1, model.net2):
        torch.testing.assert_close(network.backbone.conv1.weight, encoder.backbone.conv1.weight)
    assert not torch.equal(model.net1.classifier.weight, model.net2.classifier.weight)


STARTS = ["simclr-small-32", "mae-small-32", "densecl-small-64", "positional-label-small-32"]


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("recipe", ["small_cotrain", "small_light"])
def test_networks_start_from_the_encoders_of_other_methods(name, recipe, pictures, tmp_path):
    frozen = ("optimizer.base_learning_rate=1.0e-12", "schedule.epochs=1", "schedule.warmup_epochs=0")
    given = arguments(recipe, pictures, tmp_path / "run", *frozen)
    given["overrides"] = [override for override in given["overrides"] if not override.startswith("model")]
    run = train(**given, backbone=name)
    model = AutoModelForImageClassification.from_pretrained(run.folder)
    for network in (model.net1, model.net2) if recipe == "small_cotrain" else (model,):
        backbone = network.backbone
        if name.startswith("positional"):  # a vision transformer, whose tokens are made a map
            backbone = backbone.model
            encoder = AutoModel.from_pretrained(packaged_path(name)).backbone
        else:
            encoder = type(backbone).from_pretrained(packaged_path(name))
            assert encoder.config.model_type == name.partition("-")[0]
        for key, value in encoder.named_parameters():
            torch.testing.assert_close(backbone.get_parameter(key), value, msg=key)


def test_pictures_are_normalised_as_those_of_the_encoder():
    resolve = run_module._resolve_recipe
    start = str(packaged_path("simclr-small-32"))
    transform = resolve("sanm", "photos", start, "sanm/small_cotrain", [])[0].transform
    assert (transform.mean, transform.std) == ([0.0] * 3, [1.0] * 3)
    own = ["transform.mean=[0.5,0.5,0.5]"]
    assert resolve("sanm", "photos", start, "sanm/small_cotrain", own)[0].transform.mean == [0.5] * 3
    mae = resolve("mae", "photos", str(packaged_path("mae-small-32")), "mae/small_finetune", [])[0]
    assert mae.transform.mean is None  # ImageNet's, as the recipe has them


def test_files_without_an_encoder_are_refused(pictures, tmp_path):
    ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).save_pretrained(
        tmp_path / "other"
    )
    weights_file = tmp_path / "other" / "model.safetensors"
    save_file({"classifier.1.bias": torch.zeros(2)}, weights_file, metadata={"format": "pt"})
    given = arguments("small_cotrain", pictures, tmp_path / "run")
    given["overrides"] = [override for override in given["overrides"] if not override.startswith("model")]
    with pytest.raises(RecipeError, match="holds no encoder that fits"):
        train(**given, backbone=str(tmp_path / "other"))


def test_a_timm_network_becomes_the_backbone(pictures, tmp_path):
    more = ("schedule.epochs=2", "model.image_size=32", "noisy_labels.report_images=0", "schedule.batch_size=8")
    given = arguments("small_cotrain", pictures, tmp_path / "run", *more, "noisy_labels.min_labelled=8")
    run = train(**given, backbone="resnet10t")
    assert AutoModelForImageClassification.from_pretrained(run.folder).net2.backbone.config.backbone == "resnet10t"


def test_a_noisy_column_is_trained_on_and_the_true_one_measured(tmp_path):
    generator = np.random.default_rng(0)
    table = {
        "image": [Image.fromarray(generator.integers(0, 256, (18, 18, 3), dtype=np.uint8)) for _ in range(16)],
        "label": [0, 1] * 8,
        "human": [1, 1] * 8,
    }
    Dataset.from_dict(table).save_to_disk(tmp_path / "data")
    overrides = [o for o in LIGHT if not o.startswith("data.noise")] + ["data.noisy_label_column=human"]
    run = train("sanm", tmp_path / "data", tmp_path / "run", recipe="sanm/small_light", overrides=overrides)
    # A fifth is held out for measuring, with its true labels; of the rest half of the labels are wrong.
    report = json.loads((run.folder / "noisy_labels.json").read_text())
    assert {entry["given"] for entry in report["labels"]} == {"1"}


def noisy_column(classes, noisy):
    """A recipe on a table with true labels and other ones."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (18, 18, 3), dtype=np.uint8)) for _ in classes]
    return Dataset.from_dict({"image": images, "label": classes, "human": noisy})


def load_with_noisy_column(data, folder, *more):
    data.save_to_disk(folder)
    overrides = [o for o in LIGHT if not o.startswith("data.noise")] + ["data.noisy_label_column=human", *more]
    return load_data(Recipe.load("sanm/small_light", overrides=[*overrides, f"data.source={folder}"]))


def test_names_of_a_noisy_column_are_those_of_the_true_one(tmp_path):
    """The column has fewer classes than there are, so that its own numbers would be others."""
    data = load_with_noisy_column(
        noisy_column(["bird", "cat", "dog", "cat"] * 5, ["cat", "cat", "dog", "dog"] * 5), tmp_path
    )
    train, names = data.train, ["bird", "cat", "dog"]
    assert train.class_names == names
    expected = [["cat", "cat", "dog", "dog"][index % 4] for index in train.indices]
    assert [names[label] for label in train.labels] == expected
    with pytest.raises(ValueError, match="classes of the data that the column 'label' does not know: emu"):
        load_with_noisy_column(noisy_column(["bird", "cat"] * 5, ["cat", "emu"] * 5), tmp_path / "emu")
    with pytest.raises(RecipeError, match=r"noisy_label_column: .* has no such labels: 5 of the 10 labels"):
        load_with_noisy_column(noisy_column(["bird", "cat"] * 5, ["cat", None] * 5), tmp_path / "none")


def test_a_noisy_column_beside_class_folders_is_joined_by_file(pictures, tmp_path):
    folder = tmp_path / "pictures"
    lines = []
    for name in ("b", "a"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (18, 18), (number, 0, 0)).save(folder / name / f"{number}.png")
            lines.append(f"{name}/{number}.png,{'a' if number == 2 else name}")
    (folder / "metadata.csv").write_text("\n".join(["file_name,human", *lines]))
    overrides = [o for o in LIGHT if not o.startswith("data.noise")] + ["data.noisy_label_column=human"]
    recipe = Recipe.load("sanm/small_light", overrides=[*overrides, f"data.source={folder}", "data.test_split=null"])
    data = load_data(recipe)
    whole = data.train.together_with(data.test)
    assert whole.clean_labels.tolist() == [0, 0, 0, 1, 1, 1] and whole.labels.tolist() == [0, 0, 0, 1, 1, 0]


def test_held_out_images_are_measured_by_their_true_labels(tmp_path):
    overrides = [o for o in LIGHT if "noise_rate" not in o] + ["data.noise_rate=1.0"]
    noisy_column([0, 1] * 20, [0, 1] * 20).remove_columns("human").save_to_disk(tmp_path)
    data = load_data(Recipe.load("sanm/small_light", overrides=[*overrides, f"data.source={tmp_path}"]))
    assert data.test.labels.tolist() == [index % 2 for index in data.test.indices]
    assert (data.train.labels != data.train.clean_labels).any()


def test_classes_with_one_image_are_trained(tmp_path):
    noisy_column([0, 1] * 5 + [2], [0] * 11).remove_columns("human").save_to_disk(tmp_path)
    overrides = [o for o in LIGHT if not o.startswith("data.noise")]
    data = load_data(Recipe.load("sanm/small_light", overrides=[*overrides, f"data.source={tmp_path}"]))
    assert 2 in data.train.labels and 2 not in data.test.labels
    assert len(data.train) + len(data.test) == 11


def test_the_report_tells_of_all_images_also_held_out_ones(pictures, tmp_path, capsys):
    run = train(**arguments("small_light", pictures / "train", tmp_path / "run"))
    rows = (run.folder / "noisy_labels.csv").read_text().splitlines()[1:]
    assert len(rows) == len(load_image_dataset(pictures / "train"))
    assert "(of them 5 held out of training)" in capsys.readouterr().out


def test_recipes_with_noise_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="for images that are not streamed"):
        Recipe.load("sanm/small_light", [*LIGHT, "data.streaming=true", "data.size=8"])
    with pytest.raises(RecipeError, match=r"only one of data.noisy_label_column, .* \['noise_file', 'noise_mode'\]"):
        Recipe.load("sanm/small_light", [*LIGHT, "data.noise_file=x.json"])
    with pytest.raises(RecipeError, match=r"data.noise_rate in \(0, 1\], got 1.5"):
        Recipe.load("sanm/small_light", [*LIGHT, "data.noise_rate=1.5"])


@pytest.mark.parametrize(
    "noise",
    [
        ["noise_mode=instance", "noise_rate=0.4"],
        ["noise_mode=sym", "noise_rate=1.0", "noise_options={sym_exclusive: true}"],
        ["noise_mode=transition", "noise_options={transition: [[0.5, 0.5], [0.0, 1.0]]}"],
        ["noise_mode=asym", "noise_rate=0.5", "noise_options={class_map: {0: 1}}"],
    ],
)
def test_recipes_inject_every_kind_of_noise(noise, pictures):
    overrides = [*(o for o in LIGHT if not o.startswith("data.noise")), *(f"data.{o}" for o in noise)]
    recipe = Recipe.load("sanm/small_light", [*overrides, f"data.source={pictures}"])
    train_data = load_data(recipe).train
    assert (train_data.labels != train_data.clean_labels).any()
    again = load_data(Recipe.from_dict(recipe.to_dict())).train
    assert torch.equal(torch.as_tensor(again.labels), torch.as_tensor(train_data.labels))


@pytest.mark.parametrize("recipe", ["small_cotrain", "small_light"])
def test_streams_are_refused(recipe):
    streaming = ["data.streaming=true", "data.size=32"]
    with pytest.raises(RecipeError, match="needs data that is read by index"):
        build_collators(Recipe.load(f"sanm/{recipe}", streaming), SANMConfig(image_size=32))


def test_unknown_options_of_the_noise_are_refused():
    with pytest.raises(RecipeError, match=r"noise_options must be of \('sym_exclusive', .*, got \['exclusive'\]"):
        Recipe.load("sanm/small_light", [*LIGHT, "data.noise_options={exclusive: true}"])
    with pytest.raises(RecipeError, match=r"noisy_labels.rate must be in \[0, 1\], got 2"):
        Recipe.load("sanm/small_light", [*LIGHT, "noisy_labels.rate=2.0"])


def test_the_last_epoch_is_measured_and_saved(pictures, tmp_path):
    run = train(**arguments("small_cotrain", pictures, tmp_path / "run"))
    log = read_jsonl(run.folder / "log.jsonl")
    assert [entry["epoch"] for entry in log if "eval_accuracy" in entry] == [1, 2, 3, 4]
    last = max(int(path.name.split("-")[1]) for path in run.folder.glob("checkpoint-*"))
    assert json.loads((run.folder / f"checkpoint-{last}" / "trainer_state.json").read_text())["epoch"] == 4


def test_a_callback_can_stop_inside_of_an_epoch(pictures, tmp_path, monkeypatch):
    """The last checkpoint stays that of the epoch before."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    original = sanm_trainer.SANMTrainer.__init__

    def with_stop(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, Stop()], **kwargs)
        built.append(self)

    built = []
    monkeypatch.setattr(sanm_trainer.SANMTrainer, "__init__", with_stop)
    train(**arguments("small_cotrain", pictures, tmp_path / "run"))
    assert built[0].state.global_step == 5
    checkpoints = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert "checkpoint-5" not in checkpoints


def test_labels_of_a_file_are_trained_on(pictures, tmp_path):
    save_noisy_labels([1] * 24, tmp_path / "noise.json")
    overrides = [o for o in LIGHT if not o.startswith("data.noise")] + [f"data.noise_file={tmp_path}/noise.json"]
    run = train("sanm", pictures, tmp_path / "run", recipe="sanm/small_light", overrides=overrides)
    report = json.loads((run.folder / "noisy_labels.json").read_text())
    assert {entry["given"] for entry in report["labels"]} == {"light"}


def test_labels_of_the_cifar_n_file_are_trained_on(pictures, tmp_path):
    clean = load_image_dataset(pictures, "train").labels.numpy()
    torch.save({"clean_label": clean, "worse_label": 1 - clean}, tmp_path / "CIFAR-10_human.pt")
    plain = [o for o in LIGHT if not o.startswith("data.noise")] + [f"data.noise_file={tmp_path}/CIFAR-10_human.pt"]
    plain.append(f"data.source={pictures}")
    recipe = Recipe.load("sanm/small_light", [*plain, "data.noise_options={name: worse_label}"])
    assert torch.equal(torch.as_tensor(load_data(recipe).train.labels), torch.from_numpy(1 - clean))
    with pytest.raises(RecipeError, match=r"needs data\.noise_options\.name, such as worse_label"):
        load_data(Recipe.load("sanm/small_light", plain))


def test_the_light_mode_is_a_plain_trainer_run(tmp_path):
    """`clean_prob` is a column; nothing of ours but the model and its processor."""
    generator = np.random.default_rng(0)
    labels = [0, 1] * 8
    processor = SANMImageProcessor(size={"height": 16, "width": 16})
    images = [Image.fromarray(generator.integers(0, 120, (16, 16, 3), dtype=np.uint8) + 120 * y) for y in labels]
    rows = [
        {"pixel_values": processor(image, return_tensors="pt").pixel_values[0], "labels": y, "clean_prob": p}
        for image, y, p in zip(images, labels, generator.random(16).astype(np.float32), strict=True)
    ]
    torch.manual_seed(0)
    model = SANMForImageClassification(
        SANMConfig(framework="ce", widths=[4, 8], depths=[1, 1], image_size=16, num_labels=2)
    )
    settings = TrainingArguments(
        str(tmp_path), num_train_epochs=15, learning_rate=5e-3, report_to="none", use_cpu=True, logging_strategy="epoch"
    )
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 0.69
    assert trainer.predict(rows).predictions.shape == (16, 2)


def test_a_report_that_fails_costs_no_model(pictures, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise OSError("no space for the report")

    monkeypatch.setattr("hubmodels.evaluation.NoisyLabelReport.save", failing)
    more = ("schedule.epochs=1", "noisy_labels.report_images=5")
    with pytest.raises(OSError, match="no space for the report"):
        train(**arguments("small_light", pictures, tmp_path / "run", *more))
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.num_labels == 2
