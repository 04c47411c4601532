"""From the classifiers of transformers and timm to Positional Label, and back to the same logits."""

import copy
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
)
from transformers.utils import logging

from .backbones_positional_label import is_timm, pooler_options
from .configuration_positional_label import AUTOENCODERS, OUTPUT_FIELDS, PositionalLabelConfig, refuse_backbone_fields

logger = logging.get_logger(__name__)

# What the stock classifier of a model type reads.
STOCK_POOLING = {
    "vit": "cls",
    "deit": "cls",
    "dinov2": "cls_mean",
    "dinov2_with_registers": "cls_mean",
    "beit": "pooler",
    "data2vec-vision": "pooler",
    "swin": "mean",
    "swinv2": "mean",
    "timm_wrapper": "pooler",
}
HEAD_NAMES = ("position_head", "relative_position_head")
# What says whether the heads of a checkpoint are of the kinds that are wanted.
_HEAD_FIELDS = ("position_label", "feature_split")
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
_LABEL_ARGUMENTS = ("num_labels", *LABEL_FIELDS)
# What a classifier or encoder takes from the configuration of the pre-training.
_INHERITED = (
    "position_label",
    "position_loss_weight",
    "relative_loss_weight",
    "feature_split",
    "num_anchors",
    *LABEL_FIELDS,
    *OUTPUT_FIELDS,
)
# Fields that an autoencoder's encoder shares with a plain ViT.
_VIT_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)


def refuse_authors(settings: dict[str, Any], kind: str) -> None:
    """
    Raises:
        ValueError: for the authors' variant, whose weights are others, around an existing network.
    """
    if settings.get("backbone_variant") == "authors":
        raise ValueError(
            f"backbone_variant 'authors' is another network than the {kind} that is given; build it with "
            "PositionalLabelForImageClassification(PositionalLabelConfig(backbone_config=..., "
            "backbone_variant='authors')), or keep backbone_variant 'stock'"
        )


def config_around(
    model: PreTrainedModel, settings: dict[str, Any]
) -> tuple[PositionalLabelConfig, PreTrainedModel, nn.Linear]:
    """
    Takes an image classifier apart.

    Args:
        model: the classifier.
        settings: fields of the configuration.

    Returns:
        A configuration around it, its backbone and its linear layer, both shared with it.

    Raises:
        ValueError: for a model that has not the stock form of its type, for `backbone_variant="authors"`, and for
            another `num_labels` than that of the model.
    """
    kind = model.config.model_type
    refuse_authors(settings, kind)
    classifier = _linear_classifier(model)
    if classifier is None:
        raise ValueError(
            f"model must be an image classifier with one linear layer, of one of the types {sorted(STOCK_POOLING)}; "
            f"got a {type(model).__name__}"
        )
    inner = copy.deepcopy(model.config)
    settings = {name: getattr(inner, name) for name in LABEL_FIELDS} | {"pooling": STOCK_POOLING[kind]} | settings
    settings = {"attn_implementation": inner._attn_implementation} | settings
    config = PositionalLabelConfig(backbone_config=inner, **settings)
    if config.num_labels != classifier.out_features:
        raise ValueError(
            f"num_labels must be that of the model, whose classifier is shared: {classifier.out_features}, got "
            f"{config.num_labels}; from_pretrained of its folder makes a new classifier"
        )
    if kind != "timm_wrapper":
        return config, model.base_model, classifier
    with torch.device("meta"):
        backbone = AutoModel.from_config(inner)
    network = _with_own_head(model.timm_model)
    network.reset_classifier(0, _pooling_name(network))
    backbone.timm_model = network
    return config, backbone, classifier


def _linear_classifier(model: PreTrainedModel) -> nn.Linear | None:
    """The classifier of a stock model, if it is the one linear layer that its type has."""
    kind = model.config.model_type
    classifier = model.timm_model.get_classifier() if kind == "timm_wrapper" else getattr(model, "classifier", None)
    return classifier if kind in STOCK_POOLING and isinstance(classifier, nn.Linear) else None


def _with_own_head(network: nn.Module) -> nn.Module:
    """One of timm's networks with the same parts, whose classifier can be replaced without changing the other."""
    classifier, network = network.get_classifier(), copy.copy(network)
    network._modules = dict(network._modules)
    for name, part in network._modules.items():
        if part is not classifier and any(inner is classifier for inner in part.modules()):
            network._modules[name] = part = copy.copy(part)
            part._modules = dict(part._modules)
    return network


def _pooling_name(network: nn.Module) -> str | None:
    """How one of timm's networks pools, where it says so by name; None leaves it as it is."""
    pooling = getattr(network, "global_pool", None)
    pooling = getattr(pooling, "pool_type", pooling)
    return pooling if isinstance(pooling, str) else None


def stock_classifier(model: PreTrainedModel) -> PreTrainedModel:
    """
    The stock classifier with the backbone and the classifier of a Positional Label model, which it shares.

    Raises:
        ValueError: if no stock class has the same logits.
    """
    config, inner = model.config, copy.deepcopy(model.config.backbone_config)
    kind, pooling = inner.model_type, config.pooling
    for name in LABEL_FIELDS:
        setattr(inner, name, getattr(config, name))
    if config.backbone_variant != "stock":
        raise ValueError("no stock class has the network of backbone_variant 'authors'; see without_position_head()")
    if STOCK_POOLING.get(kind) == pooling:
        return _with_parts(inner, model.backbone, model.classifier)
    if kind in ("vit", "dinov2") and pooling in ("mean", "cls"):
        return _as_dinov2(inner, model, pooling)
    raise ValueError(f"no stock class of a {kind} pools by {pooling!r}; see without_position_head()")


def _with_parts(inner: PreTrainedConfig, backbone: PreTrainedModel, classifier: nn.Linear) -> PreTrainedModel:
    classes = AutoModelForImageClassification._model_mapping[type(inner)]
    with torch.device("meta"):
        # DeiT has a second class, with two classifiers.
        stock = (classes[0] if isinstance(classes, (tuple, list)) else classes)._from_config(inner)
    if is_timm(inner):
        # A distilled DeiT has two in this place, a SAM the whole head.
        if not isinstance(backbone.timm_model.get_classifier(), nn.Linear | nn.Identity):
            raise ValueError(
                f"no stock class has one linear classifier on timm's {type(backbone.timm_model).__name__}; see "
                "without_position_head()"
            )
        network = _with_own_head(backbone.timm_model)
        with torch.device("meta"):
            network.reset_classifier(inner.num_labels, _pooling_name(network))
        holder = network.get_classifier()
        owner = next(module for module in network.modules() if holder in module._modules.values())
        name = next(name for name, part in owner._modules.items() if part is holder)
        setattr(owner, name, classifier)
        stock.timm_model = network
    else:
        if getattr(stock.base_model, "pooler", None) is not None and backbone.pooler is None:
            backbone = copy.copy(backbone)  # Swin's pooler has no weights
            backbone.__dict__.pop("pooler", None)  # the None of a network without pooler would hide the module
            backbone._modules = backbone._modules | {"pooler": nn.AdaptiveAvgPool1d(1)}
        setattr(stock, stock.base_model_prefix, backbone)
        stock.classifier = classifier
    return stock.train(backbone.training)


def _as_dinov2(inner: PreTrainedConfig, model: PreTrainedModel, pooling: str) -> PreTrainedModel:
    """
    A ViT (or DINOv2) as DINOv2 classifier, which reads [class token; mean of the patches]: zeros for the other half.

    DINOv2 is a ViT whose branches have a scale per channel, here 1.
    """
    weights = model.backbone.state_dict()
    config = inner
    if inner.model_type == "vit":
        rows, columns = model.view.grid
        if rows != columns:
            raise ValueError(
                f"DINOv2 takes its table of positions for a square, got a grid of {rows}x{columns}; see "
                "without_position_head()"
            )
        config = Dinov2Config(
            **{name: getattr(inner, name) for name in _VIT_FIELDS if name != "intermediate_size"},
            mlp_ratio=inner.intermediate_size // inner.hidden_size,
            layerscale_value=1.0,
            **{name: getattr(inner, name) for name in LABEL_FIELDS},
        )
        if config.mlp_ratio * inner.hidden_size != inner.intermediate_size:
            raise ValueError(
                f"DINOv2 has no intermediate_size {inner.intermediate_size} at hidden_size {inner.hidden_size}; see "
                "without_position_head()"
            )
    with torch.device("meta"):
        stock = Dinov2ForImageClassification(config)
    if inner.model_type == "vit":
        weights = _dinov2_names(weights, stock.dinov2.state_dict())
    stock.dinov2.load_state_dict(weights, assign=True)
    half, other = model.classifier.weight, torch.zeros_like(model.classifier.weight)
    parts = [half, other] if pooling == "cls" else [other, half]
    stock.classifier.load_state_dict(
        {"weight": torch.cat(parts, dim=1).detach(), "bias": model.classifier.bias}, assign=True
    )
    return stock.train(model.training)


def _dinov2_names(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    like = weights["layernorm.weight"]
    named = {}
    for name, tensor in wanted.items():
        if name == "embeddings.mask_token":
            named[name] = torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
        elif name.endswith(".lambda1"):
            named[name] = torch.ones(tensor.shape, dtype=like.dtype, device=like.device)
        else:
            named[name] = weights[_vit_name(name)]
    return named


def _vit_name(name: str) -> str:
    """The name in a ViT of a weight of a DINOv2."""
    replacements = {
        "encoder.layer.": "layers.",
        "encoder.layers.": "layers.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attention.attention.query.": ".attention.q_proj.",
        ".attention.attention.key.": ".attention.k_proj.",
        ".attention.attention.value.": ".attention.v_proj.",
        ".attention.output.dense.": ".attention.o_proj.",
    }
    for theirs, ours in replacements.items():
        name = name.replace(theirs, ours)
    return name


def vit_inside(autoencoder: PreTrainedConfig) -> ViTConfig:
    """Configuration of the plain ViT that is the encoder of an autoencoder."""
    return ViTConfig(**{name: getattr(autoencoder, name) for name in _VIT_FIELDS})


def stored_config(source: str | PathLike, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a checkpoint's config.json, and the arguments of `from_pretrained` that say where it is."""
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
    hub = {name: kwargs[name] for name in names if name in kwargs}
    try:
        return PreTrainedConfig.get_config_dict(source, **hub)[0], hub
    except OSError:
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            raise
        return {}, hub  # weights alone, for the given configuration


def take_settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields of [`PositionalLabelConfig`] out of the arguments of `from_pretrained`."""
    fields = set(PositionalLabelConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    return {name: kwargs.pop(name) for name in (*fields, *OUTPUT_FIELDS) if name in kwargs}


def take_config(kwargs: dict[str, Any]) -> PositionalLabelConfig | None:
    """
    Takes the `config` out of the arguments of `from_pretrained`.

    An automatic class passes the one that it read from the folder; a user may give one for a foreign checkpoint. It
    is told by its `model_type`: where hubmodels is not installed, transformers imports the configuration's file once
    for the configuration and once for the model, and the two classes are not the same.
    """
    own = getattr(kwargs.get("config"), "model_type", None) == PositionalLabelConfig.model_type
    return kwargs.pop("config") if own else None


def settings_of(config: PositionalLabelConfig) -> dict[str, Any]:
    """All fields of a configuration but its backbone, as arguments of `wrap`."""
    fields = set(PositionalLabelConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    names = (*sorted(fields - {"backbone_config"}), *LABEL_FIELDS, *OUTPUT_FIELDS)
    return {name: getattr(config, name) for name in names}


def backbone_of(config: PositionalLabelConfig, kind: str) -> PreTrainedConfig:
    """
    A copy of the backbone's configuration.

    Raises:
        ValueError: if it is of another type than the checkpoint that is loaded with it.
    """
    inner = copy.deepcopy(config.backbone_config)
    if inner.model_type != kind:
        raise ValueError(
            f"config.backbone_config must be of the checkpoint's model_type {kind!r}, got {inner.model_type!r}; "
            "without config it is taken from the checkpoint"
        )
    return inner


def new_heads(model: nn.Module) -> set[str]:
    """Names of the weights of position heads."""
    return {name for name, _ in model.named_parameters() if name.split(".")[0].endswith("position_head")}


def with_stored_heads(
    source: str | PathLike, kwargs: dict[str, Any]
) -> tuple[PositionalLabelConfig, dict[str, str | None]] | None:
    """
    Where a `position_label` or `feature_split` is asked for that has other heads than one of the method's own
    checkpoints has under the same names: some weights of these have the same shapes and would be loaded.

    Args:
        source: folder or Hub id.
        kwargs: of `from_pretrained`; the configuration and its fields are taken out.

    Returns:
        The configuration with the heads of the checkpoint, and the fields that are asked for; None where the names
        agree, and for other checkpoints.
    """
    config = kwargs.get("config")
    if isinstance(config, str | PathLike):
        if PreTrainedConfig.get_config_dict(config)[0].get("model_type") != PositionalLabelConfig.model_type:
            return None
        config = PositionalLabelConfig.from_pretrained(config)
    own = getattr(config, "model_type", None) == PositionalLabelConfig.model_type
    if not own and not any(name in kwargs for name in _HEAD_FIELDS):
        return None
    content, hub = stored_config(source, kwargs)
    if content.get("model_type") != PositionalLabelConfig.model_type:
        return None
    stored = {name: content.get(name, getattr(PositionalLabelConfig, name)) for name in _HEAD_FIELDS}
    wanted = {name: getattr(config, name) if own else kwargs.get(name, stored[name]) for name in _HEAD_FIELDS}
    kinds = _kinds_of_heads(**stored)
    if all(kinds.get(name, kind) == kind for name, kind in _kinds_of_heads(**wanted).items()):
        return None
    kwargs.pop("config", None)
    if not own:
        given = {name: value for name, value in kwargs.items() if name not in hub}
        config, unused = PositionalLabelConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **given)
        for name in given.keys() - unused.keys():
            del kwargs[name]
    config = copy.deepcopy(config)
    for name, value in stored.items():
        setattr(config, name, value)
    return config, wanted


def _kinds_of_heads(position_label: str | None, feature_split: str) -> dict[str, tuple[str, str]]:
    """What the heads of a model predict, and from which part of the tokens, by their names."""
    labels = ("absolute", "relative") if position_label == "both" else (position_label,) if position_label else ()
    return {name: (label, feature_split) for name, label in zip(HEAD_NAMES, labels, strict=False)}


def load_foreign(model_class: type, load: Callable[..., Any], source: str | PathLike, *args, **kwargs) -> Any:
    """
    Loads a classifier or encoder from a checkpoint that is neither: one of another model type, or a pre-trained one.

    The classifier of a stock checkpoint is kept with the pooling that it reads. One that has none, or two (a distilled
    DeiT), or one of another width than the given pooling (with `ignore_mismatched_sizes`), gets a new one.

    Args:
        model_class: the class to build, with `wrap`.
        load: `from_pretrained` of the class that it inherits from.
        source: folder or Hub id.
        args, kwargs: of `from_pretrained`; fields of the configuration are taken out. What a given `config` says holds
            around the checkpoint's network too.

    Returns:
        What `from_pretrained` would, or None if `source` is one of the method's own classifiers.

    Raises:
        ValueError: for a given `config` whose backbone is of another type than the checkpoint, and for fields of the
            backbone.
    """
    if source is None or "state_dict" in kwargs:
        return None
    content, hub = stored_config(source, kwargs)
    kind, nested = content.get("model_type"), content.get("backbone_config") or {}
    own = kind == PositionalLabelConfig.model_type
    pretrained = own and nested.get("model_type") in AUTOENCODERS
    if not content or (own and not pretrained):
        return None
    refuse_backbone_fields(kwargs)
    given = take_config(kwargs)
    settings, want_info = take_settings(kwargs), kwargs.pop("output_loading_info", False)
    if given is not None:
        wanted = settings_of(given)
        if given.backbone_config.model_type in AUTOENCODERS:  # that of the pre-training, from an automatic class
            wanted = {name: value for name, value in wanted.items() if name in _INHERITED}
        settings = wanted | settings
    if pretrained or kind in AUTOENCODERS:
        kwargs.setdefault("dtype", content.get("dtype") or "auto")
        if pretrained:
            stored = {name: content[name] for name in _INHERITED if content.get(name) is not None}
            settings = stored | settings
        inner = vit_inside(AutoConfig.for_model(**(nested if pretrained else content)))
        if given is not None and given.backbone_config.model_type not in AUTOENCODERS:
            inner = backbone_of(given, "vit")
        model, info = _from_autoencoder(load, source, inner, settings, args, kwargs)
    else:
        labels = {name: kwargs.pop(name) for name in _LABEL_ARGUMENTS if name in kwargs}
        inner = _inner_config(source, content, given, settings, labels, hub)
        stock = None
        if _keeps_classifier(inner, content, settings, kwargs):
            stock, info = AutoModelForImageClassification.from_pretrained(
                source, *args, config=inner, output_loading_info=True, **kwargs
            )
        if stock is not None and _linear_classifier(stock) is not None:
            model = model_class.wrap(stock, **settings)
            prefix = stock.base_model_prefix + "."
            info = {key: _renamed(names, prefix) for key, names in info.items()}
            info["missing_keys"] = {*info["missing_keys"], *new_heads(model)}
        else:
            model, info = _around_encoder(model_class, source, inner, settings, args, kwargs)
    model.eval()
    return (model, info) if want_info else model


def _inner_config(source, content, given, settings, labels, hub) -> PreTrainedConfig:
    """Configuration of a checkpoint's network, with the labels of `given` (taken out of `settings`) and `labels`."""
    whole = AutoConfig.from_pretrained(source, **hub, **labels)
    inner = getattr(whole, "vision_config", whole)  # of CLIP and SigLIP the half that reads images
    if given is None and inner is whole:
        return inner
    if given is None:
        labels = {name: getattr(whole, name) for name in LABEL_FIELDS}
    else:
        labels = {name: settings.pop(name) for name in LABEL_FIELDS} | labels
        inner = backbone_of(given, inner.model_type)
        inner.architectures = content.get("architectures")
    for name, value in labels.items():
        setattr(inner, name, value)
    return inner


def _keeps_classifier(inner, content: dict[str, Any], settings: dict[str, Any], kwargs: dict[str, Any]) -> bool:
    """Whether a checkpoint has a classifier to put position heads beside, which its type and its settings allow."""
    if inner.model_type not in STOCK_POOLING or not inner.num_labels:
        return False
    classes = AutoModelForImageClassification._model_mapping[type(inner)]
    # DeiT's second class, of distilled checkpoints, has two classifiers.
    stock = classes[0] if isinstance(classes, (tuple, list)) else classes
    architectures = content.get("architectures")
    if architectures and stock.__name__ not in architectures:
        return False
    usual = STOCK_POOLING[inner.model_type]
    same_width = (settings.get("pooling", usual) == "cls_mean") == (usual == "cls_mean")
    return same_width or not kwargs.get("ignore_mismatched_sizes")


def _around_encoder(model_class, source, inner, settings, args, kwargs) -> tuple[Any, Any]:
    """The encoder of a checkpoint that has no classifier to keep; classifier and position heads are new."""
    refuse_authors(settings, inner.model_type)
    config = PositionalLabelConfig(
        backbone_config=inner, **({name: getattr(inner, name) for name in LABEL_FIELDS} | settings)
    )
    backbone, info = AutoModel.from_pretrained(
        source, *args, config=inner, output_loading_info=True, **pooler_options(config), **kwargs
    )
    config._attn_implementation = backbone.config._attn_implementation
    model = model_class(config, backbone=backbone)
    first = next(backbone.parameters())
    model = model.to(device=first.device, dtype=first.dtype)
    new = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    if any(name.startswith("classifier.") for name in new):
        logger.warning(f"{source} has no classifier that reads pooling {config.pooling!r}: a new one is initialised")
    info["missing_keys"] = {*(f"backbone.{name}" for name in info["missing_keys"]), *new}
    return model, info


def _renamed(names: Any, prefix: str) -> Any:
    if not isinstance(names, (set, list, tuple)):
        return names
    return type(names)(
        "backbone." + name.removeprefix(prefix) if isinstance(name, str) and name.startswith(prefix) else name
        for name in names
    )


def _from_autoencoder(load, source, inner, settings, args, kwargs) -> tuple[Any, Any]:
    """The encoder of a pre-trained autoencoder; classifier and position heads are new, but for heads that it has."""
    labels = {name: kwargs.pop(name) for name in _LABEL_ARGUMENTS if name in kwargs}
    refuse_authors(settings, "autoencoder")
    config = PositionalLabelConfig(backbone_config=inner, **(settings | labels))
    names = {
        r"^mae\.vit\.": "backbone.",
        r"^vit\.": "backbone.",
        r"^(?=(embeddings|layers|layernorm)\.)": "backbone.",
    }
    model, info = load(source, *args, config=config, key_mapping=names, output_loading_info=True, **kwargs)
    # Otherwise saving would turn the names back into those of the autoencoder.
    model.__dict__.pop("_weight_conversions", None)
    return model, info
