"""Four-scale feature pyramid on a MAE backbone, for detectors and segmentation heads."""

from copy import copy

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_mae import MAEConfig
from .modeling_mae import MAEBackbone, MAEPreTrainedModel


class MAEFeaturePyramid(MAEPreTrainedModel):
    """
    MAE encoder with the simple neck that BEiT uses for dense prediction (arXiv 2106.08254, official segmentation code).

    The outputs of the layers `n/4, n/2, 3n/4, n` become maps of a quarter, half, one and two times the patch size: two
    transposed convolutions, one, the map itself, and a max-pool. With 16-pixel patches these are strides 4, 8, 16, 32.

    Args:
        config (`MAEConfig`): configuration, at least 4 layers; in the model's copy `out_features` are the four layers.

    Raises:
        ValueError: for fewer than 4 layers or a patch size that is not divisible by 4.

    Example:

    ```python
    >>> pyramid = MAEFeaturePyramid.from_pretrained("path/to/pretrained")
    >>> [tuple(m.shape) for m in pyramid(torch.zeros(1, 3, 224, 320)).feature_maps]
    [(1, 768, 56, 80), (1, 768, 28, 40), (1, 768, 14, 20), (1, 768, 7, 10)]
    ```
    """

    _keys_to_ignore_on_load_unexpected = MAEBackbone._keys_to_ignore_on_load_unexpected

    def __init__(self, config: MAEConfig):
        depth = config.num_hidden_layers
        if depth < 4:
            raise ValueError(f"a feature pyramid needs at least 4 layers, got num_hidden_layers {depth}")
        if config.patch_size % 4:
            raise ValueError(f"a feature pyramid needs a patch_size divisible by 4, got {config.patch_size}")
        config = copy(config)
        config.out_features = [f"stage{depth * quarter // 4}" for quarter in range(1, 5)]
        super().__init__(config)
        width = config.hidden_size
        self.vit = MAEBackbone(config).vit
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )
        self.channels = [width] * 4
        self.strides = [config.patch_size // 4, config.patch_size // 2, config.patch_size, config.patch_size * 2]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.ConvTranspose2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images of any size the patch size divides.

        Returns:
            Four feature maps `[B, D, H / s, W / s]` for the strides `s` of `self.strides`.
        """
        outputs = self.vit(pixel_values, mask_ratio=0.0, interpolate_pos_encoding=True, **kwargs)
        states = [self.vit.layernorm(outputs.hidden_states[index]) for index in self.config.out_indices]
        maps = [self._feature_map(tokens, pixel_values) for tokens in states]
        return BackboneOutput(
            feature_maps=tuple(scale(feature_map) for scale, feature_map in zip(self.scales, maps, strict=True)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MAEFeaturePyramid"]
