"""The ResNets of SimCLR, DenseCL and SANM compute in channels_last on the CPU, and it changes rounding only."""

import copy

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLConfig
from hubmodels.modeling.densecl.normalization_densecl import DenseCLBatchNorm2d
from hubmodels.modeling.densecl.resnet_densecl import DenseCLResNet
from hubmodels.modeling.sanm import SANMConfig
from hubmodels.modeling.sanm.networks_sanm import SANMResNet
from hubmodels.modeling.sanm.normalization_sanm import SANMBatchNorm2d
from hubmodels.modeling.simclr import SimCLRConfig
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from hubmodels.modeling.simclr.resnet_simclr import SimCLRResNet

SMALL = {"depths": [1, 2, 1, 1]}
NETWORKS = {
    "simclr bottleneck": lambda: SimCLRResNet(SimCLRConfig(stem_width=16, **SMALL)),
    "simclr basic": lambda: SimCLRResNet(SimCLRConfig(stem_width=16, layer_type="basic", image_size=32, **SMALL)),
    "simclr selective kernels": lambda: SimCLRResNet(SimCLRConfig(stem_width=16, sk_ratio=0.0625, **SMALL)),
    "simclr squeeze and excitation": lambda: SimCLRResNet(SimCLRConfig(stem_width=16, se_ratio=0.25, **SMALL)),
    "densecl bottleneck": lambda: DenseCLResNet(DenseCLConfig(embedding_size=16, **SMALL)),
    "densecl basic": lambda: DenseCLResNet(DenseCLConfig(embedding_size=16, layer_type="basic", **SMALL)),
    "sanm preact": lambda: SANMResNet(SANMConfig(widths=[16, 16], depths=[1, 2])),
    "sanm bottleneck": lambda: SANMResNet(SANMConfig(widths=[16, 16], depths=[1, 2], layer_type="bottleneck")),
}


def run(network, pixel_values):
    """Maps, and gradients of their mean squares with respect to all parameters."""
    maps = network(pixel_values)
    sum(feature_map.square().mean() for feature_map in maps).backward()
    return maps, [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_map_keeps_the_layout(name):
    # More images than the 16 up to which a single thread does not use the kernels of oneDNN.
    for feature_map in NETWORKS[name]().train()(torch.rand(20, 3, 37, 41)):
        assert feature_map.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layout_changes_no_result(name, monkeypatch):
    network = NETWORKS[name]().double().train()
    plain = copy.deepcopy(network)
    pixel_values = torch.rand(4, 3, 37, 41, dtype=torch.float64)
    maps, gradients = run(network, pixel_values)
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor, **kwargs: tensor)
    plain_maps, plain_gradients = run(plain, pixel_values)
    assert plain_maps[0].is_contiguous()
    torch.testing.assert_close(maps, plain_maps)
    torch.testing.assert_close(gradients, plain_gradients)


def unbiased_simclr_norm(channels):
    return SimCLRBatchNorm(channels, running_var="unbiased")


@pytest.mark.parametrize(
    "norm", [unbiased_simclr_norm, DenseCLBatchNorm2d, SANMBatchNorm2d], ids=["simclr", "densecl", "sanm"]
)
@pytest.mark.parametrize("shape", [(16, 16, 128, 100), (3, 24, 61, 67), (3, 5, 37, 41)], ids=str)
def test_statistics_of_large_maps_are_as_exact_as_small_ones(norm, shape):
    """torch's own kernel misses the first bounds 28 times at the largest shape; the last shape is left to it."""
    exact = torch.nn.BatchNorm2d(shape[1]).double()
    ours = norm(shape[1])
    torch.nn.init.uniform_(ours.weight)
    exact.weight.data.copy_(ours.weight)
    x = (torch.randn(shape) + 2).contiguous(memory_format=torch.channels_last)
    target = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    inputs = x.requires_grad_(), x.detach().double().requires_grad_()
    outputs = ours(inputs[0]), exact(inputs[1])
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=0, atol=5e-6)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        actual, expected = getattr(ours, name), getattr(exact, name)
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-6, atol=1e-7)
    for output, wanted in zip(outputs, (target, target.double()), strict=True):
        (output - wanted).square().sum().backward()
    pairs = [(inputs[0].grad, inputs[1].grad), (ours.weight.grad, exact.weight.grad), (ours.bias.grad, exact.bias.grad)]
    for actual, expected in pairs:
        assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
