"""The batch normalisation of the methods' own networks, where its statistics are computed by parts."""

import pytest
import torch
from hubmodels.modeling.densecl.normalization_densecl import DenseCLBatchNorm2d
from hubmodels.modeling.sanm.normalization_sanm import SANMBatchNorm2d
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm2d
from torch import nn
from torch.optim.swa_utils import update_bn

NORMS = [DenseCLBatchNorm2d, SANMBatchNorm2d, SimCLRBatchNorm2d]


def maps(count=2):
    """Large enough for the statistics by parts."""
    return [torch.randn(8, 16, 32, 32).to(memory_format=torch.channels_last) for _ in range(count)]


@pytest.mark.parametrize("norm_class", NORMS)
def test_statistics_can_be_averaged_anew(norm_class):
    given, expected, batches = norm_class(16), nn.BatchNorm2d(16), maps()
    for norm in (given, expected):
        update_bn(batches, norm)
    variance = expected.running_var
    if norm_class is SimCLRBatchNorm2d:  # whose stored variance is that of the population
        variance = variance * (1 - 1 / (8 * 32 * 32))
    torch.testing.assert_close(given.running_mean, expected.running_mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(given.running_var, variance, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm_class", NORMS)
def test_gradients_can_be_differentiated_again(norm_class):
    (images,), gradients = maps(1), []
    for norm, pixels in ((norm_class(16), images), (nn.BatchNorm2d(16), images.contiguous())):
        pixels = pixels.clone().requires_grad_()
        (first,) = torch.autograd.grad(norm(pixels).pow(3).sum(), pixels, create_graph=True)
        first.square().sum().backward()
        gradients.append((pixels.grad, norm.weight.grad))
    for given, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(given, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("norm_class", NORMS)
def test_derivatives_forwards(norm_class):
    (images,) = maps(1)
    tangent = torch.randn_like(images)
    derivatives = []
    for norm in (norm_class(16), nn.BatchNorm2d(16)):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(images, tangent)
            derivatives.append(torch.autograd.forward_ad.unpack_dual(norm(dual)).tangent)
    torch.testing.assert_close(*derivatives, atol=1e-4, rtol=1e-4)
