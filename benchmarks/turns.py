"""Contenders of a race in processes of their own, which take turns."""

import json
import statistics
import subprocess
import sys
from pathlib import Path


class Worker:
    """
    A contender in a process of its own: `python -m MODULE ARGUMENTS`.

    The process writes a line of JSON when it is ready, answers a line with a number of steps by one with the `seconds`
    they took, and writes a last report when its input ends.
    """

    def __init__(self, module: str, *arguments: object):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        self.ready = self._read()
        self.seconds: list[float] = []

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, steps: int) -> None:
        """Runs some steps and keeps the seconds per step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.seconds.append(self._read()["seconds"] / steps)

    def close(self) -> dict:
        """Ends the process and returns its last report (peak memory)."""
        self.process.stdin.close()
        report = self._read()
        self.process.wait()
        return report


def take_turns(workers: dict[str, Worker], rounds: int, steps: int) -> dict[str, dict]:
    """Runs `steps` steps of every contender in each round; returns their last reports."""
    for _ in range(rounds):
        for worker in workers.values():
            worker.run(steps)
    return {name: worker.close() for name, worker in workers.items()}


def spread(values: list[float], digits: int) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Times of another contender over ours, round by round: above 1 where ours is faster."""
    return [their / own for their, own in zip(theirs, ours, strict=True)]


def step_cells(worker: Worker, ours: Worker, report: dict, batch: int, digits: int = 2) -> list[str]:
    """Cells of a table of steps: images/s, time / ours, peak MiB, MiB of the steps."""
    return [
        spread([batch / seconds for seconds in worker.seconds], digits),
        spread(ratios(worker.seconds, ours.seconds), 3),
        f"{report['peak_mib']:.0f}",
        f"{report['step_mib']:.0f}",
    ]


def table_row(cells: list[str]) -> str:
    """A row in Markdown."""
    return "| " + " | ".join(cells) + " |"
