"""Time of a whole process that imports hubmodels, or lists its methods, interpreter included.

python -m benchmarks.start_up [--runs 9]
"""

import argparse
import subprocess
import sys
import time

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import spread, table_row

STATEMENTS = {
    "the interpreter alone": "pass",
    "import hubmodels": "import hubmodels",
    "hubmodels list": "from hubmodels.cli import app; app(['list'])",
}


def seconds(statement: str) -> float:
    """Wall clock of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Times the statements in turn and writes their section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    times = {name: [] for name in STATEMENTS}
    for _ in range(runs + 1):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    table = [
        f"Seconds of a whole process: median (range) of {runs} runs in turn, after one that is not counted.",
        "",
        "| process | seconds |",
        "| --- | --- |",
        *(table_row([name, spread(values[1:], 2)]) for name, values in times.items()),
        "",
        machine_line("typer", "rich"),
    ]
    write_section("Start-up", this_command(), table)


if __name__ == "__main__":
    main()
