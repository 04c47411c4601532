"""Race of one SimCLR training step: hubmodels and lightly.

python -m benchmarks.simclr_step [--rounds 3] [--cases resnet18 resnet50] [--steps N]

ResNet-18 with the stem for small images at 32 pixels, batch 128, and ResNet-50 at 96 pixels, batch 16; two views per
image, a head of two layers, NT-Xent, forward + backward + LARS in float32 with two threads. lightly's side is put
together as in its ImageNet example, around a torchvision ResNet with the same layers and weights. Both race twice: on
ready views, and from decoded images with their own augmentation of the same settings, in a data loader without workers
(uint8 tensors for hubmodels, PIL images for lightly). Every contender lives in a process of its own (so that peak
memory is its own) and they take turns: a ratio compares neighbours in time. The losses of the first step on ready views
are compared before anything is timed.
"""

import argparse

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, step_cells, table_row, take_turns

CONTENDERS = ("hubmodels", "lightly")
LARGEST_LOSS_DIFFERENCE = 1e-3
# Images per batch, and steps per turn.
CASES = {"resnet18": (128, 1), "resnet50": (16, 2)}
LABELS = {"views": "step on ready views", "images": "with augmentation"}


def race(case: str, source: str, rounds: int, steps: int | None) -> list[str]:
    """Runs both contenders in turn; returns the rows of the table."""
    batch, usual_steps = CASES[case]
    workers = {name: Worker("benchmarks.simclr_step_worker", name, case, batch, source) for name in CONTENDERS}
    losses = {name: worker.ready["loss"] for name, worker in workers.items()}
    if source == "views" and abs(losses["hubmodels"] - losses["lightly"]) > LARGEST_LOSS_DIFFERENCE:
        raise RuntimeError(f"the contenders do not compute the same loss: {losses}")
    reports = take_turns(workers, rounds, steps or usual_steps)
    ours = workers["hubmodels"]
    rows = []
    for name, worker in workers.items():
        rows.append(table_row([case, LABELS[source], name, *step_cells(worker, ours, reports[name], batch, digits=1)]))
    return rows


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, help="steps per turn; default 1 of resnet18, 2 of resnet50")
    arguments = parser.parse_args()
    rows = [
        row
        for case in arguments.cases
        for source in LABELS
        for row in race(case, source, arguments.rounds, arguments.steps)
    ]
    table = [
        "resnet18: stem for small images, 32 pixels, batch 128; resnet50: 96 pixels, batch 16. Two views per image,",
        "forward + backward + LARS, float32, 2 threads, the same weights and (on ready views) the same images; "
        f"{arguments.rounds} rounds in turn.",
        "Time / ours: above 1 means that ours is faster, round by round. Memory: the peak of the whole process, and",
        "what the steps added to it. With augmentation: from decoded images, no loader workers.",
        "",
        "| network | task | model | images/s: median (range) | time / ours: median (range) | peak MiB | steps MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        machine_line("torch", "torchvision", "lightly", "pillow"),
    ]
    write_section("SimCLR training step", this_command(), table)


if __name__ == "__main__":
    main()
