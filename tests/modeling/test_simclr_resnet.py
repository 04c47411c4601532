"""The official ResNets: sizes, stems, padding, shortcuts, selective kernels, squeeze-and-excitation."""

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRBackbone, SimCLRConfig, SimCLRForPreTraining, SimCLRModel
from hubmodels.modeling.simclr.resnet_simclr import (
    SimCLRResidualLayer,
    SimCLRSelectiveKernel,
    SimCLRShortcut,
    SimCLRStem,
)
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel

from tests.modeling.tiny_simclr import gradients, images, perturbed, seeded, tiny_config

# Millions of variables of the base network, as the official README lists them (moving statistics count there).
PUBLISHED = {
    (50, 1, False): 24,
    (50, 1, True): 35,
    (50, 2, False): 94,
    (50, 2, True): 140,
    (101, 1, False): 43,
    (101, 1, True): 65,
    (101, 2, False): 170,
    (101, 2, True): 257,
    (152, 1, False): 58,
    (152, 1, True): 89,
    (152, 2, False): 233,
    (152, 2, True): 354,
    (152, 3, True): 795,
}


@pytest.mark.parametrize("depth, width, selective", PUBLISHED)
def test_sizes_of_the_published_networks(depth, width, selective):
    config = SimCLRConfig(resnet_depth=depth, width_multiplier=width, sk_ratio=0.0625 if selective else 0.0)
    with torch.device("meta"):
        model = SimCLRModel(config)
    variables = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert round(sum(t.numel() for t in variables.values()) / 1e6) == PUBLISHED[depth, width, selective]


@pytest.mark.parametrize(
    "depth, layer_type, depths",
    [
        (18, "basic", [2, 2, 2, 2]),
        (34, "basic", [3, 4, 6, 3]),
        (50, "bottleneck", [3, 4, 6, 3]),
        (101, "bottleneck", [3, 4, 23, 3]),
        (152, "bottleneck", [3, 8, 36, 3]),
        (200, "bottleneck", [3, 24, 36, 3]),
    ],
)
def test_depth_table(depth, layer_type, depths):
    config = SimCLRConfig(resnet_depth=depth)
    assert (config.layer_type, config.depths) == (layer_type, depths)
    assert config.hidden_sizes == ([64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048])
    assert SimCLRConfig(layer_type=layer_type, depths=depths).hidden_sizes == config.hidden_sizes


def test_maps_of_the_default_network():
    with torch.device("meta"):
        maps = SimCLRModel(SimCLRConfig())(torch.empty(2, 3, 224, 224), output_hidden_states=True).hidden_states
    expected = [(2, 64, 56, 56), (2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14), (2, 2048, 7, 7)]
    assert [tuple(m.shape) for m in maps] == expected


def same_padded_max_pool(maps):
    """TensorFlow's SAME for a 3x3 window with stride 2, from its definition."""
    padding = []
    for size in reversed(maps.shape[-2:]):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.max_pool2d(functional.pad(maps, padding, value=-torch.inf), 3, 2)


@pytest.mark.parametrize("height, width", [(1, 2), (2, 3), (3, 4), (5, 8), (8, 8), (7, 7), (112, 9)])
def test_max_pool_padding(height, width):
    """Run on a stem that passes on what it gets, whose windows then show."""
    maps = torch.randn(2, 4, height, width, generator=seeded())
    for pool_padding in ("same_tf", "torch"):
        stem = SimCLRStem(tiny_config(image_size=64, num_channels=4, pool_padding=pool_padding)).eval()
        stem.convolution = torch.nn.Identity()
        pooled = stem(maps.abs())
        if pool_padding == "torch":
            expected = functional.max_pool2d(maps.abs(), 3, 2, padding=1)
        else:
            expected = same_padded_max_pool(maps.abs())
        torch.testing.assert_close(pooled, expected / (1 + 1e-5) ** 0.5)


def test_paddings_differ_on_even_sizes_only():
    """112 pixels after the stem of 224 is even: this is where converted weights lose accuracy."""
    model = perturbed(SimCLRModel(tiny_config(image_size=64, cifar_stem=False))).eval()
    other = SimCLRModel(tiny_config(image_size=64, cifar_stem=False, pool_padding="torch")).eval()
    other.load_state_dict(model.state_dict())
    even, odd = images(2, size=32), images(2, size=30)
    with torch.no_grad():
        assert (model(even).pooler_output - other(even).pooler_output).abs().max() > 1e-4
        assert torch.equal(model(odd).pooler_output, other(odd).pooler_output)


def test_equals_the_resnet_of_transformers_with_torch_padding():
    """Bottleneck networks differ in the padding of the max pool alone."""
    sizes = {"embedding_size": 4, "hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 1, 1]}
    stock = ResNetModel(ResNetConfig(**sizes)).eval()
    model = perturbed(
        SimCLRModel(tiny_config(depths=[2, 1, 1, 1], image_size=64, pool_padding="torch", cifar_stem=False))
    ).eval()
    weights = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    stock.load_state_dict({name.replace("embedder.", "embedder.embedder."): t for name, t in weights.items()})
    pixels = images(2, size=64)
    with torch.no_grad():
        expected, actual = stock(pixels), model(pixels)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output.flatten(1))


@pytest.mark.parametrize("image_size, cifar_stem, cifar", [(32, None, 1), (33, None, 0), (32, False, 0), (64, True, 1)])
def test_stem_for_small_images(image_size, cifar_stem, cifar):
    model = SimCLRModel(tiny_config(image_size=image_size, cifar_stem=cifar_stem)).eval()
    convolution = model.backbone.embedder.convolution
    assert (convolution.kernel_size, convolution.stride) == (((3, 3), (1, 1)) if cifar else ((7, 7), (2, 2)))
    stem_map = model(images(1, size=image_size), output_hidden_states=True).hidden_states[0]
    assert stem_map.shape[-1] == (image_size if cifar else -(-image_size // 4))


def test_deep_stem():
    model = SimCLRModel(tiny_config(sk_ratio=0.0625, image_size=64))
    convolutions = [layer.convolution for layer in model.backbone.embedder.stem]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [(3, 2, 2), (2, 2, 1), (2, 4, 1)]
    small = SimCLRModel(tiny_config(sk_ratio=0.0625, image_size=32))
    assert small.backbone.embedder.convolution.kernel_size == (3, 3), "small images have the CIFAR stem"


@pytest.mark.parametrize("size", [4, 5, 7])
def test_pooled_shortcut_with_stride(size):
    """On odd sizes the zeros at the bottom and right count in the mean."""
    shortcut = SimCLRShortcut(tiny_config(sk_ratio=0.0625), 4, 8, stride=2).eval()
    maps = torch.randn(2, 4, size, size, generator=seeded())
    padded = torch.zeros(2, 4, size + 1, size + 1)
    padded[..., :size, :size] = maps
    pooled = functional.avg_pool2d(padded, 2, 2)
    expected = functional.conv2d(pooled, shortcut.convolution.weight) / (1 + 1e-5) ** 0.5
    assert expected.shape[-1] == -(-size // 2)
    torch.testing.assert_close(shortcut(maps), expected)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_pooled_shortcut_without_stride(size):
    """Windows of one, two or four pixels at the edge: padding does not count."""
    shortcut = SimCLRShortcut(tiny_config(sk_ratio=0.0625), 4, 8, stride=1).eval()
    maps = torch.randn(2, 4, size, size, generator=seeded())
    windows = [[maps[:, :, y : y + 2, x : x + 2].mean(dim=(2, 3)) for x in range(size)] for y in range(size)]
    pooled = torch.stack([torch.stack(row, dim=-1) for row in windows], dim=-2)
    expected = functional.conv2d(pooled, shortcut.convolution.weight) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(shortcut(maps), expected)


@pytest.mark.parametrize("filters, ratio, squeezed", [(6, 0.0625, 32), (640, 0.0625, 40), (64, 0.9, 57)])
def test_selective_kernel(filters, ratio, squeezed):
    """Spec of the mixing: pooled sum of both halves, two 1x1 convolutions, softmax over the halves per channel."""
    layer = perturbed(SimCLRSelectiveKernel(tiny_config(sk_ratio=ratio), 4, filters, stride=2)).eval()
    assert layer.expand.in_channels == squeezed
    maps = torch.randn(2, 4, 5, 5, generator=seeded())
    both = functional.relu(layer.normalization(functional.conv2d(maps, layer.convolution.weight, None, 2, 1)))
    first, second = both[:, :filters], both[:, filters:]
    pooled = (first + second).mean(dim=(2, 3), keepdim=True)
    squeezed_maps = functional.relu(layer.squeeze.normalization(layer.squeeze.convolution(pooled)))
    logits = layer.expand(squeezed_maps)
    share = torch.sigmoid(logits[:, :filters] - logits[:, filters:])
    torch.testing.assert_close(layer(maps), share * first + (1 - share) * second)


def test_squeeze_excitation():
    plain, gated = (SimCLRResidualLayer(tiny_config(se_ratio=r), 8, 6, 1, project=True) for r in (0.0, 0.25))
    perturbed(gated).eval()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("se.")})
    maps = torch.randn(2, 8, 4, 4, generator=seeded())
    assert gated.se.reduce.weight.shape == (1, 24, 1, 1), "a quarter of the filters, at least one, of all channels"
    branch = plain.eval().layer(maps)
    hidden = functional.relu(gated.se.reduce(branch.mean(dim=(2, 3), keepdim=True)))
    expected = functional.relu(branch * torch.sigmoid(gated.se.expand(hidden)) + plain.shortcut(maps))
    torch.testing.assert_close(gated(maps), expected)
    with torch.no_grad():
        assert (gated(maps) - plain(maps)).abs().max() > 1e-3


def test_every_group_starts_with_a_projection():
    """Also the first group of basic blocks, although its width does not change."""
    for layer_type in ("basic", "bottleneck"):
        model = SimCLRModel(tiny_config(layer_type=layer_type, depths=[2, 1, 1, 1]))
        for number, stage in enumerate(model.backbone.encoder.stages):
            shortcut = stage.layers[0].shortcut
            assert isinstance(shortcut, SimCLRShortcut)
            assert shortcut.convolution.stride == ((1, 1) if number == 0 else (2, 2))
        assert isinstance(model.backbone.encoder.stages[0].layers[1].shortcut, torch.nn.Identity)


def test_stride_is_in_the_three_by_three_convolution():
    stage = SimCLRModel(tiny_config()).backbone.encoder.stages[1]
    assert [layer.convolution.stride[0] for layer in stage.layers[0].layer] == [1, 2, 1]


def test_widths():
    config = tiny_config(stem_width=4, width_multiplier=3)
    model = SimCLRModel(config)
    assert config.embedding_size == 12 and config.hidden_sizes == [48, 96, 192, 384]
    assert model(images(2)).pooler_output.shape == (2, 384)
    backbone = SimCLRBackbone(tiny_config(width_multiplier=3, out_indices=[0, 2]))
    assert backbone.channels == [12, 96]
    assert [m.shape[1] for m in backbone(images(2)).feature_maps] == [12, 96]


@pytest.mark.parametrize(
    "global_bn, bn_running_var, stored",
    [
        (True, None, "biased"),
        (True, "biased", "biased"),
        (True, "unbiased", "unbiased"),
        (False, None, "unbiased"),
        (False, "biased", "biased"),
        (False, "unbiased", "unbiased"),
    ],
)
def test_moving_variance_of_maps(global_bn, bn_running_var, stored):
    """By default maps store the sample's variance where the TF1 code uses fused kernels; vectors never do."""
    model = SimCLRForPreTraining(tiny_config(global_bn=global_bn, bn_running_var=bn_running_var)).train()
    seen = {}
    norms = {"map": model.backbone.embedder.normalization, "vector": model.projection_head.layers[0].normalization}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda module, args, output, name=name: seen.update({name: args[0].detach()}))
    model(images(2, 2))
    for name, norm in norms.items():
        correction = 1 if name == "map" and stored == "unbiased" else 0
        variance = seen[name].transpose(0, 1).flatten(1).var(dim=1, correction=correction)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)


@pytest.mark.parametrize("options", [{}, {"sk_ratio": 0.0625, "se_ratio": 0.25}], ids=["plain", "selective"])
def test_gradient_checkpointing_changes_nothing(options):
    """Neither gradients nor moving statistics, which a repeated forward would move twice."""
    models = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = tiny_config(**options)
        config.gradient_checkpointing = checkpointing
        model = perturbed(SimCLRForPreTraining(config)).train()
        assert model.is_gradient_checkpointing == checkpointing
        model(images(3, 2)).loss.backward()
        models.append(model)
    torch.testing.assert_close(gradients(models[1]), gradients(models[0]))
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


def test_channels_last_gives_the_same():
    model = perturbed(SimCLRModel(tiny_config(sk_ratio=0.0625, image_size=40))).eval()
    pixels = images(2, size=40)
    with torch.no_grad():
        expected = model(pixels).pooler_output
        actual = model.to(memory_format=torch.channels_last)(pixels.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual.pooler_output, expected, atol=1e-5, rtol=1e-4)
