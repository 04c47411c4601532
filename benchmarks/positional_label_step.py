"""Race of a whole ViT-B training step with and without positional labels.

python -m benchmarks.positional_label_step [--rounds 4] [--batch 4]

transformers' ViT-B/16 at 224 pixels with 1,000 classes, forward + backward + AdamW in float32 with two threads; the
same weights and images for all. Every contender lives in a process of its own and they take turns.
"""

import argparse
import statistics

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, ratios, spread, table_row, take_turns

PLAIN = "ViTForImageClassification"
CONTENDERS = {
    PLAIN: (),
    "absolute": ("absolute", 0),
    "relative, 8 anchors": ("relative", 8),
    "relative, 32 anchors": ("relative", 32),
    "relative, all pairs": ("relative", 0),
}


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    workers = {
        name: Worker("benchmarks.positional_label_step_worker", arguments.batch, *settings)
        for name, settings in CONTENDERS.items()
    }
    reports = take_turns(workers, arguments.rounds, 1)
    plain = workers[PLAIN]
    lines = [
        f"ViT-B/16 at 224, 1,000 classes, batch {arguments.batch}, forward + backward + AdamW, float32, 2 threads; "
        f"{arguments.rounds} rounds in turn. Overhead: time over that of the plain classifier, round by round.",
        "",
        "| model | ms a step: median (range) | overhead: median (range) | MiB of the steps |",
        "| --- | --- | --- | --- |",
    ]
    for name, worker in workers.items():
        over = [100 * (ratio - 1) for ratio in ratios(worker.seconds, plain.seconds)]
        overhead = "" if name == PLAIN else f"{statistics.median(over):+.1f} % ({min(over):+.1f} to {max(over):+.1f})"
        milliseconds = spread([1000 * seconds for seconds in worker.seconds], 0)
        lines.append(table_row([name, milliseconds, overhead, f"{reports[name]['step_mib']:.0f}"]))
    write_section("Positional Label training step", this_command(), [*lines, "", machine_line("torch", "transformers")])


if __name__ == "__main__":
    main()
