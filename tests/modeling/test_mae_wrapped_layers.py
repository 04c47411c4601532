"""Layers that somebody replaced, hooked or offloaded are called, although MAE fuses the plain ones."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining
from torch import nn

from tests.modeling.tiny_mae import images, noise_for, perturbed, tiny_config

HOOKED = [
    "vit.embeddings.patch_embeddings.projection",
    "vit.layers.1.attention.q_proj",
    "vit.layers.0.attention.v_proj",
    "decoder.decoder_layers.0.attention.k_proj",
    "decoder.decoder_layers.1.attention.q_proj",
]


@pytest.fixture
def model():
    return perturbed(MAEForPreTraining(tiny_config())).eval()


def inputs(config):
    return {"pixel_values": images(config), "noise": noise_for(config)}


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("name", HOOKED)
def test_forward_hooks_run_and_change_nothing(model, name, register):
    expected = model(**inputs(model.config)).logits
    calls = []
    getattr(model.get_submodule(name), register)(lambda *arguments: calls.append(1))
    torch.testing.assert_close(model(**inputs(model.config)).logits, expected)
    assert calls


@pytest.mark.parametrize("name", HOOKED)
def test_backward_hooks_run(model, name):
    calls = []
    model.get_submodule(name).register_full_backward_hook(lambda *arguments: calls.append(1))
    model(**inputs(model.config)).loss.backward()
    assert calls


class Adapter(nn.Linear):
    """Adds one to what the layer says, as an adapter would add its own."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1


def test_adapters_take_part(model):
    layer = model.vit.layers[0].attention
    tokens = torch.randn(2, 5, 16)
    expected, _ = layer(tokens)
    adapter = Adapter(16, 16)
    adapter.load_state_dict(layer.v_proj.state_dict())
    layer.v_proj = adapter
    # probabilities sum to one, so that one more in every value is one more in every attended value
    torch.testing.assert_close(layer(tokens)[0], expected + layer.o_proj.weight.sum(dim=1))


def test_models_without_query_key_value_bias(model):
    config = tiny_config(qkv_bias=False)
    model = perturbed(MAEForPreTraining(config)).eval()
    fused = model(**inputs(config)).logits
    assert model.vit.layers[0].attention.q_proj.bias is None
    for layer in (*model.vit.layers, *model.decoder.decoder_layers):
        layer.attention.q_proj.register_forward_hook(lambda *arguments: None)
    torch.testing.assert_close(model(**inputs(config)).logits, fused)


def test_offloaded_models_run(model):
    """accelerate keeps the weights elsewhere and brings each layer's in when the layer is called."""
    expected = model(**inputs(model.config)).logits
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert offloaded.vit.layers[0].attention.q_proj.weight.is_meta
    torch.testing.assert_close(offloaded(**inputs(model.config)).logits, expected)


def test_models_partly_on_disk_run(model, tmp_path):
    expected = model(**inputs(model.config)).logits
    model.save_pretrained(tmp_path / "model")
    loaded = MAEForPreTraining.from_pretrained(
        tmp_path / "model", device_map={"vit": "cpu", "decoder": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(loaded.eval()(**inputs(model.config)).logits, expected)


def test_channels_last_images_are_the_same(model):
    given = inputs(model.config)
    expected = model(**given).logits
    given["pixel_values"] = given["pixel_values"].to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(**given).logits, expected)


def test_models_are_exported_with_any_batch_size():
    config = tiny_config(num_labels=3)
    model = perturbed(MAEForImageClassification(config)).eval()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (images(config),), dynamic_shapes={"pixel_values": {0: batch}}).module()
    pixels = images(config, batch=5)
    torch.testing.assert_close(exported(pixels).logits, model(pixels).logits)


def test_per_sample_gradients():
    """`torch.func` over single images, as differential privacy and influence functions need."""
    config = tiny_config(num_labels=3)
    model = perturbed(MAEForImageClassification(config)).eval()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, pixels, label):
        return torch.func.functional_call(model, weights, (pixels[None],), {"labels": label[None]}).loss

    pixels, labels = images(config), torch.tensor([2, 0])
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, pixels, labels)
    model(pixels, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].mean(dim=0), parameter.grad, atol=1e-6, rtol=1e-4)
