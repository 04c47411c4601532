"""Image processor of MAE: the published evaluation transform."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .center_crop_mae import CenterCropBackend


class MAEImageProcessor(CenterCropBackend):
    """
    Resizes the short side bicubically to 256, crops the centre to 224 and normalises with the ImageNet statistics, as
    the official evaluation does; for size S the short side is `int(S / (224 / 256))`, and S itself above 224.

    The resizing is torchvision's antialiased bicubic on tensors, which differs from PIL's by at most 2/255 per pixel.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True


__all__ = ["MAEImageProcessor"]

MAEImageProcessor.register_for_auto_class()
