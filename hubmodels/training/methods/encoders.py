"""Models of a method around the trained encoder of another model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hubmodels.training.recipe import RecipeError


def model_around(
    model_class: Any,
    config: PreTrainedConfig,
    source: str,
    settings: dict[str, Any],
    part: Callable[[Any], nn.Module] = lambda model: model,
) -> Any:
    """Build a model whose `backbone` has the weights of another model.

    Args:
        model_class: Class of the model; its config takes a `backbone_config`.
        config: Config of the other model.
        source: Folder or Hub id of the other model.
        settings: Fields of the config besides `backbone_config`; `image_size` is by default that of the other model.
        part: What of the model has the attribute `backbone`.

    Returns:
        The model, in float32.

    Raises:
        RecipeError: If the other model is no backbone, or its weights are not complete.
    """
    size = getattr(config, "image_size", None) if hasattr(model_class.config_class, "image_size") else None
    sizes = {} if size is None else {"image_size": size}
    config._name_or_path = ""  # a folder of this machine means nothing where the model goes
    try:
        model = model_class(model_class.config_class(**(sizes | settings | {"backbone_config": config}))).float()
    except (ValueError, TypeError) as error:
        raise RecipeError(f"init_from = {source}: {str(error).splitlines()[0]}") from error
    backbone: Any = part(model).backbone
    network: Any = backbone if isinstance(backbone, PreTrainedModel) else backbone.model  # of plain vision transformers
    without_pooler = {"add_pooling_layer": False} if getattr(network, "pooler", True) is None else {}
    try:
        encoder, report = type(network).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **without_pooler
        )
    except ValueError as error:
        raise RecipeError(f"init_from = {source}: {str(error).splitlines()[0]}") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise RecipeError(f"init_from = {source} holds no encoder that fits: {', '.join(lacking[:6])}")
    network.load_state_dict(encoder.state_dict())
    return model
