"""With `ema_decay` the average is what a run measures, saves and reports; checkpoints keep what is trained."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Blobs, NoiseCollator, tiny_classifier, tiny_pretraining_model, trainer
from transformers import Trainer

from hubmodels.training import OnlineProbe, train
from hubmodels.training.callbacks import ExponentialMovingAverage


def average_of(run):
    return next(c for c in run.hub_callbacks if isinstance(c, ExponentialMovingAverage)).average.module.state_dict()


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(first, second):
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.fixture
def trained(tmp_path):
    run = trainer(tmp_path, ema_decay=0.9, save_strategy="steps", save_steps=12)
    run.train()
    assert any(not torch.equal(average_of(run)[name], value) for name, value in run.model.state_dict().items())
    return run


def test_prediction_and_evaluation_measure_the_average(trained):
    raw = copy_of(trained.model)
    assert trained.predict(Blobs(12)).metrics["test_loss"] == trained.evaluate()["eval_loss"]
    assert_equal(trained.model.state_dict(), raw)
    assert Trainer.evaluate(trained)["eval_loss"] != trained.evaluate()["eval_loss"]


def test_the_average_is_saved_and_checkpoints_keep_what_is_trained(trained, tmp_path):
    trained.save_model(str(tmp_path / "final"))
    saved = load_file(tmp_path / "final" / "model.safetensors")
    assert_equal(average_of(trained), saved)
    assert_equal(trained.model.state_dict(), load_file(tmp_path / "checkpoint-12" / "model.safetensors"))


def test_the_average_is_pushed(trained, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "push_to_hub", lambda run: pushed.append(copy_of(run.model)))
    trained.push_to_hub()
    assert_equal(average_of(trained), pushed[0])


def test_the_best_model_is_the_average_of_its_step(tmp_path):
    run = trainer(
        tmp_path,
        tiny_classifier(),
        NoiseCollator(labels=True, noise=False),
        ema_decay=0.9,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=4,
        save_steps=4,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best is not the last
        load_best_model_at_end=True,
    )
    run.train()
    assert run.state.best_global_step == 4
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-6)


def test_the_online_probe_measures_the_average(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(OnlineProbe, "measure", lambda probe, model: seen.append(copy_of(model)) or {})
    probe = OnlineProbe(Blobs(), Blobs(), None)
    run = trainer(tmp_path, tiny_pretraining_model(), callbacks=[probe], ema_decay=0.9)
    run.train()
    assert len(seen) == 2
    assert_equal(average_of(run), seen[-1])


def test_the_report_on_labels_is_of_the_average(pictures, tmp_path, monkeypatch):
    from hubmodels.evaluation import NoisyLabelReport

    seen = []
    make = NoisyLabelReport.from_model
    monkeypatch.setattr(
        NoisyLabelReport,
        "from_model",
        lambda model, *args, **kwargs: seen.append(copy_of(model)) or make(model, *args, **kwargs),
    )
    short = ["schedule.epochs=2", "schedule.batch_size=8", "noisy_labels.warm_up_epochs=1", "run.tensorboard=false"]
    small = ["model.image_size=18", "model.depths=[1, 1]", "model.widths=[2, 4]", "run.workers=0"]
    average = ["regularization.ema_decay=0.99", "optimizer.base_learning_rate=0.3"]
    result = train(
        recipe="sanm/small_light", data=pictures, output=tmp_path / "run", overrides=[*short, *small, *average]
    )
    assert_equal(seen[0], load_file(result.folder / "model.safetensors"))
