"""SimCLR's golden cases: models from their configurations and weights, and comparison at their tolerances."""

import re

import torch
from hubmodels.modeling.simclr import SimCLRConfig
from safetensors.torch import load_file

from tests.golden.harness import Case, load_case
from tests.golden.simclr_names import TF1Names, TF2Names, to_ours


def config_of(case: Case, **changes) -> SimCLRConfig:
    """Our configuration of the network that a manifest describes."""
    official = case.manifest["config"]
    size = official.get("size") or official.get("image_size") or official["height"]
    same = ("stem_width", "sk_ratio", "se_ratio", "proj_out_dim", "num_proj_layers", "global_bn")
    optional = ("temperature", "hidden_norm", "proj_head_mode", "cifar_stem", "ft_proj_selector")
    fields = {name: official[name] for name in (*same, *(name for name in optional if name in official))}
    fields |= {"depths": official["layers"], "layer_type": official["block"], "image_size": size}
    if "num_classes" in official:
        fields["num_labels"] = official["num_classes"]
    return SimCLRConfig(**(fields | changes))


def load(name: str, model_class, dtype=torch.float32, **changes):
    """A case, a model of it in training mode and the names of its tensors in the official layout."""
    case = load_case("simclr", name)
    model = model_class(config_of(case, **changes)).train()
    scheme = TF2Names if name.startswith("tf2") else TF1Names
    names = {ours: official for ours, official in scheme(model.config).names.items() if ours in model.state_dict()}
    stored = load_file(case.folder / "weights.safetensors")
    official = {name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): tensor for name, tensor in stored.items()}
    missing, unexpected = model.load_state_dict(
        {ours: to_ours(official[name]) for ours, name in names.items() if name in official}, strict=False
    )
    assert not unexpected
    absent = {name for name in missing if not name.endswith("num_batches_tracked")}
    assert absent <= {"classifier.weight", "classifier.bias"} - set(names), absent
    return case, model.to(dtype), names


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
