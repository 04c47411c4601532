"""`hubmodels train` in two processes, as a user launches it."""

import os
import subprocess
import sys


def train_in_two_processes(recipe, pictures, output, overrides):
    """torchrun starts the command; ends after two minutes, should the processes wait for each other."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command = [sys.executable, *launch, "-m", "hubmodels.cli", "train", recipe, "--data", str(pictures), "--yes"]
    command += ["--out", str(output), *(part for value in overrides for part in ("--set", value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
