"""Fields of a model around the network of a `backbone_config`, which are those of this network."""

from collections.abc import Iterable

from transformers import PreTrainedConfig


def take_stages_of_backbone(
    config: PreTrainedConfig, out_features: Iterable[str] | None, out_indices: Iterable[int] | None
) -> None:
    """
    Gives a configuration the stages of its `backbone_config`. A timm configuration learns its own only when the model
    is built.

    Args:
        config: configuration with a `backbone_config`, which gets the chosen stages.
        out_features: names of the chosen stages.
        out_indices: their indices, where names are not given.
    """
    inner = config.backbone_config
    if out_features is not None:
        inner.out_features = list(out_features)
    elif out_indices is not None:
        inner.out_indices = list(out_indices)
    config.stage_names = getattr(inner, "stage_names", None)
    config._out_features = getattr(inner, "out_features", None)
    config._out_indices = getattr(inner, "out_indices", None)


def take_channels_of_backbone(config: PreTrainedConfig) -> None:
    """
    Gives a configuration the channels of its `backbone_config`, if it has one that names them.

    Args:
        config: configuration with `num_channels` and `backbone_config`.

    Raises:
        ValueError: for other channels than those of `backbone_config`; the default stands for not given.
    """
    channels = getattr(config.backbone_config, "num_channels", config.num_channels)
    if config.num_channels not in (channels, type(config).num_channels):
        raise ValueError(f"num_channels must be that of backbone_config, {channels}, got {config.num_channels}")
    config.num_channels = channels
