"""Puts the weights of a finished run into the package: half precision, with configuration, processor and card.

python -m benchmarks.package_checkpoint RUN NAME

Writes hubmodels/checkpoints/NAME: float16 weights (position tables stay float32, they are exact), a configuration that
loads them as float32, the run's image processor, and model_cards/NAME.md as README.md. An existing folder is replaced
as a whole.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hubmodels.catalog import CHECKPOINT_ROOT

CARDS = Path(__file__).parents[1] / "model_cards"


def half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything but position tables in float16; refuses values that float16 cannot hold."""
    packed = {k: v if "pos" in k.rsplit(".", 1)[-1] else v.to(torch.float16) for k, v in weights.items()}
    lost = [name for name, value in packed.items() if not torch.isfinite(value).all()]
    if lost:
        raise ValueError(f"these weights do not fit float16: {lost}")
    return packed


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    target = CHECKPOINT_ROOT / arguments.name
    partial = target.with_name(f".{arguments.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = half_precision(load_file(arguments.run / "model.safetensors"))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((arguments.run / "config.json").read_text()) | {"dtype": "float32"}
    (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copy(arguments.run / "preprocessor_config.json", partial)
    shutil.copy(CARDS / f"{arguments.name}.md", partial / "README.md")
    for file in partial.iterdir():
        file.chmod(0o644)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {len(weights)} tensors, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
