"""Pictures of positional labels, and the probe of positions per layer."""

import pytest
import torch
import transformers
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionPrediction,
    relative_labels,
)
from PIL import Image

from hubmodels.evaluation import position_probe
from hubmodels.visualization import position_errors, position_probe_curves, position_sheet
from tests.modeling.test_positional_label_pretraining import tiny as tiny_autoencoder
from tests.modeling.tiny_positional_label import images, tiny_classifier


class Oracle(torch.nn.Module):
    """A head that is right but for one answer."""

    def __init__(self, head, labels, wrong):
        super().__init__()
        self.grid, self.labels, self.wrong = head.grid, labels, wrong

    def forward(self, tokens, return_logits):
        logits = torch.eye(int(self.labels.max()) + 1)[self.labels].expand(len(tokens), -1, -1).clone()
        logits[:, self.wrong[0]] = torch.eye(logits.shape[-1])[self.wrong[1]]
        return PositionPrediction(torch.zeros(()), torch.zeros(()), logits)


def test_absolute_errors_are_distances_in_patches():
    model = tiny_classifier()
    model.position_head = Oracle(model.position_head, torch.arange(9), wrong=(0, 5))  # (0, 0) put at (1, 2)
    (record,) = position_errors(model, images(model))
    expected = torch.zeros(2, 3, 3)
    expected[:, 0, 0] = 5**0.5
    torch.testing.assert_close(record.distances, expected)
    assert record.accuracy[0, 0] == 0 and record.accuracy.sum() == 8


def test_relative_errors_are_distances_of_offsets():
    model = tiny_classifier(position_label="relative")
    labels = relative_labels((3, 3)).flatten()
    # Anchor 0 and other token 8: offset (-2, -2), label 0, put at label 6, offset (-1, -1).
    model.position_head = Oracle(model.position_head, labels, wrong=(8, 6))
    (record,) = position_errors(model, images(model))
    expected = torch.zeros(2, 3, 3)
    expected[:, 2, 2] = 2**0.5 / 9
    torch.testing.assert_close(record.distances, expected)
    assert record.accuracy.shape == (5, 5) and record.accuracy[0, 0] == 0 and record.accuracy.sum() == 24


@pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
def test_sheets_are_written_and_leave_the_model_as_it_was(kind, tmp_path):
    settings = {"position_label": "both", "position_dropout": 0.5}
    model = tiny_classifier(**settings) if kind == "classifier" else tiny_autoencoder(**settings)
    if kind == "classifier":
        torch.nn.init.normal_(model.backbone.embeddings.position_embeddings, std=5)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    position_sheet(model, images(model), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] > 300
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    hidden, shown = (position_errors(model, images(model), drop)[0].distances for drop in (True, False))
    assert not torch.equal(hidden, shown)


def test_models_without_heads_are_refused():
    model = tiny_classifier(position_label=None)
    with pytest.raises(ValueError, match="has no position head"):
        position_errors(model, images(model))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_probe_reads_positions_from_layers(family, tmp_path):
    """A table of positions can be read off the first layer's input; without one there is little to read."""
    model = tiny_classifier(family)
    generator = torch.Generator().manual_seed(0)
    size = model.config.image_size
    train, test = (torch.randn(32, 3, size, size, generator=generator) for _ in range(2))
    if family == "vit":
        torch.nn.init.normal_(model.backbone.embeddings.position_embeddings, std=5)
    accuracies = position_probe(model, train, test)
    assert len(accuracies) == 3 and all(0 <= value <= 1 for value in accuracies)
    if family == "vit":
        assert accuracies[0] > 0.95
        torch.nn.init.zeros_(model.backbone.embeddings.position_embeddings)
        assert position_probe(model, train, test)[0] < 0.4
    position_probe_curves({family: accuracies}, tmp_path / "probe.png")
    assert Image.open(tmp_path / "probe.png").size[0] > 300


@pytest.mark.parametrize("family", ["timm_vit", "timm_swin", "mae", "vit_mae"])
def test_probe_takes_timm_networks_and_autoencoders(family):
    if family.startswith("timm"):
        model, layers = tiny_classifier(family), 2
    else:
        model, layers = tiny_autoencoder(family), 3
    pixels = 0.05 * torch.randn(32, 3, *model.config.image_height_width)
    accuracies = position_probe(model, pixels[:16], pixels[16:])
    assert len(accuracies) == layers
    if layers == 3:
        assert accuracies[0] > 0.5  # the table of positions


@pytest.mark.parametrize("family", ["vit", "mae", "clip_vision_model", "siglip_vision_model", "timm"])
def test_the_table_of_positions_is_taken_away(family, monkeypatch):
    """A constant image then has equal tokens."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    if family == "mae":
        model, name = tiny_autoencoder("mae"), "vit.embeddings.position_embeddings"
    elif family == "timm":
        model, name = tiny_classifier("timm_vit"), "pos_embed"
    else:
        inner = transformers.AutoConfig.for_model(family, image_size=32, patch_size=8, **sizes)
        config = PositionalLabelConfig(backbone_config=inner, num_labels=3)
        model, name = PositionalLabelForImageClassification(config), "position_embedding"
    (table,) = [parameter for key, parameter in model.named_parameters() if name in key]
    with torch.no_grad():
        table.normal_()
    before, seen = table.clone(), []
    monkeypatch.setattr("hubmodels.visualization.positions._errors", lambda label, head, tokens: seen.append(tokens))
    pixel_values = torch.zeros(2, 3, *model.config.image_height_width)
    for drop in (True, False):
        position_errors(model, pixel_values, drop_positions=drop)
    spreads = [(tokens - tokens.mean(dim=1, keepdim=True)).abs().max() for tokens in seen]
    assert spreads[0] < 1e-5 and spreads[1] > 0.1
    assert torch.equal(table, before)


def test_a_network_without_a_table_is_refused():
    model = tiny_classifier("swin")
    with pytest.raises(ValueError, match="drop_positions: the network of this PositionalLabelForImageClassification"):
        position_errors(model, images(model), drop_positions=True)


def test_every_curve_is_in_the_legend(tmp_path):
    figure = position_probe_curves({"_base": [0.1, 0.2], "$b": [0.2, 0.3]}, tmp_path / "curves.png")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["_base", r"\$b"]
