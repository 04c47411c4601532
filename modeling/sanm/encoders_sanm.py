"""The network of a SANM classifier without its head: as an encoder, and as a backbone for other models."""

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbones_sanm import build_backbone, feature_maps
from .configuration_sanm import SANMConfig
from .inputs_sanm import check_images, image_channels
from .networks_sanm import SANMResNet
from .pretrained_sanm import SANMPreTrainedModel


class SANMEncoder(SANMPreTrainedModel):
    """Base of encoder and backbone: the network of a classifier, loaded without its head and decoder."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^decoder\."]

    def __init__(self, config: SANMConfig):
        super().__init__(config)
        self.backbone, self._num_channels = build_backbone(config), image_channels(config)
        if config.backbone_config is not None:
            self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution, or the input layer of `backbone_config`'s model."""
        return self.backbone.conv1 if isinstance(self.backbone, SANMResNet) else self.backbone.get_input_embeddings()


class SANMModel(SANMEncoder):
    """
    SANM encoder: the last feature map and its mean.

    Args:
        config (`SANMConfig`): configuration.

    Example:

    ```python
    >>> features = model(pixel_values).pooler_output  # [B, C]
    ```
    """

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every stage.

        Returns:
            `last_hidden_state` `[B, C, h, w]` and `pooler_output` `[B, C]`.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        return self.encode(pixel_values, output_hidden_states, **kwargs)

    def encode(
        self, pixel_values: torch.Tensor | None, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The same as `forward`, always as an output object."""
        check_images(pixel_values, self._num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last, hidden_states, attentions = feature_maps(
            self.backbone, pixel_values, output_hidden_states, **self._with_attentions(kwargs)
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(2, 3)),
            hidden_states=hidden_states,
            attentions=attentions,
        )


class SANMBackbone(BackboneMixin, SANMEncoder):
    """
    SANM encoder as a transformers backbone: feature maps of the stem and of any stage.

    With a `backbone_config` the maps and stages are those of its model.

    Args:
        config (`SANMConfig`): configuration with `out_features` or `out_indices`.

    Raises:
        ValueError: for a `backbone_config` whose network has no stages, only a last map.
    """

    has_attentions = False

    def post_init(self):
        # As for a model that is no backbone: the mixin would install the hooks that record hidden states a second time
        # in the backbone inside, which has its own.
        super(BackboneMixin, self).post_init()

    def _init_transformers_backbone(self):
        if isinstance(self.backbone, SANMResNet):
            super()._init_transformers_backbone()
            self.num_features = self.backbone.channels
        elif not hasattr(self.backbone, "stage_names"):
            raise ValueError(
                "backbone_config must be of a type that AutoBackbone knows or a vision transformer, got "
                f"{self.config.backbone_config.model_type!r}, which has no stages"
            )
        else:
            self.has_attentions = self.backbone.has_attentions
            self.stage_names = self.config.stage_names = self.backbone.stage_names
            self.num_features = self.backbone.num_features
            self.config.set_output_features_output_indices(self.backbone.out_features, self.backbone.out_indices)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            output_hidden_states (`bool`, *optional*): also return the maps of all stages.

        Returns:
            One feature map `[B, D, h, w]` per entry of `out_features`.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        check_images(pixel_values, self._num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if not isinstance(self.backbone, SANMResNet):
            return self.backbone.forward_with_filtered_kwargs(
                pixel_values, output_hidden_states=output_hidden_states, **self._with_attentions(kwargs)
            )
        maps = self.backbone(pixel_values)
        chosen = tuple(m for stage, m in zip(self.stage_names, maps, strict=True) if stage in self.out_features)
        return BackboneOutput(feature_maps=chosen, hidden_states=maps if output_hidden_states else None)


__all__ = ["SANMBackbone", "SANMModel"]

SANMModel.register_for_auto_class("AutoModel")
SANMBackbone.register_for_auto_class("AutoBackbone")
