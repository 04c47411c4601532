"""`train` with Positional Label: classifiers around any backbone and autoencoders, resumable, and the plain Trainer."""

import pytest
import torch
from hubmodels.modeling.positional_label import PositionalLabelConfig, PositionalLabelForImageClassification
from PIL import Image
from stopping import assert_same_bits, stopped_at_step_5, weights
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Trainer,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from hubmodels.data import load_image_dataset
from hubmodels.evaluation import evaluate
from hubmodels.training import Recipe, RecipeError, read_jsonl, train
from hubmodels.training.methods import method_training
from hubmodels.training.methods.positional_label import TrivialLabels
from hubmodels.training.parameter_groups import parameter_groups
from tests.launching import train_in_two_processes
from tests.modeling.tiny_positional_label import VIT, tiny_classifier
from tests.training.tiny_run import Blobs, NoiseCollator

COMMON = [
    "schedule.epochs=3",
    "schedule.batch_size=8",
    "schedule.warmup_epochs=1",
    "run.tensorboard=false",
    "run.workers=0",
]
ENCODER = [
    "model.backbone_config.image_size=16",
    "model.backbone_config.hidden_size=16",
    "model.backbone_config.num_hidden_layers=2",
    "model.backbone_config.num_attention_heads=2",
    "model.backbone_config.intermediate_size=32",
]
DECODER = [
    "model.backbone_config.decoder_hidden_size=16",
    "model.backbone_config.decoder_num_hidden_layers=1",
    "model.backbone_config.decoder_num_attention_heads=2",
    "model.backbone_config.decoder_intermediate_size=32",
]
CLASSIFIER = [*COMMON, *ENCODER]
AUTOENCODER = [*COMMON, *ENCODER, *DECODER, "probe.every_epochs=3", "probe.k=3", "probe.linear_epochs=2"]


@pytest.fixture(scope="module")
def classifier(pictures, tmp_path_factory):
    """A finished supervised run."""
    output = tmp_path_factory.mktemp("classifier") / "run"
    return train("positional_label", pictures, output, overrides=CLASSIFIER)


@pytest.fixture(scope="module")
def autoencoder(pictures, tmp_path_factory):
    """A finished pre-training run."""
    output = tmp_path_factory.mktemp("autoencoder") / "run"
    recipe = "positional_label/small_pretrain"
    return train("positional_label", pictures, output, recipe=recipe, overrides=AUTOENCODER)


def test_labelled_pictures_train_a_classifier(classifier, pictures):
    recipe = Recipe.load(classifier.folder / "recipe.yaml")
    assert recipe.task == "finetune" and recipe.model["backbone_config"]["hidden_size"] == 16
    model = AutoModelForImageClassification.from_pretrained(classifier.folder)
    assert type(model) is PositionalLabelForImageClassification
    lines = [line for line in read_jsonl(classifier.folder / "log.jsonl") if "position_loss" in line]
    assert lines and all({"classification_loss", "position_accuracy", "loss"} <= set(line) for line in lines)
    for line in lines:
        expected = line["classification_loss"] + 0.5 * line["position_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert 0 <= classifier.metrics["eval_accuracy"] <= 1
    assert evaluate(str(classifier.folder), str(pictures), progress=False).report.accuracy >= 0
    picture = Image.fromarray(load_image_dataset(pictures, "test")[0]["image"].permute(1, 2, 0).numpy())
    scores = pipeline("image-classification", model=str(classifier.folder))(picture)
    assert {score["label"] for score in scores} == set(model.config.label2id)


def test_unlabelled_training_pretrains_an_autoencoder(autoencoder):
    model = AutoModelForPreTraining.from_pretrained(autoencoder.folder)
    assert model.config.position_dropout == 0.5 and model.mae.config.model_type == "mae"
    log = read_jsonl(autoencoder.folder / "log.jsonl")
    assert any("reconstruction_loss" in line and "position_accuracy" in line for line in log)
    assert any("knn_accuracy" in line for line in log)
    assert Image.open(autoencoder.folder / "positions.png").size[0] > 100
    processor = AutoImageProcessor.from_pretrained(autoencoder.folder)
    assert processor(torch.rand(3, 20, 20), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
    assert AutoModel.from_pretrained(autoencoder.folder)(torch.rand(1, 3, 16, 16)).last_hidden_state.shape == (
        1,
        16,
        16,
    )


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({}, True),
        ({"position_label": "both"}, True),
        ({"position_label": "relative"}, False),
        ({"position_dropout": 0.5}, False),
        ({"scheme": "jigsaw"}, False),
        ({"position_label": None}, False),
    ],
)
def test_trivial_labels_are_named_once(settings, warns, caplog):
    model, callback = tiny_classifier(**settings), TrivialLabels()
    state = TrainerState(global_step=7)
    for loss in (2.0, 0.2, 0.1, 0.05):  # of 9 cells, 5 % of log 9 are 0.11
        logs = {"loss": 1.0, "position_loss": loss} if settings.get("position_label", "") is not None else {"loss": 1.0}
        with caplog.at_level("WARNING"):
            callback.on_log(None, state, None, logs=logs, model=model)
    named = [record.message for record in caplog.records if "have become trivial" in record.message]
    assert len(named) == warns and all("position_loss is 0.1 after step 7 (by chance 2.2)" in text for text in named)


def test_runs_watch_for_trivial_labels(pictures, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hubmodels.training.methods.positional_label.TRIVIAL_SHARE", 10.0)
    overrides = [*CLASSIFIER, "schedule.epochs=2", "model.position_label=absolute"]
    with caplog.at_level("WARNING"):
        train("positional_label", pictures, tmp_path / "run", overrides=overrides)
    assert sum("have become trivial" in record.message for record in caplog.records) == 1


def test_pretraining_without_positional_labels(pictures, tmp_path):
    overrides = [*AUTOENCODER, "model.position_label=null", "schedule.epochs=1", "probe.every_epochs=0"]
    run = train(
        "positional_label", pictures, tmp_path / "run", recipe="positional_label/small_pretrain", overrides=overrides
    )
    assert not AutoModelForPreTraining.from_pretrained(run.folder).position_heads
    assert not (run.folder / "positions.png").exists()


def test_the_recipe_follows_the_labels():
    method = method_training("positional_label")
    assert method.recipe_for("photos_96_pretrain", labelled=True) == "photos_96_finetune"
    assert method.recipe_for("photos_96_pretrain", labelled=False) == "photos_96_pretrain"
    assert method_training("mae").recipe_for("small_pretrain", labelled=True) == "small_pretrain"


def test_advice_about_tables_of_positions():
    method = method_training("positional_label")
    recipe = Recipe.load("positional_label/small_finetune", ["model.position_label=absolute"])
    assert "position_dropout" in method.advice(recipe, 100)
    for name in ("small_finetune", "small_finetune_swin", "small_pretrain"):
        assert method.advice(Recipe.load(f"positional_label/{name}"), 100) is None


@pytest.mark.parametrize("start", ["autoencoder", "stock", "timm"])
def test_fine_tuning_starts_from_other_models(start, autoencoder, pictures, tmp_path):
    backbone, overrides = "vit_tiny_patch16_224", [*COMMON, "schedule.epochs=1", "data.size=16"]
    if start == "autoencoder":
        backbone = str(autoencoder.folder)
    elif start == "stock":
        backbone = str(tmp_path / "stock")
        ViTForImageClassification(ViTConfig(**(VIT | {"image_size": 16, "patch_size": 4}))).save_pretrained(backbone)
    recipe = "positional_label/small_finetune"
    run = train("positional_label", pictures, tmp_path / "run", backbone, recipe, overrides)
    model, info = AutoModelForImageClassification.from_pretrained(run.folder, output_loading_info=True)
    assert not any(info.values()), info
    inner = model.config.backbone_config
    assert inner.model_type == ("timm_wrapper" if start == "timm" else "vit")
    assert model.config.pooling == {"autoencoder": "mean", "stock": "cls", "timm": "pooler"}[start]
    assert model.config.position_label == "relative" and model.config.image_size == (32 if start == "timm" else 16)


def test_fine_tuning_starts_from_a_classifier_with_other_heads(pictures, tmp_path):
    overrides = [*COMMON, "schedule.epochs=1", "model.feature_split=full"]
    run = train(
        "positional_label",
        pictures,
        tmp_path,
        "positional-label-small-32",
        "positional_label/small_finetune",
        overrides,
    )
    model, info = AutoModelForImageClassification.from_pretrained(run.folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.position_head.fc1.in_features == 2 * model.config.hidden_size


def test_other_methods_start_from_the_network_inside(autoencoder, pictures, tmp_path):
    overrides = [*COMMON, "schedule.epochs=1", "optimizer.base_learning_rate=1.0e-12"]
    run = train("mae", pictures, tmp_path / "run", str(autoencoder.folder), "mae/small_finetune", overrides)
    tuned = AutoModelForImageClassification.from_pretrained(run.folder)
    encoder = AutoModel.from_pretrained(autoencoder.folder).backbone
    assert tuned.config.model_type == "mae"
    for name, value in encoder.layers.named_parameters():
        assert_close(tuned.vit.layers.get_parameter(name), value)
    authors = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), backbone_variant="authors")
    PositionalLabelForImageClassification(authors).save_pretrained(tmp_path / "authors")
    with pytest.raises(RecipeError, match=r"holds the authors' vit, which only positional_label can train"):
        train("mae", pictures, tmp_path / "other", str(tmp_path / "authors"), "mae/small_finetune", overrides)


@pytest.mark.parametrize("task", ["classifier", "autoencoder"])
def test_a_stopped_run_ends_in_the_same_weights(task, request, pictures, tmp_path, monkeypatch):
    finished = request.getfixturevalue(task)
    recipe = "positional_label/small_finetune" if task == "classifier" else "positional_label/small_pretrain"
    overrides = CLASSIFIER if task == "classifier" else AUTOENCODER
    call = {"method": "positional_label", "data": pictures, "output": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **call, recipe=recipe, overrides=overrides)
    again = train(**call, recipe=recipe, overrides=overrides)
    assert_same_bits(weights(again.folder), weights(finished.folder))


def test_networks_without_tokens_are_refused(pictures, tmp_path):
    with pytest.raises(RecipeError, match="backbone = resnet18 is no ViT or Swin for images of 32 pixels"):
        train("positional_label", pictures, tmp_path / "run", "resnet18", "positional_label/small_finetune")


def test_layers_have_their_learning_rates():
    """Embeddings lowest, then the layers; position heads and classifier have the full rate."""
    for family in ("vit", "dinov2", "swin", "timm_vit", "timm_swin"):
        model = tiny_classifier(family, position_label="both", pooling="pooler" if "timm" in family else "mean")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        scales = {
            names[id(parameter)]: group["lr_scale"]
            for group in parameter_groups(model, 1e-3, 0.05, layer_decay=0.5)
            for parameter in group["params"]
        }
        heads = [scale for name, scale in scales.items() if "head" in name.split(".")[0] or "classifier" in name]
        assert set(heads) == {1.0}, family
        patches = next(scale for name, scale in scales.items() if "patch_embed" in name)
        first = next(
            s for name, s in scales.items() if "blocks.0.mlp" in name or "layers.0.mlp" in name or "layer.0.mlp" in name
        )
        assert patches < first < 1.0, family


def test_tables_are_not_decayed():
    model = tiny_classifier("vit")
    assert model.no_weight_decay() == {"backbone.embeddings.position_embeddings", "backbone.embeddings.cls_token"}
    biases = tiny_classifier("swin").no_weight_decay()
    assert biases and all(name.endswith("relative_position_bias_table") for name in biases)
    authors = {"backbone_variant": "authors"}
    assert tiny_classifier("vit", **authors).no_weight_decay() == {"backbone.embeddings.position_embeddings"}
    assert tiny_classifier("vit", **authors, match_authors=True).no_weight_decay() == set()


def test_plain_trainer(tmp_path):
    """transformers' own Trainer, with evaluation metrics, and a loss that falls."""
    inner = ViTConfig(**(VIT | {"image_size": 16, "patch_size": 4}))
    model = tiny_classifier(inner, position_label="both", num_labels=3)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path),
            max_steps=30,
            learning_rate=3e-3,
            per_device_train_batch_size=16,
            logging_steps=10,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        ),
        data_collator=NoiseCollator(labels=True, noise=False),
        train_dataset=Blobs(),
        eval_dataset=Blobs(),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("label", ["absolute", "relative"])
def test_two_processes_give_the_weights_of_one(label, pictures, tmp_path):
    """All pairs: random anchors are those of a process."""
    overrides = [*CLASSIFIER, f"model.position_label={label}", "model.num_anchors=null", "run.checkpoints=0"]
    recipe = "positional_label/small_finetune"
    one = train("positional_label", pictures, tmp_path / "one", recipe=recipe, overrides=overrides)
    train_in_two_processes(recipe, pictures, tmp_path / "two", overrides)
    first, second = weights(one.folder), weights(tmp_path / "two")
    for name, tensor in first.items():
        if not name.endswith("k_proj.bias"):  # its true gradient is 0, and Adam makes steps of rounding noise
            torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
