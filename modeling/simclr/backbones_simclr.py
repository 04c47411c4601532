"""The encoders that SimCLR can train: its own ResNets, every backbone of transformers and timm, vision transformers."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoBackbone
from transformers.backbone_utils import BackboneType
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import logging

from .configuration_simclr import SimCLRConfig
from .normalization_simclr import SimCLRBatchNorm2d, SimCLRBatchNormAct2d
from .resnet_simclr import SimCLRResNet
from .token_backbone_simclr import TokenBackbone

try:
    from timm.layers import BatchNormAct2d
except ImportError:  # then no network of timm's is there either
    BatchNormAct2d = None

logger = logging.get_logger(__name__)

GLOBAL_NORMS = {nn.BatchNorm2d: SimCLRBatchNorm2d, BatchNormAct2d: SimCLRBatchNormAct2d}


def build_backbone(config: SimCLRConfig) -> nn.Module:
    """
    The encoder of a configuration, with the attribute `channels`.

    Args:
        config (`SimCLRConfig`): configuration.

    Raises:
        ValueError: if class-token pooling is asked of a timm model, whose backbones return maps only, and for networks
            that are neither a backbone nor a vision transformer.
    """
    if config.backbone_config is None:
        return SimCLRResNet(config)
    if type(config.backbone_config) in MODEL_FOR_BACKBONE_MAPPING:
        backbone = AutoBackbone.from_config(config.backbone_config)
    else:
        backbone = TokenBackbone(config.backbone_config)
    if config.pooling == "cls" and backbone.backbone_type == BackboneType.TIMM:
        raise ValueError("pooling 'cls' needs a backbone with class tokens; timm backbones return feature maps only")
    if config.global_bn:
        use_global_statistics(backbone, config)
        norms = {type(m) for m in backbone.modules() if isinstance(m, _BatchNorm)}
        others = {norm.__name__ for norm in norms.difference(GLOBAL_NORMS.values())}
        if others and dist.is_available() and dist.is_initialized():
            logger.warning_once(f"global_bn: the statistics of {', '.join(sorted(others))} stay those of each process")
    return backbone


def run_backbone(
    backbone: nn.Module, config: SimCLRConfig, pixel_values: torch.Tensor, output_hidden_states: bool, **kwargs
) -> BackboneOutput:
    """
    The output of a backbone that is not the official ResNet.

    Args:
        backbone: what `build_backbone` returned.
        config (`SimCLRConfig`): configuration; says whether attentions are returned by default.
        pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images.
        output_hidden_states (`bool`): whether to return hidden states.
        kwargs: further arguments of the backbone.
    """
    if kwargs.get("output_attentions") is None and config.output_attentions:
        kwargs["output_attentions"] = True
    return backbone.forward_with_filtered_kwargs(pixel_values, output_hidden_states=output_hidden_states, **kwargs)


def use_global_statistics(module: nn.Module, config: SimCLRConfig) -> None:
    """Replaces every `nn.BatchNorm2d`, and timm's with activation, inside of `module` by one with global statistics."""
    for name, child in module.named_children():
        norm_class = GLOBAL_NORMS.get(type(child))
        if norm_class is not None and child.affine and child.track_running_stats:
            norm = norm_class(
                child.num_features,
                eps=child.eps,
                momentum=child.momentum,
                running_var=config.running_variance,
                global_stats=True,
            )
            for part, layer in child.named_children():
                norm.add_module(part, layer)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            use_global_statistics(child, config)


def pool(feature_map: torch.Tensor) -> torch.Tensor:
    """The representation `h`, `[B, D]`: the mean over space of a map `[B, D, H, W]`."""
    return feature_map.mean(dim=(2, 3))


def class_token(backbone: nn.Module, outputs: BackboneOutput) -> torch.Tensor:
    """
    Class token `[B, D]` of the last stage, after the final norm if the backbone applies one.

    Args:
        backbone: a transformers backbone.
        outputs (`BackboneOutput`): what it returned, with hidden states.

    Raises:
        ValueError: if it has no class token.
    """
    feature_map, states = outputs.feature_maps[-1], outputs.hidden_states[backbone.out_indices[-1]]
    if states.ndim != 3 or states.shape[1] <= feature_map[0, 0].numel():
        raise ValueError(
            f"pooling 'cls' needs a backbone with a class token; {type(backbone).__name__} has none "
            f"(hidden states of shape {tuple(states.shape)})"
        )
    token = states[:, 0]
    if getattr(backbone.config, "apply_layernorm", False):
        token = (getattr(backbone, "layernorm", None) or backbone.norm)(token)
    return token
