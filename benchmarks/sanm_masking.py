"""Race of SANM's masking and of label noise: hubmodels against the official procedure.

python -m benchmarks.sanm_masking [--rounds 10] [--steps 20]

Masking of 128 images of 32 pixels (512 x 4 x 4 maps) and of 32 images of 224 pixels (2048 x 7 x 7 maps), one CPU
thread; the official loop over images (OpenCV, numpy, Python) is written down in benchmarks/sanm_official.py. Views and
targets of both are compared before anything is timed; what both cannot do without, two copies of the images, is timed
too. Every contender lives in a process of its own and they take turns. Symmetric noise of 50 % on 50,000 labels is
timed beside the official membership test in a list.
"""

import argparse
import random
import statistics
import time

import numpy as np
import torch

from benchmarks import sanm_official
from benchmarks.report import machine_line, this_command, write_section
from benchmarks.sanm_worker import masking_step
from benchmarks.turns import Worker, ratios, spread, table_row, take_turns
from hubmodels.data import inject_label_noise

CONTENDERS = ("hubmodels", "official loop")
LIMIT = "two copies of the images alone"
CASES = ((128, 32), (32, 224))
LABELS, RATE, CLASSES = 50_000, 0.5, 10


def check_equal(count: int, size: int) -> None:
    """
    Raises:
        AssertionError: if the contenders do not compute the same.
    """
    ours, theirs = (masking_step(name, count, size)() for name in CONTENDERS)
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=0)
    torch.testing.assert_close(ours[2], theirs[2])


def race(count: int, size: int, rounds: int, steps: int) -> list[str]:
    """Runs both contenders in turn; returns the rows of the table."""
    check_equal(count, size)
    names = (*CONTENDERS, LIMIT)
    workers = {name: Worker("benchmarks.sanm_worker", "masking", name, count, size) for name in names}
    take_turns(workers, rounds, steps)
    ours = workers["hubmodels"].seconds
    return [
        table_row(
            [
                f"{count} images at {size}",
                name,
                spread([1000 * seconds for seconds in worker.seconds], 2),
                spread(ratios(worker.seconds, ours), 2),
            ]
        )
        for name, worker in workers.items()
    ]


def official_noise(labels: list[int], seed: int) -> list[int]:
    """The official noise: chosen indices in a list, which is searched for every image."""
    generator = random.Random(seed)
    order = list(range(len(labels)))
    generator.shuffle(order)
    chosen = order[: int(RATE * len(labels))]
    return [generator.randint(0, CLASSES - 1) if i in chosen else label for i, label in enumerate(labels)]


def noise_line() -> str:
    """Times both ways of making noise."""
    labels = np.arange(LABELS) % CLASSES
    ours = []
    for _ in range(5):
        start = time.perf_counter()
        noisy = inject_label_noise(labels, "sym", RATE, CLASSES, seed=123).labels
        ours.append(time.perf_counter() - start)
    start = time.perf_counter()
    official = official_noise(labels.tolist(), 123)
    seconds = time.perf_counter() - start
    if official != noisy.tolist():
        raise RuntimeError("the contenders do not make the same noise")
    return (
        f"Symmetric noise of {RATE:.0%} on {LABELS:,} labels, equal labels: {statistics.median(ours) * 1000:.0f} ms, "
        f"the official membership test in a list {seconds:.1f} s."
    )


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resizing = "OpenCV" if sanm_official.cv2 is not None else "numpy (OpenCV is not installed)"
    table = [
        f"One thread; {arguments.rounds} rounds of {arguments.steps} steps in turn; the official loop resizes maps by "
        f"{resizing}. Outputs are equal.",
        "",
        "| batch | contender | ms: median (range) | time / ours: median (range) |",
        "| --- | --- | --- | --- |",
        *(row for case in CASES for row in race(*case, arguments.rounds, arguments.steps)),
        "",
        noise_line(),
        "",
        machine_line("torch", "numpy"),
    ]
    write_section("SANM masking and label noise", this_command(), table)


if __name__ == "__main__":
    main()
