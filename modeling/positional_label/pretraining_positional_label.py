"""Masked autoencoder that also tells where its visible patches come from.

The authors propose the combination; neither code nor figures of it are public. What is done here is our reading of the
paper: the labels of the visible patches are those of their place in the image.
"""

import copy
import inspect
from os import PathLike
from typing import Any

import torch
from transformers import AutoModelForPreTraining, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbones_positional_label import patch_grid
from .configuration_positional_label import AUTOENCODERS, PositionalLabelConfig
from .inputs_positional_label import check_images
from .labels_positional_label import Grid
from .modeling_positional_label import PositionalLabelPreTrainedModel
from .outputs_positional_label import PositionalLabelForPreTrainingOutput
from .schemes_positional_label import check_dropout_grid, check_position_table, random_rows, run_with_positions
from .stock_positional_label import backbone_of, new_heads, settings_of, stored_config, take_config, take_settings

_FIXED_TABLES = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
_TABLES_AND_TOKENS = (*_FIXED_TABLES, "vit.embeddings.cls_token", "decoder.mask_token")


class PositionalLabelForPreTraining(PositionalLabelPreTrainedModel):
    """
    Masked autoencoder with positional labels: the loss is that of the pixels plus `config.position_loss_weight` times
    that of the places of the visible patches.

    The autoencoder is any of model type `mae` or `vit_mae`, built by `AutoModelForPreTraining`; [`unwrap`] gives it
    back. Its tokens carry a position table, from which absolute labels can be read off: expect that loss to fall to
    nothing soon, unless `config.position_dropout` takes the table away from a share of the patches.

    Args:
        config (`PositionalLabelConfig`): configuration whose `backbone_config` is an autoencoder's.

    Raises:
        ValueError: for other backbones, for `pooling` and variants that only classifiers have, for a `mask_ratio` that
            leaves no visible patch, and for position dropout with masks that are not random.

    Example:

    ```python
    >>> config = PositionalLabelConfig(backbone_config=MAEConfig(image_size=32), position_label="relative")
    >>> PositionalLabelForPreTraining(config)(pixel_values).loss.backward()
    ```
    """

    base_model_prefix = "mae"
    # What `HubTrainer` logs beside the loss.
    logged_outputs = (
        "reconstruction_loss",
        "position_loss",
        "position_accuracy",
        "relative_position_loss",
        "relative_position_accuracy",
    )

    def __init__(self, config: PositionalLabelConfig, autoencoder: PreTrainedModel | None = None):
        """`autoencoder` is used in place of a new one of `config.backbone_config`."""
        super().__init__(config)
        inner = config.backbone_config
        if inner.model_type not in AUTOENCODERS:
            raise ValueError(
                f"backbone_config must be an autoencoder's, of model_type {AUTOENCODERS}, got {inner.model_type!r}; "
                "other networks go with PositionalLabelForImageClassification"
            )
        if config.pooling != "mean":
            raise ValueError(
                "pooling is what a classifier reads; for pre-training it must be the default 'mean', got "
                f"{config.pooling!r}"
            )
        if self._needs_noise and getattr(inner, "mask_sampling", "random") != "random":
            raise ValueError(
                "position_dropout and scheme 'jigsaw' need random masks, got backbone_config.mask_sampling "
                f"{inner.mask_sampling!r}"
            )
        self.mae = AutoModelForPreTraining.from_config(inner) if autoencoder is None else autoencoder
        signatures = (inspect.signature(part.forward) for part in (self.mae, self.mae.base_model))
        self.arguments = {name for names in signatures for name in names.parameters} - {"pixel_values", "kwargs"}
        if self._needs_noise:
            check_position_table(self.mae.base_model, "position_dropout or scheme 'jigsaw'")
        grid = patch_grid(inner, *config.image_height_width)
        visible = self._check_visible(grid)
        self._make_heads(inner.hidden_size, grid, visible, f" that mask_ratio {inner.mask_ratio} leaves")
        self.post_init()
        if inner.model_type == "vit_mae" and autoencoder is None:
            # transformers' initialisation of a whole model leaves both tables of positions at zero.
            patches = self.mae.base_model.embeddings.patch_embeddings
            patches.projection._is_hf_initialized = False
            self.mae.base_model.embeddings.initialize_weights()
            self.mae.decoder.initialize_weights(patches.num_patches)
        self._fix_tables()

    @property
    def _needs_noise(self) -> bool:
        return bool(self.config.position_dropout) or self.config.scheme == "jigsaw"

    def _fix_tables(self) -> None:
        for name in _FIXED_TABLES:
            self.mae.get_parameter(name).requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args, **kwargs):
        """
        As in transformers; also from an autoencoder (`mae` or `vit_mae`), which gets new position heads. Fields of the
        configuration are keyword arguments. The tables of positions stay fixed.

        Raises:
            ValueError: for checkpoints of other models.
        """
        source = pretrained_model_name_or_path
        kind = None if source is None else stored_config(source, kwargs)[0].get("model_type")
        if kind in AUTOENCODERS:
            given, settings = take_config(kwargs), take_settings(kwargs)
            want_info = kwargs.pop("output_loading_info", False)
            if given is not None:
                settings, kwargs["config"] = settings_of(given) | settings, backbone_of(given, kind)
            autoencoder, info = AutoModelForPreTraining.from_pretrained(
                source, *args, output_loading_info=True, **kwargs
            )
            model = cls.wrap(autoencoder, **settings).eval()
            model._fill_in({f"mae.{name}" for name in info["missing_keys"]})
            info["missing_keys"] = {*info["missing_keys"], *new_heads(model)}
            return (model, info) if want_info else model
        if kind not in (None, cls.config_class.model_type):
            raise ValueError(
                f"{source} must be an autoencoder, of model_type {AUTOENCODERS} (or {cls.config_class.model_type!r}), "
                f"got {kind!r}; other networks go with PositionalLabelForImageClassification"
            )
        want_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model._fix_tables()
        model._fill_in(info["missing_keys"])
        return (model, info) if want_info else model

    @torch.no_grad()
    def _fill_in(self, missing: set[str]) -> None:
        """Initialises tables and tokens of a `vit_mae` that a file lacks; transformers leaves them zero or unset."""
        names = [name for name in _TABLES_AND_TOKENS if f"mae.{name}" in missing]
        if names and self.config.backbone_config.model_type == "vit_mae":
            fresh = type(self)(copy.deepcopy(self.config)).mae
            for name in names:
                self.mae.get_parameter(name).copy_(fresh.get_parameter(name))

    @classmethod
    def wrap(cls, autoencoder: PreTrainedModel, **settings) -> "PositionalLabelForPreTraining":
        """
        Puts a position head on the encoder of an existing autoencoder, which both then share.

        Args:
            autoencoder: a `MAEForPreTraining` or `ViTMAEForPreTraining`.
            settings: fields of [`PositionalLabelConfig`].

        Raises:
            ValueError: for other models, and as [`PositionalLabelConfig`].
        """
        inner = copy.deepcopy(autoencoder.config)
        settings = {"attn_implementation": inner._attn_implementation} | settings
        config = PositionalLabelConfig(backbone_config=inner, **settings)
        model = cls(config, autoencoder=autoencoder)
        first = next(autoencoder.parameters())
        return model.to(device=first.device, dtype=first.dtype).train(autoencoder.training)

    def unwrap(self) -> PreTrainedModel:
        """The autoencoder without position heads; `save_pretrained` of it writes a checkpoint of its own kind."""
        return self.mae

    def encode(self, pixel_values: torch.Tensor | None, **kwargs) -> BaseModelOutputWithPooling:
        """
        Tokens of all patches in image order `[B, L, D]` and their mean `[B, D]`, without masking.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            kwargs: of the encoder (`output_hidden_states` ...); its hidden states have the class token.
        """
        check_images(pixel_values, self.config.backbone_config.num_channels)
        encoder, config = self.mae.base_model, self.mae.base_model.embeddings.config
        rows, columns = patch_grid(config, *pixel_values.shape[-2:])
        order = torch.arange(rows * columns, device=pixel_values.device)
        ratio, config.mask_ratio = config.mask_ratio, 0.0
        try:
            outputs = encoder(pixel_values, noise=order.expand(len(pixel_values), -1).float(), **kwargs)
        finally:
            config.mask_ratio = ratio
        tokens = outputs.last_hidden_state[:, 1:]
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(dim=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def no_weight_decay(self) -> set[str]:
        """Those of the autoencoder."""
        inner = getattr(self.mae, "no_weight_decay", set)()
        return {f"mae.{name}" for name in inner}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        position_noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
        return_position: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PositionalLabelForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            noise (`torch.Tensor` of shape `[B, L]`, *optional*): the patches with the smallest values are kept.
            position_noise (`torch.Tensor` of shape `[B, L]`, *optional*): of the kept patches those with the smallest
                values lose their positions (`position_dropout`).
            generator (`torch.Generator`, *optional*): source of both, and of random anchors.
            return_loss (`bool`): compute the losses, which is also done in evaluation.
            return_position (`bool`, *optional*): return the logits of the position heads.
            output_hidden_states (`bool` or indices, *optional*): also return the hidden states of the encoder.
            kwargs: of the autoencoder (`interpolate_pos_encoding` ..., of a `mae` also `mask_ratio` and
                `bool_masked_pos`), but `labels` is ignored.

        Raises:
            ValueError: for noise of the wrong shape, grids that the position head was not built for, masks that leave
                no patch or hide none, and arguments that the autoencoder does not know.
        """
        check_images(pixel_values, self.config.backbone_config.num_channels)
        kwargs.pop("labels", None)
        self._check_arguments(kwargs)
        if self._needs_noise and kwargs.get("bool_masked_pos") is not None:
            raise ValueError(
                "bool_masked_pos does not go with position_dropout and scheme 'jigsaw'; give noise instead"
            )
        grid = patch_grid(self.config.backbone_config, *pixel_values.shape[-2:])
        if "mask_ratio" not in self.arguments:  # a `mae` checks its own
            self._check_masked(grid, return_loss)
        self._check_noise("noise", noise, pixel_values, grid)
        if noise is None and generator is not None and "generator" in self.arguments and not self._needs_noise:
            kwargs["generator"] = generator  # a `mae` samples its masks, which need not be random, itself
        elif noise is None and (generator is not None or self._needs_noise):
            noise = self._draw(pixel_values, grid, generator)
        dropped, counted = None, None
        if self.config.position_dropout:
            check_dropout_grid(grid, patch_grid(self.config.backbone_config, *self.config.image_height_width))
            dropped, counted = self._dropped(noise, position_noise, pixel_values, grid, generator, kwargs)
        if kwargs.get("output_attentions") is None and self.config.output_attentions:
            kwargs["output_attentions"] = True
        reconstructs = {"return_loss": return_loss} if "return_loss" in self.arguments else {}
        outputs = self._autoencode(
            pixel_values, dropped, noise=noise, output_hidden_states=True, **reconstructs, **kwargs
        )
        tokens = self._tokens(outputs)
        ids_keep = outputs.ids_restore.argsort(dim=1)[:, : tokens.shape[1]]
        loss, fields = None, {}
        if return_loss:
            loss = outputs.loss
            if self.config.labels:
                if self.config.scheme == "jigsaw":
                    tokens = self._second_pass(pixel_values, noise, kwargs)
                predictions = self.predict_positions(tokens, grid, ids_keep, counted, bool(return_position), generator)
                loss, fields = loss + self._position_loss(predictions), self._position_fields(predictions)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return PositionalLabelForPreTrainingOutput(
            loss=loss,
            logits=outputs.logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            ids_keep=ids_keep,
            hidden_states=_selected(outputs.hidden_states, output_hidden_states),
            attentions=outputs.attentions,
            reconstruction_loss=outputs.loss if return_loss else None,
            **fields,
        )

    def _check_arguments(self, kwargs: dict[str, Any]) -> None:
        """Refuses what the autoencoder, which takes any name, would ignore."""
        known = self.arguments | {*TransformersKwargs.__annotations__}
        unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in known)
        if unknown:
            inner = self.config.backbone_config
            only = "" if "mask_ratio" in self.arguments else f"; its mask_ratio is {inner.mask_ratio} in every pass"
            raise ValueError(
                f"arguments of the autoencoder, a {inner.model_type}, must be among {sorted(self.arguments)}, got "
                f"{unknown}{only}"
            )

    def _check_visible(self, grid: Grid) -> int:
        """The number of patches that the configured masks leave of a grid."""
        cells, ratio = grid[0] * grid[1], self.config.backbone_config.mask_ratio
        visible = int(cells * (1 - ratio))
        if not visible:
            raise ValueError(f"mask_ratio {ratio} leaves no visible patch out of {cells}")
        return visible

    def _check_masked(self, grid: Grid, return_loss: bool) -> None:
        """Refuses grids of which the configured masks leave none or, for a loss, all."""
        if self._check_visible(grid) == grid[0] * grid[1] and return_loss:
            raise ValueError(
                f"the loss needs masked patches, got mask_ratio {self.config.backbone_config.mask_ratio}; pass "
                "return_loss=False to only reconstruct"
            )

    def _autoencode(self, pixel_values, dropped, **kwargs):
        if dropped is None:
            return self.mae(pixel_values, **kwargs)
        return run_with_positions(self.mae, "vit.embeddings", dropped, pixel_values, **kwargs)

    def _tokens(self, outputs) -> torch.Tensor:
        """Visible patches `[B, K, D]` after the final norm, which hidden states come before."""
        return self.mae.base_model.layernorm(outputs.hidden_states[-1])[:, 1:]

    def _second_pass(self, pixel_values, noise, kwargs) -> torch.Tensor:
        """Tokens of the visible patches that saw no positions."""
        outputs = run_with_positions(self.mae.base_model, "embeddings", None, pixel_values, noise=noise, **kwargs)
        return outputs.last_hidden_state[:, 1:]

    def _draw(self, pixel_values, grid, generator) -> torch.Tensor:
        size = (len(pixel_values), grid[0] * grid[1])
        return torch.rand(size, generator=generator, device=pixel_values.device, dtype=torch.float32)

    def _check_noise(self, name, noise, pixel_values, grid) -> None:
        size = [len(pixel_values), grid[0] * grid[1]]
        if noise is not None and list(noise.shape) != size:
            raise ValueError(f"{name} must have shape {size}, got {list(noise.shape)}")

    def _dropped(self, noise, position_noise, pixel_values, grid, generator, kwargs):
        """Patches `[B, L]` that lose their positions, and the same mark for the kept ones `[B, K]`."""
        if position_noise is None:
            position_noise = self._draw(pixel_values, grid, generator)
        self._check_noise("position_noise", position_noise, pixel_values, grid)
        ratio = kwargs.get("mask_ratio")
        ratio = self.config.backbone_config.mask_ratio if ratio is None else ratio
        ids_keep = noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - ratio))]
        counted = random_rows(position_noise.to(noise.device).gather(1, ids_keep), self.config.position_dropout)
        return torch.zeros_like(noise, dtype=torch.bool).scatter(1, ids_keep, counted), counted


def _selected(states: tuple[torch.Tensor, ...], wanted: bool | int | list[int]) -> tuple | None:
    """All states, none, or (as transformers has it) `None` in place of those that are not asked for."""
    if isinstance(wanted, bool):
        return states if wanted else None
    kept = {index % len(states) for index in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(state if index in kept else None for index, state in enumerate(states))


__all__ = ["PositionalLabelForPreTraining"]

PositionalLabelForPreTraining.register_for_auto_class("AutoModelForPreTraining")
