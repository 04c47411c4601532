"""Race of the relative position head: hubmodels, the official loop, and one big tensor of all pairs.

python -m benchmarks.positional_label_heads [--rounds 3]

Forward, cross entropy and backward of the head on random tokens of width 768, float32, two threads, the same weights
and tokens for all. The official code joins the pairs of one anchor after the other to a growing tensor; the broadcast
head makes all pairs at once. Neither fits a batch of 32 images of ViT-B (196 tokens: 38,416 pairs each), so that these
are raced on one image, and ours also on 32. Every contender lives in a process of its own (so that peak memory is its
own) and they take turns. Losses of the first step are compared before anything is timed.
"""

import argparse
import statistics

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, ratios, spread, table_row, take_turns

CONTENDERS = ("hubmodels", "official loop", "broadcast")
WORKER = "benchmarks.positional_label_heads_worker"
RACES = {"Swin, [64, 49, 768]": (7, 64), "ViT-B, [1, 196, 768]": (14, 1)}
MEMORY_SIDES = (7, 14, 20, 28)
LARGEST_BROADCAST_SIDE = 14
LARGEST_LOSS_DIFFERENCE = 1e-3


def race(side: int, batch: int, rounds: int) -> list[str]:
    """All contenders in turn on one size; rows of the table."""
    workers = {name: Worker(WORKER, name, side, batch) for name in CONTENDERS}
    losses = {name: worker.ready["loss"] for name, worker in workers.items()}
    if max(losses.values()) - min(losses.values()) > LARGEST_LOSS_DIFFERENCE:
        raise RuntimeError(f"the contenders do not compute the same loss: {losses}")
    reports = take_turns(workers, rounds, 1)
    ours = workers["hubmodels"]
    return [
        table_row(
            [
                name,
                spread([1000 * seconds for seconds in worker.seconds], 0),
                spread(ratios(worker.seconds, ours.seconds), 1),
                f"{reports[name]['step_mib']:.0f}",
            ]
        )
        for name, worker in workers.items()
    ]


def alone(contender: str, side: int, batch: int) -> tuple[float, float]:
    """Seconds and MiB of one step of a contender."""
    worker = Worker(WORKER, contender, side, batch)
    worker.run(1)
    return statistics.median(worker.seconds), worker.close()["step_mib"]


def main() -> None:
    """Runs the races and writes their section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lines = [
        f"Forward + cross entropy + backward, float32, 2 threads, {arguments.rounds} rounds in turn. Time / ours:",
        "above 1 means that ours is faster, round by round. Memory: what the steps added to the process.",
    ]
    for title, (side, batch) in RACES.items():
        lines += [
            "",
            f"Tokens of {title}:",
            "",
            "| head | ms: median (range) | time / ours | MiB |",
            "| --- | --- | --- | --- |",
        ]
        lines += race(side, batch, arguments.rounds)
    seconds, mib = alone("hubmodels", 14, 32)
    lines += [
        "",
        f"hubmodels on ViT-B, [32, 196, 768]: {seconds:.1f} s and {mib:.0f} MiB a step. The pairs alone of the others "
        f"would be {32 * 196**2 * 768 * 4 / 2**30:.1f} GiB.",
        "",
        "Memory of a step on one image, by its number of tokens (MiB):",
        "",
        "| tokens | " + " | ".join(str(side**2) for side in MEMORY_SIDES) + " |",
        "| --- |" + " --- |" * len(MEMORY_SIDES),
    ]
    for name in ("hubmodels", "broadcast"):
        cells = [
            f"{alone(name, side, 1)[1]:.0f}" if name == "hubmodels" or side <= LARGEST_BROADCAST_SIDE else "-"
            for side in MEMORY_SIDES
        ]
        lines.append(table_row([name, *cells]))
    write_section("Positional Label heads", this_command(), [*lines, "", machine_line("torch")])


if __name__ == "__main__":
    main()
