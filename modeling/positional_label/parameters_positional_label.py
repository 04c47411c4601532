"""Groups of parameters of any backbone, in timm's convention: layers, and what weight decay leaves alone."""

import re

from torch import nn

# Names of tables, not matrices, in the backbones of transformers and timm.
_TABLES = re.compile(
    r"(^|\.)(position_embeddings|cls_token|distillation_token|register_tokens|mask_token|relative_position_bias_table|"
    r"pos_embed|dist_token|reg_token|absolute_pos_embed)$"
)


def undecayed(model: nn.Module) -> set[str]:
    """
    Names of tables of positions and of single tokens, which weight decay leaves alone.

    With `match_authors` the position table of the authors' ViT is decayed: their class lists no exceptions.
    """
    config = model.config
    if config.match_authors and config.backbone_variant == "authors" and config.backbone_config.model_type == "vit":
        return set()
    return {name for name, _ in model.named_parameters() if _TABLES.search(name)}


def layer_groups() -> dict:
    """
    Patterns of `group_matcher`: embeddings first, then the layers (of Swin stage by stage, patch merging after its
    stage); what matches none (final norm, classifier, position heads) comes last.
    """
    inner = r"^(?:backbone|mae\.vit)\.(?:timm_model\.)?"
    return {
        "stem": inner
        + r"(?:embeddings|patch_embed|cls_token|pos_embed|dist_token|reg_token|absolute_pos_embed|norm_pre)\b",
        "blocks": [
            (inner + r"(?:encoder\.)?layers?\.(\d+)\.blocks\.(\d+)", None),
            (inner + r"(?:encoder\.)?layers\.(\d+)\.(?:downsample|widen)", (10000,)),
            (inner + r"(?:encoder\.)?(?:layers?|blocks)\.(\d+)", None),
        ],
    }
