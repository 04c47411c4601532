"""The light decoder that reconstructs the unmasked image from the last feature map."""

import torch
from torch import nn
from torch.nn import functional

from .configuration_sanm import SANMConfig

# (kernel, stride, output padding) of the three layers, and the divisors of the channels before layers 2 and 3.
OFFICIAL = {
    "resnet18": (((4, 2, 0), (6, 1, 0), (4, 2, 0)), (2, 4)),
    "resnet50": (((6, 3, 1), (2, 3, 1), (2, 3, 0)), (8, 16)),
}
AUTO_CHANNELS = 256  # at most, after the first layer of "auto"; halved from there
MIN_AUTO_CHANNELS = 16


class SANMDecoder(nn.Module):
    """
    Transposed convolutions without activation or normalisation between them (as the official code).

    `"resnet18"` turns a 4x4 grid into 32 pixels, `"resnet50"` 7x7 into 224. `"auto"` doubles the grid until it is at
    least as large as the image, and resizes bilinearly where it is larger.

    Args:
        config (`SANMConfig`): configuration; `decoder_type`, `num_channels`, `image_size`.
        channels (`int`): channels of the feature map.
        stride (`int`): how many times smaller the grid is than the image, rounded up (for `"auto"`).
    """

    def __init__(self, config: SANMConfig, channels: int, stride: int):
        super().__init__()
        self.resizes = config.decoder_type == "auto"
        if self.resizes:
            count = max(1, (stride - 1).bit_length())
            first = min(channels // 2, AUTO_CHANNELS)  # half, as "resnet18"
            widths = [channels, *(max(first >> i, MIN_AUTO_CHANNELS) for i in range(count - 1))]
            shapes = [(4, 2, 0)] * count
        else:
            shapes, divisors = OFFICIAL[config.decoder_type]
            widths = [channels, *(max(channels // divisor, 1) for divisor in divisors)]
        widths.append(config.num_channels)
        for number, (kernel, step, extra) in enumerate(shapes, start=1):
            padding = 1 if self.resizes else 0
            layer = nn.ConvTranspose2d(widths[number - 1], widths[number], kernel, step, padding, extra)
            setattr(self, f"layer{number}", layer)
        self.num_layers = len(shapes)

    def forward(self, feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """
        Args:
            feature_map (`torch.Tensor` of shape `[B, C, h, w]`): last feature map.
            size (`tuple[int, int]`): height and width of the image in pixels, which `"auto"` brings its output to.

        Returns:
            Reconstruction `[B, num_channels, H', W']`.
        """
        for number in range(1, self.num_layers + 1):
            feature_map = getattr(self, f"layer{number}")(feature_map)
        if self.resizes and tuple(feature_map.shape[-2:]) != tuple(size):
            feature_map = functional.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)
        return feature_map


def check_decoded_size(reconstruction: torch.Tensor, images: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if a reconstruction is not as large as the images.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"the decoder made pictures of {tuple(reconstruction.shape[-2:])} pixels (height, width) of images of "
            f"{tuple(images.shape[-2:])}; set decoder_type='auto', which fits any size"
        )
