"""Fixtures of the conversion tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an object with `torch.save` and returns the path."""

    def write(content: object, name: str = "checkpoint.pth") -> Path:
        path = tmp_path / name
        torch.save(content, path)
        return path

    return write
