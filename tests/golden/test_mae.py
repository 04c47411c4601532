"""MAE models against tensors of the official code: forward, every block, loss, gradients, optimiser steps, pictures."""

import pytest
import torch
from hubmodels.conversion.mae import Kind, key_map
from hubmodels.modeling.mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining
from hubmodels.modeling.mae.positions_mae import resize_position_table, sincos_position_table

from tests.golden.harness import load_case

PRETRAINING = ["pretrain_pixels", "pretrain_normpix_adamw"]
FINETUNING = ["finetune_global_pool_mixup", "finetune_cls_token_cutmix"]


def official_gradients(model):
    """Gradients by official parameter name (zeros where a parameter has none)."""
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return key_map(Kind.of_model(model)).to_official(gradients)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_forward(load_mae, name):
    case, model = load_mae(name, MAEForPreTraining)
    ratio = case.manifest["official"]["mask_ratio"]
    pixels, noise = case.inputs["pixel_values"], case.inputs["noise"]
    with torch.no_grad():
        encoded = model.vit(pixels, noise=noise, mask_ratio=ratio, output_hidden_states=True)
        output = model(pixels, noise=noise, mask_ratio=ratio, output_hidden_states=True)
    actual = {
        "latent": encoded.last_hidden_state,
        "mask": output.mask,
        "ids_restore": output.ids_restore,
        "ids_keep": encoded.ids_keep,
        "pred": output.logits,
        "loss": output.loss,
        "target_patches": model.patchify(pixels),
        "reconstruction": model.unpatchify(output.logits),
    }
    actual |= {f"encoder_block/{i}": states for i, states in enumerate(output.hidden_states[1:])}
    actual |= {f"decoder_block/{i}": states for i, states in enumerate(output.decoder_hidden_states[1:])}
    case.assert_matches(actual)


@pytest.mark.parametrize("training", [False, True], ids=["all_patches", "masked_patches_only"])
@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_gradients(load_mae, name, training):
    case, model = load_mae(name, MAEForPreTraining)
    model.train(training)
    ratio = case.manifest["official"]["mask_ratio"]
    output = model(case.inputs["pixel_values"], noise=case.inputs["noise"], mask_ratio=ratio)
    assert (output.logits is None) == training
    output.loss.backward()
    case.assert_matches({"loss": output.loss})
    gradients = official_gradients(model)
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    stored = case.group("grad")
    case.assert_matches({n: gradients[n] for n in stored}, kind="grad", prefix="grad/")
    case.assert_matches({"grad_norm_total": total}, kind="grad")


@pytest.mark.parametrize("name", FINETUNING)
def test_classifier_evaluation(load_mae, name):
    case, model = load_mae(name, MAEForImageClassification)
    pixels = case.inputs["pixel_values"]
    with torch.no_grad():
        features, _ = model.features(pixels)
        output = model(pixels, labels=case.inputs["labels"], output_hidden_states=True)
    actual = {"features": features, "logits": output.logits, "eval_loss": output.loss}
    actual |= {f"block/{i}": states for i, states in enumerate(output.hidden_states[1:])}
    case.assert_matches(actual)


@pytest.mark.parametrize("name", FINETUNING)
def test_classifier_training_step(load_mae, name):
    """Drop path, soft targets and gradients of the first step, from the stored draws and the stored mixed batch."""
    case, model = load_mae(name, MAEForImageClassification, drop_path_rate=case_drop_path(name))
    model.train()
    uniform = case.inputs["drop_path_uniform"][0]
    output = model(case.outputs["mixed_pixel_values"], labels=case.outputs["soft_targets"], drop_path_uniform=uniform)
    output.loss.backward()
    rates = torch.tensor([layer.drop_path.rate for layer in model.vit.layers])
    keep = torch.floor(1 - rates.view(1, -1, 1, 1) + case.inputs["drop_path_uniform"])
    case.assert_matches({"train_logits": output.logits, "drop_path_keep": keep})
    assert abs(output.loss.item() - float(case.outputs["train_losses"][0])) < 2e-5
    gradients = official_gradients(model)
    case.assert_matches({n: gradients[n] for n in case.group("grad")}, kind="grad", prefix="grad/")


def case_drop_path(name):
    return load_case("mae", name).manifest["official"]["drop_path_rate"]


@pytest.mark.parametrize("name", FINETUNING)
def test_backbone_feature_map(load_mae, name):
    case, model = load_mae(name, MAEBackbone)
    with torch.no_grad():
        feature_map = model(case.inputs["pixel_values"]).feature_maps[-1]
    case.assert_matches({"feature_map_last": feature_map})


def test_linear_probe_evaluation(load_mae):
    case, model = load_mae("linear_probe_cls", MAEForImageClassification)
    with torch.no_grad():
        logits = model(case.inputs["pixel_values"][0]).logits
    case.assert_matches({"eval_logits": logits})
    model.train()
    model.freeze_encoder()
    output = model(case.inputs["pixel_values"][0], labels=case.inputs["labels"][0])
    output.loss.backward()
    case.assert_matches({"train_logits": output.logits})
    actual = {"head.1.weight": model.classifier.weight.grad, "head.1.bias": model.classifier.bias.grad}
    case.assert_matches(actual, kind="grad", prefix="grad/")
    statistics = {
        "head.0.running_mean": model.probe_norm.running_mean,
        "head.0.running_var": model.probe_norm.running_var,
    }
    case.assert_matches(statistics, prefix="step1/")
    assert all(p.grad is None for p in model.vit.parameters())


def test_position_tables():
    case = load_case("mae", "position_tables")
    tables = {f"table_D{dim}_grid4": sincos_position_table(dim, (4, 4), torch.float64) for dim in (32, 24)}
    tables["table_D768_grid14"] = sincos_position_table(768, (14, 14), torch.float64)[::13]
    case.assert_matches(tables, kind="tables")
    table = case.inputs["pos_embed_4x4"]
    resized = {f"interpolated_{n}x{n}": resize_position_table(table, (4, 4), (n, n)) for n in (6, 3)}
    case.assert_matches(resized, kind="resized")


def test_visualisation(load_mae):
    _, model = load_mae("pretrain_pixels", MAEForPreTraining)
    case = load_case("mae", "visualisation")
    pixels, noise = case.inputs["pixel_values"], case.inputs["noise"]
    pictures = model.reconstruct(pixels, noise=noise)
    actual = {name: pictures[name] for name in ("mask_image", "masked", "reconstruction", "pasted")}
    denormalised = model.reconstruct(pixels, noise=noise, denormalise=True)
    actual |= {f"denormalised_{name}": denormalised[name] for name in ("reconstruction", "pasted")}
    case.assert_matches(actual)
