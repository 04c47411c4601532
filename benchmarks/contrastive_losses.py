"""Race of the contrastive losses of SimCLR and DenseCL: hubmodels (streamed), lightly and the plain form.

python -m benchmarks.contrastive_losses [--images 4096] [--queue 65536] [--rounds 5] [--steps 1] [--doublings 3]
    [--threads 2]

Forward + backward in float32 with vectors of 128 numbers: NT-Xent over two views of some images,
InfoNCE of 1568 queries (32 images of 7 x 7 places) against a queue. Every contender lives in a process of its own (so
that peak memory is its own) and they take turns: a ratio compares neighbours in time. The losses of the first step are
compared before anything is timed. A second table shows the memory at sizes that double up to the raced one, and of the
streamed losses alone beyond it.
"""

import argparse
import statistics

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, ratios, spread, table_row, take_turns

CONTENDERS = ("hubmodels", "lightly", "plain")
LARGEST_LOSS_DIFFERENCE = 1e-5
TITLES = {
    "nt_xent": ("NT-Xent loss", "images"),
    "info_nce": ("InfoNCE loss against a queue", "keys in the queue"),
}


def start(loss: str, size: int, threads: int) -> dict[str, Worker]:
    """Starts the contenders and checks that they compute the same."""
    workers = {name: Worker("benchmarks.contrastive_losses_worker", loss, name, size, threads) for name in CONTENDERS}
    losses = {name: worker.ready["loss"] for name, worker in workers.items()}
    if max(losses.values()) - min(losses.values()) > LARGEST_LOSS_DIFFERENCE * max(losses.values()):
        raise RuntimeError(f"the contenders do not compute the same loss: {losses}")
    return workers


def race(loss: str, size: int, threads: int, rounds: int, steps: int) -> list[str]:
    """Runs all contenders in turn; returns the rows of the table."""
    workers = start(loss, size, threads)
    take_turns(workers, rounds, steps)
    ours = workers["hubmodels"]
    rows = []
    for name, worker in workers.items():
        of_peak = worker.ready["operations"] / 1e9 / statistics.median(worker.seconds) / worker.ready["peak_gflops"]
        cells = [
            name,
            spread([1e3 * seconds for seconds in worker.seconds], 0),
            spread(ratios(worker.seconds, ours.seconds), 2),
            f"{worker.ready['step_mib']:.0f}",
            f"{worker.ready['step_mib'] / ours.ready['step_mib']:.1f}",
            f"{of_peak:.0%}",
        ]
        rows.append(table_row(cells))
    return rows


def alone(loss: str, contender: str, size: int, threads: int) -> str:
    """Peak MiB that a step of one contender adds."""
    worker = Worker("benchmarks.contrastive_losses_worker", loss, contender, size, threads)
    worker.close()
    return f"{worker.ready['step_mib']:.0f}"


def memory_curve(loss: str, size: int, threads: int, doublings: int) -> list[str]:
    """Peak MiB that a step adds at sizes around the raced one; returns the rows of the table."""
    rows = []
    for power in range(-doublings, 3):
        current = int(size * 2.0**power)
        contenders = CONTENDERS if power <= 0 else CONTENDERS[:1]
        cells = [f"{current:,}"]
        for name in CONTENDERS:
            cells.append(alone(loss, name, current, threads) if name in contenders else "")
        rows.append(table_row(cells))
    return rows


def main() -> None:
    """Runs both races and writes their sections of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--doublings", type=int, default=3, help="smaller sizes in the memory table")
    arguments = parser.parse_args()
    for loss, size in (("nt_xent", arguments.images), ("info_nce", arguments.queue)):
        title, unit = TITLES[loss]
        table = [
            f"{size:,} {unit}, vectors of 128, float32, forward + backward, {arguments.threads} threads; "
            f"{arguments.rounds} rounds of {arguments.steps} steps in turn.",
            "Time / ours: above 1 means that ours is faster, round by round. Memory: what the steps add to the peak of",
            "the process. Of peak: operations of the matrix products of the plain form per second, over the",
            "matrix-product peak measured in the same process.",
            "",
            "| loss | ms: median (range) | time / ours: median (range) | MiB | MiB / ours | of peak |",
            "| --- | --- | --- | --- | --- | --- |",
            *race(loss, size, arguments.threads, arguments.rounds, arguments.steps),
            "",
            "MiB that a step adds to the peak of the process:",
            "",
            f"| {unit} | {' | '.join(CONTENDERS)} |",
            "| --- | --- | --- | --- |",
            *memory_curve(loss, size, arguments.threads, arguments.doublings),
            "",
            machine_line("torch", "lightly"),
        ]
        write_section(title, this_command(), table)


if __name__ == "__main__":
    main()
