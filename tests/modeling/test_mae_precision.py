"""bfloat16: finite, close to float32, and no worse than torch's own kernels."""

import pytest
import torch
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining
from hubmodels.modeling.mae.attention_mae import MatmulAttention
from torch.nn.functional import scaled_dot_product_attention

from tests.modeling.tiny_mae import gradients, images, noise_for, perturbed, seeded, tiny_config


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def run(attention, tensors, upstream):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = attention(*tensors)
    return [output, *torch.autograd.grad(output, tensors, upstream.to(output.dtype))]


def ours(query, key, value):
    return MatmulAttention.apply(query, key, value, query.shape[-1] ** -0.5)


@pytest.mark.parametrize("scale", [0.5, 2.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("queries, keys, width", [(50, 50, 64), (197, 197, 32), (37, 53, 16)])
@pytest.mark.parametrize("images_at_once", [1, 2])
def test_bfloat16_attention_is_as_accurate_as_that_of_torch(queries, keys, width, images_at_once, scale, monkeypatch):
    """Output and gradients against float64, for the same bfloat16 inputs; at most 10 % worse than torch's kernel."""
    monkeypatch.setattr(MatmulAttention, "CHUNK_ELEMENTS", images_at_once * 3 * queries * keys)
    generator = seeded()
    query, key, value, upstream = (
        (scale * torch.randn(3, 3, length, width, generator=generator)).bfloat16()
        for length in (queries, keys, keys, queries)
    )
    exact = run(scaled_dot_product_attention, [query.double(), key.double(), value.double()], upstream)
    actual = run(ours, [query, key, value], upstream)
    torchs = run(scaled_dot_product_attention, [query, key, value], upstream)
    for name, ours_, torchs_, expected in zip(("output", "query", "key", "value"), actual, torchs, exact, strict=True):
        assert ours_.dtype == torch.bfloat16
        error = relative_error(ours_, expected)
        assert error < 0.01, name
        assert error < 1.1 * relative_error(torchs_, expected), name


def test_bfloat16_attention_survives_extreme_scores():
    query = torch.full((1, 1, 4, 8), 100.0).bfloat16()
    key, value = -query, torch.randn(1, 1, 4, 8, generator=seeded()).bfloat16()
    results = run(ours, [query, key, value], torch.ones(1, 1, 4, 8))
    assert all(result.isfinite().all() for result in results)


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, gradients(model)


def count_kernel(monkeypatch):
    calls = []
    forward = MatmulAttention.forward

    def counting(*args):
        calls.append(1)
        return forward(*args)

    monkeypatch.setattr(MatmulAttention, "forward", staticmethod(counting))
    return calls


@pytest.mark.parametrize("fields", [{}, {"norm_pix_loss": True}])
def test_bfloat16_pre_training_is_close_to_float32(fields, monkeypatch):
    calls = count_kernel(monkeypatch)
    config = tiny_config(hidden_size=32, decoder_hidden_size=16, **fields)
    model = perturbed(MAEForPreTraining(config)).bfloat16().train()
    pixels, noise = images(config, dtype=torch.bfloat16), noise_for(config)
    output, actual = loss_and_gradients(model, pixel_values=pixels, noise=noise)
    assert len(calls) == 4, "both encoder and both decoder layers take the fast backward"
    reference = MAEForPreTraining(config).train()
    reference.load_state_dict(model.state_dict())
    expected_output, expected = loss_and_gradients(reference, pixel_values=pixels.float(), noise=noise)
    assert len(calls) == 4, "float32 does not"
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected_output.loss.item(), rel=0.01)
    for name, gradient in expected.items():
        assert actual[name].isfinite().all(), name
        # the true gradient of the key bias is zero
        if not name.endswith("k_proj.bias"):
            assert relative_error(actual[name], gradient) < 0.05, name


def test_autocast_is_close_to_float32(monkeypatch):
    """What `Trainer(bf16=True)` does; the loss stays float32."""
    calls = count_kernel(monkeypatch)
    config = tiny_config(hidden_size=32, decoder_hidden_size=16)
    model = perturbed(MAEForPreTraining(config)).train()
    inputs = {"pixel_values": images(config), "noise": noise_for(config)}
    expected_output, expected = loss_and_gradients(model, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output, actual = loss_and_gradients(model, **inputs)
    assert len(calls) == 4
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected_output.loss.item(), rel=0.01)
    for name, gradient in expected.items():
        assert actual[name].dtype == torch.float32
        if not name.endswith("k_proj.bias"):
            assert relative_error(actual[name], gradient) < 0.06, name


def test_bfloat16_evaluation_and_pictures():
    config = tiny_config(norm_pix_loss=True)
    model = perturbed(MAEForPreTraining(config)).bfloat16().eval()
    pixels = images(config, dtype=torch.bfloat16)
    with torch.no_grad():
        assert model(pixels).loss.dtype == torch.float32
    pictures = model.reconstruct(pixels)
    assert all(picture.isfinite().all() for picture in pictures.to_tuple())


def test_bfloat16_classifier_trains():
    config = tiny_config(num_labels=3, drop_path_rate=0.5)
    model = perturbed(MAEForImageClassification(config)).bfloat16().train()
    torch.manual_seed(0)
    soft = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    output, actual = loss_and_gradients(model, pixel_values=images(config, dtype=torch.bfloat16), labels=soft)
    assert output.loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in actual.values())


def test_fast_backward_steps_aside(monkeypatch):
    """With eager attention, attention dropout, an attention mask or nothing to differentiate the usual kernels run."""
    calls = count_kernel(monkeypatch)
    config = tiny_config(attention_probs_dropout_prob=0.5)
    pixels = images(config, dtype=torch.bfloat16)
    MAEForPreTraining(config).bfloat16().train()(pixels).loss.backward()
    eager = MAEForPreTraining(tiny_config(_attn_implementation="eager")).bfloat16().train()
    eager(pixels).loss.backward()
    with torch.no_grad():
        MAEForPreTraining(tiny_config()).bfloat16().train()(pixels)
    assert not calls


def test_noise_of_the_caller_is_not_rounded():
    config = tiny_config(image_size=56)
    model = MAEForPreTraining(config).bfloat16().eval()
    noise = noise_for(config)
    mask = model(images(config, dtype=torch.bfloat16), noise=noise).mask
    assert torch.equal(mask, MAEForPreTraining(config).eval()(images(config), noise=noise).mask)
