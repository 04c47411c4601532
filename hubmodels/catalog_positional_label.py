"""The Positional Label checkpoint that ships with the package."""

from __future__ import annotations

from hubmodels.catalog_records import Checkpoint, Metric

POSITIONAL_LABEL_CHECKPOINTS: tuple[Checkpoint, ...] = (
    Checkpoint(
        name="positional-label-small-32",
        method="positional_label",
        task="image-classification",
        modality="image",
        parameters=1_214_250,
        licence="apache-2.0",
        source="positional-label-small-32",
        base_model="mae-small-32",
        datasets=("fashion-mnist",),
        paper="https://arxiv.org/abs/2206.04981",
        metrics=(
            Metric(
                "accuracy",
                77.5,
                "fashion-mnist-small test",
                "hubmodels evaluate positional-label-small-32 --data fashion-mnist-small",
            ),
        ),
        notes="Small ViT with its absolute position head, fine-tuned on clothing of 32 pixels: to try the method on.",
    ),
)
