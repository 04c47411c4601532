"""Configuration of MAE models (He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377)."""

import dataclasses

from huggingface_hub.dataclasses import strict
from transformers import ViTMAEConfig
from transformers.backbone_utils import BackboneConfigMixin

POOLINGS = ("mean", "cls")
MASK_SAMPLINGS = ("random", "block", "grid")

# Written to every config.json, so that a folder saved from one of the classes loads with all of the Auto classes
# where only transformers is installed; the files named here are saved next to it.
AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
}


@strict
class MAEConfig(BackboneConfigMixin, ViTMAEConfig):
    r"""
    Configuration of every MAE model: pre-training, classifier, linear probe and backbone.

    It extends [`~transformers.ViTMAEConfig`] (all its fields keep their meaning), so that a `vit_mae` folder of the Hub
    loads as it is. The defaults are ViT-B/16 at 224 pixels with the 512-wide, 8-layer decoder of the paper.

    Args:
        image_size (`int` or pair of `int`, defaults to 224):
            Pixels, one number or `(height, width)`. Both must be divisible by `patch_size`.
        patch_size (`int`, defaults to 16):
            Side of the square patches in pixels.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of every LayerNorm; 1e-6 is what the released weights were trained with.
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth rate of the last encoder layer; layer `i` of `n` drops with `rate * i / (n - 1)`.
        pooling (`str`, defaults to `"mean"`):
            What the classifier reads. `"mean"`: mean of the patch tokens of the last layer, without the final norm,
            then `fc_norm` (the published fine-tuning). `"cls"`: the class token after the final norm (the linear
            probe).
        classifier_init_std (`float`, defaults to 2e-5):
            Standard deviation of the truncated normal that initialises the classifier; 2e-5 for fine-tuning, 0.01 for
            the linear probe (official `main_finetune.py`, `main_linprobe.py`).
        probe_batch_norm (`bool`, defaults to `False`):
            Put the parameter-free BatchNorm of the published linear probe in front of the classifier.
        mask_sampling (`str`, defaults to `"random"`):
            How patches are masked when neither `noise` nor `bool_masked_pos` is given: `"random"`, `"block"` or
            `"grid"` (paper, section 4.1, "Mask sampling strategy").
        apply_layernorm (`bool`, defaults to `False`):
            Whether the maps of [`MAEBackbone`] and [`MAEFeaturePyramid`] pass the final norm; a mean-pooled classifier
            has none to load.
        out_features (`list[str]`, *optional*):
            Stages that [`MAEBackbone`] returns, of `stem, stage1 ... stageN`; the last one by default.
        out_indices (`list[int]`, *optional*):
            The same as indices.

    Raises:
        ValueError: for an unknown `pooling` or `mask_sampling`, a `mask_ratio` outside [0, 1), an image size that the
            patch size does not divide, and widths that the heads or the four parts of the position tables do not
            divide.

    Example:

    ```python
    >>> from hubmodels import MAEConfig, MAEForPreTraining

    >>> model = MAEForPreTraining(MAEConfig(image_size=32, patch_size=4, hidden_size=192, num_attention_heads=3))
    ```
    """

    model_type = "mae"

    layer_norm_eps: float = 1e-6
    mask_ratio: float | int = 0.75
    drop_path_rate: float | int = 0.0
    pooling: str = "mean"
    classifier_init_std: float = 2e-5
    probe_batch_norm: bool = False
    mask_sampling: str = "random"
    apply_layernorm: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.patch_size, (list, tuple)):
            if len(set(self.patch_size)) != 1:
                raise ValueError(f"patch_size must be one number (square patches), got {self.patch_size}")
            self.patch_size = self.patch_size[0]
        if isinstance(self.image_size, list):
            self.image_size = tuple(self.image_size)
        self._check()
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; changed fields are checked like those of a new configuration, and the stages follow."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if "num_hidden_layers" in changes:  # the stored selection may name stages that are gone
            config_dict = {k: v for k, v in config_dict.items() if k not in ("out_features", "out_indices")}
        return super().from_dict(config_dict | changes, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, and a `vit_mae` folder of the Hub counts as one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "vit_mae":
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Image size as `(height, width)` in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches as `(rows, columns)`."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    def _check(self):
        height, width = self.image_height_width
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height}x{width} is not divisible by patch size {self.patch_size}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {self.mask_ratio}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {self.drop_path_rate}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        if self.mask_sampling not in MASK_SAMPLINGS:
            raise ValueError(f"mask_sampling must be one of {MASK_SAMPLINGS}, got {self.mask_sampling!r}")
        for width_name, heads_name in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            size, heads = getattr(self, width_name), getattr(self, heads_name)
            if size % heads:
                raise ValueError(f"{width_name} {size} is not divisible by {heads_name} {heads}")
            if size % 4:
                raise ValueError(f"{width_name} must be divisible by 4 (sin-cos position tables), got {size}")


__all__ = ["MAEConfig"]
