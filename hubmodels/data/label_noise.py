"""Wrong labels for experiments: injected by published recipes, or read from published files."""

import json
import random
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from hubmodels.data.columns import numbers_if_all, read_csv_columns
from hubmodels.files import write_text

MODES = ("sym", "asym", "transition", "instance")
INSTANCE_SPREAD = 0.1  # deviation of the noise rate over images (part-dependent label noise, Xia et al. 2020)

# CIFAR-10: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog; the other classes keep their labels.
CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# Superclass of every class of CIFAR-100, in the order of the class numbers.
CIFAR100_SUPERCLASSES = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)
CIFAR_N_LENGTH = 50_000


@dataclass(frozen=True)
class NoiseReport:
    """What was injected.

    Attributes:
        mode: Kind of noise.
        nominal_rate: The rate asked for; None for a transition matrix.
        realised_rate: Share of labels that are wrong now.
        transitions: int64 [K, K], how many labels of class i became j.
    """

    mode: str
    nominal_rate: float | None
    realised_rate: float
    transitions: np.ndarray


class NoisyLabels(NamedTuple):
    """Noisy labels int64 [N], which of them are wrong (bool [N]), and the report."""

    labels: np.ndarray
    flipped: np.ndarray
    report: NoiseReport


def inject_label_noise(
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    mode: str,
    rate: float | None,
    num_classes: int,
    seed: int,
    features: np.ndarray | torch.Tensor | None = None,
    transition: np.ndarray | Sequence[Sequence[float]] | None = None,
    sym_exclusive: bool = False,
    class_map: Mapping[int, int] | Mapping[str, int] | None = None,
    rng: Literal["python"] = "python",
) -> NoisyLabels:
    """Replace some labels by wrong ones. The same seed gives the same labels everywhere.

    Args:
        labels: True labels [N].
        mode:
            - "sym": `int(rate * N)` labels are drawn anew from all classes, so `(K - 1) / K` of the rate is realised,
              as DivideMix, C2D and SANM do (equal draws for equal seeds);
            - "asym": `int(rate * N)` labels are replaced by `class_map`, as they do: classes without an entry stay;
            - "transition": every label is drawn from its row of `transition`;
            - "instance": the rate of an image and its wrong class depend on its `features` (part-dependent label
              noise).
        rate: Noise rate in [0, 1]; None for "transition".
        num_classes: K.
        seed: Seed of the draws.
        features: [N, D] for "instance", such as flattened pixels.
        transition: [K, K] for "transition"; rows sum to 1.
        sym_exclusive: Let "sym" never draw the true class.
        class_map: Wrong class by true class for "asym"; by default that of CIFAR-10 for 10 classes, and for 100
            classes the next class inside of the superclass of CIFAR-100. Digits, as the keys of JSON are, count as
            numbers.
        rng: Generator of "sym" and "asym": "python", that of the official code.

    Returns:
        The noisy labels, which are wrong, and a report.

    Raises:
        ValueError: An unknown mode or generator, a rate outside [0, 1], labels out of range, or missing or malformed
            arguments of a mode.

    Example:

        >>> noisy, flipped, report = inject_label_noise([0, 1, 2, 3] * 100, "sym", 0.5, num_classes=4, seed=0)
        >>> len(noisy), round(report.realised_rate, 1)
        (400, 0.4)
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if rng != "python":
        raise ValueError(f"rng must be 'python', got {rng!r}")
    true = _checked_labels(labels, num_classes)
    if mode == "transition":
        noisy = _by_transition(true, _checked_transition(transition, num_classes), seed)
    else:
        if rate is None or not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got {rate}")
        if mode == "instance":
            noisy = _by_instance(true, rate, num_classes, seed, _checked_features(features, len(true)))
        else:
            wrong = _checked_map(class_map, num_classes) if mode == "asym" else None
            noisy = _replaced(true, rate, num_classes, seed, wrong, sym_exclusive)
    flipped = noisy != true
    transitions = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(transitions, (true, noisy), 1)
    nominal = None if mode == "transition" else rate
    return NoisyLabels(noisy, flipped, NoiseReport(mode, nominal, float(flipped.mean()), transitions))


def _checked_labels(labels: Any, num_classes: int) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape [N], got {array.dtype} of shape {list(array.shape)}")
    array = array.astype(np.int64)
    outside = np.flatnonzero((array < 0) | (array >= num_classes))
    if outside.size:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {array[outside[0]]} at index {outside[0]}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return array


def _checked_transition(transition: Any, num_classes: int) -> np.ndarray:
    if transition is None:
        raise ValueError("mode 'transition' needs transition, a matrix [num_classes, num_classes]")
    matrix = np.asarray(transition, dtype=np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"transition must have shape {(num_classes, num_classes)}, got {matrix.shape}")
    bad = np.argwhere(~(matrix >= 0))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"transition must be probabilities, got {matrix[row, column]:.6g} in row {row}, column {column}"
        )
    sums = matrix.sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-6):
        row = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"transition must be probabilities whose rows sum to 1, row {row} sums to {sums[row]:.6g}")
    return matrix


def _checked_features(features: Any, count: int) -> np.ndarray:
    if features is None:
        raise ValueError("mode 'instance' needs features [N, D], such as flattened pixels")
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or len(array) != count:
        raise ValueError(f"features must have shape [{count}, D], got {list(array.shape)}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"features must be finite, those of image {bad[0]} are not ({len(bad)} such)")
    return array


def _checked_map(class_map: Mapping[Any, Any] | None, num_classes: int) -> Mapping[int, int]:
    if class_map is None:
        if num_classes == 10:
            return CIFAR10_MAP
        if num_classes == 100:
            return cifar100_map()
        raise ValueError(
            f"mode 'asym' has maps for CIFAR-10 and CIFAR-100; for {num_classes} classes give class_map, the wrong "
            "class by true class"
        )
    return {_class(true, num_classes): _class(wrong, num_classes) for true, wrong in class_map.items()}


def _class(entry: Any, num_classes: int) -> int:
    """An entry of a class map; the keys of JSON are text."""
    try:
        number = int(entry)
        is_class = 0 <= number < num_classes and (isinstance(entry, str) or number == entry)
    except (TypeError, ValueError):
        is_class = False
    if not is_class:
        raise ValueError(f"class_map must hold classes in 0..{num_classes - 1}, got {entry!r}")
    return number


def cifar100_map() -> dict[int, int]:
    """Next class inside of the superclass, circular, of every class of CIFAR-100."""
    members: dict[int, list[int]] = {}
    for label, superclass in enumerate(CIFAR100_SUPERCLASSES):
        members.setdefault(superclass, []).append(label)
    return {label: group[(i + 1) % len(group)] for group in members.values() for i, label in enumerate(group)}


def _replaced(
    true: np.ndarray, rate: float, num_classes: int, seed: int, wrong: Mapping[int, int] | None, exclusive: bool
) -> np.ndarray:
    """Official noise, with the draws of Python's generator in the official order."""
    generator = random.Random(seed)
    order = list(range(len(true)))
    generator.shuffle(order)
    chosen = np.sort(np.array(order[: int(rate * len(true))], dtype=np.int64))
    noisy = true.copy()
    if wrong is not None:
        table = np.array([wrong.get(label, label) for label in range(num_classes)])
        noisy[chosen] = table[true[chosen]]
    elif exclusive:
        offsets = np.array([generator.randint(1, num_classes - 1) for _ in chosen], dtype=np.int64)
        noisy[chosen] = (true[chosen] + offsets) % num_classes
    else:
        noisy[chosen] = [generator.randint(0, num_classes - 1) for _ in chosen]
    return noisy


def _by_transition(true: np.ndarray, transition: np.ndarray, seed: int) -> np.ndarray:
    return _sampled(transition[true], np.random.default_rng(seed))


def _by_instance(true: np.ndarray, rate: float, num_classes: int, seed: int, features: np.ndarray) -> np.ndarray:
    """A rate per image, truncated normal in [0, 1]; a wrong class by a random projection of its features."""
    generator = np.random.default_rng(seed)
    rates = np.full(len(true), -1.0)
    while (outside := (rates < 0) | (rates > 1)).any():
        rates[outside] = generator.normal(rate, INSTANCE_SPREAD, int(outside.sum()))
    projections = generator.standard_normal((num_classes, features.shape[1], num_classes))
    scores = np.empty((len(true), num_classes))
    for label in range(num_classes):
        members = true == label
        scores[members] = features[members] @ projections[label]
    rows = np.arange(len(true))
    scores[rows, true] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = rates[:, None] * weights / weights.sum(axis=1, keepdims=True)
    probabilities[rows, true] += 1 - rates
    return _sampled(probabilities, generator)


def _sampled(probabilities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One class per row of probabilities [N, K]."""
    limits = probabilities.cumsum(axis=1)
    draws = generator.random(len(limits)) * limits[:, -1]
    return (limits <= draws[:, None]).sum(axis=1).clip(max=limits.shape[1] - 1)


def noise_cache_path(root: str | Path, rate: float, mode: str) -> Path:
    """Where the official code keeps the labels it made: `ROOT/0.5_sym.json`.

    Args:
        root: Folder of the data set.
        rate: Noise rate.
        mode: Kind of noise.

    Returns:
        The path.
    """
    text = f"{rate:.1f}" if round(rate, 1) == rate else f"{rate:g}"
    return Path(root, f"{text}_{mode}.json")


def save_noisy_labels(labels: Sequence[int] | np.ndarray, path: str | Path) -> None:
    """Write labels as a JSON list of numbers, the official format.

    Args:
        labels: [N].
        path: File to create.

    Raises:
        FileExistsError: There is one.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; noisy labels are not overwritten")
    write_text(path, json.dumps([int(label) for label in labels]))


def load_noisy_labels(
    path: str | Path, count: int, num_classes: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """Read labels that this or the official code wrote, or a list of class names.

    Args:
        path: JSON list of numbers or of names.
        count: Number of images.
        num_classes: Number of classes.
        class_names: Their names, needed for a list of names.

    Returns:
        int64 [count].

    Raises:
        ValueError: No such list, another length, labels out of range, or names of other classes.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON list of labels: {error}") from error
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} labels" if isinstance(values, list) else f"a {type(values).__name__}"
        raise ValueError(f"{path} must hold a list of {count} labels, one per image, found {found}")
    if all(isinstance(value, str) for value in values):
        numbers = {name: number for number, name in enumerate(class_names or ())}
        unknown = sorted({value for value in values if value not in numbers})
        if unknown:
            known = ", ".join(numbers) or "none are given"
            raise ValueError(f"{path} has labels that are no class: {', '.join(unknown[:5])} (classes: {known})")
        values = [numbers[value] for value in values]
    try:
        return _checked_labels(np.array(values), num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_cifar_n_labels(
    path: str | Path, name: str, clean_labels: Sequence[int] | np.ndarray | torch.Tensor | None = None
) -> np.ndarray:
    """Read human labels of CIFAR-10N or CIFAR-100N (Wei et al., ICLR 2022) from the published file, or a table of them.

    Args:
        path: `CIFAR-10_human.pt` or `CIFAR-100_human.pt`, or the same arrays in `.npz`, or as columns of `.csv`.
            Nothing in it is executed.
        name: Such as "aggre_label", "random_label1", "worse_label" (CIFAR-10N) or "noisy_label" (CIFAR-100N).
        clean_labels: True labels of the training images in their order, to check that the file has the same.

    Returns:
        int64 [50000], in the order of the training batches of the python version of CIFAR.

    Raises:
        ConversionError: The file cannot be read safely.
        ValueError: Another kind of file, no such labels in the file, another length, or another order than that of
            `clean_labels`.
    """
    arrays = _label_arrays(Path(path))
    if name not in arrays:
        raise ValueError(f"{path} has no labels {name!r}; it has {', '.join(arrays)}")
    expected = CIFAR_N_LENGTH if clean_labels is None else len(clean_labels)
    labels = arrays[name]
    if labels.shape != (expected,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} of {path} must be {expected} whole numbers, one per image, got {labels.dtype} of shape "
            f"{list(labels.shape)}"
        )
    true = arrays.get("clean_label", labels)
    classes = int((true if true.dtype.kind in "iu" else labels).max(initial=0)) + 1
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise ValueError(
            f"{name} of {path} must be in 0..{classes - 1}, got {labels[outside[0]]} at index {outside[0]}"
        )
    if clean_labels is not None:
        if "clean_label" not in arrays or arrays["clean_label"].shape != labels.shape:
            raise ValueError(f"{path} has no clean_label of {expected} images to compare the order with")
        different = int((arrays["clean_label"] != np.asarray(clean_labels)).sum())
        if different:
            raise ValueError(
                f"the images are in another order than in {path}: {different} of {expected} true labels differ from "
                "its clean_label; the order is that of the training batches of the python version"
            )
    return labels.astype(np.int64)


def _label_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of labels, by name."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return {name: np.asarray(numbers_if_all(values)) for name, values in read_csv_columns(path).items()}
    if suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} must be an .npz file of arrays of numbers: {error}") from error
    from hubmodels.conversion.checkpoint_reading import read_checkpoint

    return {str(key): np.asarray(value) for key, value in read_checkpoint(path).items()}


__all__ = [
    "NoiseReport",
    "NoisyLabels",
    "inject_label_noise",
    "load_cifar_n_labels",
    "load_noisy_labels",
    "noise_cache_path",
    "save_noisy_labels",
]
