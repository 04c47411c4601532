"""MAE models at another image size than the one they were stored with."""

import copy
import os
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_mae import MAEConfig
from .layers_mae import MAEDecoder, MAEEmbeddings
from .positions_mae import resize_position_table, sincos_position_table

# What `from_pretrained` says of where the files are.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_at_stored_size(
    source: str | os.PathLike | None, arguments: dict[str, Any]
) -> tuple[dict[str, Any], int | tuple[int, int] | None]:
    """
    Changes the arguments of `from_pretrained` so that the position tables have the shape of the stored ones.

    Args:
        source (`str`): folder or Hub id of the model.
        arguments (`dict`): the other arguments of `from_pretrained`.

    Returns:
        The arguments, and the image size to bring the loaded model to; `None` if it is the stored one, or if nothing
        can be resized: other weights are given, the patches differ too or no stored configuration is found.

    Raises:
        ValueError: if the patch size does not divide the size asked for.
    """
    config = arguments.get("config")
    is_config = isinstance(config, PreTrainedConfig)
    if source is None or arguments.get("state_dict") is not None or not (is_config or arguments.get("image_size")):
        return arguments, None
    try:
        stored = MAEConfig.from_pretrained(
            source if is_config or config is None else config,
            **{name: arguments[name] for name in HUB_ARGUMENTS if name in arguments},
        )
    except OSError:
        return arguments, None
    changes = {name: arguments[name] for name in ("image_size", "patch_size") if name in arguments}
    asked = config if is_config else MAEConfig.from_dict(stored.to_dict(), **changes)
    if asked.patch_size != stored.patch_size or asked.image_height_width == stored.image_height_width:
        return arguments, None
    if is_config:
        config = copy.deepcopy(config)
        config.image_size = stored.image_size
        return arguments | {"config": config}, asked.image_size
    return arguments | {"image_size": stored.image_size}, asked.image_size


def resize_tables(model: PreTrainedModel, old_grid: tuple[int, int], image_size: tuple[int, int]) -> None:
    """
    Brings the position tables in a model to another image size: learnt ones bicubically, fixed ones rebuilt.

    Args:
        model (`PreTrainedModel`): the model, changed in place.
        old_grid (`tuple[int, int]`): its rows and columns of patches.
        image_size (`tuple[int, int]`): height and width wanted, divisible by the patch size.
    """
    patch = model.config.patch_size
    grid = (image_size[0] // patch, image_size[1] // patch)
    for module in model.modules():
        if isinstance(module, MAEEmbeddings):
            table = module.position_embeddings
            if module.fixed_positions:
                new = sincos_position_table(table.shape[-1], grid, table.dtype, table.device)[None]
            else:
                new = resize_position_table(table.data, old_grid, grid)
            module.position_embeddings = nn.Parameter(new, requires_grad=table.requires_grad)
            module.image_size = module.patch_embeddings.image_size = image_size
            module.patch_embeddings.num_patches = grid[0] * grid[1]
        elif isinstance(module, MAEDecoder):
            table = module.decoder_pos_embed
            new = sincos_position_table(table.shape[-1], grid, table.dtype, table.device)[None]
            module.decoder_pos_embed = nn.Parameter(new, requires_grad=False)
