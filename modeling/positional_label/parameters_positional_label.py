"""Groups of parameters of any backbone, in timm's convention: layers, and what weight decay leaves alone."""

import re

from torch import nn

# Names of tables and scales, not matrices, in the backbones of transformers and timm.
_TABLES = re.compile(
    r"(^|\.)(position_embeddings|position_embedding\.weight|class_pos_emb|cls_token|distillation_token|register_tokens|"
    r"mask_token|probe|latent|relative_position_bias_table|logit_scale|pos_embed|dist_token|reg_token|"
    r"absolute_pos_embed)$"
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


def layer_groups(model: nn.Module) -> dict:
    """
    Patterns of `group_matcher`: embeddings first, then the layers (of Swin stage by stage, patch merging where it
    stands); what matches none (final norm, classifier, position heads) comes last.

    Raises:
        ValueError: if no parameter of the model is of a layer with a known name.
    """
    inner = r"^(?:backbone|mae\.vit)\.(?:timm_model\.|vision_model\.)?(?:encoder\.|model\.)?"
    stages = r"(?:layers?|levels|stages)\.(\d+)\."
    groups = {
        "stem": inner
        + r"(?:embeddings|patch_embed|cls_token|pos_embed\w*|dist_token|reg_token|absolute_pos_embed|norm_pre|"
        r"pre_layrnorm|class_pos_emb)\b",
        "blocks": [
            (inner + stages + r"(?:blocks|layers|transformer_encoder)\.(\d+)", None),
            (r"^backbone\.timm_model\.layers\.(\d+)\.downsample", (0,)),  # in front of its stage, elsewhere behind
            (inner + stages + r"(?:downsample|widen)", (10000,)),
            (inner + r"(?:layers?|levels|stages|blocks)\.(\d+)", None),
        ],
        "class_blocks": inner + r"(?:blocks_token_only|cls_attn_blocks)\.(\d+)",  # of CaiT and XCiT
    }
    patterns = [re.compile(pattern) for pattern, _ in groups["blocks"]]
    if not any(pattern.match(name) for name, _ in model.named_parameters() for pattern in patterns):
        raise ValueError(
            f"layer decay needs a backbone whose layers are in layer, layers, blocks, levels or stages; those of "
            f"{type(model.base_model).__name__} have other names"
        )
    return groups
