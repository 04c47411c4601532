"""Names of DenseCL's weights: the official ones, ours, and those of detectron2."""

import re

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming

from .building import in_official_order
from .checkpoint_reading import ConversionError
from .key_mapping import KeyMap

# Where the backbone is in a training run, and its second name there.
QUERY, ALIAS = "encoder_q.0.", "backbone."

KEY_MAP = KeyMap(
    [
        WeightRenaming(r"^encoder_q\.0\.", r"^encoder.backbone."),
        WeightRenaming(r"^encoder_q\.1\.mlp\.", r"^encoder.global_head."),
        WeightRenaming(r"^encoder_q\.1\.mlp2\.", r"^encoder.dense_head."),
        WeightRenaming(r"^encoder_k\.0\.", r"^momentum_encoder.backbone."),
        WeightRenaming(r"^encoder_k\.1\.mlp\.", r"^momentum_encoder.global_head."),
        WeightRenaming(r"^encoder_k\.1\.mlp2\.", r"^momentum_encoder.dense_head."),
        # The stem comes before the layers, which have convolutions of the same name.
        WeightRenaming(r"\.backbone\.conv1\.", r".backbone.embedder.embedder.convolution."),
        WeightRenaming(r"\.backbone\.bn1\.", r".backbone.embedder.embedder.normalization."),
        *(WeightRenaming(rf"\.layer{s}\.", rf".encoder.stages.{s - 1}.layers.") for s in range(1, 5)),
        *(WeightRenaming(rf"\.conv{n}\.", rf".layer.{n - 1}.convolution.") for n in range(1, 4)),
        *(WeightRenaming(rf"\.bn{n}\.", rf".layer.{n - 1}.normalization.") for n in range(1, 4)),
        WeightRenaming(r"\.downsample\.0\.", r".shortcut.convolution."),
        WeightRenaming(r"\.downsample\.1\.", r".shortcut.normalization."),
    ]
)

# The parts of official names in the order in which the official modules register them.
# fmt: off
_PARTS = (
    "queue", "queue_ptr", "queue2", "queue2_ptr", "encoder_q", "encoder_k",
    "conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample", "layer1", "layer2", "layer3", "layer4", "mlp", "mlp2",
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
)
# fmt: on


def official_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a DenseCL model under the names of a training run, in the official order.

    Args:
        model: any DenseCL model with its own ResNet.

    Returns:
        Tensors of their own, without the second names of the backbone.

    Raises:
        ConversionError: the model has another backbone.
    """
    check_own_resnet(model)
    # The official code does not store how many steps a warm-up has taken.
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "steps"}
    return in_official_order(KEY_MAP.to_official(state), _PARTS)


def backbone_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The same of the backbone alone, under the names of the released files, which are torchvision's and timm's."""
    state = official_state(model)
    return {name.removeprefix(QUERY): tensor for name, tensor in state.items() if name.startswith(QUERY)}


def detectron2_name(name: str) -> str:
    """The name that detectron2 has for a weight of a torchvision ResNet.

    Args:
        name: such as `layer1.0.bn2.weight`.

    Returns:
        Such as `res2.0.conv2.norm.weight`.
    """
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def check_own_resnet(model: PreTrainedModel) -> None:
    """Refuse a model around a foreign backbone.

    Raises:
        ConversionError: the model's backbone is not the ResNet of the official code.
    """
    if model.config.backbone_config is not None:
        kind = model.config.backbone_config.model_type
        raise ConversionError(f"only models with DenseCL's own ResNet can be written, this one has a {kind} backbone")
