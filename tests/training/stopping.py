"""Runs that are stopped half-way, and the comparison of what they end in."""

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hubmodels.training import run as run_module
from hubmodels.training import train


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stopped_at_step_5(monkeypatch, **arguments):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    make_callbacks = run_module._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_callbacks", lambda *parts: [*make_callbacks(*parts), Stop()])
        train(**arguments)
