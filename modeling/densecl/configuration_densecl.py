"""Configuration of DenseCL models (Wang et al., "Dense Contrastive Learning ...", CVPR 2021, arXiv 2011.09157)."""

import dataclasses
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .backbone_stages_densecl import take_channels_of_backbone, take_stages_of_backbone
from .model_types_densecl import check_model_type

MAX_STAGES = 4
CHOICES = {
    "layer_type": ("bottleneck", "basic"),
    "style": ("pytorch", "caffe"),
    "queue_partial": ("error", "wrap"),
    "matching": ("backbone", "projection", "random", "geometry"),
}

# Written to every config.json, so that a folder saved from one of the classes loads with all of the Auto classes
# where only transformers is installed; the files named here are saved next to it.
AUTO_MAP = {
    "AutoConfig": "configuration_densecl.DenseCLConfig",
    "AutoModel": "modeling_densecl.DenseCLModel",
    "AutoModelForPreTraining": "modeling_densecl.DenseCLForPreTraining",
    "AutoBackbone": "modeling_densecl.DenseCLBackbone",
}


@strict
class DenseCLConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of every DenseCL model: pre-training, encoder and backbone.

    The defaults are the published ones: ResNet-50, heads of width 2048 and 128, queues of 65536 keys.

    Args:
        backbone_config (configuration or `dict`, *optional*):
            Any configuration that `AutoBackbone` knows (also `TimmBackboneConfig`), or of a vision transformer (ViT,
            DeiT ...), used in place of the ResNet; its last feature map must be `[B, C, h, w]`. The fields from
            `layer_type` to `zero_init_residual` then have no effect.
        num_channels (`int`, defaults to 3): channels of the images.
        layer_type (`str`, defaults to `"bottleneck"`): residual layers, `"bottleneck"` or `"basic"`.
        depths (`list[int]`, defaults to `[3, 4, 6, 3]`): residual layers of each stage.
        embedding_size (`int`, defaults to 64): channels of the stem and of the first stage's inner convolutions.
        strides (`list[int]`, defaults to `[1, 2, 2, 2]`): stride of each stage.
        dilations (`list[int]`, defaults to `[1, 1, 1, 1]`):
            Dilation of the 3x3 convolutions of each stage (of a basic layer: of the first one).
        num_stages (`int`, defaults to 4): how many stages there are; of the lists above so many entries are used.
        style (`str`, defaults to `"pytorch"`):
            Where a bottleneck has its stride: in the 3x3 convolution (`"pytorch"`) or in the first 1x1 (`"caffe"`).
        frozen_stages (`int`, defaults to -1):
            -1 trains all; 0 freezes the stem; i freezes the stem and the stages 1 to i: their parameters do not learn
            and their batch normalisation is in evaluation mode.
        norm_eval (`bool`, defaults to `False`): keep all batch normalisation of the ResNet in evaluation mode.
        zero_init_residual (`bool`, defaults to `False`): start the last normalisation of every layer at zero.
        projection_hidden_size (`int`, defaults to 2048): width of the hidden layer of both heads.
        projection_size (`int`, defaults to 128): width D of the embeddings.
        num_grid (`int`, *optional*):
            Side S of the grid of dense embeddings: both feature maps are average-pooled to S x S first (paper, section
            3.4). By default, or where the map has that size anyway, every cell of the map is an embedding.
        queue_length (`int`, defaults to 65536): keys K in each of the two queues.
        queue_partial (`str`, defaults to `"error"`):
            What to do if the batch of all processes does not divide `queue_length`: raise an error, or `"wrap"` around.
        momentum (`float`, defaults to 0.999): share of the momentum encoder that stays at an update.
        temperature (`float`, defaults to 0.2): temperature of both contrastive losses.
        loss_lambda (`float`, defaults to 0.5):
            Weight of the dense loss, in [0, 1]; the global one has the rest. 0 is MoCo-v2: the dense branch
            then gives no gradients, but fills its queue and is measured.
        loss_lambda_warmup_steps (`int`, defaults to 0):
            For so many optimiser steps the weight is 0, then `loss_lambda` at once (no ramp).
        matching (`str`, defaults to `"backbone"`):
            How a cell of the query finds its key: by similarity of the backbone's features (the method) or of the dense
            embeddings (`"projection"`), at `"random"`, or by the true place of the cells (`"geometry"`, needs
            `crop_boxes`).
        same_image_negatives (`bool`, defaults to `False`):
            Besides the queue, compare a cell of the query with all cells of its key view but the matched one. Not in
            the paper.
        shuffle_bn (`bool`, defaults to `True`): shuffle the keys between processes; one process needs no shuffling.
        out_features (`list[str]`, *optional*):
            Maps that [`DenseCLBackbone`] returns, of `stem, stage1 ... stage4`; the last one by default.
        out_indices (`list[int]`, *optional*): the same as indices, 0 is the stem.

    Raises:
        ValueError: for an unknown choice, numbers out of range, and lists shorter than `num_stages`.

    Example:

    ```python
    >>> from hubmodels import DenseCLConfig, DenseCLForPreTraining

    >>> config = DenseCLConfig(layer_type="basic", depths=[2, 2, 2, 2], strides=[1, 2, 2, 1], queue_length=2048)
    >>> model = DenseCLForPreTraining(config)
    ```
    """

    model_type = "densecl"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True)
    }

    backbone_config: dict | PreTrainedConfig | None = None
    num_channels: int = 3
    layer_type: str = "bottleneck"
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    embedding_size: int = 64
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    dilations: list[int] | tuple[int, ...] = (1, 1, 1, 1)
    num_stages: int = 4
    style: str = "pytorch"
    frozen_stages: int = -1
    norm_eval: bool = False
    zero_init_residual: bool = False
    projection_hidden_size: int = 2048
    projection_size: int = 128
    num_grid: int | None = None
    queue_length: int = 65536
    queue_partial: str = "error"
    momentum: float | int = 0.999
    temperature: float | int = 0.2
    loss_lambda: float | int = 0.5
    loss_lambda_warmup_steps: int = 0
    matching: str = "backbone"
    same_image_negatives: bool = False
    shuffle_bn: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        for name in ("depths", "strides", "dilations"):
            setattr(self, name, list(getattr(self, name)))
        self._check()
        check_model_type(self.backbone_config)
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)
        take_channels_of_backbone(self)
        if self.backbone_config is None:
            self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_stages + 1))]
            self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        else:
            take_stages_of_backbone(self, out_features, out_indices)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; changed fields are checked, and the stages follow them."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"backbone_config", "dtype"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        selection = {name: kwargs.pop(name) for name in ("out_features", "out_indices") if name in kwargs}
        if selection or "num_stages" in changes:
            config_dict = {k: v for k, v in config_dict.items() if k not in ("out_features", "out_indices")}
        return super().from_dict(config_dict | changes | selection, **kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the ResNet's stages."""
        expansion = 4 if self.layer_type == "bottleneck" else 1
        return [self.embedding_size * 2**i * expansion for i in range(self.num_stages)]

    def _check(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if not 1 <= self.num_stages <= MAX_STAGES:
            raise ValueError(f"num_stages must be in [1, {MAX_STAGES}], got {self.num_stages}")
        for name in ("depths", "strides", "dilations"):
            values = getattr(self, name)
            if len(values) < self.num_stages or min(values) < 1:
                raise ValueError(
                    f"{name} must be positive, one for each of the {self.num_stages} stages (num_stages), got {values}"
                )
        if not -1 <= self.frozen_stages <= self.num_stages:
            raise ValueError(f"frozen_stages must be in [-1, {self.num_stages}], got {self.frozen_stages}")
        for name in ("num_channels", "embedding_size", "projection_hidden_size", "projection_size", "queue_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_grid is not None and self.num_grid < 1:
            raise ValueError(f"num_grid must be at least 1 or None, got {self.num_grid}")
        for name in ("momentum", "loss_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}")
        if self.loss_lambda_warmup_steps < 0:
            raise ValueError(f"loss_lambda_warmup_steps must be at least 0, got {self.loss_lambda_warmup_steps}")


__all__ = ["DenseCLConfig"]
