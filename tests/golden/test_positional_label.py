"""Whole models against tensors of the authors' code and of transformers' backbones with an independent head."""

import pytest
import torch
from hubmodels.conversion.positional_label import SWIN_MAP, VIT_MAP
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionalLabelForPreTraining,
)

from tests.golden.positional_label_cases import case_of, gradients, ours, weights

OFFICIAL = ["vit_absolute_official", "swin_relative_official", "swin_absolute_official"]
STOCK = ["hf_vit_absolute_cls", "hf_vit_relative_mean", "hf_swin_relative"]


def forward_tensors(model, pixels, output) -> dict[str, torch.Tensor]:
    tokens, pooled, _ = model.view.run(model.backbone, pixels, {})
    return {
        "tokens": tokens,
        "pooled": pooled,
        "logits": output.logits,
        "position_logits": output.position_logits,
        "classification_loss": output.classification_loss,
        "position_loss": output.position_loss,
        "position_accuracy": output.position_accuracy,
        "loss": output.loss,
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_model(name, tmp_path):
    """Converted, loaded with `from_pretrained`, one training pass (in the first case with mixed labels)."""
    case = case_of(name)
    folder = case.convert(tmp_path / name, num_heads=case.manifest["config"]["num_heads"])
    model = PositionalLabelForImageClassification.from_pretrained(folder)
    assert model.config.position_label == case.manifest["config"]["position_label"]
    pixels, labels = case.inputs["pixel_values"], case.inputs["labels"]
    with torch.no_grad():
        case.assert_matches({"eval_logits": model(pixels).logits})
    if "mix_lambda" in case.inputs:
        labels = case.outputs["soft_targets"]
    output = model.train()(pixels, labels=labels, return_position=True)
    output.loss.backward()
    case.assert_matches(forward_tensors(model, pixels, output))
    mapping = VIT_MAP if name.startswith("vit") else SWIN_MAP
    official = mapping.to_official({name: parameter.grad for name, parameter in model.named_parameters()})
    case.assert_matches({name: official[name] for name in case.group("grad")}, kind="grad", prefix="grad/")
    total = torch.stack([gradient.norm() for gradient in official.values()]).norm()
    case.assert_matches({"grad_norm_total": total}, kind="grad")


@pytest.mark.parametrize("name", STOCK)
def test_stock_backbone(name):
    case = case_of(name)
    settings = case.manifest["config"]
    inner = {"model_type": settings["backbone"], **settings["backbone_config"]}
    config = PositionalLabelConfig(
        backbone_config=inner,
        **{key: settings[key] for key in ("position_label", "position_loss_weight", "pooling", "num_labels")},
    )
    model = PositionalLabelForImageClassification(config).double()
    model.load_state_dict(weights(case))
    pixels = case.inputs["pixel_values"]
    output = model(pixels, labels=case.inputs["labels"], return_position=True)
    output.loss.backward()
    actual = forward_tensors(model, pixels, output)
    del actual["pooled"]
    case.assert_matches(actual | {f"grad/{name}": gradient for name, gradient in gradients(model, case).items()})


@pytest.mark.parametrize("kind", ["mae", "vit_mae"])
@pytest.mark.parametrize("name", ["mae_absolute", "mae_relative"])
def test_autoencoder(name, kind):
    """Around our own and around transformers' autoencoder; both have the same weights."""
    case = case_of(name)
    settings = case.manifest["config"]
    config = PositionalLabelConfig(
        backbone_config={"model_type": kind, **settings["mae_config"]},
        position_label=settings["position_label"],
        position_loss_weight=settings["position_loss_weight"],
    )
    model = PositionalLabelForPreTraining(config).double().eval()
    names = {key: key if key.startswith("position_head.") else f"mae.{key}" for key in weights(case)}
    model.load_state_dict({names[key]: tensor for key, tensor in weights(case).items()})
    pixels, noise = case.inputs["pixel_values"], case.inputs["noise"]
    output = model(pixels, noise=noise, return_position=True, output_hidden_states=True)
    output.loss.backward()
    parts = (
        "ids_keep", "reconstruction_loss", "position_logits", "position_loss", "position_accuracy", "loss"
    )  # fmt: skip
    actual = {part: output[part] for part in parts}
    actual["latent"] = model.mae.base_model.layernorm(output.hidden_states[-1])
    stored = gradients(model, case, lambda key: names[ours(key)])
    case.assert_matches(actual | {f"grad/{key}": gradient for key, gradient in stored.items()})
