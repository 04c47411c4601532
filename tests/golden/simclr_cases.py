"""SimCLR's golden cases: models from the official checkpoints, official names, and comparison at their tolerances."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from hubmodels.conversion import convert
from hubmodels.conversion.simclr_names import Network, to_official_layout, variables

from tests.golden.harness import Case, load_case


def load(name: str, model_class, folder: Path, dtype: torch.dtype = torch.float32, **changes):
    """
    A case, and a model of it in training mode, through the converter that users run.

    Args:
        name: name of the case.
        model_class: class of the model.
        folder: where to convert to.
        dtype: of the model.
        changes: fields of the configuration that no checkpoint holds.
    """
    case = load_case("simclr", name)
    official = case.manifest["config"]
    options = {"image_size": official.get("size") or official.get("image_size") or official["height"]}
    if official.get("ft_proj_selector"):
        options["ft_proj_selector"] = official["ft_proj_selector"]
    fields = {key: official[key] for key in ("temperature", "hidden_norm", "global_bn") if key in official}
    source = "checkpoint" if (case.folder / "checkpoint.index").is_file() else "weights.safetensors"
    if not (folder / "config.json").is_file():
        convert("simclr", case.folder / source, folder, **options)
    model = model_class.from_pretrained(folder, dtype=dtype, **(fields | changes))
    return case, model.train()


def official(model, tensors: Mapping[str, torch.Tensor], layout: str = "tf1") -> dict[str, torch.Tensor]:
    """Tensors by our names -> by their official names, in the official layout; others are left out."""
    config = model.config
    network = Network(
        layer_type=config.layer_type,
        depths=tuple(config.depths),
        stem="cifar" if config.uses_cifar_stem else "deep" if config.sk_ratio > 0 else "plain",
        selective_kernels=config.sk_ratio > 0,
        head_mode=config.proj_head_mode,
        head_layers=config.num_head_layers,
        classifier=True,
    )
    names = {variable.ours: getattr(variable, layout) for variable in variables(network)}
    return {
        names[name].removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): to_official_layout(tensor.detach())
        for name, tensor in tensors.items()
        if name in names
    }


def limits(case: Case, kind: str) -> tuple[float, float]:
    """`(atol, rtol)` of a manifest, whose tolerances are sentences; of gradients relative to the largest entry."""
    tolerance = case.manifest["tolerance"]
    text = tolerance if isinstance(tolerance, str) else tolerance[kind]
    if kind == "grad" and "max" in text:
        relative, absolute = re.search(r"<= (\S+) \* max \|grad\|.*\+ (\S+)", text).groups()
        return float(absolute), float(relative)
    numbers = dict(re.findall(r"(atol|rtol) ([\d.e-]+)", text))
    return float(numbers.get("atol", 0)), float(numbers.get("rtol", 0))


def assert_matches(
    case: Case, actual: dict[str, torch.Tensor], kind: str, atol: float = 0.0, rtol: float = 0.0
) -> None:
    """
    Fails with a table unless every tensor equals the stored one of that name within the tolerance of `kind`.

    `atol` and `rtol` are lower bounds of the tolerance, where the manifest's is tighter than its own numbers allow.
    """
    absolute, relative = (max(pair) for pair in zip(limits(case, kind), (atol, rtol), strict=True))
    rows, failed = [], False
    for name, tensor in actual.items():
        expected = case.outputs[name].double()
        assert tensor.shape == expected.shape, f"{name}: {tuple(tensor.shape)} is not {tuple(expected.shape)}"
        difference = (tensor.detach().double() - expected).abs()
        scale = expected.abs().max() if kind == "grad" else expected.abs()
        ok = bool((difference <= absolute + relative * scale).all())
        failed |= not ok
        rows.append(f"{'ok  ' if ok else 'FAIL'} {name:<75} {list(expected.shape)!s:<18} {difference.max():.3g}")
    if failed:
        raise AssertionError("\n".join([f"simclr/{case.name} ({kind}: atol {absolute}, rtol {relative})", *rows]))
