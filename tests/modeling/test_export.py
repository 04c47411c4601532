"""The packaged checkpoints export for batches of any size, as services need it."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from hubmodels.catalog import packaged_path


@pytest.mark.parametrize(
    "name, auto_class, size",
    [
        ("mae-small-32", AutoModelForImageClassification, 32),
        ("simclr-small-32", AutoModel, 32),
        ("simclr-small-32", AutoModelForImageClassification, 32),
        ("densecl-small-64", AutoModel, 64),
        ("positional-label-small-32", AutoModelForImageClassification, 32),
        ("sanm-small-32", AutoModelForImageClassification, 32),
    ],
)
def test_export_for_any_batch(name, auto_class, size):
    model = auto_class.from_pretrained(packaged_path(name)).eval()
    images = torch.rand(3, model.config.num_channels, size, size)
    batch = torch.export.Dim("batch", min=1)
    shapes = {"pixel_values": {0: batch}}
    exported = torch.export.export(model, (), {"pixel_values": images[:2]}, dynamic_shapes=shapes).module()
    with torch.no_grad():
        torch.testing.assert_close(
            exported(pixel_values=images)[0], model(pixel_values=images)[0], rtol=1e-4, atol=1e-5
        )
