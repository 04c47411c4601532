"""The network that a `backbone_config` names, in the configurations of all methods that hold one."""

import pytest
from hubmodels.modeling.densecl import DenseCLConfig
from hubmodels.modeling.positional_label import PositionalLabelConfig
from hubmodels.modeling.sanm import SANMConfig
from hubmodels.modeling.simclr import SimCLRConfig

CONFIGS = pytest.mark.parametrize("config_class", [DenseCLConfig, PositionalLabelConfig, SANMConfig, SimCLRConfig])


@CONFIGS
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "foo"}, r"got model_type 'foo'"),
        ({"model_type": None}, r"got model_type None"),
        ({"model_type": ["vit"]}, r"got model_type \['vit'\]"),
        ({"hidden_size": 8, "depth": 2}, r"got the keys \['hidden_size', 'depth'\]"),
        ({}, r"got the keys \[\]"),
    ],
)
def test_unknown_networks_are_refused(config_class, given, message):
    message = rf"backbone_config must have the key model_type with a name that .*AutoConfig knows, .* {message}"
    with pytest.raises(ValueError, match=message):
        config_class(backbone_config=given)
    with pytest.raises(ValueError, match=message):
        config_class.from_dict({"backbone_config": given})


@CONFIGS
@pytest.mark.parametrize(
    "given", [{"model_type": "vit"}, {"model_type": "timm_backbone", "backbone": "resnet10t"}, {"model_type": "mae"}]
)
def test_known_networks_are_taken(config_class, given):
    config = config_class(backbone_config=given)
    assert config.backbone_config.model_type == given["model_type"]
    assert config_class.from_dict(config.to_dict()).backbone_config.model_type == given["model_type"]
