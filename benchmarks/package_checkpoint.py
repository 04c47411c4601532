"""Puts the weights of a finished run into the package: half precision, with configuration, processor and card.

python -m benchmarks.package_checkpoint RUN NAME [--encoder]

Writes hubmodels/checkpoints/NAME: float16 weights (position tables, vectors such as the statistics of normalisation,
and counters stay as they are), a configuration that loads them as float32, the run's image processor, and
model_cards/NAME.md as README.md. With --encoder only what AutoModel loads: no momentum encoders and queues. An
existing folder is replaced as a whole.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hubmodels.catalog import CHECKPOINT_ROOT

CARDS = Path(__file__).parents[1] / "model_cards"


def half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kernels and matrices in float16, but for position tables; refuses values that float16 cannot hold."""
    packed = {
        name: value.to(torch.float16) if value.ndim > 1 and "pos" not in name.rsplit(".", 1)[-1] else value
        for name, value in weights.items()
    }
    lost = [name for name, value in packed.items() if not torch.isfinite(value).all()]
    if lost:
        raise ValueError(f"these weights do not fit float16: {lost}")
    return packed


def package(run: Path, name: str, processor: Path) -> None:
    """Writes the folder of the checkpoint `name` from a saved model and the image processor in another folder."""
    target = CHECKPOINT_ROOT / name
    partial = target.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = half_precision(load_file(run / "model.safetensors"))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((run / "config.json").read_text()) | {"dtype": "float32"}
    (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copy(processor / "preprocessor_config.json", partial)
    shutil.copy(CARDS / f"{name}.md", partial / "README.md")
    for file in partial.iterdir():
        file.chmod(0o644)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {len(weights)} tensors, {size / 2**20:.1f} MiB")


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--encoder", action="store_true", help="keep only what AutoModel loads")
    arguments = parser.parse_args()
    if not arguments.encoder:
        package(arguments.run, arguments.name, arguments.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_pretrained(arguments.run).save_pretrained(folder)
        package(Path(folder), arguments.name, arguments.run)


if __name__ == "__main__":
    main()
