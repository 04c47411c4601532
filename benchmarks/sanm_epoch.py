"""Race of an epoch of SANM's co-training: hubmodels against the official procedure, same networks and data.

python -m benchmarks.sanm_epoch [--rounds 5] [--images 256] [--width 16] [--batch 32]

An epoch is the label quality by both networks, then both trained on the split of the other. Official: a pass per
network, eight views of every image (two unused), image by image, a loop over images for the masks, a forward of the
other network per view (benchmarks/sanm_official.py). Both start every epoch from the same weights, so that the split
is the same. One CPU thread, float32; every contender lives in a process of its own and they take turns.
"""

import argparse

from benchmarks.report import machine_line, this_command, write_section
from benchmarks.turns import Worker, ratios, spread, table_row, take_turns

CONTENDERS = ("hubmodels", "official procedure")


def main() -> None:
    """Runs the race and writes its section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    sizes = (arguments.images, arguments.width, arguments.batch)
    workers = {name: Worker("benchmarks.sanm_worker", "epoch", name, *sizes) for name in CONTENDERS}
    reports = take_turns(workers, arguments.rounds, 1)
    ours = workers["hubmodels"].seconds
    table = [
        f"PreAct ResNet-18 of width {arguments.width}, {arguments.images} images of 32 pixels, batches of "
        f"{arguments.batch} labelled and as many unlabelled ones; {arguments.rounds} rounds in turn, one thread.",
        "",
        "| contender | s per epoch: median (range) | time / ours: median (range) | peak MiB |",
        "| --- | --- | --- | --- |",
        *(
            table_row(
                [name, spread(w.seconds, 2), spread(ratios(w.seconds, ours), 2), f"{reports[name]['peak_mib']:.0f}"]
            )
            for name, w in workers.items()
        ),
        "",
        machine_line("torch", "torchvision"),
    ]
    write_section("SANM co-training epoch", this_command(), table)


if __name__ == "__main__":
    main()
