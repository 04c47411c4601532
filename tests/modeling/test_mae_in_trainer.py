"""Training MAE classifiers: stochastic depth, what is frozen, losses, parameter groups."""

import pytest
import torch
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.mae.layers_mae import MAEDropPath
from timm.optim import param_groups_layer_decay
from torch.nn.functional import cross_entropy, one_hot

from tests.modeling.tiny_mae import gradients, images, perturbed, seeded, tiny_config


def classifier(**fields):
    return perturbed(MAEForImageClassification(tiny_config(num_labels=3, **fields)))


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_drop_path_keeps_the_mean():
    """Of 20000 samples the share kept is within 5 standard deviations, and what is kept makes up for the others."""
    drop = MAEDropPath(0.3).train()
    torch.manual_seed(0)
    kept = drop(torch.ones(20_000, 1, 2))
    assert torch.equal(kept[:, 0, 0], kept[:, 0, 1]), "a sample is dropped as a whole"
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert kept.mean().item() == pytest.approx(1, abs=5 * (0.3 / 0.7 / 20_000) ** 0.5)


def test_drop_path_follows_given_draws():
    drop = MAEDropPath(0.25).train()
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.99])
    assert drop(torch.ones(4, 1, 1), uniform).flatten().tolist() == pytest.approx([0, 0, 4 / 3, 4 / 3])


def test_drop_path_is_off_in_evaluation_and_without_a_rate():
    tokens = torch.randn(2, 3, 4)
    assert MAEDropPath(0.9).eval()(tokens) is tokens
    assert MAEDropPath(0.0).train()(tokens) is tokens


@pytest.mark.parametrize("depth, rates", [(4, [0.0, 0.1, 0.2, 0.3]), (1, [0.0])])
def test_drop_path_rates_rise_from_zero(depth, rates):
    model = MAEModel(tiny_config(num_hidden_layers=depth, drop_path_rate=0.3))
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx(rates)


def test_both_branches_draw_on_their_own():
    """With the attention kept and the MLP dropped a layer is its attention branch alone, times 1 / (1 - rate)."""
    model = classifier(drop_path_rate=0.5).train()
    layer = model.vit.layers[1]
    tokens = torch.randn(1, 5, 16, generator=seeded())
    dropped = layer(tokens, drop_path_uniform=torch.tensor([[0.9], [0.1]]))
    attended, _ = layer.attention(layer.layernorm_before(tokens))
    torch.testing.assert_close(dropped, tokens + 2 * attended)
    assert torch.equal(layer(tokens, drop_path_uniform=torch.zeros(2, 1)), tokens)


def test_decoder_drops_no_paths():
    model = MAEForPreTraining(tiny_config(drop_path_rate=0.5))
    assert all(layer.drop_path.rate == 0 for layer in model.decoder.decoder_layers)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_frozen_encoder_trains_the_classifier_only(pooling):
    model = classifier(pooling=pooling, probe_batch_norm=True).train()
    model.freeze_encoder()
    assert trainable(model) == {"classifier.weight", "classifier.bias"}
    output = model(images(model.config, batch=4), labels=torch.tensor([0, 1, 2, 0]), output_hidden_states=True)
    assert not any(states.requires_grad for states in output.hidden_states), "the encoder builds no graph"
    output.loss.backward()
    assert set(gradients(model)) == trainable(model)


def test_frozen_features_are_those_of_the_trainable_model():
    model = classifier().eval()
    features, _ = model.features(images(model.config))
    model.freeze_encoder()
    frozen, _ = model.features(images(model.config))
    assert torch.equal(features.detach(), frozen)
    assert not frozen.requires_grad


def test_gradients_reach_the_pixels_of_a_frozen_encoder():
    """Saliency maps and adversarial examples need them."""
    model = classifier().eval()
    model.freeze_encoder()
    pixels = images(model.config).requires_grad_()
    model(pixels).logits.sum().backward()
    assert pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("pooling, norm", [("mean", "fc_norm"), ("cls", "vit.layernorm")])
@pytest.mark.parametrize("num_blocks", [0, 1, 2])
def test_partial_fine_tuning(pooling, norm, num_blocks):
    model = classifier(pooling=pooling).train()
    model.freeze_all_but_last_blocks(num_blocks)
    names = trainable(model)
    blocks = {name.split(".")[2] for name in names if name.startswith("vit.layers.")}
    assert blocks == {str(index) for index in range(2 - num_blocks, 2)}
    others = {name for name in names if not name.startswith("vit.layers.")}
    assert others == {"classifier.weight", "classifier.bias", f"{norm}.weight", f"{norm}.bias"}
    model(images(model.config), labels=torch.tensor([0, 2])).loss.backward()
    assert set(gradients(model)) == names
    model.freeze_all_but_last_blocks(2)
    assert len({name.split(".")[2] for name in trainable(model) if name.startswith("vit.layers.")}) == 2


def test_soft_labels_of_one_class_are_that_class():
    model = classifier().eval()
    pixels, labels = images(model.config), torch.tensor([2, 0])
    hard = model(pixels, labels=labels)
    soft = model(pixels, labels=one_hot(labels, 3).float())
    torch.testing.assert_close(soft.loss, hard.loss)
    torch.testing.assert_close(hard.loss, cross_entropy(hard.logits, labels))


def test_soft_labels_mix_the_losses():
    """A mixture of two labels costs the mixture of their losses (mixup)."""
    model = classifier().double().eval()
    pixels = images(model.config, dtype=torch.float64)
    first, second = one_hot(torch.tensor([2, 0]), 3).double(), one_hot(torch.tensor([1, 1]), 3).double()
    mixed = model(pixels, labels=0.3 * first + 0.7 * second).loss
    expected = 0.3 * model(pixels, labels=first).loss + 0.7 * model(pixels, labels=second).loss
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)


def test_mean_pooling_leaves_the_class_token_out():
    model = classifier(num_hidden_layers=1).eval()
    features, output = model.features(images(model.config), output_hidden_states=True)
    tokens = output.hidden_states[-1]
    torch.testing.assert_close(features, model.fc_norm(tokens[:, 1:].mean(dim=1)))
    assert not hasattr(model.vit.layernorm, "weight"), "there is no final norm"


def test_class_pooling_reads_the_normed_class_token():
    model = classifier(pooling="cls").eval()
    features, output = model.features(images(model.config), output_hidden_states=True)
    torch.testing.assert_close(features, model.vit.layernorm(output.hidden_states[-1])[:, 0])


def test_probe_norm_has_statistics_and_no_parameters():
    model = classifier(pooling="cls", probe_batch_norm=True).train()
    model.freeze_encoder()
    assert not list(model.probe_norm.parameters())
    pixels = images(model.config, batch=16)
    features, _ = model.features(pixels)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    assert features.std(dim=0, correction=0).tolist() == pytest.approx([1] * 16, abs=1e-3)
    assert model.probe_norm.num_batches_tracked == 1
    assert "probe_norm.running_mean" in model.state_dict()


def test_layer_decay_groups_are_the_published_ones():
    """id 0: tokens, table and patch projection; i + 1: layer i; the rest 1. No decay for vectors, tokens, table."""
    model = classifier(num_hidden_layers=3)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            depth = 0 if "embeddings" in name else int(name.split(".")[2]) + 1 if "layers" in name else 4
            assert group["lr_scale"] == pytest.approx(0.5 ** (4 - depth)), name
            exempt = parameter.ndim == 1 or name.endswith(("cls_token", "position_embeddings"))
            assert group["weight_decay"] == (0 if exempt else 0.05), name
    assert not names, "every parameter is in one group"


def test_pre_training_decays_its_tokens():
    assert MAEForPreTraining(tiny_config()).no_weight_decay() == set()


def test_a_few_steps_lower_the_loss():
    """The whole of pre-training on eight fixed images and masks: the error of the hidden pixels falls by half."""
    config = tiny_config()
    model = MAEForPreTraining(config).train()
    pixels = images(config, batch=8).mean(dim=(2, 3), keepdim=True).expand(-1, -1, 16, 16) * 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    losses = []
    for step in range(60):
        loss = model(pixels, generator=seeded(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
