"""SANM against tensors of the official code: networks, masking, label quality, losses, label noise, whole steps."""

import numpy as np
import pytest
import torch
from hubmodels.conversion import convert, to_official
from hubmodels.modeling.sanm import (
    AdversarialNoisyMasking,
    SANMForImageClassification,
    activation_maps,
    extreme_positions,
    negative_entropy,
    prior_penalty,
    ramped_weight,
    reconstruction_loss,
    soft_cross_entropy,
    unlabelled_loss,
)
from torch.nn import functional

from hubmodels.data import inject_label_noise
from hubmodels.evaluation import LabelQualityEstimator
from hubmodels.training.cotraining_step import CoTrainingSettings, StepRandomness, co_training_loss, warm_up_loss
from tests.golden.harness import load_case


def assert_close(case, name, actual):
    """At the tolerance of the manifest, whose table by name comes first."""
    expected = case.outputs[name]
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), name
        return
    tolerance = case.manifest.get("tolerance_per_tensor", {}).get(name, case.manifest["tolerance"])
    actual = torch.as_tensor(actual).detach().to(expected.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{case.name}/{name}: {text}")


def load(case, folder, file="checkpoint.pth", **options):
    """The network of a case, through the converter that users run."""
    return SANMForImageClassification.from_pretrained(convert("sanm", case.folder / file, folder, **options))


def official(model, name):
    """A parameter or buffer by its official name."""
    name = name.replace("linear", "classifier").replace("recon_module", "decoder")
    name = name if name.startswith(("classifier", "decoder")) else f"backbone.{name}"
    return dict([*model.named_parameters(), *model.named_buffers()])[name]


def test_preact_network(tmp_path):
    case = load_case("sanm", "preact_forward")
    model = load(case, tmp_path / "model")
    images, labels = case.inputs["pixel_values"], case.inputs["labels"]
    with torch.no_grad():
        outputs = model.eval()(images, output_reconstruction=True)
    assert_close(case, "feature_map", outputs.last_hidden_state)
    assert_close(case, "feature", outputs.pooler_output)
    for name in ("logits", "reconstruction"):
        assert_close(case, name, outputs[name])
    model.train()
    trained = model(images, labels=labels)
    error = functional.mse_loss(model(images, output_reconstruction=True).reconstruction, images)
    assert_close(case, "train_logits", trained.logits)
    assert_close(case, "train_ce", trained.loss)
    assert_close(case, "train_recon_mse", error)
    assert_close(case, "bn1_running_mean_after_2", model.backbone.bn1.running_mean)
    assert_close(case, "bn1_running_var_after_2", model.backbone.bn1.running_var)
    (trained.loss + error).backward()
    for name in case.outputs:
        if name.startswith("grad."):
            assert_close(case, name, official(model, name.removeprefix("grad.")).grad)


def test_c2d_resnet18_with_its_softmax(tmp_path):
    case = load_case("sanm", "c2d_resnet18")
    head = str(case.folder / "checkpoint.head.pth")
    encoder = "checkpoint.ckpt_cifar10_resnet18.pth"
    model = load(case, tmp_path / "model", encoder, head=head, softmax_outputs=True).eval()
    with torch.no_grad():
        outputs = model(case.inputs["pixel_values"], labels=case.inputs["labels"], output_reconstruction=True)
        plain = load(case, tmp_path / "plain", encoder, head=head).eval()(case.inputs["pixel_values"])
    assert_close(case, "feature_map", outputs.last_hidden_state)
    assert_close(case, "feature", outputs.pooler_output)
    assert_close(case, "score", outputs.logits)
    assert_close(case, "logits", plain.logits)
    assert_close(case, "reconstruction", outputs.reconstruction)
    assert_close(case, "ce_on_score", outputs.loss)


def test_c2d_resnet50_with_pooling(tmp_path):
    case = load_case("sanm", "c2d_resnet50_pool")
    model = load(case, tmp_path / "model").eval()
    with torch.no_grad():
        outputs = model(case.inputs["pixel_values"], output_reconstruction=True)
        large = functional.interpolate(outputs.last_hidden_state, size=(7, 7), mode="nearest")
        decoded = model.decoder(large, (224, 224))
    assert_close(case, "feature_map", outputs.last_hidden_state)
    for name in ("logits", "reconstruction"):
        assert_close(case, name, outputs[name])
    assert decoded.shape == (1, 3, 224, 224)
    assert_close(case, "reconstruction_7x7_mean_std", torch.stack([decoded.mean(), decoded.std()]))


@pytest.mark.parametrize("name", ["preact_forward", "c2d_resnet50_pool", "train_step"])
def test_networks_convert_back_bit_for_bit(name, tmp_path):
    case = load_case("sanm", name)
    path = case.folder / ("checkpoint.net1.pth" if name == "train_step" else "checkpoint.pth")
    to_official(convert("sanm", path, tmp_path / "ours"), tmp_path / "official.pth")
    before, after = torch.load(path), torch.load(tmp_path / "official.pth")["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_masking():
    case = load_case("sanm", "masking")
    names = ("images", "feature_maps", "clean_prob", "targets")
    before = {name: case.inputs[name].clone() for name in names}
    views = AdversarialNoisyMasking()(*(case.inputs[name] for name in names), draws=case.inputs["draws"])
    assert_close(case, "attention_uint8", views.activation)
    assert_close(case, "row_col_max_min", extreme_positions(views.activation).flatten(1))
    assert_close(case, "masked_max", views.max_views)
    assert_close(case, "masked_min", views.min_views)
    assert_close(case, "targets_masked", views.targets)
    assert all(torch.equal(before[name], case.inputs[name]) for name in names)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["square", "large", "oblong"])
def test_maps_are_resized_as_by_opencv(name, dtype):
    case = load_case("sanm", "opencv_resize")
    expected = case.outputs[f"{name}.{dtype}"]
    assert torch.equal(activation_maps(case.inputs[name].to(getattr(torch, dtype)), expected.shape[1:]), expected)


@pytest.mark.parametrize("name", ["label_quality", "label_quality_history"])
def test_label_quality(name):
    case = load_case("sanm", name)
    estimator = LabelQualityEstimator.for_noise_rate(case.manifest["config"]["noise_ratio"])
    for losses in case.inputs["losses"]:
        quality = estimator(losses)
    assert (quality.iterations, quality.converged) == (case.manifest["n_iter"], case.manifest["converged"])
    np.testing.assert_allclose(quality.scaled_losses, case.outputs["gmm_input"], rtol=0, atol=1e-6)
    stored = {"clean_prob": quality.clean_prob, "means_sorted": quality.means, "weights_sorted": quality.weights}
    for key, values in (stored | {"covariances_sorted": quality.variances}).items():
        np.testing.assert_allclose(values, case.outputs[key], rtol=0, atol=1e-6, err_msg=key)


def test_loss_terms():
    case = load_case("sanm", "losses")
    inputs, config = case.inputs, case.manifest["config"]
    assert_close(case, "Lx", soft_cross_entropy(inputs["logits_x"], inputs["targets_x"]))
    assert_close(case, "Lu", unlabelled_loss(inputs["logits_u"], inputs["targets_u"]))
    weights = [ramped_weight(config["lambda_u"], float(epoch), config["warm_up"]) for epoch in inputs["epochs"]]
    assert_close(case, "lambda_u_at_epochs", torch.tensor(weights, dtype=torch.float64))
    both = torch.cat([inputs["logits_x"], inputs["logits_u"]])
    assert_close(case, "prior_penalty", prior_penalty(both))
    assert_close(case, "neg_entropy", negative_entropy(inputs["logits_x"]))


def test_reconstruction_loss_is_the_sum_of_two_means():
    images = torch.zeros(2, 3, 4, 4)
    assert reconstruction_loss(torch.cat([images + 1, images + 2]), images) == 5


@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_label_noise_is_bit_exact(kind):
    case = load_case("sanm", f"noise_{kind}_c10")
    config, seed = case.manifest["config"], case.manifest["seeds"]["python_random"]
    noise = inject_label_noise(case.inputs["labels"], kind, config["r"], num_classes=10, seed=seed)
    assert np.array_equal(noise.labels, case.outputs["noisy_labels"])
    assert noise.report.realised_rate == case.manifest["realised_noise"]


def sgd(model, config):
    return torch.optim.SGD(
        model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=config["weight_decay"]
    )


@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_warm_up_steps(kind, tmp_path):
    case = load_case("sanm", f"warmup_{kind}")
    config, model = case.manifest["config"], load(case, tmp_path / "model").train()
    settings = CoTrainingSettings(negative_entropy=kind == "asym", warm_up_clip=config["clip_grad_norm"])
    optimizer = sgd(model, config)
    before = model.decoder.layer1.weight.detach().norm()
    for order in (slice(None), range(3, -1, -1)):
        loss = warm_up_loss(model, case.inputs["pixel_values"][order], case.inputs["labels"][order], settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.warm_up_clip)
        optimizer.step()
    after = model.decoder.layer1.weight.detach().norm()
    assert_close(case, "recon_l1_norm_before", before)
    assert_close(case, "recon_l1_norm", after)
    assert before == after
    for name in set(case.outputs) - {"recon_l1_norm", "recon_l1_norm_before"}:
        assert_close(case, name, official(model, name))


def views(case, letter):
    """The views of a batch by our names."""
    names = {"weak1": "p", "weak2": "p2", "strong1": "s1", "strong2": "s2", "guess1": "", "guess2": "2"}
    return {ours: case.inputs[f"{letter}_inputs_{letter}{theirs}"] for ours, theirs in names.items()}


def test_a_whole_semi_supervised_step(tmp_path):
    case = load_case("sanm", "train_step")
    config, inputs = case.manifest["config"], case.inputs
    network, peer = (load(case, tmp_path / name, f"checkpoint.{name}.pth") for name in ("net1", "net2"))
    labelled = views(case, "x") | {"labels": inputs["labels_x"], "clean_prob": inputs["w_x"]}
    unlabelled = views(case, "u") | {"clean_prob": inputs["w_u"]}
    settings = CoTrainingSettings(config["warm_up"], config["lambda_u"], config["alpha"])
    randomness = StepRandomness(inputs["draws"], float(inputs["beta"]), inputs["perm"])
    masking, moment = AdversarialNoisyMasking.from_config(network.config), config["epoch"]
    optimizer = sgd(network, config)
    output = co_training_loss(network.train(), peer.eval(), labelled, unlabelled, masking, settings, moment, randomness)
    output.loss.backward()
    optimizer.step()
    ours = {
        "maps": output.feature_map,
        "targets": output.targets,
        "target_mask": output.views.targets,
        "img_max": output.views.max_views,
        "img_min": output.views.min_views,
        "logits_x": output.logits_x,
        "logits_u": output.logits_u,
        "mixed_target_x": output.mixed_targets_x,
        "mixed_target_u": output.mixed_targets_u,
        "Lx": output.labelled_loss,
        "Lu": output.unlabelled_loss,
        "lamb": torch.tensor(output.lambda_u),
        "Lrecon": output.reconstruction_loss,
        "penalty": output.penalty,
        "loss": output.loss,
    }
    for name in case.outputs:
        if name.startswith("grad."):
            ours[name] = official(network, name.removeprefix("grad.")).grad
        elif name.startswith("after."):
            ours[name] = official(network, name.removeprefix("after."))
    assert ours.keys() == case.outputs.keys()
    for name, tensor in ours.items():
        assert_close(case, name, tensor)
    norms = {name: official(network, name).grad.norm().item() for name in case.manifest["grad_norms"]}
    assert norms == pytest.approx(case.manifest["grad_norms"], rel=1e-3)
    assert all(parameter.grad is None for parameter in peer.parameters())
