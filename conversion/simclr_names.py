"""Names of SimCLR's variables: TF1 graphs, TF2 objects, ours; and the network that a checkpoint's kernels announce.

TF1 numbers its variables in the order in which the graph is built, convolutions and normalisations apart, so that a
name tells nothing by itself. The order is written down once, in `variables`, and serves every direction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch

from .checkpoint_reading import ConversionError
from .tensorflow_checkpoint import VALUE_SUFFIX, Node

TF2_ROOT = "model"
_RESNET = f"{TF2_ROOT}/resnet_model"
_BLOCK = f"{_RESNET}/block_groups/#/layers/#"
_DENSE_VARIABLES = {"kernel": "weight", "bias": "bias"}
# Official name of a normalisation's variable -> ours.
NORM_VARIABLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The published ratio first, then other usual ones: several ratios can give the same whole number of channels.
_USUAL_RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_LEAST_SQUEEZED_CHANNELS = 32

# Where convolutions and normalisations hang in the TF2 objects; `#` stands for a number.
_TF2_CONVOLUTIONS = (
    f"{_RESNET}/initial_conv_relu_max_pool/#/conv2d",
    *(f"{_BLOCK}/{part}/#/conv2d" for part in ("projection_layers", "shortcut_layers")),
    *(f"{_BLOCK}/{part}/#/conv2d" for part in ("conv_relu_dropblock_layers", "conv2d_bn_layers")),
    f"{_BLOCK}/conv_relu_dropblock_layers/#/conv2d_fixed_padding/conv2d",
    *(f"{_BLOCK}/conv_relu_dropblock_layers/#/conv2d_{number}" for number in range(2)),
    *(f"{_BLOCK}/conv_relu_dropblock_layers/#/se_{part}" for part in ("reduce", "expand")),
    *(f"{_BLOCK}/se_layer/se_{part}" for part in ("reduce", "expand")),
    f"{TF2_ROOT}/_projection_head/linear_layers/#/dense",
    f"{TF2_ROOT}/supervised_head/linear_layer/dense",
)
_TF2_NORMALIZATIONS = (
    f"{_RESNET}/initial_conv_relu_max_pool/#/bn",
    *(f"{_BLOCK}/{part}/#/bn" for part in ("projection_layers", "shortcut_layers")),
    *(f"{_BLOCK}/{part}/#/bn" for part in ("conv_relu_dropblock_layers", "conv2d_bn_layers")),
    *(f"{_BLOCK}/conv_relu_dropblock_layers/#/batch_norm_relu{number}/bn" for number in ("", "_1")),
    f"{TF2_ROOT}/_projection_head/linear_layers/#/bn_relu/bn",
)
# Order in which TF1 would have created what hangs at these names.
# fmt: off
_TF2_PARTS = (
    "initial_conv_relu_max_pool", "block_groups", "projection_layers", "shortcut_layers", "conv_relu_dropblock_layers",
    "conv2d_bn_layers", "se_layer", "conv2d", "conv2d_fixed_padding", "conv2d_0", "conv2d_1", "se_reduce", "se_expand",
)
# fmt: on
_TF2_ORDER = {name: rank for rank, name in enumerate(_TF2_PARTS)}


@dataclass(frozen=True)
class Network:
    """The parts of an official network that decide which variables it has.

    Args:
        layer_type: "basic" or "bottleneck".
        depths: blocks of each group.
        stem: "plain" (7x7), "deep" (three 3x3) or "cifar" (one 3x3).
        selective_kernels: whether bottlenecks have selective kernels.
        squeeze_excitation: whether blocks end in squeeze-and-excitation.
        head_mode: "none", "linear" or "nonlinear".
        head_layers: layers of the projection head.
        classifier: whether there is a supervised head.
    """

    layer_type: str
    depths: tuple[int, ...]
    stem: Literal["plain", "deep", "cifar"]
    selective_kernels: bool = False
    squeeze_excitation: bool = False
    head_mode: str = "none"
    head_layers: int = 0
    classifier: bool = False


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a base network announce: everything that a config needs.

    Args:
        network: the network, without heads.
        channels: channels of the images.
        width: channels after the stem.
        sk_ratio: ratio of selective kernels, 0 without them.
        se_ratio: ratio of squeeze-and-excitation, 0 without it.
    """

    network: Network
    channels: int
    width: int
    sk_ratio: float
    se_ratio: float


@dataclass(frozen=True)
class Variable:
    """A variable by its three names: ours, that of a TF1 graph and that of a TF2 checkpoint."""

    ours: str
    tf1: str
    tf2: str


def variables(network: Network) -> Iterator[Variable]:
    """All variables of a network in the order in which the official TF1 code creates them.

    Args:
        network: the network.

    Yields:
        One record per tensor.
    """
    yield from _Namer(network).all()


class _Namer:
    """Walks through the network as the official code builds it, counting convolutions and normalisations."""

    def __init__(self, network: Network):
        self.network = network
        self._convolutions, self._normalizations = count(), count()

    def all(self) -> Iterator[Variable]:
        yield from self._stem()
        for group, depth in enumerate(self.network.depths):
            for block in range(depth):
                yield from self._block(group, block)
        yield from self._heads()

    def _stem(self) -> Iterator[Variable]:
        ours, tf2 = "backbone.embedder", f"{_RESNET}/initial_conv_relu_max_pool"
        if self.network.stem != "deep":
            yield from self._layer(ours, f"{tf2}/0/conv2d", f"{tf2}/2/bn")
            return
        # Place 5 is an identity.
        for number, (convolution, normalization) in enumerate(((0, 1), (2, 3), (4, 6))):
            yield from self._layer(f"{ours}.stem.{number}", f"{tf2}/{convolution}/conv2d", f"{tf2}/{normalization}/bn")

    def _block(self, group: int, block: int) -> Iterator[Variable]:
        ours = f"backbone.encoder.stages.{group}.layers.{block}"
        tf2 = f"{_RESNET}/block_groups/{group}/layers/{block}"
        basic = self.network.layer_type == "basic"
        if block == 0:
            # Before the convolution: with selective kernels an average pool, with a stride also padding.
            place = (1 if group == 0 else 2) if self.network.selective_kernels else 0
            shortcut = f"{tf2}/{'shortcut_layers' if basic else 'projection_layers'}"
            yield from self._layer(f"{ours}.shortcut", f"{shortcut}/{place}/conv2d", f"{shortcut}/{place + 1}/bn")
        if basic:
            places = f"{tf2}/conv2d_bn_layers"
            for number in range(2):
                convolution, normalization = f"{places}/{2 * number}/conv2d", f"{places}/{2 * number + 1}/bn"
                yield from self._layer(f"{ours}.layer.{number}", convolution, normalization)
            excitation = f"{tf2}/se_layer"
        else:
            places = f"{tf2}/conv_relu_dropblock_layers"
            # Places that are left out are drop blocks.
            last = 5 if self.network.selective_kernels else 6
            yield from self._layer(f"{ours}.layer.0", f"{places}/0/conv2d", f"{places}/1/bn")
            if self.network.selective_kernels:
                yield from self._selective_kernel(f"{ours}.layer.1", f"{places}/3")
            else:
                yield from self._layer(f"{ours}.layer.1", f"{places}/3/conv2d", f"{places}/4/bn")
            yield from self._layer(f"{ours}.layer.2", f"{places}/{last}/conv2d", f"{places}/{last + 1}/bn")
            excitation = f"{places}/{last + 3}"
        if self.network.squeeze_excitation:
            for part in ("reduce", "expand"):
                yield from self._convolution(f"{ours}.se.{part}", f"{excitation}/se_{part}", bias=True)

    def _selective_kernel(self, ours: str, tf2: str) -> Iterator[Variable]:
        yield from self._layer(ours, f"{tf2}/conv2d_fixed_padding/conv2d", f"{tf2}/batch_norm_relu/bn")
        yield from self._layer(f"{ours}.squeeze", f"{tf2}/conv2d_0", f"{tf2}/batch_norm_relu_1/bn")
        yield from self._convolution(f"{ours}.expand", f"{tf2}/conv2d_1")

    def _layer(self, ours: str, convolution: str, normalization: str) -> Iterator[Variable]:
        yield from self._convolution(f"{ours}.convolution", convolution)
        number = next(self._normalizations)
        tf1 = f"base_model/{_counted('batch_normalization', number)}"
        yield from _normalization(f"{ours}.normalization", tf1, normalization)

    def _convolution(self, ours: str, tf2: str, bias: bool = False) -> Iterator[Variable]:
        tf1 = f"base_model/{_counted('conv2d', next(self._convolutions))}"
        for official in ("kernel", "bias") if bias else ("kernel",):
            yield _variable(f"{ours}.{_DENSE_VARIABLES[official]}", f"{tf1}/{official}", f"{tf2}/{official}")

    def _heads(self) -> Iterator[Variable]:
        prefix = "l" if self.network.head_mode == "linear" else "nl"
        for number in range(self.network.head_layers):
            ours = f"projection_head.layers.{number}"
            tf1, tf2 = f"head_contrastive/{prefix}_{number}", f"{TF2_ROOT}/_projection_head/linear_layers/{number}"
            yield _variable(f"{ours}.dense.weight", f"{tf1}/dense/kernel", f"{tf2}/dense/kernel")
            shifted = number < self.network.head_layers - 1
            names = f"{ours}.normalization", f"{tf1}/batch_normalization", f"{tf2}/bn_relu/bn"
            yield from _normalization(*names, shifted=shifted)
        if self.network.classifier:
            tf1 = "head_supervised/linear_layer/dense"
            tf2 = f"{TF2_ROOT}/supervised_head/linear_layer/dense"
            for official, ours in _DENSE_VARIABLES.items():
                yield _variable(f"classifier.{ours}", f"{tf1}/{official}", f"{tf2}/{official}")


def _normalization(ours: str, tf1: str, tf2: str, shifted: bool = True) -> Iterator[Variable]:
    for official, name in NORM_VARIABLES.items():
        if shifted or official != "beta":
            yield _variable(f"{ours}.{name}", f"{tf1}/{official}", f"{tf2}/{official}")


def _variable(ours: str, tf1: str, tf2: str) -> Variable:
    return Variable(ours, tf1, tf2 + VALUE_SUFFIX)


def _counted(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def to_our_layout(tensor: torch.Tensor) -> torch.Tensor:
    """Official kernels to ours: convolutions (height, width, in, out) and matrices (in, out), out first with us."""
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t() if tensor.ndim == 2 else tensor


def to_official_layout(tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_our_layout`."""
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.t() if tensor.ndim == 2 else tensor


def tf2_variable_keys(nodes: Sequence[Node]) -> dict[str, str]:
    """Find the variables of SimCLR in an object graph.

    A SavedModel stores the same variables under other names than a checkpoint does (the shortest path wins), and both
    know the path of every object.

    Args:
        nodes: the objects, the root first.

    Returns:
        Key in the checkpoint, by the name that a TF2 checkpoint gives to the variable.
    """
    found: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()

    def walk(number: int, branch: Mapping, path: tuple[str, ...]) -> None:
        if (number, id(branch)) in seen:  # an object that goes by two names, or a graph made to be endless
            return
        seen.add((number, id(branch)))
        node = nodes[number]
        if not branch and node.checkpoint_key is not None:
            found["/".join(path) + VALUE_SUFFIX] = node.checkpoint_key
        for name, child in node.children.items():
            is_number = name.isascii() and name.isdecimal()
            if (step := "#" if is_number else name) in branch:
                walk(child, branch[step], (*path, name))

    if nodes:
        walk(0, _tree_of_tf2_names(), ())
    return found


def _tree_of_tf2_names() -> dict[str, dict]:
    tree: dict[str, dict] = {}
    leaves = [f"{name}/{leaf}" for name in _TF2_CONVOLUTIONS for leaf in ("kernel", "bias")]
    leaves += [f"{name}/{leaf}" for name in _TF2_NORMALIZATIONS for leaf in NORM_VARIABLES]
    for leaf in leaves:
        branch = tree
        for name in leaf.split("/"):
            branch = branch.setdefault(name, {})
    return tree


def tf2_order(key: str) -> tuple[int, ...]:
    """Sorts the convolutions of a TF2 checkpoint in the order in which TF1 would have created them."""
    parts = key.removeprefix(f"{_RESNET}/").removesuffix(VALUE_SUFFIX).split("/")
    return tuple(
        int(part) if part.isascii() and part.isdecimal() else _TF2_ORDER.get(part, len(_TF2_ORDER)) for part in parts
    )


def infer_network(kernels: Iterable[tuple[Sequence[int], bool]]) -> Kernels:
    """Tell the network from the shapes of its convolutions.

    Args:
        kernels: official shape (height, width, in, out) of every kernel in the order of creation, and whether it has a
            bias.

    Returns:
        The network without heads and its widths.

    Raises:
        ConversionError: the kernels do not form an official network.
    """
    queue = [(tuple(shape), bias) for shape, bias in kernels]
    if not queue or any(len(shape) != 4 for shape, _ in queue):
        raise ConversionError("not a SimCLR checkpoint: its convolutions are missing or have no four dimensions")
    reader = _KernelReader(queue)
    try:
        return reader.read()
    except IndexError:
        raise ConversionError(
            f"not a SimCLR network: its {len(queue)} convolutions end in the middle of a residual block"
        ) from None


class _KernelReader:
    """Reads the shapes of convolutions one after the other."""

    def __init__(self, queue: list[tuple[tuple[int, ...], bool]]):
        self.queue = queue
        self.position = 0
        self.selective: list[tuple[int, int]] = []  # filters of a block and its squeezed channels
        self.excitation: list[tuple[int, int]] = []

    def read(self) -> Kernels:
        channels = self.queue[0][0][2]
        stem, width = self._stem()
        layer_type = "basic" if self._size(1) == (3, 3) else "bottleneck"
        depths: list[int] = []
        while self.position < len(self.queue):
            _, _, inputs, outputs = self.queue[self.position][0]
            projects = self._size() == (1, 1) and (layer_type == "basic" or outputs > inputs)
            if projects:
                depths.append(0)
                self.position += 1
            if not depths:
                raise ConversionError("not a SimCLR network: its first residual block has no projection shortcut")
            depths[-1] += 1
            self._block(layer_type)
        if not depths:
            raise IndexError
        network = Network(
            layer_type,
            tuple(depths),
            stem,
            selective_kernels=bool(self.selective),
            squeeze_excitation=bool(self.excitation),
        )
        return Kernels(
            network,
            channels,
            width,
            sk_ratio=_ratio("selective kernels", self.selective, _LEAST_SQUEEZED_CHANNELS),
            se_ratio=_ratio("squeeze-and-excitation", self.excitation, 1),
        )

    def _stem(self) -> tuple[Literal["plain", "deep", "cifar"], int]:
        stem: Literal["plain", "deep", "cifar"] = "plain"
        if self._size() == (3, 3):
            stem = "deep" if self._size(1) == (3, 3) else "cifar"
        self.position = 3 if stem == "deep" else 1
        return stem, self.queue[self.position - 1][0][3]

    def _block(self, layer_type: str) -> None:
        filters = self._take()[3]
        outputs = self._take()[3]
        if layer_type == "bottleneck":
            if outputs == 2 * filters:
                self.selective.append((filters, self._take()[3]))
                self._take()
            self._take()
        if self.position < len(self.queue) and self.queue[self.position][1]:
            self.excitation.append((filters, self._take()[3]))
            self._take()

    def _size(self, ahead: int = 0) -> tuple[int, ...]:
        return self.queue[self.position + ahead][0][:2]

    def _take(self) -> tuple[int, ...]:
        self.position += 1
        return self.queue[self.position - 1][0]


def _ratio(part: str, squeezed: list[tuple[int, int]], least: int) -> float:
    """A ratio that gives the squeezed channels of every block: `max(least, int(filters * ratio))`."""
    if not squeezed:
        return 0.0
    # Without the shift, rounding can leave a ratio just below the one that gives the whole number.
    exact = [(channels + shift) / filters for shift in (0, 1e-6) for filters, channels in sorted(set(squeezed))]
    for ratio in (*_USUAL_RATIOS, *exact):
        if all(max(least, int(filters * ratio)) == channels for filters, channels in squeezed):
            return ratio
    raise ConversionError(f"no single ratio gives the channels of {part}: {sorted(set(squeezed))} (filters, squeezed)")
