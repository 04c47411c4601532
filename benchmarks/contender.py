"""The side of a race that runs in a contender's own process: serves steps to `benchmarks.turns`, measures memory."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Best rate of a square matrix product in GFLOP/s, as such and as the 1x1 convolution that computes the same."""
    left, right = torch.randn(2, size, size).to(dtype)
    rows, kernel = left.view(1, size, 1, size).permute(0, 3, 1, 2), right[:, :, None, None]
    best = 0.0
    for product in [lambda: left @ right, lambda: torch.conv2d(rows, kernel)] * 8:
        start = time.perf_counter()
        product()
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_of_memory() -> float:
    """Resident MiB of this process; forgets the peak of what ran before, which imports can have made."""
    torch.ones(64, 64) @ torch.ones(64, 64)  # the buffers of the matrix library
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss / 2**20


def serve(step: Callable[[], object], before: float, **ready: float) -> None:
    """
    Reports `ready`, then reads a number of steps per line, runs them and answers with the seconds, until standard input
    ends; the last report holds the peak of the memory and what it is above `before`, in MiB.
    """
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    print(json.dumps({"peak_mib": peak_mib(), "step_mib": peak_mib() - before}), flush=True)
