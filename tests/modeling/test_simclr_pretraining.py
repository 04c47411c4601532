"""SimCLR pre-training: views, heads, outputs, probe, and that it learns and resumes."""

import copy

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRForPreTraining
from hubmodels.modeling.simclr.losses_simclr import nt_xent

from tests.modeling.tiny_simclr import gradients, images, perturbed, tiny_config


def pretraining(**fields):
    torch.manual_seed(0)
    return perturbed(SimCLRForPreTraining(tiny_config(**fields)))


def test_views_are_batched_view_by_view():
    """`[B, 2, ...]` is the flat batch of all first, then all second views: statistics are over both."""
    views = images(3, 2)
    flat = torch.cat([views[:, 0], views[:, 1]])
    outputs = [pretraining().train()(pixels) for pixels in (views, flat)]
    for name, tensor in outputs[0].items():
        if torch.is_tensor(tensor):
            assert torch.equal(tensor, outputs[1][name]), name
    assert outputs[0].pooler_output.shape == (6, 128)
    assert outputs[0].labels.tolist() == [0, 1, 2]
    model = pretraining().train()
    model(views)
    assert model.backbone.embedder.normalization.num_batches_tracked == 1


def test_swapping_the_views_keeps_the_loss():
    views = images(3, 2)
    losses = [pretraining().train()(pixels).loss for pixels in (views, views.flip(1))]
    torch.testing.assert_close(losses[0], losses[1])


def test_equal_views_of_different_images_are_recognised():
    views = images(4, 1).expand(-1, 2, -1, -1, -1)
    output = pretraining(temperature=0.01).eval()(views)
    assert output.contrast_accuracy == 1
    assert output.loss < 2 * torch.tensor(7.0).log()


@pytest.mark.parametrize(
    "mode, widths", [("none", [128]), ("linear", [128, 8]), ("nonlinear", [128, 128, 8])], ids=lambda value: str(value)
)
def test_projection_heads(mode, widths):
    model = pretraining(proj_head_mode=mode).train()
    output = model(images(3, 2))
    assert [states.shape[1] for states in output.projection_states] == widths
    assert torch.equal(output.projection_states[0], output.pooler_output)
    assert torch.equal(output.projection_states[-1], output.projections)
    assert all((states >= 0).all() for states in output.projection_states[1:-1]), "after the ReLU"
    biases = [name for name, _ in model.projection_head.named_parameters() if name.endswith("bias")]
    assert biases == [f"layers.{j}.normalization.bias" for j in range(len(widths) - 2)], "the last layer has no shift"
    output.loss.backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "fields", [{}, {"hidden_norm": False}, {"temperature": 0.5, "loss_reduction": "mean"}], ids=str
)
def test_loss_is_that_of_the_projections(fields):
    model = pretraining(**fields).eval()
    output = model(images(3, 2))
    config = model.config
    expected = nt_xent(output.projections, config.temperature, config.hidden_norm, config.loss_reduction)
    torch.testing.assert_close(output.loss, expected.loss)
    if "loss_reduction" in fields:
        official = pretraining(temperature=0.5).eval()(images(3, 2)).loss
        torch.testing.assert_close(official, 2 * output.loss)


def test_logits_are_returned_unless_they_are_large(monkeypatch):
    model = pretraining().eval()
    assert model(images(3, 2)).logits_ab.shape == (3, 3)
    assert model(images(3, 2), return_logits=False).logits_ab is None
    monkeypatch.setattr("hubmodels.modeling.simclr.modeling_simclr.MAX_IMAGES_WITH_LOGITS", 2)
    assert model(images(3, 2)).logits_ab is None
    assert model(images(3, 2), return_logits=True).logits_ab.shape == (3, 3)


def test_without_a_loss_any_number_of_images_is_projected():
    model = pretraining().eval()
    output = model(images(3), return_loss=False)
    assert output.loss is None and output.projections.shape == (3, 8)
    first = model(images(3)[:1], return_loss=False)
    torch.testing.assert_close(first.projections, output.projections[:1])


def test_first_output_is_the_loss():
    output = pretraining().eval()(images(3, 2), return_dict=False)
    assert isinstance(output, tuple) and output[0].ndim == 0


@pytest.mark.parametrize("selector", [0, 1, -1])
def test_linear_probe_does_not_touch_the_encoder(selector):
    """Gradients of the encoder are those without the probe; the probe's are those of its own loss on both views."""
    labels = torch.tensor([0, 2, 1])
    plain = pretraining(ft_proj_selector=selector).train()
    probed = SimCLRForPreTraining(tiny_config(ft_proj_selector=selector, linear_probe=True, num_labels=3)).train()
    probed.load_state_dict(plain.state_dict(), strict=False)
    plain(images(3, 2)).loss.backward()
    output = probed(images(3, 2), labels=labels)
    output.loss.backward()
    expected, actual = gradients(plain), gradients(probed)
    assert set(actual) - set(expected) == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close({name: actual[name] for name in expected}, expected)
    assert output.logits.shape == (6, 3)
    both = torch.nn.functional.cross_entropy(output.logits, torch.cat([labels, labels]))
    torch.testing.assert_close(output.supervised_loss, both)
    torch.testing.assert_close(output.loss, output.contrastive_loss + both)


def test_labels_without_a_probe_are_ignored():
    output = pretraining().eval()(images(3, 2), labels=torch.tensor([0, 1, 2]))
    assert output.logits is None and output.supervised_loss is None


def test_autocast_keeps_the_loss_in_float32():
    model = pretraining().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images(3, 2))
    assert output.loss.dtype == torch.float32
    reference = pretraining().train()(images(3, 2)).loss
    assert output.loss.item() == pytest.approx(reference.item(), rel=0.05)


@pytest.mark.parametrize("fields", [{}, {"linear_probe": True, "num_labels": 3, "weight_decay": 0.1}])
def test_the_compiled_step_is_the_plain_one(fields):
    """In one graph: values, gradients and moving statistics."""
    torch._dynamo.reset()
    plain, compiled = pretraining(**fields), pretraining(**fields)
    inputs = {"pixel_values": images(4, 2)} | ({"labels": torch.tensor([0, 1, 2, 0])} if fields else {})
    expected = plain(**inputs)
    actual = torch.compile(compiled, backend="aot_eager", fullgraph=True)(**inputs)
    for outputs in (expected, actual):
        outputs.loss.backward()
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(gradients(compiled), gradients(plain))
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))


def test_float64_throughout():
    output = pretraining().double().train()(images(3, 2, dtype=torch.float64))
    kinds = {t.dtype for t in (output.loss, output.projections, output.logits_ab, output.contrast_entropy)}
    assert kinds == {torch.float64}


def train(model, optimizer, steps):
    losses = []
    for number in steps:
        base = images(8, seed=1)
        views = torch.stack([base, (base + 0.1 * images(8, seed=10 + number)).clamp(0, 1)], dim=1)
        optimizer.zero_grad()
        loss = model(views).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_run():
    model = pretraining(temperature=0.5).train()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def test_the_loss_falls():
    losses = train(*make_run(), range(15))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_resumed_run_ends_in_the_same_weights():
    """The state dicts hold everything, moving statistics and their counters included."""
    model, optimizer = make_run()
    train(model, optimizer, range(6))
    first, first_optimizer = make_run()
    train(first, first_optimizer, range(3))
    saved = copy.deepcopy((first.state_dict(), first_optimizer.state_dict()))
    torch.manual_seed(9)
    second = SimCLRForPreTraining(first.config).train()
    second_optimizer = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    second.load_state_dict(saved[0])
    second_optimizer.load_state_dict(saved[1])
    train(second, second_optimizer, range(3, 6))
    for name, tensor in model.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
