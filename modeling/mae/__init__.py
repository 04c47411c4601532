"""MAE: Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377)."""

from .configuration_mae import MAEConfig
from .image_processing_mae import MAEImageProcessor
from .modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForPreTrainingOutput,
    MAEModel,
    MAEModelOutput,
    MAEReconstructionOutput,
)

__all__ = [
    "MAEBackbone",
    "MAEConfig",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEImageProcessor",
    "MAEModel",
    "MAEModelOutput",
    "MAEReconstructionOutput",
]
