"""Saying what a refused checkpoint looks like, so that the user knows which file was picked by mistake."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# What it is -> a parameter name that gives it away. The first match counts, so the special come before the general.
_SIGNATURES: tuple[tuple[str, str], ...] = (
    ("a momentum-contrast training checkpoint (query and key encoder, as MoCo and DenseCL)", r"encoder_[qk]\.|^queue"),
    ("a student-teacher training checkpoint (as DINO)", r"^(student|teacher)\."),
    ("a detector", r"(^|\.)(roi_heads?|rpn_head|rpn|bbox_head)\."),
    ("a ResNet (as SimCLR, MoCo and torchvision have)", r"(^|\.)layer1\.0\.conv1\.weight$"),
    ("a RegNet", r"(^|\.)trunk_output\.block1\.|(^|\.)regnet\."),
    ("a Swin transformer", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"),
    ("a BEiT or data2vec-vision encoder", r"blocks\.0\.(gamma_1|attn\.q_bias|attn\.relative_position_bias_table)$"),
    ("a CLIP model", r"visual\.transformer\.resblocks\.|vision_model\.encoder\.layers\."),
    ("an ALBERT model", r"albert_layer_groups\."),
    ("a BERT model", r"bert\.(encoder|embeddings)\."),
    ("a fairseq speech or data2vec model", r"feature_extractor\.conv_layers\.|post_extract_proj\.|regression_head\."),
    ("a diffusion U-Net", r"down_blocks\.0\.|input_blocks\.0\."),
    (
        "a model already in transformers layout, which from_pretrained loads as it is",
        r"attention\.(attention\.query|q_proj)\.",
    ),
)
_LISTED_KEYS = 8


def describe(checkpoint: Mapping[str, Any]) -> str:
    """Describe a checkpoint in half a sentence for an error message.

    Args:
        checkpoint: the top-level dictionary of the file.

    Returns:
        `"top-level keys: a, b"`, followed by what the names of its tensors look like where that is known.
    """
    keys = [str(key) for key in checkpoint]
    listed = ", ".join(keys[:_LISTED_KEYS]) + (f", ... ({len(keys)} in all)" if len(keys) > _LISTED_KEYS else "")
    names = [*keys, *(str(name) for value in checkpoint.values() if isinstance(value, Mapping) for name in value)]
    resemblance = _resemblance(names)
    return f"top-level keys: {listed or 'none'}" + (f"; it looks like {resemblance}" if resemblance else "")


def _resemblance(names: Sequence[str]) -> str | None:
    for description, pattern in _SIGNATURES:
        if any(re.search(pattern, name) for name in names):
            return description
    return None
