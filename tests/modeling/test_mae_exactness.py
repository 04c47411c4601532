"""Identities that the short cuts of MAE must keep: masked rows, kept patches, every attention, compilation."""

import copy
import pickle

import pytest
import torch
from hubmodels.modeling.mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.mae.masking_mae import sample_mask
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.modeling.stock import stock_5_23
from tests.modeling.tiny_mae import SIZES, gradients, images, noise_for, perturbed, seeded, tiny_config


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, gradients(model)


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def mask_arguments(config, kind):
    """A mask of each kind as arguments of the forward."""
    rows, columns = config.grid_size
    if kind == "noise":
        return {"noise": noise_for(config)}
    if kind == "explicit":
        masked = torch.zeros(2, rows * columns, dtype=torch.bool)
        masked[0, ::2] = True
        masked[1, -int(masked[0].sum()) :] = True
        return {"bool_masked_pos": masked}
    mask = sample_mask(2, config.grid_size, config.mask_ratio, kind, generator=seeded(4))
    return {"bool_masked_pos": mask.mask.bool()}


FAST_PATH = [
    ({}, "noise"),
    ({}, "explicit"),
    ({"norm_pix_loss": True}, "noise"),
    ({"mask_sampling": "block"}, "block"),
    ({"mask_sampling": "grid"}, "grid"),
    ({"image_size": (12, 20)}, "noise"),
    ({"image_size": (8, 24), "num_channels": 1}, "grid"),
    ({"num_channels": 5, "mask_ratio": 0.6}, "block"),
    ({"decoder_num_hidden_layers": 1}, "noise"),
    ({"decoder_num_hidden_layers": 0}, "noise"),
    ({"decoder_num_hidden_layers": 0, "norm_pix_loss": True, "num_channels": 1}, "explicit"),
    ({"mask_ratio": 0.95, "image_size": 20}, "noise"),
    ({"mask_ratio": 0.1}, "noise"),
]


@pytest.mark.parametrize("fields, kind", FAST_PATH)
def test_predicting_masked_patches_only_is_exact(fields, kind):
    """The training path predicts only what the loss reads: the same loss and gradients of every weight in float64."""
    config = tiny_config(**fields)
    model = perturbed(MAEForPreTraining(config)).double().train()
    inputs = {"pixel_values": images(config, dtype=torch.float64), **mask_arguments(config, kind)}
    full, expected = loss_and_gradients(model, return_logits=True, **inputs)
    fast, actual = loss_and_gradients(model, **inputs)
    assert fast.logits is None and full.logits is not None
    torch.testing.assert_close(fast.loss, full.loss, atol=1e-12, rtol=0)
    assert_same(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "fields", [{}, {"norm_pix_loss": True}, {"num_channels": 5, "mask_ratio": 0.6}, {"decoder_num_hidden_layers": 1}]
)
def test_forward_and_gradients_are_those_of_stock_transformers(fields):
    config = tiny_config(**fields)
    model = perturbed(MAEForPreTraining(config)).double().train()
    stock = ViTMAEForPreTraining(ViTMAEConfig(**SIZES | fields, layer_norm_eps=1e-6)).double()
    stock.load_state_dict(model.state_dict())
    inputs = {"pixel_values": images(config, dtype=torch.float64), "noise": noise_for(config)}
    output, actual = loss_and_gradients(model, **inputs, return_logits=True)
    expected_output, expected = loss_and_gradients(stock, **inputs)
    for name in ("loss", "logits", "mask", "ids_restore"):
        torch.testing.assert_close(output[name], expected_output[name], atol=1e-12, rtol=1e-12)
    assert_same(actual, expected, atol=1e-12, rtol=1e-9)


def test_embedding_only_kept_patches_is_exact():
    config = tiny_config(image_size=(12, 20), num_channels=5)
    embeddings = perturbed(MAEModel(config)).double().embeddings
    pixels = images(config, dtype=torch.float64)
    mask = sample_mask(2, config.grid_size, 0.6, generator=seeded())
    kept, everything = embeddings(pixels, mask), embeddings(pixels)
    index = mask.ids_keep[..., None].expand(-1, -1, 16)
    torch.testing.assert_close(kept[:, 1:], everything[:, 1:].gather(1, index), atol=1e-13, rtol=0)
    assert torch.equal(kept[:, 0], everything[:, 0])


def test_explicit_mask_equals_noise_that_sorts_alike():
    """Noise 0 for kept and 1 for removed patches, with ties in image order, is the same mask in the same order."""
    config = tiny_config()
    model = perturbed(MAEForPreTraining(config)).eval()
    masked = sample_mask(2, (4, 4), 0.75, generator=seeded()).mask.bool()
    noise = masked + torch.arange(16) / 100
    pixels = images(config)
    given, drawn = model(pixels, bool_masked_pos=masked), model(pixels, noise=noise)
    assert torch.equal(given.mask, masked.float())
    assert torch.equal(given.ids_restore, drawn.ids_restore)
    assert torch.equal(given.logits, drawn.logits) and torch.equal(given.loss, drawn.loss)
    grid = model(pixels, bool_masked_pos=masked.view(2, 4, 4))
    assert torch.equal(grid.logits, given.logits), "a mask may have the shape of the grid"


def test_order_of_kept_patches_does_not_change_predictions():
    config = tiny_config()
    model = perturbed(MAEForPreTraining(config)).double().eval()
    pixels, noise = images(config, dtype=torch.float64), noise_for(config)
    output = model(pixels, noise=noise)
    again = model(pixels, bool_masked_pos=output.mask.bool())
    assert not torch.equal(output.ids_restore, again.ids_restore)
    torch.testing.assert_close(again.logits, output.logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_targets_of_normalised_pixels(training):
    """Mean and unbiased variance of each patch: a model that predicts them exactly has no loss."""
    config = tiny_config(norm_pix_loss=True)
    model = MAEForPreTraining(config).train(training)
    pixels = images(config, batch=1)
    patches = model.patchify(pixels).double()
    deviation = (((patches - patches.mean(-1, keepdim=True)) ** 2).sum(-1, keepdim=True) / 47 + 1e-6).sqrt()
    target = (patches - patches.mean(-1, keepdim=True)) / deviation
    output = model(pixels, noise=noise_for(config, 1), return_logits=True)
    error = (output.logits - target).square().mean(-1)
    torch.testing.assert_close(output.loss.double(), (error * output.mask).sum() / 12, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model._target(model.patchify(pixels)).double(), target, atol=1e-5, rtol=1e-5)


def test_kept_pixels_reach_the_loss_only_through_the_encoder():
    """Pixels of kept patches are no targets; pixels of removed patches are targets and no input."""
    config = tiny_config()
    model = perturbed(MAEForPreTraining(config)).eval()
    pixels, noise = images(config, batch=1), noise_for(config, 1)
    output = model(pixels, noise=noise)
    hidden = model.unpatchify(output.mask[..., None].expand(-1, -1, 48))
    changed = model(pixels + 3 * hidden, noise=noise)
    assert torch.equal(changed.logits, output.logits)
    assert not torch.equal(changed.loss, output.loss)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification])
def test_gradient_checkpointing_changes_nothing(model_class):
    config = tiny_config(num_labels=3, drop_path_rate=0.5 if model_class is MAEForImageClassification else 0.0)
    model = perturbed(model_class(config)).train()
    extra = {"noise": noise_for(config)} if model_class is MAEForPreTraining else {"labels": torch.tensor([0, 2])}
    results = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        torch.manual_seed(0)
        results.append(loss_and_gradients(model, pixel_values=images(config), **extra))
    assert torch.equal(results[0][0].loss, results[1][0].loss)
    assert_same(results[1][1], results[0][1], atol=1e-7, rtol=1e-5)


def test_gradient_checkpointing_does_not_draw_another_mask():
    config = tiny_config()
    model = perturbed(MAEForPreTraining(config)).train()
    results = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        results.append(loss_and_gradients(model, pixel_values=images(config)))
    assert torch.equal(results[0][0].mask, results[1][0].mask)
    assert_same(results[1][1], results[0][1], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_eager_and_sdpa_attention_agree(model_class):
    config = tiny_config(num_labels=3)
    model = perturbed(model_class(config)).double().eval()
    arguments = {"noise": noise_for(config)} if model_class is MAEForPreTraining else {}
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        output = model(images(config, dtype=torch.float64), **arguments)
        outputs.append(output.feature_maps[-1] if model_class is MAEBackbone else output.logits)
    # the eager attention of transformers has its softmax in float32
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


@pytest.fixture
def counted_calls(monkeypatch):
    """Counts by name which attention functions run."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.vit_mae.modeling_vit_mae import eager_attention_forward

    calls = []

    def counting(name):
        def attention(module, *args, **kwargs):
            calls.append((name, module.q_proj.out_features))
            return eager_attention_forward(module, *args, **kwargs)

        return attention

    for name in ("sdpa", "counted"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, counting(name))
    return calls


def test_set_attn_implementation_reaches_the_decoder(counted_calls):
    config = tiny_config()
    model = MAEForPreTraining(config).eval()
    model.set_attn_implementation("sdpa")
    model(images(config))
    assert counted_calls == [("sdpa", 16)] * 2 + [("sdpa", 8)] * 2
    counted_calls.clear()
    model.set_attn_implementation("counted")
    model(images(config))
    assert counted_calls == [("counted", 16)] * 2 + [("counted", 8)] * 2


@stock_5_23
def test_stock_decoder_keeps_its_own_attention(counted_calls):
    """transformers 5.23 copies the config for the decoder when it is built: changes do not reach it."""
    stock = ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).eval()
    stock.set_attn_implementation("counted")
    stock(torch.zeros(1, 3, 16, 16))
    assert counted_calls == [("counted", 16)] * 2 + [("sdpa", 8)] * 2


def test_attentions_are_probabilities():
    config = tiny_config(_attn_implementation="eager")
    output = MAEForPreTraining(config).eval()(images(config), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 2 and len(output.hidden_states) == 3
    for attention in output.attentions:
        assert attention.shape == (2, 2, 5, 5)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 5))
    assert [tuple(states.shape) for states in output.decoder_hidden_states] == [(2, 17, 8)] * 3


def test_tuple_output_holds_the_same():
    config = tiny_config()
    model = MAEForPreTraining(config).eval()
    pixels, noise = images(config), noise_for(config)
    named, plain = model(pixels, noise=noise), model(pixels, noise=noise, return_dict=False)
    assert isinstance(plain, tuple)
    assert all(torch.equal(a, b) for a, b in zip(named.to_tuple(), plain, strict=True))


def test_labels_are_ignored_in_pre_training():
    config = tiny_config()
    model = MAEForPreTraining(config).eval()
    pixels, noise = images(config), noise_for(config)
    labelled = model(pixels, noise=noise, labels=torch.tensor([1, 0]))
    assert torch.equal(labelled.loss, model(pixels, noise=noise).loss)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification])
def test_models_can_be_copied_and_pickled(model_class, copied):
    config = tiny_config()
    model = perturbed(model_class(config)).eval()
    twin = copied(model)
    arguments = {"noise": noise_for(config)} if model_class is MAEForPreTraining else {}
    assert torch.equal(twin(images(config), **arguments).logits, model(images(config), **arguments).logits)
    assert {n: p.requires_grad for n, p in twin.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    twin.set_attn_implementation("eager")
    assert model.config._attn_implementation != "eager", "a copy has a config of its own"
    if model_class is MAEForPreTraining:
        assert twin.decoder.decoder_layers[0].attention.config is twin.config, "its decoder too"


def test_training_step_compiles_without_graph_breaks():
    torch.compiler.reset()
    config = tiny_config()
    model = perturbed(MAEForPreTraining(config)).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = {"pixel_values": images(config), "noise": noise_for(config)}
    output, actual = loss_and_gradients(compiled, **inputs)
    expected_output, expected = loss_and_gradients(model, **inputs)
    torch.testing.assert_close(output.loss, expected_output.loss)
    assert_same({n.removeprefix("_orig_mod."): g for n, g in actual.items()}, expected, atol=1e-6, rtol=1e-5)


def test_drawing_masks_compiles_without_graph_breaks():
    torch.compiler.reset()
    config = tiny_config()
    output = torch.compile(MAEForPreTraining(config).eval(), backend="eager", fullgraph=True)(images(config))
    assert output.mask.sum() == 24


def test_compiled_model_takes_other_ratios_and_sizes():
    torch.compiler.reset()
    model = perturbed(MAEForPreTraining(tiny_config())).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    config = tiny_config(image_size=(12, 20))
    for ratio in (0.75, 0.5):
        inputs = {"pixel_values": images(config), "noise": noise_for(config), "mask_ratio": ratio}
        output = compiled(**inputs, interpolate_pos_encoding=True)
        torch.testing.assert_close(output.loss, model(**inputs, interpolate_pos_encoding=True).loss)


def test_classifier_compiles_without_graph_breaks():
    torch.compiler.reset()
    config = tiny_config(num_labels=3)
    model = perturbed(MAEForImageClassification(config)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(config)).logits, model(images(config)).logits)
