"""SimCLR's batch normalisation in one process (several: `tests/golden/test_simclr_replicas.py`)."""

import pytest
import torch
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from torch import nn
from torch.utils.checkpoint import checkpoint


def maps(*shape):
    """Reproducible float64 input with mean 3 and deviation 2."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 3


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize(("running_var", "correction"), [("biased", 0), ("unbiased", 1)])
def test_moving_variance_of_maps_is_the_chosen_one(running_var, correction, momentum):
    x = maps(3, 4, 2, 5)
    norm = SimCLRBatchNorm(4, momentum=momentum, running_var=running_var).double()
    y = norm(x)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=correction)
    torch.testing.assert_close(norm.running_mean, momentum * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_var, 1 - momentum + momentum * var, rtol=1e-12, atol=0)
    torch.testing.assert_close(y, nn.BatchNorm2d(4).double()(x), rtol=0, atol=1e-12)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("running_var", ["biased", "unbiased"])
def test_moving_variance_of_vectors_is_always_biased(running_var):
    x = maps(6, 4)
    norm = SimCLRBatchNorm(4, running_var=running_var).double()
    norm(x)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2, 5)], ids=["vectors", "maps"])
def test_gradients_and_inference_equal_those_of_torch(shape):
    x = maps(*shape)
    norm, stock = SimCLRBatchNorm(4).double(), nn.BatchNorm2d(4).double()
    stock._check_input_dim = lambda input: None
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for module, input in zip((norm, stock), inputs, strict=True):
        (module(input) * maps(*shape).cos()).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.weight.grad, stock.weight.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.bias.grad, stock.bias.grad, rtol=0, atol=1e-12)
    stock.load_state_dict(norm.state_dict())
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    assert torch.equal(norm.eval()(x), stock.eval()(x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_state_dict_has_torch_names_and_no_bias_without_bias():
    names = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert SimCLRBatchNorm(4).state_dict().keys() == names
    assert SimCLRBatchNorm(4, bias=False).state_dict().keys() == names - {"bias"}
    x = maps(6, 4)
    torch.testing.assert_close(SimCLRBatchNorm(4, bias=False).double()(x), SimCLRBatchNorm(4).double()(x))


def test_low_precision_input_keeps_float32_statistics():
    x = maps(8, 4, 3, 3).bfloat16()
    norm = SimCLRBatchNorm(4)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.float().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_counts_a_batch_once(use_reentrant):
    x = maps(6, 4).requires_grad_()
    once, norm = SimCLRBatchNorm(4).double(), SimCLRBatchNorm(4).double()
    once(x)
    checkpoint(norm, x, use_reentrant=use_reentrant).square().sum().backward()
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, once.get_buffer(name)), name


def test_channels_last_is_kept():
    x = maps(2, 4, 3, 5).to(memory_format=torch.channels_last)
    assert SimCLRBatchNorm(4).double()(x).is_contiguous(memory_format=torch.channels_last)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"one of \('biased', 'unbiased'\), got 'population'"):
        SimCLRBatchNorm(4, running_var="population")
    for momentum in (1.5, None):
        with pytest.raises(ValueError, match=rf"momentum must be in \[0, 1\], got {momentum}"):
            SimCLRBatchNorm(4, momentum=momentum)
    with pytest.raises(ValueError, match=r"got \[2, 4, 3\]"):
        SimCLRBatchNorm(4)(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SimCLRBatchNorm(4)(torch.randn(1, 4))
