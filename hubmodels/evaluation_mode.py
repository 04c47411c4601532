"""Running models in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a `with` block; afterwards every part has the mode that it had.

    Parts may differ: a batch normalisation that is frozen by its mode stays so while the model around it is trained.

    Args:
        models: What is put into evaluation mode.
    """
    modes = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
