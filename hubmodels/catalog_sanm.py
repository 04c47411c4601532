"""The SANM checkpoint that ships with the package."""

from __future__ import annotations

from hubmodels.catalog_records import Checkpoint, Metric

SANM_CHECKPOINTS: tuple[Checkpoint, ...] = (
    Checkpoint(
        name="sanm-small-32",
        method="sanm",
        task="image-classification",
        modality="image",
        parameters=1_739_364,
        licence="apache-2.0",
        source="sanm-small-32",
        base_model="simclr-small-32",
        datasets=("fashion-mnist",),
        paper="https://arxiv.org/abs/2302.06805",
        metrics=(
            Metric(
                "accuracy",
                78.8,
                "fashion-mnist-small test",
                "hubmodels evaluate sanm-small-32 --data fashion-mnist-small",
            ),
        ),
        notes="Two small networks that learned clothing of 32 pixels from labels of which 44 % were wrong.",
    ),
)
