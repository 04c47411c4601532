"""Race of one MAE pre-training step: hubmodels, transformers' ViTMAEForPreTraining (sdpa) and lightly.

python -m benchmarks.mae_step [--rounds 5] [--steps 2] [--batch 8]

ViT-S/16 at 224 pixels, decoder 512 x 8, mask ratio 0.75, forward + backward + fused AdamW, two threads, the same
weights, images and masks for all. Every contender lives in a process of its own (so that peak memory is its own) and
they take
turns, a few steps each, round after round: a ratio compares neighbours in time. The losses of the first step are
compared before anything is timed.
"""

import argparse
import statistics

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, step_cells, table_row, take_turns

CONTENDERS = ("hubmodels", "transformers", "lightly")
DTYPES = ("float32", "bfloat16")


def race(dtype: str, rounds: int, steps: int, batch: int) -> list[str]:
    """Runs all contenders in turn in one dtype; returns the rows of the table."""
    workers = {name: Worker("benchmarks.mae_step_worker", name, dtype, batch) for name in CONTENDERS}
    losses = {name: worker.ready["loss"] for name, worker in workers.items()}
    limit = 1e-5 if dtype == "float32" else 2e-2
    if max(losses.values()) - min(losses.values()) > limit:
        raise RuntimeError(f"the contenders do not compute the same loss: {losses}")
    reports = take_turns(workers, rounds, steps)
    ours = workers["hubmodels"]
    rows = []
    for name, worker in workers.items():
        rate = ours.ready["stock_gflop"] / statistics.median(worker.seconds)
        of_peak = f"{rate / ours.ready['peak_gflops']:.0%}"
        rows.append(table_row([name, dtype, *step_cells(worker, ours, reports[name], batch), of_peak]))
    return rows


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    rows = [row for dtype in DTYPES for row in race(dtype, arguments.rounds, arguments.steps, arguments.batch)]
    table = [
        f"ViT-S/16 at 224, batch {arguments.batch}, mask ratio 0.75, forward + backward + fused AdamW, 2 threads; "
        f"{arguments.rounds} rounds of {arguments.steps} steps in turn.",
        "Time / ours: above 1 means that ours is faster, round by round. Memory: the peak of the whole process, and",
        "what the steps added to it. Of peak: operations of the plain step (every patch decoded) per second, over the",
        "matrix-product peak measured in the same process.",
        "",
        "| model | dtype | images/s: median (range) | time / ours: median (range) | peak MiB | steps MiB | of peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        machine_line("torch", "transformers", "lightly", "timm"),
    ]
    write_section("MAE pre-training step", this_command(), table)


if __name__ == "__main__":
    main()
