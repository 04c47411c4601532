"""Image data sets, augmentations and collators."""

from hubmodels.data.collators import ImageCollator
from hubmodels.data.images import ImageDataset, StreamingImageDataset, load_image_dataset
from hubmodels.data.transforms import (
    EvalTransform,
    FinetuneTransform,
    ImageTransform,
    LinearProbeTransform,
    PretrainTransform,
)

__all__ = [
    "EvalTransform",
    "FinetuneTransform",
    "ImageCollator",
    "ImageDataset",
    "ImageTransform",
    "LinearProbeTransform",
    "PretrainTransform",
    "StreamingImageDataset",
    "load_image_dataset",
]
