"""Linear layers through oneDNN: the same values and gradients as `nn.Linear`, only where they are float32 on a CPU."""

import pytest
import torch
from hubmodels.modeling.mae import MAEForPreTraining, linear_mae, onednn_mae
from hubmodels.modeling.mae.linear_mae import MAELinear
from hubmodels.modeling.mae.onednn_mae import float32_products_in_onednn
from torch import nn

from tests.modeling.tiny_mae import images, noise_for, seeded, tiny_config


@pytest.fixture
def convolutions(monkeypatch):
    """Counts convolutions on a machine that prefers oneDNN, whichever this is, for layers of any size."""
    calls = []
    conv2d = nn.functional.conv2d

    def counting(*args):
        calls.append(1)
        return conv2d(*args)

    for module in (linear_mae, onednn_mae):
        monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(MAELinear, "MIN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(nn.functional, "conv2d", counting)
    return calls


def layer(bias=True):
    torch.manual_seed(0)
    return MAELinear(24, 40, bias=bias)


def values_and_gradients(linear, tokens, upstream):
    tokens = tokens.detach().requires_grad_()
    output = linear(tokens)
    parameters = [tokens, *linear.parameters()]
    return [output, *torch.autograd.grad(output, parameters, upstream.to(output.dtype))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (2, 3, 5, 24), (0, 24)])
def test_equal_to_the_plain_layer(convolutions, shape, bias):
    linear = layer(bias)
    tokens, upstream = torch.randn(shape, generator=seeded()), torch.randn(*shape[:-1], 40, generator=seeded())
    plain = nn.Linear(24, 40, bias=bias).double()
    plain.load_state_dict(linear.state_dict())
    expected = values_and_gradients(plain, tokens.double(), upstream)
    for actual, exact in zip(values_and_gradients(linear, tokens, upstream), expected, strict=True):
        assert actual.shape == exact.shape
        torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)
    assert convolutions or not tokens.numel()


def test_views_that_are_not_contiguous(convolutions):
    linear, tokens = layer(), torch.randn(24, 6, 2, generator=seeded()).transpose(0, 2)
    torch.testing.assert_close(linear(tokens), nn.Linear.forward(linear, tokens), rtol=1e-5, atol=1e-5)
    assert len(convolutions) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_usual_way(convolutions, dtype):
    linear, tokens = layer().to(dtype), torch.randn(4, 24, dtype=dtype)
    assert torch.equal(linear(tokens), nn.Linear.forward(linear, tokens))
    assert not convolutions


def test_autocast_and_small_layers_take_the_usual_way(convolutions, monkeypatch):
    linear, tokens = layer(), torch.randn(4, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(tokens).dtype == torch.bfloat16
    monkeypatch.setattr(MAELinear, "MIN_MULTIPLICATIONS", 4 * 24 * 40 + 1)
    linear(tokens)
    assert not convolutions
    monkeypatch.setattr(MAELinear, "MIN_MULTIPLICATIONS", 4 * 24 * 40)
    linear(tokens)
    assert len(convolutions) == 1


def test_wrong_width_is_refused_as_by_the_plain_layer(convolutions):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer()(torch.randn(4, 12))


def test_every_linear_layer_of_the_networks_takes_part(convolutions):
    config = tiny_config()
    model = MAEForPreTraining(config)
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    assert all(type(part) is MAELinear for part in layers)
    model(images(config), noise=noise_for(config)).loss.backward()
    assert len(convolutions) == len(layers)


def test_mode_of_products_is_restored(convolutions):
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(KeyError), float32_products_in_onednn():
        assert matmul.fp32_precision == "bf16"
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.skipif(not onednn_mae.prefers_onednn(), reason="the mode is used on AMD processors with AVX-512 only")
def test_products_in_this_mode_have_float32_precision():
    left, right = torch.randn(2, 4, 96, 96, generator=seeded())
    with float32_products_in_onednn():
        actual = left @ right
    error = (actual.double() - left.double() @ right.double()).abs().max()
    assert error < 1e-4, "bfloat16 would be off by more than 0.01"
