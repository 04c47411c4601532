"""MAE's training recipe against tensors of the official code: schedule, groups, AdamW, mixing, LARS with BatchNorm."""

import pytest
import torch
from hubmodels.conversion.mae import Kind, key_map
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining
from timm.data import mixup
from torch.nn import functional as F

from hubmodels.training import LARS, create_optimizer, parameter_groups, warmup_cosine_lr, warmup_cosine_scheduler
from tests.golden.harness import load_case

FINETUNING = ["finetune_global_pool_mixup", "finetune_cls_token_cutmix"]


def official_weights(model):
    return key_map(Kind.of_model(model)).to_official(dict(model.state_dict()))


def without_key_bias(tensors):
    """The true gradient of a key bias is 0; Adam makes whole steps of its rounding noise, so it is not compared."""
    kept = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        kept[name] = tensor
    return kept


def official_groups(model, groups):
    """Parameter names of each group, in the official naming."""
    index = {id(parameter): group for group, entry in enumerate(groups) for parameter in entry["params"]}
    marks = {
        name: torch.full_like(parameter, index.get(id(parameter), -1)) for name, parameter in model.named_parameters()
    }
    names = {group: set() for group in range(len(groups))}
    for name, mark in key_map(Kind.of_model(model)).to_official(marks).items():
        members = set(mark.unique().tolist())
        assert len(members) == 1, f"{name} lies in several groups"
        if members != {-1.0}:
            names[int(members.pop())].add(name)
    return [names[group] for group in range(len(groups))]


@pytest.mark.parametrize("protocol", ["pretrain", "finetune_base", "linprobe"])
def test_learning_rate_schedule(protocol):
    case = load_case("mae", "lr_schedule")
    settings = case.inputs[f"lr_min_warmup_epochs_{protocol}"].tolist()
    rates = [warmup_cosine_lr(epoch, *settings) for epoch in case.inputs[f"epochs_{protocol}"].tolist()]
    actual = torch.tensor([[rate, rate * 0.5] for rate in rates], dtype=torch.float64)
    case.assert_matches({f"lr_{protocol}": actual})


def test_pretraining_steps(load_mae):
    case, model = load_mae("pretrain_normpix_adamw", MAEForPreTraining)
    model.train()
    recipe = case.manifest["optimiser"]
    groups = parameter_groups(model, recipe["lr"], recipe["weight_decay"])
    for group, names in zip(groups, official_groups(model, groups), strict=True):
        assert names == set(recipe["decay" if group["weight_decay"] else "no_decay"])
    optimizer = create_optimizer("adamw", groups, recipe["lr"], options={"betas": recipe["betas"]})
    scheduler = warmup_cosine_scheduler(
        optimizer, recipe["lr"], 0.0, recipe["warmup_epochs"], recipe["epochs"], recipe["steps_per_epoch"]
    )
    for _ in range(recipe["first_iter"]):
        optimizer.step()  # no gradient yet: nothing moves, the schedule arrives at the first stored iteration
        scheduler.step()
    losses, rates = [], []
    for step in range(recipe["steps"]):
        rates.append(optimizer.param_groups[0]["lr"])
        output = model(
            case.inputs["train_pixel_values"][step, 0],
            noise=case.inputs["train_noise"][step, 0],
            mask_ratio=case.manifest["official"]["mask_ratio"],
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(output.loss.item())
        stored = case.group(f"step{step + 1}")
        if stored:
            weights = official_weights(model)
            assert_weights_match(case, {name: weights[name] for name in stored}, f"step{step + 1}/")
    case.assert_matches({"train_losses": torch.tensor(losses, dtype=torch.float64)})
    expected = case.outputs["train_lrs"]
    torch.testing.assert_close(torch.tensor(rates, dtype=expected.dtype), expected, atol=1e-12, rtol=1e-7)


def assert_weights_match(case, weights, prefix):
    biased = {name for name in weights if name.endswith("attn.qkv.bias")}
    case.assert_matches({name: weights[name] for name in weights.keys() - biased}, kind="grad", prefix=prefix)
    for name in biased:
        actual, expected = (without_key_bias({name: t})[name] for t in (weights[name], case.outputs[prefix + name]))
        torch.testing.assert_close(actual, expected, **case.tolerance("grad"))


@pytest.mark.parametrize("name", FINETUNING)
def test_mixing(name, monkeypatch):
    """timm's Mixup, as `HubTrainer` calls it, with the stored lambda and cutmix centre."""
    case = load_case("mae", name)
    recipe = case.manifest["training"]
    mixer = mixup.Mixup(
        recipe["mix"]["mixup"],
        recipe["mix"]["cutmix"],
        label_smoothing=recipe["smoothing"],
        num_classes=case.manifest["official"]["num_classes"],
    )
    use_cutmix = bool(case.inputs["mix_use_cutmix"])
    monkeypatch.setattr(mixer, "_params_per_batch", lambda: (float(case.inputs["mix_lambda"]), use_cutmix))
    if use_cutmix:
        box = tuple(case.inputs["mix_bbox_yl_yh_xl_xh"].tolist())
        monkeypatch.setattr(mixup, "rand_bbox", lambda *_, **__: box)
    images, targets = mixer(case.inputs["pixel_values"].clone(), case.inputs["labels"])
    case.assert_matches({"mixed_pixel_values": images, "soft_targets": targets})


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_steps(load_mae, name):
    rate = load_case("mae", name).manifest["official"]["drop_path_rate"]
    case, model = load_mae(name, MAEForImageClassification, drop_path_rate=rate)
    model.train()
    recipe = case.manifest["training"]
    groups = parameter_groups(model, recipe["lr"], recipe["weight_decay"], recipe["layer_decay"])
    expected = {
        (round(group["lr_scale"], 9), group["weight_decay"]): set(group["params"]) for group in recipe["param_groups"]
    }
    named = zip(groups, official_groups(model, groups), strict=True)
    assert {(round(g["lr_scale"], 9), g["weight_decay"]): names for g, names in named} == expected
    optimizer = create_optimizer("adamw", groups, recipe["lr"], options={"betas": recipe["betas"]})
    losses, norms = [], []
    for step in range(recipe["steps"]):
        output = model(
            case.outputs["mixed_pixel_values"],
            labels=case.outputs["soft_targets"],
            drop_path_uniform=case.inputs["drop_path_uniform"][step],
        )
        optimizer.zero_grad()
        output.loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        optimizer.step()
        losses.append(output.loss.item())
    weights = official_weights(model)
    assert_weights_match(case, {name: weights[name] for name in case.group("after2")}, "after2/")
    like = case.outputs["train_losses"].dtype
    case.assert_matches({"train_losses": torch.tensor(losses, dtype=like)})
    case.assert_matches({"grad_norms": torch.tensor(norms, dtype=case.outputs["grad_norms"].dtype)}, kind="grad")


def test_linear_probe_steps(load_mae):
    case, model = load_mae("linear_probe_cls", MAEForImageClassification)
    model.freeze_encoder()
    model.train()
    recipe = case.manifest["training"]
    groups = parameter_groups(model, recipe["lr"], recipe["weight_decay"])
    optimizer = create_optimizer("lars", groups, recipe["lr"], options={"momentum_style": "plain"})
    assert isinstance(optimizer, LARS)
    losses = []
    for step in range(recipe["steps"]):
        output = model(case.inputs["pixel_values"][step], labels=case.inputs["labels"][step])
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, case.inputs["labels"][step]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
        state = {
            "head.0.running_mean": model.probe_norm.running_mean,
            "head.0.running_var": model.probe_norm.running_var,
            "head.1.weight": model.classifier.weight,
            "head.1.bias": model.classifier.bias,
        }
        case.assert_matches(state, kind="grad", prefix=f"step{step + 1}/")
    buffers = {
        "head.1.weight": optimizer.state[model.classifier.weight]["momentum_buffer"],
        "head.1.bias": optimizer.state[model.classifier.bias]["momentum_buffer"],
    }
    case.assert_matches(buffers, kind="grad", prefix="momentum/")
    case.assert_matches({"train_losses": torch.tensor(losses, dtype=torch.float64)})
    with torch.no_grad():
        logits = model.eval()(case.inputs["pixel_values"][0]).logits
    case.assert_matches({"eval_logits_after": logits})
