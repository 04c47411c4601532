"""Detectors and segmentation models of torchvision around any backbone of transformers.

torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS take a module that returns named feature maps of one width;
[`FeaturePyramid`] makes it from a backbone (`DenseCLBackbone`, `MAEFeaturePyramid`, `ResNetBackbone`, timm's through
`TimmBackbone` ...). [`fcn`] makes a segmentation model.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from transformers import PreTrainedModel

from hubmodels.feature_maps import all_channels_first


class BackboneBody(nn.Module):
    """A backbone of transformers that answers as torchvision's bodies do: with a dictionary of feature maps.

    Args:
        backbone: a transformers backbone; its maps, those of its `out_features`, may have their
            channels last, as those of timm's Swin.
        names: their keys; by default "0", "1", ...

    Attributes:
        channels: channels of the maps.

    Raises:
        TypeError: `backbone` is no backbone of transformers.
        ValueError: there are not as many names as maps.
    """

    def __init__(self, backbone: PreTrainedModel, names: tuple[str, ...] | None = None):
        super().__init__()
        if not hasattr(backbone, "channels"):
            raise TypeError(
                f"backbone must be a backbone of transformers (BackboneMixin), got {type(backbone).__name__}"
            )
        inner: Any = backbone
        self.backbone = backbone
        self.channels: list[int] = list(inner.channels)
        self.names = tuple(map(str, range(len(self.channels)))) if names is None else tuple(names)
        if len(self.names) != len(self.channels):
            raise ValueError(
                f"backbone must have {len(self.names)} out_features for {', '.join(self.names)}, "
                f"got {len(self.channels)}"
            )

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps `[B, channels, h, w]` by name, of images `[B, C, H, W]`."""
        feature_maps = self.backbone(pixel_values).feature_maps
        return OrderedDict(zip(self.names, all_channels_first(feature_maps, self.channels[-1]), strict=True))


class FeaturePyramid(nn.Module):
    """Backbone and feature pyramid network (arXiv 1612.03144) as torchvision's detectors take them.

    In published DenseCL transfers all stages are trained and every layer, also of the pyramid and the heads, has batch
    normalisation synchronised over the processes: give `norm_layer` and convert the whole detector with
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`. Without that several points of AP are lost.

    Args:
        backbone: a transformers backbone whose `out_features` are maps of decreasing size, for a ResNet
            `["stage1", "stage2", "stage3", "stage4"]`.
        out_channels: width of all maps of the pyramid.
        norm_layer: makes the normalisation of the pyramid's convolutions from a width, e.g. `torch.nn.BatchNorm2d`.
        extra_blocks: makes further maps; by default one pooled from the last, called "pool". RetinaNet and FCOS use
            torchvision's `LastLevelP6P7`.

    Raises:
        TypeError: `backbone` is no backbone of transformers.

    Example:

    ```python
    >>> from torchvision.models.detection import FasterRCNN
    >>> from hubmodels.modeling.densecl import DenseCLBackbone

    >>> backbone = DenseCLBackbone.from_pretrained(folder, out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> detector = FasterRCNN(FeaturePyramid(backbone), num_classes=21)  # images in [0, 1], as all of torchvision's
    ```
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        out_channels: int = 256,
        norm_layer: Callable[..., nn.Module] | None = None,
        extra_blocks: ExtraFPNBlock | None = None,
    ):
        super().__init__()
        self.body = BackboneBody(backbone)
        self.fpn = FeaturePyramidNetwork(
            self.body.channels, out_channels, extra_blocks=extra_blocks or LastLevelMaxPool(), norm_layer=norm_layer
        )
        self.out_channels = out_channels

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps `[B, out_channels, h, w]` by name, of images `[B, C, H, W]`."""
        return self.fpn(self.body(pixel_values))


def fcn(backbone: PreTrainedModel, num_classes: int) -> FCN:
    """Make a fully convolutional segmentation model (arXiv 1411.4038) around a backbone.

    Published DenseCL transfers use output stride 8: a `DenseCLConfig` with `strides=[1, 2, 1, 1]` and
    `dilations=[1, 1, 2, 4]`, into which the weights of any pre-training load.

    Args:
        backbone: a transformers backbone. Its last map is classified; if it has two `out_features`, the first is
            classified as well, by an auxiliary head that is trained with it.
        num_classes: number of classes with the background.

    Returns:
        A model that takes normalised images `[B, C, H, W]` and gives logits `[B, num_classes, H, W]` as `"out"` (and
        `"aux"`).

    Raises:
        TypeError: `backbone` is no backbone of transformers.
        ValueError: it has more than two `out_features`.

    Example:

    ```python
    >>> model = fcn(DenseCLBackbone.from_pretrained(folder, out_features=["stage3", "stage4"]), num_classes=21)
    >>> logits = model(pixel_values)["out"]
    ```
    """
    names = ("out",) if len(getattr(backbone, "channels", ())) == 1 else ("aux", "out")
    body = BackboneBody(backbone, names)
    heads = {name: FCNHead(channels, num_classes) for name, channels in zip(names, body.channels, strict=True)}
    return FCN(body, heads["out"], heads.get("aux"))
