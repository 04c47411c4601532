"""Race of one DenseCL training step: hubmodels, the official arithmetic in plain torch, and MoCo-v2 in our code.

python -m benchmarks.densecl_step [--rounds 8] [--steps 1] [--batch 4] [--queue 16384]

ResNet-50 at 224 pixels, forward + backward + SGD in float32 with two threads, the same weights, queues and views for
all. The official code needs CUDA and a process group; its arithmetic is written down in plain torch around a
torchvision ResNet-50, with cloned queues and stored logits. MoCo-v2 is DenseCL with a weight of 0 of the dense loss,
which computes the dense branch forwards only: what it saves is the branch's backward pass. Every contender lives in a
process of its own (so that peak memory is its own) and they take turns: a ratio compares neighbours in time. The
losses of the first step are compared before anything is timed.
"""

import argparse
import statistics

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, ratios, step_cells, table_row, take_turns

MOCO = "hubmodels, MoCo-v2 (loss_lambda 0)"
CONTENDERS = ("hubmodels", "official arithmetic", MOCO)
LARGEST_LOSS_DIFFERENCE = 1e-3


def check_losses(workers: dict[str, Worker]) -> None:
    """
    Raises:
        RuntimeError: if the contenders do not compute the same in their first step.
    """
    for part, names in (("loss", CONTENDERS[:2]), ("loss_global", CONTENDERS)):
        losses = {name: workers[name].ready[part] for name in names}
        if max(losses.values()) - min(losses.values()) > LARGEST_LOSS_DIFFERENCE:
            raise RuntimeError(f"the contenders do not compute the same {part}: {losses}")


def dense_share(queue_length: int) -> float:
    """Multiplications of the dense head and loss over those of MoCo-v2's step, per image of 224 pixels."""
    backbone, cells, width, size = 4.09e9, 49, 2048, 128
    passes = 3 + 1  # forward and backward of the query, forward of the key
    head = cells * width * (width + size) * passes
    loss = 2 * cells * size * queue_length  # logits and gradient
    return (head + loss) / (backbone * passes)


def race(rounds: int, steps: int, batch: int, queue_length: int) -> list[str]:
    """Runs all contenders in turn; returns the rows of the table and a line about the cost of the dense loss."""
    workers = {name: Worker("benchmarks.densecl_step_worker", name, batch, queue_length) for name in CONTENDERS}
    check_losses(workers)
    reports = take_turns(workers, rounds, steps)
    ours = workers["hubmodels"]
    rows = [table_row([name, *step_cells(worker, ours, reports[name], batch)]) for name, worker in workers.items()]
    costs = sorted(ratio - 1 for ratio in ratios(ours.seconds, workers[MOCO].seconds))
    cost = f"{statistics.median(costs):+.1%} ({costs[0]:+.1%} to {costs[-1]:+.1%})"
    share = f"{dense_share(queue_length):.1%}"
    return [
        *rows,
        "",
        f"Time of the step over that with a weight of 0, which also runs the dense branch forwards: {cost};",
        f"multiplications of the whole dense branch: +{share} of a step of MoCo-v2 without it.",
    ]


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--queue", type=int, default=16384)
    arguments = parser.parse_args()
    table = [
        f"ResNet-50 at 224, batch {arguments.batch}, queues of {arguments.queue:,}, forward + backward + SGD, float32, "
        f"2 threads; {arguments.rounds} rounds of {arguments.steps} steps in turn.",
        "Time / ours: above 1 means that ours is faster, round by round. Memory: the peak of the whole process, and",
        "what the steps added to it.",
        "",
        "| model | images/s: median (range) | time / ours: median (range) | peak MiB | steps MiB |",
        "| --- | --- | --- | --- | --- |",
        *race(arguments.rounds, arguments.steps, arguments.batch, arguments.queue),
        "",
        machine_line("torch", "torchvision"),
    ]
    write_section("DenseCL training step", this_command(), table)


if __name__ == "__main__":
    main()
