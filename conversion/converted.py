"""What a method's `convert` returns."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint, ready to be saved.

    Args:
        model: the model with the official weights, in their floating-point type.
        processors: the processors to save beside it.
        card: its model card, Markdown.
    """

    model: PreTrainedModel
    processors: tuple[Any, ...]
    card: str
