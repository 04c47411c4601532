"""Autoencoders with positional labels: labels of visible tokens, position dropout, jigsaw, checkpoints to and fro."""

import re

import pytest
import torch
from hubmodels.modeling.mae import MAEConfig, MAEForPreTraining
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForPreTraining,
    relative_labels,
)
from torch.nn import functional
from transformers import AutoModelForPreTraining, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from tests.modeling.tiny_positional_label import MAE, VIT

KINDS = ["mae", "vit_mae"]
NOISE = torch.rand(2, 9 + 7, generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tiny(kind="mae", **settings) -> PositionalLabelForPreTraining:
    """The same random weights at every call."""
    torch.manual_seed(0)
    config = PositionalLabelConfig(backbone_config={"model_type": kind, **MAE}, **settings)
    return PositionalLabelForPreTraining(config)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_places_of_the_visible_patches(kind):
    output = tiny(kind, position_label="both")(PIXELS, noise=NOISE, return_position=True)
    ids = NOISE.argsort(1)[:, :8]
    assert torch.equal(output.ids_keep, ids)
    table = relative_labels((4, 4))
    labels = {"position": ids, "relative_position": torch.stack([table[row][:, row] for row in ids]).flatten(1)}
    total = output.reconstruction_loss
    for name, target in labels.items():
        logits = output[f"{name}_logits"]
        expected = functional.cross_entropy(logits.transpose(1, 2), target)
        torch.testing.assert_close(output[f"{name}_loss"], expected)
        torch.testing.assert_close(output[f"{name}_accuracy"], (logits.argmax(-1) == target).float().mean())
        total = total + 0.5 * expected
    torch.testing.assert_close(output.loss, total)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_is_that_of_the_autoencoder(kind):
    model = tiny(kind).eval()
    output, plain = model(PIXELS, noise=NOISE), model.unwrap()(PIXELS, noise=NOISE)
    torch.testing.assert_close(output.reconstruction_loss, plain.loss)
    torch.testing.assert_close(output.logits, plain.logits)
    assert model(PIXELS, noise=NOISE, return_loss=False).position_loss is None


@pytest.mark.parametrize("kind", KINDS)
def test_position_tables_are_initialised_and_fixed(kind, tmp_path):
    model = tiny(kind)
    tables = [model.mae.vit.embeddings.position_embeddings, model.mae.decoder.decoder_pos_embed]
    assert all(table[:, 1:].abs().max() > 0.9 for table in tables)  # sines and cosines
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is PositionalLabelForPreTraining
    for each in (model, loaded):
        assert not each.mae.vit.embeddings.position_embeddings.requires_grad
        assert not each.mae.decoder.decoder_pos_embed.requires_grad
    torch.testing.assert_close(loaded(PIXELS, noise=NOISE).loss, model.eval()(PIXELS, noise=NOISE).loss)


@pytest.mark.parametrize("owner", ["plain", "own"])
def test_tables_that_a_file_lacks_are_initialised(owner, tmp_path):
    model = tiny("vit_mae")
    saved = model if owner == "own" else model.unwrap()
    missing = ("position_embeddings", "cls_token", "decoder_pos_embed", "mask_token")
    kept = {name: value for name, value in saved.state_dict().items() if not name.endswith(missing)}
    saved.save_pretrained(tmp_path, state_dict=kept)
    loaded = PositionalLabelForPreTraining.from_pretrained(tmp_path)
    for name, value in loaded.unwrap().state_dict().items():
        if name.endswith(missing[1::2]):
            assert 0 < value.abs().max() < 0.2, name
        else:
            torch.testing.assert_close(value, model.unwrap().state_dict()[name])
    assert not loaded.mae.decoder.decoder_pos_embed.requires_grad


def test_attentions_asked_for_by_the_configuration(tmp_path):
    tiny().save_pretrained(tmp_path / "own")
    tiny().unwrap().save_pretrained(tmp_path / "plain")
    asked = {"attn_implementation": "eager", "output_attentions": True, "output_hidden_states": True}
    for name in ("own", "plain"):
        output = PositionalLabelForPreTraining.from_pretrained(tmp_path / name, **asked)(PIXELS, noise=NOISE)
        assert len(output.hidden_states) == len(output.attentions) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_from_an_autoencoder_and_back(kind, tmp_path):
    classes = {"mae": (MAEConfig, MAEForPreTraining), "vit_mae": (ViTMAEConfig, ViTMAEForPreTraining)}
    config_class, model_class = classes[kind]
    model_class(config_class(**MAE)).save_pretrained(tmp_path / "plain")
    model, info = PositionalLabelForPreTraining.from_pretrained(
        tmp_path / "plain", position_label="relative", output_loading_info=True
    )
    new = {f"position_head.{name}" for name, _ in model.position_head.named_parameters()}
    assert info["missing_keys"] == new and not info["unexpected_keys"]
    assert not model.training and model.config.position_label == "relative"
    plain = model_class.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(model(PIXELS, noise=NOISE).reconstruction_loss, plain(PIXELS, noise=NOISE).loss)
    model.unwrap().save_pretrained(tmp_path / "again")
    again, info = AutoModelForPreTraining.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert type(again) is model_class and not any(info.values())
    torch.testing.assert_close(again.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_from_an_autoencoder_with_a_configuration(kind, tmp_path):
    plain = tiny(kind).unwrap()
    plain.save_pretrained(tmp_path)
    config = PositionalLabelConfig(backbone_config={"model_type": kind, **MAE}, position_label="both")
    model = PositionalLabelForPreTraining.from_pretrained(tmp_path, config=config)
    assert len(model.position_heads) == 2
    torch.testing.assert_close(model.unwrap().state_dict(), plain.state_dict())
    other = PositionalLabelConfig(backbone_config={"model_type": {"mae": "vit_mae", "vit_mae": "mae"}[kind], **MAE})
    with pytest.raises(ValueError, match=f"must be of the checkpoint's model_type '{kind}', got"):
        PositionalLabelForPreTraining.from_pretrained(tmp_path, config=other)


@pytest.mark.parametrize("kind", KINDS)
def test_position_dropout_counts_only_patches_without_position(kind):
    model = tiny(kind, position_dropout=0.5).eval()
    seen = []
    model.mae.vit.embeddings.register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    position_noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    output = model(PIXELS, noise=NOISE, position_noise=position_noise, return_position=True)
    with torch.no_grad():
        model(PIXELS, noise=NOISE, position_noise=position_noise)
        full = model.unwrap()(PIXELS, noise=NOISE)
        table = model.mae.vit.embeddings.position_embeddings[0, 1:]
    marked = position_noise.gather(1, output.ids_keep).argsort(1).argsort(1) < 4
    difference = seen[-1][:, 1:] - seen[0][:, 1:]
    expected = torch.where(marked[..., None], table[output.ids_keep], torch.zeros(()))
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)
    losses = functional.cross_entropy(output.position_logits.transpose(1, 2), output.ids_keep, reduction="none")
    torch.testing.assert_close(output.position_loss, losses[marked].mean())
    assert not torch.equal(full.logits, output.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_jigsaw_sees_no_positions(kind):
    model = tiny(kind, scheme="jigsaw").eval()
    output = model(PIXELS, noise=NOISE)
    with torch.no_grad():
        model.mae.vit.embeddings.position_embeddings[:, 1:] = 3.0
    again = model(PIXELS, noise=NOISE)
    torch.testing.assert_close(again.position_loss, output.position_loss)
    assert not torch.equal(again.logits, output.logits)
    model.train()(PIXELS).loss.backward()
    assert model.position_head.fc1.weight.grad is not None


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_masks_drawn_by_a_generator_are_those_of_the_autoencoder(sampling):
    torch.manual_seed(0)
    inner = MAEConfig(**MAE | {"mask_sampling": sampling, "mask_ratio": 0.75})
    model = PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config=inner, position_label="relative"))
    masks = [network(PIXELS, generator=torch.Generator().manual_seed(3)).mask for network in (model, model.unwrap())]
    assert torch.equal(*masks)
    given = model(PIXELS, bool_masked_pos=masks[0].bool(), generator=torch.Generator().manual_seed(3)).mask
    assert torch.equal(given, masks[0])


def test_draws_come_from_the_generator():
    model = tiny(position_dropout=0.5, position_label="relative", num_anchors=3).train()
    losses = [model(PIXELS, generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_labels_of_a_batch_are_ignored():
    model = tiny().eval()
    expected = model(PIXELS, noise=NOISE).loss
    torch.testing.assert_close(model(PIXELS, noise=NOISE, labels=torch.tensor([0, 1])).loss, expected)


def test_other_masks_of_our_autoencoder():
    model = tiny().eval()
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, ::2] = True
    output = model(PIXELS, bool_masked_pos=masked)
    assert torch.equal(output.ids_keep, torch.arange(1, 16, 2).expand(2, -1))
    assert model(PIXELS, mask_ratio=0.75).ids_keep.shape == (2, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_of_another_size(kind):
    model = tiny(kind, position_label="relative").eval()
    pixels = PIXELS[:, :, :24]
    tokens = model.encode(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert tokens.shape == (2, 12, 16)
    with torch.no_grad():
        inner = model.mae.base_model
        inner.embeddings.config.mask_ratio = 0.0
        noise = torch.arange(12.0).expand(2, -1)
        expected = inner(pixels, noise=noise, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens, expected)


@pytest.mark.parametrize("settings", [{}, {"position_dropout": 0.5}])
def test_what_the_autoencoder_would_ignore_is_refused(settings):
    mask = torch.arange(16).expand(2, -1) < 8
    for arguments in ({"mask_ratio": 0.25}, {"bool_masked_pos": mask}):
        got = re.escape(str([*arguments]))
        message = rf"a vit_mae, must be among \['attention_mask', .*, got {got}; its mask_ratio is 0.5"
        with pytest.raises(ValueError, match=message):
            tiny("vit_mae", **settings)(PIXELS, **arguments)
        tiny("vit_mae", **settings)(PIXELS, **dict.fromkeys(arguments))
    for kind in KINDS:
        with pytest.raises(ValueError, match=rf"a {kind}, must be among \[.*, got \['nosie'\]"):
            tiny(kind, **settings)(PIXELS, nosie=NOISE)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_the_wrong_shape_is_refused(kind):
    with pytest.raises(ValueError, match=r"noise must have shape \[2, 16\], got \[2, 9\]"):
        tiny(kind)(PIXELS, noise=NOISE[:, :9])


def test_checkpoints_of_other_models_are_refused(tmp_path):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be an autoencoder, of model_type \('mae', 'vit_mae'\) .*, got 'vit'"):
        PositionalLabelForPreTraining.from_pretrained(tmp_path)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"backbone_config must be an autoencoder's, .* got 'vit'"):
        PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config=ViTConfig(**VIT)))
    with pytest.raises(
        ValueError, match=r"pooling is what a classifier reads; .* must be the default 'mean', got 'cls'"
    ):
        tiny(pooling="cls")
    blocks = MAEConfig(**MAE, mask_sampling="block")
    with pytest.raises(ValueError, match=r"need random masks, got backbone_config.mask_sampling 'block'"):
        PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config=blocks, position_dropout=0.5))
    with pytest.raises(ValueError, match=r"num_anchors must be at most the 8 tokens that mask_ratio 0.5 leaves, got 9"):
        tiny(position_label="relative", num_anchors=9)
    with pytest.raises(ValueError, match="num_anchors must be at most the 4 tokens of this pass, got 8"):
        tiny(position_label="relative", num_anchors=8).train()(PIXELS, mask_ratio=0.75)
    model = tiny(position_dropout=0.5)
    with pytest.raises(ValueError, match="the position table away, which is one of 4x4 tokens; got images of 3x4"):
        tiny(position_label="relative", position_dropout=0.5)(PIXELS[:, :, :24], interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"bool_masked_pos does not go with position_dropout"):
        model(PIXELS, bool_masked_pos=torch.zeros(2, 16))
    with pytest.raises(ValueError, match=r"position_noise must have shape \[2, 16\], got \[2, 8\]"):
        model(PIXELS, position_noise=torch.rand(2, 8))
    with pytest.raises(ValueError, match="pixel_values is required"):
        model()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", ["absolute", "relative", None])
def test_masks_that_leave_or_hide_nothing_are_refused(kind, label):
    def build(ratio):
        inner = {"model_type": kind, **MAE, "mask_ratio": ratio}
        return PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config=inner, position_label=label))

    with pytest.raises(ValueError, match=r"mask_ratio 0.95 leaves no visible patch out of 16"):
        build(0.95)
    with pytest.raises(ValueError, match=r"the loss needs masked patches, got mask_ratio 0.0; pass return_loss=False"):
        build(0.0)(PIXELS)
    assert build(0.0)(PIXELS, return_loss=False).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"mask_ratio 0.8 leaves no visible patch out of 4"):
        build(0.8)(PIXELS[..., :16, :16], interpolate_pos_encoding=True)
