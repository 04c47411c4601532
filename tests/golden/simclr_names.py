"""Official names of SimCLR's tensors: TF1 numbers layers in the order of creation, TF2 by their place in the model."""

from collections.abc import Iterator

import torch

LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class TF1Names:
    """
    Our name -> official name, for a configuration without squeeze-and-excitation.

    Args:
        config: a `SimCLRConfig`.
    """

    def __init__(self, config):
        self.config = config
        self.names = {}
        self.counts = {"conv2d": 0, "batch_normalization": 0}
        self._add_stem()
        for stage, depth in enumerate(config.depths):
            for layer in range(depth):
                self._add_block(f"backbone.encoder.stages.{stage}.layers.{layer}", project=layer == 0)
        self._add_heads()

    def _add(self, kind: str, ours: str):
        number = self.counts[kind]
        self.counts[kind] += 1
        official = f"base_model/{kind}{f'_{number}' if number else ''}"
        if kind == "conv2d":
            self.names[f"{ours}.weight"] = f"{official}/kernel"
        else:
            self._add_norm(ours, official)

    def _add_norm(self, ours: str, official: str, leaves=tuple(LEAVES)):
        self.names |= {f"{ours}.{leaf}": f"{official}/{LEAVES[leaf]}" for leaf in leaves}

    def _add_conv_norm(self, ours: str):
        self._add("conv2d", f"{ours}.convolution")
        self._add("batch_normalization", f"{ours}.normalization")

    def _add_stem(self):
        deep = self.config.sk_ratio > 0 and not self.config.uses_cifar_stem
        for place in [f".stem.{i}" for i in range(3)] if deep else [""]:
            self._add_conv_norm(f"backbone.embedder{place}")

    def _add_block(self, block: str, project: bool):
        if project:
            self._add_conv_norm(f"{block}.shortcut")
        for number in range(2 if self.config.layer_type == "basic" else 3):
            self._add_conv_norm(f"{block}.layer.{number}")
            if number == 1 and self.config.sk_ratio > 0:
                self._add_conv_norm(f"{block}.layer.1.squeeze")
                self._add("conv2d", f"{block}.layer.1.expand")

    def _add_heads(self):
        depth = self.config.num_head_layers
        prefix = "l" if self.config.proj_head_mode == "linear" else "nl"
        for j in range(depth):
            official = f"head_contrastive/{prefix}_{j}"
            self.names[f"projection_head.layers.{j}.dense.weight"] = f"{official}/dense/kernel"
            leaves = [leaf for leaf in LEAVES if leaf != "bias" or j < depth - 1]
            self._add_norm(f"projection_head.layers.{j}.normalization", f"{official}/batch_normalization", leaves)
        self.names["classifier.weight"] = "head_supervised/linear_layer/dense/kernel"
        self.names["classifier.bias"] = "head_supervised/linear_layer/dense/bias"


class TF2Names(TF1Names):
    """The same for the object paths of TF2 checkpoints, for bottleneck networks without selective kernels."""

    def _add(self, kind: str, ours: str):
        raise AssertionError("TF2 does not count")

    def _key(self, path: str, leaf: str) -> str:
        return f"model/{path}/{leaf}"

    def _add_layers(self, ours: str, path: str, conv: int, norm: int):
        self.names[f"{ours}.convolution.weight"] = self._key(f"{path}/{conv}/conv2d", "kernel")
        self.names |= {
            f"{ours}.normalization.{leaf}": self._key(f"{path}/{norm}/bn", official)
            for leaf, official in LEAVES.items()
        }

    def _add_stem(self):
        self._add_layers("backbone.embedder", "resnet_model/initial_conv_relu_max_pool", 0, 2)

    def _add_block(self, block: str, project: bool):
        stage, layer = (part for part in block.split(".") if part.isdigit())
        path = f"resnet_model/block_groups/{stage}/layers/{layer}"
        if project:
            self._add_layers(f"{block}.shortcut", f"{path}/projection_layers", 0, 1)
        for number in range(3):
            self._add_layers(
                f"{block}.layer.{number}", f"{path}/conv_relu_dropblock_layers", 3 * number, 3 * number + 1
            )

    def _add_heads(self):
        depth = self.config.num_head_layers
        for j in range(depth):
            path, ours = f"_projection_head/linear_layers/{j}", f"projection_head.layers.{j}"
            self.names[f"{ours}.dense.weight"] = self._key(f"{path}/dense", "kernel")
            for leaf, official in LEAVES.items():
                if leaf != "bias" or j < depth - 1:
                    self.names[f"{ours}.normalization.{leaf}"] = self._key(f"{path}/bn_relu/bn", official)
        self.names["classifier.weight"] = self._key("supervised_head/linear_layer/dense", "kernel")
        self.names["classifier.bias"] = self._key("supervised_head/linear_layer/dense", "bias")


def to_ours(tensor: torch.Tensor) -> torch.Tensor:
    """An official kernel (HWIO, or in x out) in torch's layout; other tensors as they are."""
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def to_official(tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_ours`."""
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def renamed(tensors: dict[str, torch.Tensor], names: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors under their official names, in the official layout."""
    for name, tensor in tensors.items():
        if name in names:
            yield names[name], to_official(tensor.detach())
