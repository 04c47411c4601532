"""Compares tensors with those that the official code of a method made.

A case is a folder: `manifest.json` (what was run, how, at which tolerance), `inputs.safetensors`, `outputs.safetensors`
and, where weights matter, these in the official layout: `checkpoint.pth`, or `checkpoint.index` and
`checkpoint.data-00000-of-00001` of TensorFlow, or `weights.safetensors`.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hubmodels.conversion import convert
from safetensors.torch import load_file

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One golden case: `load_case("mae", "pretrain_pixels")`."""

    method: str
    name: str

    @property
    def folder(self) -> Path:
        return ROOT / self.method / self.name

    @property
    def checkpoint(self) -> Path:
        """The official weights: a torch file, the prefix of a TensorFlow checkpoint, or tensors by official name."""
        if (self.folder / "checkpoint.index").exists():
            return self.folder / "checkpoint"
        named = self.folder / "weights.safetensors"
        return named if named.exists() else self.folder / "checkpoint.pth"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def outputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    def tolerance(self, kind: str) -> dict[str, float]:
        """`{"atol": ..., "rtol": ...}` of the manifest for `kind`, or its only one."""
        tolerance = self.manifest["tolerance"]
        chosen = tolerance.get(kind, tolerance)
        return {"atol": float(chosen["atol"]), "rtol": float(chosen["rtol"])}

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The outputs named `prefix/...`, without the prefix."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.outputs.items() if k.startswith(f"{prefix}/")}

    def assert_matches(self, actual: dict[str, torch.Tensor], kind: str = "forward", prefix: str = "") -> None:
        """
        Fails with a table of all differences unless every tensor equals the stored one of the same name.

        `actual` may leave out outputs, never name one that is not stored. Non-floating tensors must be equal.
        """
        tolerance = self.tolerance(kind)
        rows, failed = [], False
        for name, tensor in actual.items():
            expected = self.outputs[f"{prefix}{name}"]
            difference, ok = _compare(tensor.detach(), expected, **tolerance)
            failed |= not ok
            rows.append(f"{'ok  ' if ok else 'FAIL'} {prefix + name:<45} {list(expected.shape)!s:<20} {difference}")
        if failed:
            limits = f"atol {tolerance['atol']}, rtol {tolerance['rtol']}"
            raise AssertionError("\n".join([f"{self.method}/{self.name} ({kind}: {limits})", *rows]))

    def convert(self, out: Path, **options: Any) -> Path:
        """The case's checkpoint as a model folder, through the converter that users run."""
        return convert(self.method, self.checkpoint, out, **options)


def load_case(method: str, name: str) -> Case:
    """Opens a case; a missing one is an error of the test, not a skip."""
    case = Case(method, name)
    assert case.folder.is_dir(), f"no golden case {case.folder}"
    return case


def _compare(actual: torch.Tensor, expected: torch.Tensor, atol: float, rtol: float) -> tuple[str, bool]:
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}", False
    if not expected.is_floating_point():
        different = int((actual != expected).sum())
        return f"{different} of {expected.numel()} differ", different == 0
    error = (actual.double() - expected.double()).abs()
    worst = float((error - rtol * expected.double().abs()).max()) if error.numel() else 0.0
    return f"max |difference| {float(error.max()):.3g}", worst <= atol
