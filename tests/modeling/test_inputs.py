"""Images that do not fit are refused by every model of every method, early and in the same words."""

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel
from hubmodels.modeling.mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionalLabelForPreTraining,
    PositionalLabelModel,
)
from hubmodels.modeling.sanm import (
    SANMBackbone,
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMModel,
)
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRModel,
)
from transformers import ResNetConfig, ViTConfig

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 8}
VIT |= {"image_size": 16, "num_channels": 2}
DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
RESNET = ResNetConfig(num_channels=2, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
SIMCLR = {"image_size": 16, "stem_width": 4, "depths": [1, 1, 1, 1], "proj_out_dim": 4}
DENSECL = {"layer_type": "basic", "embedding_size": 4, "num_stages": 1, "depths": [1], "strides": [1], "dilations": [1]}
DENSECL |= {"projection_hidden_size": 4, "projection_size": 4, "queue_length": 8}
SANM = {"image_size": 16, "widths": [4], "depths": [1], "num_channels": 2}


def configs():
    mae = MAEConfig(**VIT, **DECODER)
    simclr = (SimCLRConfig(**SIMCLR, num_channels=2), SimCLRConfig(**SIMCLR, backbone_config=RESNET))
    densecl = (DenseCLConfig(**DENSECL, num_channels=2), DenseCLConfig(**DENSECL, backbone_config=ViTConfig(**VIT)))
    sanm = (SANMConfig(**SANM), SANMConfig(**SANM, backbone_config=ViTConfig(**VIT)))
    timm = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "num_classes": 0}
    timm |= {"model_args": {"img_size": 16, "patch_size": 8, "depth": 1, "in_chans": 2}}
    labels = (PositionalLabelConfig(backbone_config=ViTConfig(**VIT)), PositionalLabelConfig(backbone_config=timm))
    return {
        (MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone): (mae,),
        (SimCLRModel, SimCLRForPreTraining, SimCLRForImageClassification, SimCLRBackbone): simclr,
        (DenseCLModel, DenseCLForPreTraining, DenseCLBackbone): densecl,
        (SANMModel, SANMForImageClassification, SANMEnsembleForImageClassification, SANMBackbone): sanm,
        (PositionalLabelModel, PositionalLabelForImageClassification): labels,
        (PositionalLabelForPreTraining,): (PositionalLabelConfig(backbone_config=mae),),
    }


CASES = [
    pytest.param(model_class, config, id=f"{model_class.__name__}-{number}")
    for classes, choices in configs().items()
    for model_class in classes
    for number, config in enumerate(choices)
]


def calls(model):
    """The ways into a model, and whether they want two views of every image."""
    yield model, isinstance(model, DenseCLForPreTraining | SimCLRForPreTraining)
    if hasattr(model, "encode"):
        yield model.encode, False
    if isinstance(model, MAEForPreTraining):
        yield model.reconstruct, False


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("model_class", "config"), CASES)
def test_images_that_do_not_fit_are_refused(model_class, config, mode):
    torch.manual_seed(0)
    model = model_class(config).train(mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for call, pairs in calls(model):
        lead = (2, 2) if pairs else (2,)
        wrong = {
            "pixel_values is required": None,
            "pixel_values must be floats, as the image processor makes them, got torch.uint8": torch.zeros(
                *lead, 2, 16, 16, dtype=torch.uint8
            ),
            "must have 2 channels (num_channels of the configuration), got shape": torch.zeros(*lead, 3, 16, 16),
            "must not be empty, got shape": torch.zeros(0, *lead[1:], 2, 16, 16),
            "pixel_values of shape" if isinstance(model, SimCLRForPreTraining) and pairs else "must have shape [B,": (
                torch.zeros(2, 16, 16)
            ),
        }
        for message, pixel_values in wrong.items():
            with pytest.raises(ValueError) as error:
                call(pixel_values)
            assert message in str(error.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
