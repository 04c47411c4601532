"""Vision transformers that are no backbones in transformers (ViT, DeiT, CLIP ...) as backbones, and maps of others."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput

_POOLED = ("vit", "deit")  # their pooling layer can be left out
_REQUIRED = ("hidden_size", "num_hidden_layers", "patch_size")


class TokenBackbone(nn.Module):
    """
    The patch tokens of a vision transformer as feature maps.

    The stages are `stem` (the embeddings) and `stage1 ...`, one for every layer; the last is after the final norm, if
    the transformer applies it to all tokens.

    Args:
        config (`PreTrainedConfig`): configuration of the transformer, and `out_features` or `out_indices` in it.

    Raises:
        ValueError: for a network that is no vision transformer, and stages that it does not have.
    """

    backbone_type = None
    has_attentions = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        kind = config.model_type
        if not is_vision_transformer(config):
            raise ValueError(
                f"backbone_config must be of a type that AutoBackbone knows or a vision transformer, got {kind!r}; "
                "timm has most networks: {'model_type': 'timm_backbone', 'backbone': NAME}"
            )
        if kind == "vit_mae":
            raise ValueError(
                "backbone_config of type 'vit_mae' hides patches; take the type 'mae', which loads the same files"
            )
        self.config = config
        self.model = AutoModel.from_config(config, **({"add_pooling_layer": False} if kind in _POOLED else {}))
        self.supports_gradient_checkpointing = self.model.supports_gradient_checkpointing
        self.stage_names = ["stem", *(f"stage{layer + 1}" for layer in range(config.num_hidden_layers))]
        self.num_features = [config.hidden_size] * len(self.stage_names)
        features, indices = getattr(config, "out_features", None), getattr(config, "out_indices", None)
        last = len(self.stage_names) - 1
        if features is not None and not set(features) <= set(self.stage_names):
            raise ValueError(f"out_features must be of {self.stage_names}, got {list(features)}")
        if indices is not None and not set(indices) <= set(range(-last - 1, last + 1)):
            raise ValueError(f"out_indices must be of 0 to {last}, or negative from the end, got {list(indices)}")
        if features is not None:
            indices = [self.stage_names.index(name) for name in features]
        self.out_indices = [last] if indices is None else sorted(range(last + 1)[index] for index in indices)
        self.out_features = [self.stage_names[index] for index in self.out_indices]
        self.channels = [config.hidden_size] * len(self.out_indices)

    def get_input_embeddings(self) -> nn.Module:
        """That of the transformer."""
        return self.model.get_input_embeddings()

    def forward_with_filtered_kwargs(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """As `forward`; the name under which transformers' backbones are called."""
        return self(pixel_values, **kwargs)

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images.
            output_hidden_states (`bool`, *optional*): also return the tokens of all stages `[B, N, D]`.

        Returns:
            One map `[B, D, h, w]` per entry of `out_features`.
        """
        last = len(self.stage_names) - 1
        all_states = bool(output_hidden_states) or self.out_indices != [last]
        outputs = self.model(pixel_values, output_hidden_states=all_states, **kwargs)
        states = {last: outputs.last_hidden_state}
        if all_states:
            states = dict(enumerate(outputs.hidden_states[:last])) | states
        size = self.config.patch_size
        patch = (size, size) if isinstance(size, int) else tuple(size)
        grid = (pixel_values.shape[-2] // patch[0], pixel_values.shape[-1] // patch[1])
        return BackboneOutput(
            feature_maps=tuple(_token_map(states[index], grid) for index in self.out_indices),
            hidden_states=tuple(states.values()) if output_hidden_states else None,
            attentions=outputs.attentions,
        )


def _token_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`[B, D, h, w]` of tokens `[B, N, D]`, of which class and register tokens come first."""
    count = grid[0] * grid[1]
    if tokens.ndim != 3 or tokens.shape[1] < count:
        raise ValueError(
            f"the tokens of backbone_config must be [B, N, D] with N >= {count}, for {grid[0]}x{grid[1]} patches, got "
            f"shape {tuple(tokens.shape)}"
        )
    return tokens[:, tokens.shape[1] - count :].transpose(1, 2).unflatten(2, grid)


def is_vision_transformer(config: PreTrainedConfig) -> bool:
    """Whether [`TokenBackbone`] can be made of such a network."""
    return all(isinstance(getattr(config, name, None), int | list | tuple) for name in _REQUIRED)


def channels_first(feature_map: torch.Tensor, channels: int) -> torch.Tensor:
    """
    A map `[B, channels, h, w]` of one that may be `[B, h, w, channels]`, as that of timm's Swin.

    Args:
        feature_map (`torch.Tensor`): a backbone's map.
        channels (`int`): its channels.

    Raises:
        ValueError: if it is no map of so many channels.
    """
    shape = tuple(feature_map.shape)
    if len(shape) != 4 or channels not in (shape[1], shape[3]):
        raise ValueError(
            f"the network of backbone_config must return feature maps [B, {channels}, h, w], got shape {shape}; some "
            "need reshape_hidden_states=True in their configuration"
        )
    return feature_map if shape[1] == channels else feature_map.permute(0, 3, 1, 2)


__all__ = ["TokenBackbone", "channels_first", "is_vision_transformer"]
