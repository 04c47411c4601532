"""The kind of network that a `backbone_config` describes."""

from typing import Any

from transformers import CONFIG_MAPPING


def check_model_type(backbone_config: Any) -> None:
    """
    Refuses a `backbone_config` that is a `dict` without a known `model_type`.

    Args:
        backbone_config: what was given, of any type.

    Raises:
        ValueError: for a `dict` that names no network, or one that is not known.
    """
    if not isinstance(backbone_config, dict):
        return
    name = backbone_config.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        given = f"model_type {name!r}" if "model_type" in backbone_config else f"the keys {list(backbone_config)}"
        raise ValueError(
            "backbone_config must have the key model_type with a name that transformers.AutoConfig knows, such as "
            f"'resnet', or 'timm_backbone' with the key backbone for networks of timm, got {given}"
        )
