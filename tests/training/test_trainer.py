"""HubTrainer: schedule, mixing, guards, logs, averages, and exact resume."""

import json
import math
import shutil

import pytest
import torch
from hubmodels.modeling.mae import onednn_mae
from safetensors.torch import load_file
from tiny_run import Blobs, NoiseCollator, arguments, tiny_classifier, tiny_pretraining_model, trainer
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.models.vit_mae import ViTMAEConfig, ViTMAEForPreTraining

from hubmodels.training import (
    CollapseError,
    CollapseGuard,
    ExponentialMovingAverage,
    HubCallback,
    HubTrainer,
    NonFiniteLossError,
    feature_std,
    last_complete_checkpoint,
    read_jsonl,
    simclr_learning_rate,
    warmup_cosine_lr,
)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


class StopAt(TrainerCallback):
    """Ends the training at a step, as a kill right after a checkpoint would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        control.should_save = control.should_save or control.should_training_stop
        return control


def logged(run, key):
    return [entry[key] for entry in run.state.log_history if key in entry]


# Schedule, optimiser, arguments


@pytest.mark.parametrize(("accumulation", "steps_per_epoch"), [(1, 6), (2, 3), (4, 2)])
def test_learning_rates_follow_the_published_schedule(tmp_path, accumulation, steps_per_epoch):
    run = trainer(tmp_path, gradient_accumulation_steps=accumulation, min_lr=1e-5, num_train_epochs=3)
    run.train()
    expected = [
        warmup_cosine_lr(epoch + step * accumulation / 6, 2e-3, 1e-5, 0.5, 3)
        for epoch in range(3)
        for step in range(steps_per_epoch)
    ]
    assert logged(run, "learning_rate") == pytest.approx(expected, abs=1e-15)
    assert logged(run, "learning_rate")[0] == 0.0


def test_learning_rates_follow_the_official_simclr_schedule(tmp_path):
    """48 images in batches of 10: the official code counts them all, 48 * 3 // 10 + 1 steps and 48 // 10 of warm-up."""
    sizes = {"per_device_train_batch_size": 10, "num_train_epochs": 3, "warmup_epochs": 1.0}
    run = trainer(tmp_path, lr_schedule="simclr", base_learning_rate=0.1, lr_scaling="sqrt", **sizes)
    run.train()
    expected = [simclr_learning_rate(step, 0.1 * math.sqrt(10), 4, 15) for step in range(12)]
    assert logged(run, "learning_rate") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("batch", "length", "warmup_steps", "train_steps", "trained"),
    [(8, {"num_train_epochs": 2.5}, 3, 16, 15), (10, {"max_steps": 6}, 2, 6, 6)],
    ids=["a fraction of an epoch", "a number of steps"],
)
def test_the_simclr_schedule_of_other_lengths(batch, length, warmup_steps, train_steps, trained, tmp_path):
    sizes = {"per_device_train_batch_size": batch, "warmup_epochs": 0.5, **length}
    run = trainer(tmp_path, lr_schedule="simclr", base_learning_rate=0.1, **sizes)
    run.train()
    scaled = 0.1 * batch / 256
    expected = [simclr_learning_rate(step, scaled, warmup_steps, train_steps) for step in range(trained)]
    assert logged(run, "learning_rate") == pytest.approx(expected, abs=1e-12)


def test_learning_rates_follow_the_schedule_of_timm(tmp_path):
    run = trainer(tmp_path, lr_schedule="timm_cosine", min_lr=1e-5, warmup_lr=1e-4, num_train_epochs=3)
    run.train()
    cosine = [1e-5 + 0.5 * (2e-3 - 1e-5) * (1 + math.cos(math.pi * step / 18)) for step in range(18)]
    expected = [1e-4 + step * (2e-3 - 1e-4) / 3 for step in range(3)] + cosine[3:]
    assert logged(run, "learning_rate") == pytest.approx(expected, abs=1e-15)


def test_accumulation_gives_the_weights_of_the_whole_batch(tmp_path):
    whole = trainer(tmp_path / "whole", per_device_train_batch_size=8, warmup_epochs=0, optimizer="sgd")
    whole.train()
    parts = trainer(
        tmp_path / "parts",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_epochs=0,
        optimizer="sgd",
    )
    parts.train()
    assert logged(whole, "loss") == pytest.approx(logged(parts, "loss"), abs=1e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(tensor, parts.model.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_base_learning_rate_is_scaled_by_the_effective_batch(tmp_path):
    args = arguments(tmp_path, base_learning_rate=1.5e-4, per_device_train_batch_size=32, gradient_accumulation_steps=4)
    assert args.effective_batch_size == 128
    assert args.learning_rate == pytest.approx(0.75e-4)


def test_adam_betas_reach_the_optimizer(tmp_path):
    run = trainer(tmp_path, adam_beta2=0.95, optimizer_kwargs={"eps": 1e-7})
    assert run.create_optimizer().defaults["betas"] == (0.9, 0.95)
    assert run.optimizer.defaults["eps"] == 1e-7


def test_float32_products_run_in_onednn_while_training_where_that_is_faster(tmp_path, monkeypatch):
    monkeypatch.setattr(onednn_mae, "prefers_onednn", lambda: True)
    matmul, seen = torch.backends.mkldnn.matmul, []
    before = matmul.fp32_precision

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(matmul.fp32_precision)
            raise KeyError

    with pytest.raises(KeyError):
        trainer(tmp_path, callbacks=[Look()]).train()
    assert seen == ["bf16"] and matmul.fp32_precision == before


@pytest.mark.parametrize(("drops", "counted"), [(False, 12), (True, 8)])
def test_evaluation_counts_every_image_unless_told_otherwise(tmp_path, drops, counted):
    run = trainer(tmp_path, per_device_eval_batch_size=8, eval_drop_last=drops)
    for loader in (run.get_eval_dataloader(), run.get_test_dataloader(run.eval_dataset)):
        assert sum(len(batch["pixel_values"]) for batch in loader) == counted
    assert sum(len(batch["pixel_values"]) for batch in run.get_train_dataloader()) == 48
    assert run.args.dataloader_drop_last


def test_lars_and_stock_schedules_train(tmp_path):
    model = tiny_classifier(probe_batch_norm=True)
    model.freeze_encoder()
    frozen = weights(model.vit)
    run = trainer(
        tmp_path,
        model,
        NoiseCollator(labels=True, noise=False),
        optimizer="lars",
        learning_rate=0.2,
        weight_decay=0.0,
        lr_schedule="linear",
    )
    run.train()
    assert_same_bits(frozen, weights(model.vit))
    assert sum(logged(run, "loss")[-6:]) < sum(logged(run, "loss")[:6])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixup": -1}, "mixup must be at least 0, got -1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be None or in \(0, 1\), got 1.0"),
        ({"lr_schedule": "simclr"}, "base_learning_rate must be given with lr_schedule 'simclr', got None"),
        ({"lr_schedule": "cosinus"}, "lr_schedule must be one of .*warmup_cosine.*, got 'cosinus'"),
        ({"warmup_lr": 0.1}, "warmup_lr must be 0 with every lr_schedule but 'timm_cosine', got 0.1"),
        ({"lr_schedule": "timm_cosine", "lr_by_epoch": True}, "lr_by_epoch must be False with every .* got True"),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'"),
        ({"mixup": 0.8, "per_device_train_batch_size": 7}, "must be even with mixup or cutmix"),
        ({"cutmix": 1.0, "dataloader_drop_last": False}, "dataloader_drop_last must be True"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy must be 'random'.* got 'sequential'"),
        (
            {"base_learning_rate": 1e-3, "auto_find_batch_size": True},
            "auto_find_batch_size must be False with base_learning_rate, .* got True",
        ),
    ],
)
def test_arguments_name_what_is_wrong(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


def test_too_few_images_for_a_batch(tmp_path):
    with pytest.raises(ValueError, match="more than the 5 training samples"):
        trainer(tmp_path, size=5).train()


def test_mixing_needs_labels(tmp_path):
    with pytest.raises(ValueError, match="2 or more labels"):
        HubTrainer(OneLabel(), arguments(tmp_path, mixup=0.8))


class OneLabel(torch.nn.Module):
    config = type("Config", (), {"num_labels": 1, "use_cache": False})()

    def forward(self, pixel_values, labels):
        return {"loss": pixel_values.sum()}


# Mixing


class RecordLoss(HubCallback):
    def __init__(self):
        self.losses = []

    def on_loss(self, loss, outputs):
        self.losses.append(loss.item())


def test_mixing_and_smoothing_change_the_targets_of_training_only(tmp_path):
    seen = []
    model = tiny_classifier()
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    run = trainer(
        tmp_path,
        model,
        NoiseCollator(labels=True, noise=False),
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        num_train_epochs=1,
    )
    run.train()
    mixed = seen[:]
    seen.clear()
    run.evaluate()
    assert all(kwargs["labels"].shape == (8, 3) for kwargs in mixed)
    for kwargs in mixed:
        torch.testing.assert_close(kwargs["labels"].sum(dim=1), torch.ones(8))
    original = torch.stack([Blobs()[index]["image"] for index in range(48)])
    assert not any((original == image).flatten(1).all(1).any() for kwargs in mixed for image in kwargs["pixel_values"])
    assert all(kwargs["labels"].shape[1:] == () for kwargs in seen)


def test_label_smoothing_without_mixing_is_the_smoothed_cross_entropy(tmp_path):
    model = tiny_classifier()
    run = trainer(tmp_path, model, NoiseCollator(labels=True, noise=False), label_smoothing=0.1)
    batch = run.data_collator([Blobs()[index] for index in range(8)])
    inputs = run._mixed(batch)
    with torch.no_grad():
        output = model(**inputs)
    logp = output.logits.log_softmax(-1)
    nll = -logp.gather(1, batch["labels"][:, None]).squeeze(1)
    expected = (0.9 * nll - 0.1 * logp.mean(-1)).mean()
    torch.testing.assert_close(output.loss, expected)


# Guards, logs, averages


class PoisonedCollator(NoiseCollator):
    def __call__(self, samples):
        batch = super().__call__(samples)
        if any(sample["index"] == 5 for sample in samples):
            batch["pixel_values"][0, 0, 0, 0] = math.inf
        return batch


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_hurt(tmp_path):
    run = trainer(tmp_path, collator=PoisonedCollator())
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step \d+"):
        run.train()
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_collapse_guard_reads_the_feature_spread(tmp_path):
    spread, collapsed = torch.randn(256, 16), torch.ones(256, 16) + 1e-4 * torch.randn(256, 16)
    assert feature_std(spread) == pytest.approx(1, abs=0.05)
    run = trainer(tmp_path, callbacks=[CollapseGuard(threshold=0.01)])
    run.log({"feature_std": feature_std(spread)})
    with pytest.raises(CollapseError, match=r"feature_std is .* at step 0, below 0.01"):
        run.log({"feature_std": feature_std(collapsed)})


def test_the_log_is_one_json_object_a_line(tmp_path):
    run = trainer(tmp_path, tensorboard=True)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["loss"] for line in lines if "loss" in line] == logged(run, "loss")
    assert all({"seconds", "learning_rate", "grad_norm", "epoch"} <= line.keys() for line in lines if "loss" in line)
    assert any(path.name.startswith("events.") for path in (tmp_path / "tensorboard").iterdir())


def test_a_resumed_log_has_every_step_once(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=4, callbacks=[StopAt(4)]).train()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    trainer(tmp_path).train(resume_from_checkpoint=True)
    steps = [line["step"] for line in read_jsonl(tmp_path / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 13))
    trainer(tmp_path, num_train_epochs=1).train()
    assert len(read_jsonl(tmp_path / "log.jsonl.previous")) > 12


def test_moving_average_is_the_published_one_and_is_used_in_evaluation(tmp_path):
    class Follow(TrainerCallback):
        average = None

        def on_step_end(self, args, state, control, model=None, **kwargs):
            new = weights(model)
            if self.average is None:
                self.average = new
            else:
                self.average = {key: 0.7 * self.average[key] + 0.3 * new[key] for key in new}

    follow = Follow()
    run = trainer(tmp_path, ema_decay=0.7, callbacks=[follow])
    run.train()
    trained = weights(run.model)
    with run.averaged_weights():
        for name, tensor in run.model.state_dict().items():
            torch.testing.assert_close(tensor, follow.average[name], atol=1e-6, rtol=1e-5)
        loss_of_average = Trainer.evaluate(run)["eval_loss"]
    assert_same_bits(trained, weights(run.model))
    assert run.evaluate()["eval_loss"] == loss_of_average


def test_evaluation_uses_its_own_collator_and_leaves_the_random_numbers(tmp_path):
    class Dark(NoiseCollator):
        def __call__(self, samples):
            batch = super().__call__(samples)
            return {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}

    run = HubTrainer(
        tiny_pretraining_model(),
        arguments(tmp_path),
        data_collator=NoiseCollator(),
        eval_data_collator=Dark(),
        train_dataset=Blobs(),
        eval_dataset=Blobs(12),
    )
    seen = []
    run.model.register_forward_pre_hook(lambda _, a, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    state = torch.get_rng_state()
    first, second = run.evaluate()["eval_loss"], run.evaluate()["eval_loss"]
    assert torch.equal(state, torch.get_rng_state())
    assert first == second
    assert all(not images.any() for images in seen)


# Exact resume


def drop_path_classifier():
    return tiny_classifier(drop_path_rate=0.3)


CASES = {
    "pretraining": (tiny_pretraining_model, {}, {}),
    "accumulation": (tiny_pretraining_model, {}, {"gradient_accumulation_steps": 2}),
    "workers": (tiny_pretraining_model, {}, {"dataloader_num_workers": 2}),
    "drop path, mixing, layer decay, average": (
        drop_path_classifier,
        {"labels": True, "noise": False},
        {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "layer_decay": 0.75, "ema_decay": 0.9},
    ),
    "lars": (tiny_classifier, {"labels": True, "noise": False}, {"optimizer": "lars"}),
    "evaluation between": (tiny_pretraining_model, {}, {"eval_strategy": "epoch"}),
}


@pytest.mark.parametrize(
    ("case", "stop"),
    [(case, stop) for case in CASES for stop in (1, 6, 8) if case != "workers" or stop == 8],
)
def test_resume_gives_the_weights_of_an_uninterrupted_run_bit_for_bit(tmp_path, case, stop):
    make_model, collator, overrides = CASES[case]

    def run(folder, *callbacks):
        return trainer(folder, make_model(), NoiseCollator(**collator), callbacks=list(callbacks), **overrides)

    whole = run(tmp_path / "whole")
    whole.train()
    stop = min(stop, whole.state.max_steps - 1)
    run(tmp_path / "parts", StopAt(stop)).train()
    resumed = run(tmp_path / "parts")
    torch.manual_seed(999)  # whatever the generators hold when the second process starts
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == stop
    assert_same_bits(weights(whole.model), weights(resumed.model))
    assert logged(whole, "loss") == logged(resumed, "loss")
    with whole.averaged_weights(), resumed.averaged_weights():
        assert_same_bits(weights(whole.model), weights(resumed.model))


def test_resume_takes_the_newest_complete_checkpoint_where_stock_takes_a_torn_one(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    torn = tmp_path / "checkpoint-12"
    (torn / "optimizer.pt").unlink()
    stock = Trainer(
        tiny_pretraining_model(),
        TrainingArguments(
            str(tmp_path), use_cpu=True, remove_unused_columns=False, max_steps=12, report_to="none", disable_tqdm=True
        ),
        train_dataset=Blobs(),
        data_collator=NoiseCollator(),
    )
    stock.train(resume_from_checkpoint=True)  # resumes from the torn one without a word, its optimiser state lost
    assert stock._initial_global_step == 12
    run = trainer(tmp_path)
    run.train(resume_from_checkpoint=True)
    assert run._initial_global_step == 8


def test_resume_without_a_complete_checkpoint_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"no complete checkpoint in .* \(there is none\)"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    trainer(tmp_path, save_strategy="steps", save_steps=12).train()
    (tmp_path / "checkpoint-12" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-12: model.safetensors has 0 bytes"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-12: model.safetensors has 0 bytes"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert not trainer(tmp_path).can_resume()


def test_a_new_training_does_not_begin_among_the_checkpoints_of_another(tmp_path):
    """They would pass for its newest ones: rotation would keep them, and a resumed run go on with them."""
    saving = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    trainer(tmp_path, **saving).train()
    before = sorted(path.name for path in tmp_path.iterdir())
    for anew in (None, False):
        with pytest.raises(
            ValueError, match=r"holds checkpoints of an earlier .* \(checkpoint-8, checkpoint-12\): cont"
        ):
            trainer(tmp_path, **saving).train(resume_from_checkpoint=anew)
    with pytest.raises(ValueError, match=r"\(checkpoint-12\)"):
        trainer(tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    trainer(tmp_path).train()  # writes none
    trainer(tmp_path, **saving).train(resume_from_checkpoint=True)
    shutil.copytree(tmp_path / "checkpoint-12", tmp_path / "elsewhere" / "checkpoint-12")
    (tmp_path / "checkpoint-12" / "model.safetensors").write_bytes(b"")
    run = trainer(tmp_path, **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))  # what is damaged is no checkpoint
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-12"


def test_rotation_best_model_and_leftovers(tmp_path):
    leftover = tmp_path / ".checkpoint-99.partial"
    leftover.mkdir()
    run = trainer(
        tmp_path,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        save_total_limit=2,
        metric_for_best_model="loss",
        greater_is_better=True,
        load_best_model_at_end=True,
    )
    run.train()
    assert not leftover.exists()
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["checkpoint-10", "checkpoint-12", f"checkpoint-{run.state.best_global_step}"]
    assert run.state.best_global_step not in (10, 12)
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{run.state.best_global_step}")
    best = load_file(tmp_path / f"checkpoint-{run.state.best_global_step}" / "model.safetensors")
    assert torch.equal(best["decoder.mask_token"], run.model.state_dict()["decoder.mask_token"])


def test_states_of_stock_callbacks_are_resumed(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    trainer(
        tmp_path, callbacks=[EarlyStoppingCallback(early_stopping_patience=9), StopAt(6)], **options, **best
    ).train()
    patience = EarlyStoppingCallback(early_stopping_patience=9)
    run = trainer(tmp_path, callbacks=[patience], **options, **best)
    run.train(resume_from_checkpoint=True)
    stopper = next(c for c in run.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    evaluations = len(logged(run, "eval_loss"))
    assert stopper.early_stopping_patience_counter == evaluations - 1


def stock_model():
    """A model that writes its decoder under other names than its own."""
    torch.manual_seed(0)
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        )
    )


def test_a_model_with_converted_names_resumes_whole(tmp_path):
    """The stock trainer resumes it half."""
    whole = trainer(tmp_path / "whole", stock_model())
    whole.train()
    trainer(tmp_path / "parts", stock_model(), callbacks=[StopAt(5)]).train()
    shutil.copytree(tmp_path / "parts", tmp_path / "stock")
    resumed = trainer(tmp_path / "parts", stock_model())
    resumed.train(resume_from_checkpoint=True)
    assert_same_bits(weights(whole.model), weights(resumed.model))
    stock = trainer(tmp_path / "stock", stock_model())
    Trainer._load_from_checkpoint(stock, str(last_complete_checkpoint(tmp_path / "stock")))
    assert not torch.equal(
        stock.model.state_dict()["decoder.decoder_layers.0.mlp.fc1.weight"],
        load_like(resumed, tmp_path / "stock")["decoder.decoder_layers.0.mlp.fc1.weight"],
    )


def test_the_best_model_with_converted_names_is_loaded_whole(tmp_path):
    run = trainer(tmp_path, stock_model(), save_strategy="steps", save_steps=4)
    run.train()
    run.state.best_model_checkpoint = str(tmp_path / "checkpoint-4")
    run._load_best_model()
    assert_same_bits(weights(ViTMAEForPreTraining.from_pretrained(tmp_path / "checkpoint-4")), weights(run.model))


def load_like(run, folder):
    run._load_from_checkpoint(str(last_complete_checkpoint(folder)))
    return weights(run.model)


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path):
    trainer(tmp_path, callbacks=[StopAt(2)]).train()
    run = trainer(tmp_path, tiny_classifier(), NoiseCollator(labels=True, noise=False))
    with pytest.raises(ValueError, match=r"it lacks the weights \['classifier.bias', 'classifier.weight'"):
        run.train(resume_from_checkpoint=True)


def test_resume_refuses_another_set_of_callbacks(tmp_path):
    trainer(tmp_path, callbacks=[StopAt(2)]).train()
    with pytest.raises(ValueError, match="was written with"):
        trainer(tmp_path, ema_decay=0.9).train(resume_from_checkpoint=True)


def test_moving_average_refuses_a_decay_out_of_range():
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\), got 1"):
        ExponentialMovingAverage(1)
