"""Pictures of activation maps and masks."""

import pytest
import torch
from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification, SANMForImageClassification
from PIL import Image

from hubmodels.visualization import masking_sheet

TINY = {"widths": [4, 8], "depths": [1, 1], "num_labels": 3}


@pytest.mark.parametrize("model_class", [SANMForImageClassification, SANMEnsembleForImageClassification])
def test_a_sheet_of_masks(model_class, tmp_path):
    model = model_class(SANMConfig(**TINY, image_size=(24, 32))).train()
    pixel_values = torch.randn(2, 3, 24, 32)
    figure = masking_sheet(model, pixel_values, tmp_path / "masks.png", 0.5, 0.25, clean_prob=torch.tensor([0.1, 0.9]))
    assert len(figure.axes) == 10 and model.training
    assert Image.open(tmp_path / "masks.png").size[0] > 300
    shown, hidden = (figure.axes[number].images[0].get_array() for number in (0, 2))
    changed = (shown != hidden).any(axis=-1)
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    assert changed.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) < 0.1 * 24 * 32


def test_a_decoder_of_another_size_leaves_its_column_out():
    model = SANMForImageClassification(SANMConfig(**TINY, image_size=16, decoder_type="resnet18"))
    assert len(masking_sheet(model, torch.zeros(1, 3, 16, 16)).axes) == 4


def test_an_error_leaves_the_modes_as_they_were():
    model = SANMEnsembleForImageClassification(SANMConfig(**TINY, image_size=16)).train()
    with pytest.raises(ValueError, match="must have 3 channels"):
        masking_sheet(model, torch.zeros(1, 5, 16, 16))
    assert all(part.training for part in model.modules())
