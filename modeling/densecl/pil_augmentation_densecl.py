"""The augmentation of DenseCL with Pillow, view by view: equal to the published pipeline to the last bit."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as tvF

from .views_densecl import ViewParameters

# By their numbers in `order`, with the field that holds what each is called with.
_COLOR_OPERATIONS = (
    (tvF.adjust_brightness, "brightness"),
    (tvF.adjust_contrast, "contrast"),
    (tvF.adjust_saturation, "saturation"),
    (tvF.adjust_hue, "hue"),
)


def augment_exactly(images: Sequence[torch.Tensor], parameters: ViewParameters, size: tuple[int, int]) -> torch.Tensor:
    """Make the views that `parameters` describe.

    Args:
        images: uint8 `[3, H, W]` of any sizes, on the CPU.
        parameters: what was drawn for V views of each of them.
        size: height and width of the views in pixels.

    Returns:
        Views `[B, V, 3, height, width]`, uint8.

    Raises:
        ValueError: an image is not uint8.
    """
    for image in images:
        if image.dtype != torch.uint8:
            raise ValueError(f"the Pillow engine works on uint8 images, got {image.dtype}; use engine='tensor'")
    pictures = [tvF.to_pil_image(image.cpu()) for image in images]
    number = parameters.flip.shape[1]
    drawn = parameters.flat()
    views = [_view(pictures[index // number], drawn, index, size) for index in range(len(drawn.flip))]
    return torch.stack([tvF.pil_to_tensor(view) for view in views]).view(len(images), number, 3, *size)


def _view(picture: Image.Image, drawn: ViewParameters, index: int, size: tuple[int, int]) -> Image.Image:
    top, left, height, width = drawn.crop[index].tolist()
    view = tvF.resized_crop(picture, top, left, height, width, list(size), tvF.InterpolationMode.BILINEAR)
    if drawn.jitter[index]:
        for number in drawn.order[index]:
            operation, field = _COLOR_OPERATIONS[number]
            view = operation(view, float(getattr(drawn, field)[index]))
    if drawn.gray[index]:
        view = tvF.to_grayscale(view, num_output_channels=3)
    if drawn.blur[index]:
        view = view.filter(ImageFilter.GaussianBlur(radius=float(drawn.sigma[index])))
    return tvF.horizontal_flip(view) if drawn.flip[index] else view


__all__ = ["augment_exactly"]
