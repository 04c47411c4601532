"""Saved MAE folders for the Hub tests, written without torch: publishing must not need it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_saved_folder(folder: Path, seed: int = 0, architecture: str = "MAEForImageClassification") -> Path:
    """What `save_pretrained` of a tiny MAE model and its processor leaves behind, with made-up weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [architecture], "model_type": "mae", "image_size": 32, "patch_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "MAEImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    weights = np.random.default_rng(seed).standard_normal((64, 128), dtype=np.float32)
    save_file({"vit.embeddings.cls_token": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
