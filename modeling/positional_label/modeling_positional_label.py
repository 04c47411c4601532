"""Positional Label around any vision transformer (Zhang and Gong, AAAI 2023, arXiv 2206.04981)."""

import copy
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .backbones_positional_label import TokenView, build_backbone
from .class_labels_positional_label import check_label_shape, class_targets
from .configuration_positional_label import PositionalLabelConfig
from .heads_positional_label import AbsolutePositionHead, PositionPrediction, RelativePositionHead
from .inputs_positional_label import check_images
from .labels_positional_label import Grid
from .outputs_positional_label import PositionalLabelImageClassifierOutput
from .parameters_positional_label import layer_groups, undecayed
from .precision_positional_label import at_least_float32
from .schemes_positional_label import (
    check_dropout_grid,
    check_position_table,
    only_patches,
    random_rows,
    run_with_positions,
)
from .stock_positional_label import HEAD_NAMES, config_around, load_foreign, stock_classifier, with_stored_heads
from .vit_positional_label import AUTHORS_VIT_STD

logger = logging.get_logger(__name__)


class PositionalLabelPreTrainedModel(PreTrainedModel):
    """Base of the Positional Label models: the position heads, their losses and their initialisation."""

    config_class = PositionalLabelConfig
    config: PositionalLabelConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Losses are means over the batch: `Trainer` must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args, **kwargs):
        """
        As in transformers; with another `position_label` or `feature_split` than that of the checkpoint, heads of the
        same kind are kept and others are new.
        """
        source, found = pretrained_model_name_or_path, None
        if source is not None and kwargs.get("state_dict") is None:
            found = with_stored_heads(source, kwargs)
        if found is None:
            return super().from_pretrained(source, *args, **kwargs)
        config, wanted = found
        want_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(source, *args, config=config, output_loading_info=True, **kwargs)
        info["missing_keys"] = {*info["missing_keys"], *model._change_heads(**wanted)}
        return (model, info) if want_info else model

    def _make_heads(self, width: int, grid: Grid, tokens: int, seen_by: str = "") -> None:
        """
        `position_head`, and with both kinds of label `relative_position_head` for the second.

        `tokens` is how many of the grid a training pass sees; `seen_by` says why it is not all of them.
        """
        config, self._head_arguments = self.config, (width, grid, tokens, seen_by)
        kinds = {"absolute": AbsolutePositionHead, "relative": RelativePositionHead}
        for name, label in zip(HEAD_NAMES, config.labels, strict=False):
            head = kinds[label](width, grid, config.position_head_dropout, config.feature_split)
            setattr(self, name, head)
        if "relative" in config.labels:
            self._check_anchors(tokens, seen_by)

    def _change_heads(self, position_label: str, feature_split: str) -> set[str]:
        """Heads for other labels; those of the same kind stay. Returns the names of the weights of new ones."""
        config, old = self.config, self.position_heads if hasattr(self, HEAD_NAMES[0]) else {}
        keeps = feature_split == config.feature_split
        config.position_label, config.feature_split = position_label, feature_split
        if not old:  # the backbone alone
            return set()
        for _, name in zip(old, HEAD_NAMES, strict=False):
            delattr(self, name)
        self._make_heads(*self._head_arguments)
        like, new = next(iter(old.values())).fc1.weight, set()
        for name, (label, head) in zip(HEAD_NAMES, self.position_heads.items(), strict=False):
            if keeps and label in old:
                setattr(self, name, old[label])
                continue
            head.apply(self._init_weights)
            head.to(device=like.device, dtype=like.dtype).train(self.training)
            new |= {f"{name}.{weight}" for weight, _ in head.named_parameters()}
        logger.warning(
            f"position_label {position_label!r} with feature_split {feature_split!r} has other heads than the "
            f"checkpoint; new are {sorted({name.partition('.')[0] for name in new}) or 'none'}"
        )
        return new

    def _check_anchors(self, tokens: int, seen_by: str) -> None:
        if (self.config.num_anchors or 0) > tokens:
            raise ValueError(f"num_anchors must be at most the {tokens} tokens{seen_by}, got {self.config.num_anchors}")

    @property
    def position_heads(self) -> dict[str, nn.Module]:
        """The heads by their kind of label."""
        return {label: getattr(self, name) for label, name in zip(self.config.labels, HEAD_NAMES, strict=False)}

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            authors_vit = self.config.backbone_variant == "authors" and self.config.backbone_config.model_type == "vit"
            init.trunc_normal_(module.weight, std=AUTHORS_VIT_STD if authors_vit else self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one dimension that are not decayed: tables of positions, class tokens."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict:
        """
        Groups of parameters from input to output, in timm's convention; heads and classifier come last.

        Raises:
            ValueError: for a backbone whose layers have unknown names.
        """
        return layer_groups(self)

    def get_input_embeddings(self) -> nn.Module:
        """That of the backbone."""
        return self.base_model.get_input_embeddings()

    def predict_positions(
        self,
        tokens: torch.Tensor,
        grid: Grid,
        ids: torch.Tensor | None = None,
        counted: torch.Tensor | None = None,
        return_logits: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[str, PositionPrediction]:
        """
        Position losses of tokens.

        Args:
            tokens (`torch.Tensor` of shape `[B, K, D]`): patch tokens after the final norm.
            grid (`tuple[int, int]`): rows and columns of the grid that they come from.
            ids (`torch.LongTensor` of shape `[B, K]`, *optional*): their row-major indices; all in order by default.
            counted (`torch.BoolTensor` of shape `[B, K]`, *optional*): tokens that the loss counts.
            return_logits (`bool`): also return the logits.
            generator (`torch.Generator`, *optional*): source of the random anchors.

        Returns:
            Loss, accuracy and logits by kind of label.

        Raises:
            ValueError: for a grid that the heads were not built for, for indices outside of it, and for fewer tokens
                than `config.num_anchors`.
        """
        predictions, config = {}, self.config
        for label, head in self.position_heads.items():
            options = {"ids": ids, "grid": grid, "counted": counted, "return_logits": return_logits}
            if label == "absolute" and config.scheme == "droppos" and self.training:
                options["sigma"] = config.position_sigma
            # Anchors are sampled in training only: an evaluation counts all pairs.
            if label == "relative" and config.num_anchors is not None and self.training:
                self._check_anchors(tokens.shape[1], " of this pass")
                size = tokens.shape[:2]
                noise = torch.rand(size, generator=generator, device=tokens.device, dtype=torch.float32)
                options["anchors"] = noise.argsort(dim=1)[:, : config.num_anchors]
            predictions[label] = head(tokens, **options)
        return predictions

    def _position_loss(self, predictions: dict[str, PositionPrediction], mean: bool = False) -> torch.Tensor:
        """Weighted sum of the position losses, or their weighted mean (the plain one if all weights are 0)."""
        weights = self.config.loss_weights
        if mean and not any(weights.values()):
            weights = dict.fromkeys(weights, 1.0)
        total = sum(weights[label] * prediction.loss for label, prediction in predictions.items())
        return total / sum(weights.values()) if mean else total

    def _position_fields(self, predictions: dict[str, PositionPrediction]) -> dict[str, torch.Tensor | None]:
        """The fields of an output."""
        fields = {}
        for prefix, prediction in zip(("position", "relative_position"), predictions.values(), strict=False):
            fields |= {f"{prefix}_{name}": value for name, value in prediction._asdict().items()}
        return fields


class PositionalLabelModel(PositionalLabelPreTrainedModel):
    """
    The backbone alone, of a classifier or a pre-trained autoencoder: features of all patches.

    Args:
        config (`PositionalLabelConfig`): configuration.

    Example:

    ```python
    >>> features = model(pixel_values).last_hidden_state  # [B, N, D]
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^(relative_)?position_head\.", r"^classifier\.", r"(^|\.)decoder\."]

    def __init__(self, config: PositionalLabelConfig, backbone: PreTrainedModel | None = None):
        """`backbone` is used in place of a new network of `config.backbone_config`."""
        super().__init__(config)
        self.backbone = build_backbone(config) if backbone is None else backbone
        self.view = TokenView(self.backbone, config)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args, **kwargs):
        """As in transformers; also from a pre-trained autoencoder (`mae`, `vit_mae`) or classifier."""
        load = super().from_pretrained
        loaded = load_foreign(cls, load, pretrained_model_name_or_path, *args, **kwargs)
        return load(pretrained_model_name_or_path, *args, **kwargs) if loaded is None else loaded

    @classmethod
    def wrap(cls, model: PreTrainedModel, **settings) -> "PositionalLabelModel":
        """The backbone of an image classifier, which both then share; arguments as for the classifier's `wrap`."""
        config, backbone, _ = config_around(model, settings)
        return cls(config, backbone=backbone).train(model.training)

    def encode(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """As [`forward`]."""
        return encode(self, pixel_values, kwargs)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            kwargs: of the backbone (`interpolate_pos_encoding`, `output_hidden_states` ...).

        Returns:
            Patch tokens after the final norm `[B, N, D]`, and what a classifier reads `[B, D']`.
        """
        return encode(self, pixel_values, kwargs)


class PositionalLabelForImageClassification(PositionalLabelPreTrainedModel):
    """
    A vision transformer with a classifier, which in training also tells where its tokens sit.

    The loss is that of the classes plus `config.position_loss_weight` times that of the positions. In evaluation the
    position head is not run. After training it can be dropped: [`to_backbone_classifier`] gives the plain network.

    Labels are smoothed as distributions `[B, num_labels]`, as `HubTrainer` does with its argument `label_smoothing`.
    The argument `label_smoothing_factor` of transformers' `Trainer` must stay 0: with it `Trainer` keeps the labels
    from the model and computes a loss of the classes alone, so that nothing is learned about positions.

    Args:
        config (`PositionalLabelConfig`): configuration with `num_labels`.

    Example:

    ```python
    >>> model = PositionalLabelForImageClassification.wrap(ViTForImageClassification(vit_config))
    >>> model.train()(pixel_values, labels=labels).loss.backward()
    >>> model.to_backbone_classifier().save_pretrained("plain-vit")
    ```
    """

    # What `HubTrainer` logs beside the loss.
    logged_outputs = (
        "classification_loss",
        "position_loss",
        "position_accuracy",
        "relative_position_loss",
        "relative_position_accuracy",
    )

    def __init__(self, config: PositionalLabelConfig, backbone: PreTrainedModel | None = None):
        """`backbone` is used in place of a new network of `config.backbone_config`."""
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = build_backbone(config) if backbone is None else backbone
        self.view = TokenView(self.backbone, config)
        if config.scheme == "jigsaw" or config.position_dropout:
            check_position_table(self.backbone, "scheme 'jigsaw'" if config.scheme == "jigsaw" else "position_dropout")
        cells = self.view.grid[0] * self.view.grid[1]
        if config.scheme == "jigsaw":
            self._make_heads(
                self.view.width, self.view.grid, self._jigsaw_tokens(cells), f" of jigsaw_ratio {config.jigsaw_ratio}"
            )
        else:
            self._make_heads(self.view.width, self.view.grid, cells)
        self.classifier = nn.Linear(self.view.pooled_width, config.num_labels)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args, **kwargs):
        """
        As in transformers; also from a classifier of another model type (ViT, DeiT, DINOv2, BEiT, Swin, Swinv2, timm),
        which keeps its classifier and the pooling that it reads, from any encoder (also that of a distilled DeiT, which
        has two classifiers) or from a pre-trained autoencoder (`mae`, `vit_mae`, or [`PositionalLabelForPreTraining`]).
        Position heads, and the classifier of an encoder, are new. Fields of the configuration are keyword arguments.
        """
        load = super().from_pretrained
        loaded = load_foreign(cls, load, pretrained_model_name_or_path, *args, **kwargs)
        return load(pretrained_model_name_or_path, *args, **kwargs) if loaded is None else loaded

    @classmethod
    def wrap(cls, model: PreTrainedModel, **settings) -> "PositionalLabelForImageClassification":
        """
        Puts a position head beside the classifier of an existing model, which both then share.

        Args:
            model: an image classifier of transformers (ViT, DeiT, DINOv2, BEiT, Swin, Swinv2, timm).
            settings: fields of [`PositionalLabelConfig`], such as `position_label="relative"`.

        Returns:
            The model with a new position head, and the same logits.

        Raises:
            ValueError: for other models, for settings that contradict their classifier, and as
                [`PositionalLabelConfig`].
        """
        config, backbone, classifier = config_around(model, settings)
        wrapped = cls(config, backbone=backbone)
        if classifier.in_features != wrapped.classifier.in_features:
            raise ValueError(
                f"pooling {config.pooling!r} gives the classifier {wrapped.classifier.in_features} channels, but that "
                f"of the model, which is shared, reads {classifier.in_features}; from_pretrained of its folder with "
                "ignore_mismatched_sizes=True makes a new classifier"
            )
        wrapped.classifier = classifier
        first = next(model.parameters())
        return wrapped.to(device=first.device, dtype=first.dtype).train(model.training)

    def unwrap(self) -> PreTrainedModel:
        """
        The classifier without position head as a model of transformers that has the same logits; it shares the weights.

        A ViT with mean pooling becomes a `Dinov2ForImageClassification`, which has the same network and a classifier
        that reads the mean.

        Raises:
            ValueError: if there is no such model (the authors' Swin; poolings that no stock class has).
        """
        return stock_classifier(self)

    def to_backbone_classifier(self) -> PreTrainedModel:
        """
        A copy of the classifier without position head: of the stock class ([`unwrap`]) or, where no stock class has the
        same logits, of this class without position head.
        """
        try:
            return copy.deepcopy(stock_classifier(self))
        except ValueError:
            return self.without_position_head()

    def without_position_head(self) -> "PositionalLabelForImageClassification":
        """A copy of this class without position head (`position_label` None)."""
        config = copy.deepcopy(self.config)
        config.position_label, config.keep_resolution = None, self.config.keep_resolution
        plain = type(self)(config, backbone=copy.deepcopy(self.backbone))
        plain.classifier = copy.deepcopy(self.classifier)
        first = next(self.parameters())
        return plain.to(device=first.device, dtype=first.dtype).train(self.training)

    def save_backbone(self, save_directory: str | PathLike, **kwargs) -> None:
        """
        Saves the backbone alone, which `AutoModel` loads; arguments as `save_pretrained`.

        Raises:
            ValueError: for the authors' backbones, which no stock class can load.
        """
        if self.config.backbone_variant == "authors":
            raise ValueError("the authors' backbone is no stock model; save without_position_head() instead")
        self.backbone.save_pretrained(save_directory, **kwargs)

    def encode(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Patch tokens after the final norm `[B, N, D]` and what the classifier reads, without any head."""
        return encode(self, pixel_values, kwargs)

    def freeze_encoder(self) -> None:
        """Freezes all but the classifier and the position heads (linear probes)."""
        self.backbone.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_position: bool | None = None,
        position_noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PositionalLabelImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            labels (`torch.Tensor`, *optional*): classes `[B]` (integers) or, after mixing, target distributions
                `[B, num_labels]` (floats). Without them the loss of a training pass is that of the positions alone
                (with both kinds of label their weighted mean).
            return_position (`bool`, *optional*): evaluate the position heads outside of training too, and return their
                logits; false leaves them out even in training. The logits of the classes do not depend on it in
                evaluation.
            position_noise (`torch.Tensor` of shape `[B, N]`, *optional*): the tokens with the smallest values lose
                their positions (`position_dropout`), or are the ones that the second pass sees (`"jigsaw"`).
            generator (`torch.Generator`, *optional*): source of that noise and of random anchors.
            kwargs: of the backbone (`interpolate_pos_encoding`, `output_hidden_states` ...).

        Raises:
            ValueError: for labels of the wrong shape or type, and for grids that the position head was not built for.
        """
        check_images(pixel_values, self.view.num_channels)
        with_positions = bool(self.config.labels) and (
            self.training if return_position is None else bool(return_position)
        )
        dropped = None
        if with_positions and self.config.position_dropout:
            check_dropout_grid(self.view.grid_of(*pixel_values.shape[-2:]), self.view.grid)
            noise = self._noise(pixel_values, position_noise, generator)
            dropped = random_rows(noise, self.config.position_dropout)
        tokens, pooled, outputs = self._run(pixel_values, dropped if self.training else None, kwargs)
        logits = self.classifier(pooled)
        classification_loss = None if labels is None else self._classification_loss(logits, labels.to(logits.device))
        loss, fields = classification_loss, {}
        if with_positions:
            grid = self.view.grid_of(*pixel_values.shape[-2:])
            options = {"counted": dropped, "return_logits": bool(return_position), "generator": generator}
            if self.config.scheme == "jigsaw":
                tokens, options["ids"] = self._second_pass(pixel_values, position_noise, generator, kwargs)
            elif dropped is not None and not self.training:  # an evaluated classifier sees all positions
                tokens = self._run(pixel_values, dropped, kwargs)[0]
            predictions = self.predict_positions(tokens, grid, **options)
            position_loss = self._position_loss(predictions, mean=loss is None)
            loss = position_loss if loss is None else loss + position_loss
            fields = self._position_fields(predictions)
        return PositionalLabelImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
            classification_loss=classification_loss,
            **fields,
        )

    def _run(self, pixel_values, dropped, kwargs):
        if dropped is None:
            return self.view.run(self.backbone, pixel_values, kwargs)

        def backbone(images, **given):
            return run_with_positions(self.backbone, "embeddings", dropped, images, **given)

        return self.view.run(self.backbone, pixel_values, kwargs, call=backbone)

    def _second_pass(self, pixel_values, noise, generator, kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of random patches that saw no positions, and their indices (JigsawViT, arXiv 2207.11971)."""
        noise = self._noise(pixel_values, noise, generator)
        ids = noise.argsort(dim=1)[:, : self._jigsaw_tokens(noise.shape[1])]

        def backbone(images, **given):
            with only_patches(self.backbone, ids, self.view.num_prefix_tokens):
                return run_with_positions(self.backbone, "embeddings", None, images, **given)

        return self.view.run(self.backbone, pixel_values, kwargs, call=backbone, all_patches=False)[0], ids

    def _jigsaw_tokens(self, cells: int) -> int:
        return max(1, round(self.config.jigsaw_ratio * cells))

    def _noise(self, pixel_values, noise, generator) -> torch.Tensor:
        rows, columns = self.view.grid_of(*pixel_values.shape[-2:])
        size = (len(pixel_values), rows * columns)
        if noise is None:
            return torch.rand(size, generator=generator, device=pixel_values.device, dtype=torch.float32)
        if tuple(noise.shape) != size:
            raise ValueError(f"position_noise must have shape {list(size)}, got {list(noise.shape)}")
        return noise.to(pixel_values.device)

    def _classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_label_shape(labels, logits)
        logits = at_least_float32(logits)
        if self.config.problem_type in ("regression", "multi_label_classification"):
            return self.loss_function(labels.to(logits.dtype), logits, self.config)
        return nn.functional.cross_entropy(logits, class_targets(labels, logits))


def encode(model: PositionalLabelPreTrainedModel, pixel_values: torch.Tensor | None, kwargs) -> Any:
    """The output of an encoder: tokens of the patches, and pooled."""
    check_images(pixel_values, model.view.num_channels)
    tokens, pooled, outputs = model.view.run(model.backbone, pixel_values, kwargs)
    return BaseModelOutputWithPooling(
        last_hidden_state=tokens,
        pooler_output=pooled,
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )


__all__ = ["PositionalLabelForImageClassification", "PositionalLabelModel", "PositionalLabelPreTrainedModel"]

# Saving writes these code files next to the weights, so that a folder or repository loads where hubmodels is missing.
PositionalLabelConfig.register_for_auto_class()
PositionalLabelModel.register_for_auto_class("AutoModel")
PositionalLabelForImageClassification.register_for_auto_class("AutoModelForImageClassification")
