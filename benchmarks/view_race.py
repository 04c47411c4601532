"""Races of image augmentations in one process: images, processor time, the table."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import ratios, spread, table_row

Task = Callable[[], object]
WARM_UP_ROUNDS = 2


def make_images(count: int, side: int) -> torch.Tensor:
    """Smooth random colour images, uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    return (smooth * 230 + noise * 25).to(torch.uint8)


def pil_images(images: torch.Tensor) -> list[Image.Image]:
    """The same images as PIL's."""
    return [Image.fromarray(image) for image in np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())]


def processor_seconds(task: Task) -> float:
    """Processor time of one run."""
    start = time.process_time()
    task()
    return time.process_time() - start


def race(tasks: Sequence[Task], batch: int, rounds: int) -> list[str]:
    """Runs tasks in turn; milliseconds per image of the first, then those of each other and its ratio to the first."""
    timed = [[processor_seconds(task) for task in tasks] for _ in range(rounds + WARM_UP_ROUNDS)]
    ours, *others = ([*seconds] for seconds in zip(*timed[WARM_UP_ROUNDS:], strict=True))
    cells = [f"{1e3 * statistics.median(ours) / batch:.3f}"]
    for theirs in others:
        cells += [f"{1e3 * statistics.median(theirs) / batch:.3f}", spread(ratios(theirs, ours), 1)]
    return cells


def run_race(
    title: str,
    cases: Sequence[tuple[int, int, int]],
    contenders: Callable[[int, torch.Tensor], Sequence[Task]],
    peers: Sequence[str],
    about: str,
) -> None:
    """
    The command of a race: runs every case (output size, side of the images, images per batch) on one thread and writes
    the section of the results.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    heads = ["size", "source", "batch", "hubmodels"]
    for peer in peers:
        heads += [peer, f"{peer} / ours"]
    rows = [
        table_row([*map(str, case), *race(contenders(case[0], make_images(case[2], case[1])), case[2], rounds)])
        for case in cases
    ]
    table = [
        f"Two views of every image, one thread, {rounds} rounds in turn; milliseconds of processor time per image",
        "(both views), medians, and ratios: median (range). hubmodels gets a uint8 batch, the others PIL images one by",
        "one, as their users have them; neither decoding nor the others' collation is counted.",
        "",
        table_row(heads),
        table_row(["---"] * len(heads)),
        *rows,
        "",
        machine_line("torch", "torchvision", "lightly", "pillow"),
    ]
    write_section(title, this_command(), table)
