"""Python in processes of its own: one, or several that torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: object, timeout: float = 300) -> str:
    """What `python ARGUMENTS` prints, on the CPU; it can import `tests`. An error fails the test with its message."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def torchrun(*arguments: object, processes: int = 2) -> None:
    """Runs a script (or `-m`, a module) in several processes, that may wait for each other for five minutes at most."""
    run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *arguments)


def train_in_two_processes(recipe: str, pictures: Path, output: Path, overrides: list[str]) -> None:
    """`hubmodels train` under torchrun, as a user launches it."""
    settings = [part for value in overrides for part in ("--set", value)]
    torchrun("-m", "hubmodels.cli", "train", recipe, "--data", pictures, "--out", output, "--yes", *settings)
