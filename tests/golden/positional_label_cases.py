"""Golden cases of Positional Label: their weights by our names, and gradients by theirs."""

import re

import torch
from safetensors.torch import load_file

from tests.golden.harness import Case, load_case

HEAD_NAMES = {r"^To2D\.": "position_head.", r"^head_coordinate\.": "position_head.classifier."}


def case_of(name: str) -> Case:
    """A case of this method."""
    return load_case("positional_label", name)


def ours(name: str) -> str:
    """Our name of a tensor of a head; other names stay."""
    for pattern, replacement in HEAD_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def weights(case: Case) -> dict[str, torch.Tensor]:
    """The weights of a case, those of the head by our names."""
    return {ours(name): tensor for name, tensor in load_file(case.checkpoint).items()}


def gradients(model: torch.nn.Module, case: Case, rename=ours) -> dict[str, torch.Tensor]:
    """The gradients that a case stores, by its names."""
    parameters = dict(model.named_parameters())
    return {name: parameters[rename(name)].grad for name in case.group("grad")}
