"""DenseCL's ResNet against torchvision's, its options, and its initialisation."""

import math
import re

import pytest
import torch
import torchvision
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel
from hubmodels.modeling.densecl.normalization_densecl import DenseCLBatchNorm2d
from tiny_densecl import tiny_config, tiny_model, tiny_views
from torch import nn
from torch.testing import assert_close

STEM = "encoder.backbone.embedder.embedder."
SMALL_HEADS = {"projection_hidden_size": 8, "projection_size": 4, "queue_length": 4}


def from_torchvision(state):
    """A torchvision state dict under our names."""
    ours = {}
    for name, tensor in state.items():
        name = re.sub(r"^conv1\.", f"{STEM}convolution.", name)
        name = re.sub(r"^bn1\.", f"{STEM}normalization.", name)
        name = re.sub(
            r"^layer(\d)\.", lambda match: f"encoder.backbone.encoder.stages.{int(match[1]) - 1}.layers.", name
        )
        name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
        name = re.sub(r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)
        name = name.replace("downsample.0.", "shortcut.convolution.").replace(
            "downsample.1.", "shortcut.normalization."
        )
        ours[name] = tensor
    return {name: tensor for name, tensor in ours.items() if not name.startswith("fc.")}


def torchvision_maps(network, images):
    """Maps of the stem before its max pool and of the four stages."""
    stem = network.relu(network.bn1(network.conv1(images)))
    maps, hidden = [stem], network.maxpool(stem)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        hidden = stage(hidden)
        maps.append(hidden)
    return maps


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("resnet18", {"layer_type": "basic", "depths": [2, 2, 2, 2]}),
        ("resnet34", {"layer_type": "basic", "depths": [3, 4, 6, 3]}),
        ("resnet50", {}),
        pytest.param("resnet101", {"depths": [3, 4, 23, 3]}, marks=pytest.mark.slow),
        pytest.param("resnet152", {"depths": [3, 8, 36, 3]}, marks=pytest.mark.slow),
    ],
)
def test_equals_torchvision(name, config):
    theirs = getattr(torchvision.models, name)().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    config = DenseCLConfig(**config, **SMALL_HEADS, out_indices=[0, 1, 2, 3, 4])
    ours = DenseCLBackbone(config).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    ours.double()
    theirs.double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for actual, expected in zip(ours(images).feature_maps, torchvision_maps(theirs, images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert ours.channels == [64, *config.hidden_sizes]


def test_published_sizes_at_224_pixels():
    with torch.device("meta"):
        backbone = DenseCLBackbone(DenseCLConfig(out_indices=[0, 1, 2, 3, 4]))
        maps = backbone(torch.empty(2, 3, 224, 224)).feature_maps
        encoder = DenseCLModel(DenseCLConfig())
        output = encoder(torch.empty(2, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 112, 112),
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
    ]
    assert sum(p.numel() for p in backbone.parameters()) == 23_508_032
    assert output.global_embedding.shape == (2, 128)
    assert output.dense_embedding.shape == (2, 128, 49)
    heads = 2048 * 2048 + 2048 + 2048 * 128 + 128
    assert sum(p.numel() for p in encoder.parameters()) == 23_508_032 + 2 * heads


def test_dilated_stages_equal_torchvision():
    """Torchvision dilates all blocks of a stage but the first; with one block a stage here, both can be compared."""
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    ours = DenseCLBackbone(DenseCLConfig(strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4], **SMALL_HEADS))
    dilations = {name: module.dilation for name, module in ours.named_modules() if isinstance(module, nn.Conv2d)}
    stage3 = [d for name, d in dilations.items() if "stages.2" in name and "layer.1" in name]
    stage4 = [d for name, d in dilations.items() if "stages.3" in name and "layer.1" in name]
    assert stage3 == [(2, 2)] * 6
    assert stage4 == [(4, 4)] * 3
    # With the dilation of torchvision's first blocks the networks are the same.
    for stage, dilation in ((2, 1), (3, 2)):
        convolution = ours.encoder.backbone.encoder.stages[stage].layers[0].layer[1].convolution
        convolution.dilation = convolution.padding = (dilation, dilation)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    ours.double().eval()
    theirs.double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = ours(images).feature_maps[0], torchvision_maps(theirs, images)[-1]
    assert actual.shape[-2:] == (8, 8)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_basic_layers_dilate_their_first_convolution():
    model = DenseCLBackbone(tiny_config(strides=[1, 1], dilations=[1, 2]))
    first, second = model.encoder.backbone.encoder.stages[1].layers[0].layer
    assert (first.convolution.dilation, second.convolution.dilation) == ((2, 2), (1, 1))
    assert model(torch.zeros(1, 3, 32, 32)).feature_maps[0].shape == (1, 8, 8, 8)


@pytest.mark.parametrize(("style", "strides"), [("pytorch", [1, 2, 1]), ("caffe", [2, 1, 1])])
def test_style_places_the_stride(style, strides):
    model = DenseCLBackbone(tiny_config(layer_type="bottleneck", style=style))
    layers = model.encoder.backbone.encoder.stages[1].layers[0].layer
    assert [layer.convolution.stride[0] for layer in layers] == strides


def test_shortcuts_exist_where_stride_or_width_change():
    basic = DenseCLBackbone(tiny_config(depths=[2, 2])).state_dict()
    shortcuts = {re.search(r"stages\.\d\.layers\.\d", name)[0] for name in basic if "shortcut" in name}
    assert shortcuts == {"stages.1.layers.0"}
    bottleneck = DenseCLBackbone(tiny_config(layer_type="bottleneck", depths=[2, 2])).state_dict()
    shortcuts = {re.search(r"stages\.\d\.layers\.\d", name)[0] for name in bottleneck if "shortcut" in name}
    assert shortcuts == {"stages.0.layers.0", "stages.1.layers.0"}


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2])
def test_frozen_stages_neither_learn_nor_count(frozen_stages, tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    for model in (
        DenseCLForPreTraining(tiny_config(frozen_stages=frozen_stages)),
        DenseCLForPreTraining.from_pretrained(tmp_path, frozen_stages=frozen_stages).train(),
    ):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model(tiny_views(dtype=torch.float32)).loss.backward()
        prefixes = [STEM, *(f"encoder.backbone.encoder.stages.{i}." for i in range(2))][: frozen_stages + 1]
        for name, parameter in model.encoder.named_parameters(prefix="encoder"):
            assert parameter.requires_grad != name.startswith(tuple(prefixes)), name
        for name, buffer in model.encoder.named_buffers(prefix="encoder"):
            if name.endswith("num_batches_tracked"):
                assert (buffer == before[name]) == name.startswith(tuple(prefixes)), name


def test_norm_eval_uses_the_running_statistics():
    model = tiny_model(norm_eval=True)
    assert all(not m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    views = tiny_views()
    assert torch.equal(model(views).query_features, model.eval()(views).query_features)


def test_layers_start_as_the_identity_where_asked():
    model = DenseCLBackbone(tiny_config(zero_init_residual=True))
    for stage in model.encoder.backbone.encoder.stages:
        assert (stage.layers[0].layer[1].normalization.weight == 0).all()
        assert (stage.layers[0].layer[0].normalization.weight == 1).all()


def test_initialisation_of_the_official_code():
    model = DenseCLForPreTraining(DenseCLConfig(depths=[1, 1, 1, 1], queue_length=512))
    state = model.state_dict()
    for name, weight in state.items():
        if name.startswith("encoder.backbone") and name.endswith("convolution.weight"):
            fan_in = weight[0].numel()
            assert weight.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05), name
        elif name.startswith("encoder.global_head") and name.endswith("weight"):
            assert weight.std() == pytest.approx(math.sqrt(2 / weight.shape[1]), rel=0.05), name
        elif name.startswith("encoder.global_head"):
            assert (weight == 0).all()
        elif name.startswith("encoder.dense_head"):  # torch's default: uniform
            bound = 2048**-0.5
            assert bound * 0.95 < weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    for name in ("queue", "queue2"):
        torch.testing.assert_close(state[name].norm(dim=0), torch.ones(512))
        assert abs(state[name].mean()) < 0.01
        assert int(state[f"{name}_ptr"]) == 0
    assert not torch.equal(state["queue"], state["queue2"])
    for name, tensor in state.items():
        if name.startswith("encoder."):
            assert torch.equal(state[f"momentum_{name}"], tensor), name
    assert not any(parameter.requires_grad for parameter in model.momentum_encoder.parameters())


@pytest.mark.parametrize("num_stages", [1, 2])
def test_fewer_stages(num_stages):
    model = DenseCLModel(tiny_config(num_stages=num_stages))
    output = model(torch.zeros(2, 3, 32, 32), output_hidden_states=True)
    assert len(output.hidden_states) == num_stages + 1
    assert output.last_hidden_state.shape[1] == 4 * 2 ** (num_stages - 1)


def test_batches_of_all_sizes_are_differentiated_together():
    """Small ones are normalised by torch's kernel, large channels_last ones by parts; equal to torch's own class."""
    norm, plain = DenseCLBatchNorm2d(3), nn.BatchNorm2d(3)
    batches = [torch.randn(size, 3, 40, 40) + 1 for size in (2, 8, 2)]
    gradients = []
    for module in (norm, plain):
        outputs = [module(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
        sum(output.square().mul(output.sigmoid()).mean() for output in outputs).backward()
        gradients.append(module.weight.grad)
    assert_close(gradients[0], gradients[1])
    assert_close(norm.running_mean, plain.running_mean)
    assert_close(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == plain.num_batches_tracked == 3


@pytest.mark.parametrize("side", [20, 32, 36])
def test_statistics_of_channels_last_maps_are_as_exact_as_of_contiguous_ones(side):
    """Errors against float64 of the normalised maps and of the gradients, over several batches."""
    generator = torch.Generator().manual_seed(0)
    errors = {torch.contiguous_format: [], torch.channels_last: []}
    for _ in range(4):
        batch, gradient = 1.3 * torch.randn(2, 3, 16, side, side, generator=generator) + 0.7
        exact = batch.double().requires_grad_()
        expected = nn.BatchNorm2d(16).double()(exact)
        expected.backward(gradient.double())
        for memory_format, found in errors.items():
            given = batch.clone(memory_format=memory_format).requires_grad_()
            output = DenseCLBatchNorm2d(16)(given)
            output.backward(gradient.contiguous(memory_format=memory_format))
            found.append(((output - expected).abs().max() + (given.grad - exact.grad).abs().max()).item())
    contiguous, channels_last = (sum(found) for found in errors.values())
    assert channels_last < 2.5 * contiguous
