"""Results of experiments with several seeds, kept in a file, so that a stopped benchmark goes on where it was."""

import argparse
import fcntl
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

SEEDS = (0, 1, 2)


class SeededResults:
    """Accuracies by experiment, setting and seed, kept in a file that several processes may share."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, float] = {}
        self._read()

    def _read(self) -> None:
        self.values = json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def once(self, key: str, measure: Callable[[], dict[str, float]]) -> None:
        """Runs `measure` unless its results, stored as `key/NAME`, are there."""
        self._read()
        if any(name.startswith(f"{key}/") for name in self.values):
            return
        figures = {f"{key}/{name}": value for name, value in measure().items()}
        with self._alone():
            self._read()
            self.values |= figures
            temporary = self.path.with_suffix(".partial")
            temporary.write_text(json.dumps(self.values, indent=1, sort_keys=True))
            os.replace(temporary, self.path)
        print(key, {k: round(v, 1) for k, v in figures.items()}, flush=True)

    def cell(self, pattern: str, seeds: Sequence[int] = SEEDS) -> str:
        """Mean, and lowest to highest, over the seeds of `pattern` (with {seed} in it)."""
        values = [self.values[pattern.format(seed=seed)] for seed in seeds]
        return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the command line of experiments, with the folder `out` of their results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    return parser


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, SeededResults]:
    """Reads the command line, silences transformers and opens the results."""
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return arguments, SeededResults(arguments.out / "results.json")
