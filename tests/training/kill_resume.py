"""Kills training runs with SIGKILL at random moments, resumes them, and compares the final weights.

`python kill_resume.py WORKING_FOLDER --kills 20 --seed 0` prints one JSON object: kills, runs finished, how many kills
left a half-written checkpoint behind, and the names of weights that differ from those of an uninterrupted run (none
may). Processes are forked, so that a run starts in milliseconds and the kills hit the training and not the imports.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_run import trainer

STEPS = {"num_train_epochs": 10, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "ema_decay": 0.9}


def train(output: Path) -> None:
    """Train, or resume, a run that writes a checkpoint at every step."""
    run = trainer(output, logging_strategy="no", jsonl_log=False, **STEPS)
    run.train(resume_from_checkpoint=run.can_resume())
    run.model.save_pretrained(output / "final")


def forked(output: Path) -> int:
    """Start `train` in a child process."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    with (output.parent / "errors.log").open("a") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
        code = 1
        try:
            train(output)
            code = 0
        finally:
            os._exit(code)


def finish(output: Path) -> None:
    _, status = os.waitpid(forked(output), 0)
    if status:
        raise SystemExit(f"the run in {output} failed: {(output.parent / 'errors.log').read_text()[-2000:]}")


def different_weights(first: Path, second: Path) -> list[str]:
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (first, second))
    return sorted(name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name]))


def kill_and_resume(folder: Path, kills: int, seed: int) -> dict:
    """Kill runs until `kills` have been killed; resume each until it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole"
    started = time.perf_counter()
    finish(whole)
    duration = time.perf_counter() - started
    moments = random.Random(seed)
    report = {"kills": 0, "runs": 0, "half_written": 0, "different": [], "seconds_uninterrupted": round(duration, 2)}
    while report["kills"] < kills:
        output = folder / f"run{report['runs']}"
        ended = False
        while not ended and report["kills"] < kills:
            child = forked(output)
            time.sleep(moments.uniform(0.0, 0.5 * duration))
            ended = os.waitpid(child, os.WNOHANG)[0] == child
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                report["kills"] += 1
                report["half_written"] += any(output.glob(".checkpoint-*.*"))
        if not ended:
            finish(output)
        report["runs"] += 1
        report["different"] += different_weights(whole, output)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(kill_and_resume(options.folder, options.kills, options.seed)))
