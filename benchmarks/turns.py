"""Contenders of a race in processes of their own, which take turns."""

import json
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
