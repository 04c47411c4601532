"""The end of a process that trained together with others."""

import time

import torch.distributed as dist

PAUSE = 0.25  # seconds; the threads need microseconds, unless other processes keep them from running


def leave_process_group() -> None:
    """Leave the process group, if there is one, before the interpreter ends; `HubTrainer` does it at exit.

    Gloo's threads drop the tensors of the last messages some time after these have arrived, and need the interpreter
    for it. A thread that comes when the interpreter is already being taken down aborts the process, and the launcher
    takes a finished run for a failed one (pytorch/pytorch#179291). Destroying the group does not wait for them while a
    parallel model holds it; a pause, in which they can have the interpreter, does.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(PAUSE)
