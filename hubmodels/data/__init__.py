"""Image data sets, augmentations and collators."""

from hubmodels.data.collators import ImageCollator
from hubmodels.data.images import ImageDataset, StreamingImageDataset
from hubmodels.data.label_noise import (
    inject_label_noise,
    load_cifar_n_labels,
    load_noisy_labels,
    noise_cache_path,
    save_noisy_labels,
)
from hubmodels.data.loading import load_image_dataset
from hubmodels.data.subsets import listed_indices, subset_indices
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
    "inject_label_noise",
    "listed_indices",
    "load_cifar_n_labels",
    "load_image_dataset",
    "load_noisy_labels",
    "noise_cache_path",
    "save_noisy_labels",
    "subset_indices",
]
