"""MAE models (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_mae import MAEAttention
from .class_labels_mae import check_label_shape, class_targets
from .configuration_mae import MAEConfig
from .inputs_mae import check_images
from .layers_mae import (
    MAEDecoder,
    MAEEmbeddings,
    MAELayer,
    evaluation_mode,
    gather_patches,
    split_into_patches,
)
from .legacy_mae import register_legacy_layouts
from .masking_mae import PatchMask, sample_mask
from .outputs_mae import MAEForPreTrainingOutput, MAEModelOutput, MAEReconstructionOutput
from .precision_mae import at_least_float32
from .resizing_mae import load_at_stored_size, resize_tables

register_legacy_layouts()


class MAEPreTrainedModel(ViTMAEPreTrainedModel):
    """Base of the MAE models: initialisation of the official code, parameter groups, loading of both Hub layouts."""

    config_class = MAEConfig
    config: MAEConfig
    _no_split_modules = ["MAEEmbeddings", "MAELayer", "MAEDecoder"]
    _can_record_outputs = {"hidden_states": MAELayer, "attentions": MAEAttention}
    _trainable_positions = False
    # Losses are means over the batch: `Trainer` must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers; afterwards the sin-cos tables are fixed again, which loading in transformers 5 undoes, and a
        model that was stored at another image size than asked for is resized ([`resize_position_embeddings`]).
        """
        kwargs, image_size = load_at_stored_size(pretrained_model_name_or_path, kwargs)
        with_report, kwargs["output_loading_info"] = kwargs.get("output_loading_info", False), True
        model, report = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model._set_trainable_positions()
        if image_size is not None:
            model.resize_position_embeddings(image_size)
        if isinstance(model, MAEForPreTraining):
            model.decoder.note_new_weights(report)
        return (model, report) if with_report else model

    def _set_trainable_positions(self):
        for module in self.modules():
            if isinstance(module, MAEEmbeddings):
                module.position_embeddings.requires_grad_(self._trainable_positions)
            elif isinstance(module, MAEDecoder):
                module.decoder_pos_embed.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MAEAttention):
            # The official query, key and value are one [3A, D] matrix: its xavier bound is sqrt(6 / (D + 3A)).
            width, inner = module.q_proj.in_features, module.q_proj.out_features
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.xavier_uniform_(projection.weight, gain=((width + inner) / (width + 3 * inner)) ** 0.5)
        elif isinstance(module, (MAEEmbeddings, MAEDecoder)):
            module.initialize_weights()
        elif isinstance(module, MAEForImageClassification):
            init.trunc_normal_(module.classifier.weight, std=self.config.classifier_init_std)
        elif isinstance(module, nn.Conv2d):  # the patch projection: xavier as a matrix, torch's own bias
            fan_in = module.weight[0].numel()
            bound = (6 / (fan_in + module.out_channels)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # transformers takes modules without parameters of their own for initialised in models outside of it, because
        # such code might overwrite loaded weights; `_init_weights` does not: the functions of `init` leave them alone.
        super()._initialize_weights(module, is_custom_code=False)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Groups of parameters from input to output, in timm's convention, for layer-wise learning rate decay."""
        return {
            "stem": r"^(?:vit\.)?embeddings\.",
            "blocks": [(r"^(?:vit\.)?layers\.(\d+)", None)],
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one dimension that fine-tuning does not decay (official `no_weight_decay`)."""
        prefix = "" if isinstance(self, MAEModel) else "vit."
        return {f"{prefix}embeddings.cls_token", f"{prefix}embeddings.position_embeddings"}

    def resize_position_embeddings(self, image_size: int | tuple[int, int]) -> None:
        """
        Changes the image size of the model: encoder table bicubically (official fine-tuning at another resolution),
        tables of a pre-training model rebuilt (they are not learnt). `config.image_size` follows.

        Args:
            image_size (`int` or pair): new size in pixels, divisible by the patch size.

        Raises:
            ValueError: if the patch size does not divide it.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"image_size {height}x{width} is not divisible by patch size {patch}")
        resize_tables(self, self.config.grid_size, (height, width))
        self.config.image_size = image_size if isinstance(image_size, int) else (height, width)

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection."""
        return self._embeddings().patch_embeddings

    def get_position_embeddings(self) -> nn.Parameter:
        """Encoder position table `[1, 1 + L, D]`."""
        return self._embeddings().position_embeddings

    def _embeddings(self) -> MAEEmbeddings:
        return next(module for module in self.modules() if isinstance(module, MAEEmbeddings))

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images `[B, C, H, W]`."""
        height, width = pixel_values.shape[-2:]
        return height // self.config.patch_size, width // self.config.patch_size

    def _feature_map(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, 1 + L, D]` as a map `[B, D, rows, columns]`, without the class token."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self._grid(pixel_values)).contiguous()


class MAEModel(MAEPreTrainedModel):
    """
    MAE encoder: a ViT that sees the kept patches only (paper, section 3 "MAE encoder").

    Args:
        config (`MAEConfig`): configuration.
        add_final_norm (`bool`): whether the final LayerNorm exists; the mean-pooled classifier has none.

    Example:

    ```python
    >>> features = model(pixel_values, mask_ratio=0).last_hidden_state  # all patches in natural order, no masking
    ```
    """

    # The encoder of a pre-training model or classifier is loaded without what comes after it.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^fc_norm\.", r"^classifier\.", r"^probe_norm\."]

    def __init__(self, config: MAEConfig, add_final_norm: bool = True):
        super().__init__(config)
        self.embeddings = MAEEmbeddings(config)
        last = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([MAELayer(config, rate) for rate in rates])
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm = norm if add_final_norm else nn.Identity()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool | None = None,
        drop_path_uniform: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            noise (`torch.Tensor` of shape `[B, L]`, *optional*): the patches with the smallest noise are kept.
            bool_masked_pos (`torch.Tensor` of shape `[B, L]`, *optional*): true where removed; equal counts per image.
            mask_ratio (`float`, *optional*): share of removed patches, `config.mask_ratio` by default; 0 switches
                masking off and returns all patches in natural order.
            generator (`torch.Generator`, *optional*): source of the masking noise.
            interpolate_pos_encoding (`bool`, *optional*): accept image sizes other than the configured one.
            drop_path_uniform (`torch.Tensor` of shape `[layers, 2, B]`, *optional*): stochastic-depth draws.

        Raises:
            ValueError: for images that do not fit the configuration and for masks that leave nothing or differ in
            count.
        """
        self.embeddings.check_pixel_values(pixel_values, bool(interpolate_pos_encoding))
        if mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
        mask = None
        if mask_ratio > 0 or bool_masked_pos is not None:
            mask = sample_mask(
                pixel_values.shape[0],
                self._grid(pixel_values),
                mask_ratio,
                self.config.mask_sampling,
                noise=noise,
                bool_masked_pos=bool_masked_pos,
                generator=generator,
                device=pixel_values.device,
            )
        hidden_states = self.embeddings(pixel_values, mask)
        for index, layer in enumerate(self.layers):
            uniform = None if drop_path_uniform is None else drop_path_uniform[index]
            hidden_states = layer(hidden_states, drop_path_uniform=uniform, **kwargs)
        parts = {} if mask is None else mask._asdict()
        return MAEModelOutput(last_hidden_state=self.layernorm(hidden_states), **parts)


class MAEForPreTraining(MAEPreTrainedModel):
    """
    MAE for pre-training: encoder of the kept patches, decoder of all of them, pixel loss on the removed ones.

    Args:
        config (`MAEConfig`): configuration.

    Example:

    ```python
    >>> output = model(pixel_values)  # masks config.mask_ratio of the patches at random
    >>> output.loss.backward()
    >>> pictures = model.reconstruct(pixel_values)
    ```
    """

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.vit = MAEModel(config)
        self.vit.embeddings.fixed_positions = True
        self.decoder = MAEDecoder(config, num_patches=self.vit.embeddings.patch_embeddings.num_patches)
        self.post_init()

    def no_weight_decay(self) -> set[str]:
        """Nothing but vectors is exempt in pre-training: class and mask token are decayed (official code)."""
        return set()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_loss: bool = True,
        return_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            noise, bool_masked_pos, mask_ratio, generator, interpolate_pos_encoding: see [`MAEModel.forward`].
            return_loss (`bool`): compute the loss; true by default, so that `Trainer` reports an evaluation loss.
            return_logits (`bool`, *optional*): predict every patch. By default in evaluation only; in training the
                decoder then skips what the loss does not read, with the same loss and gradients.
            kwargs: passed to the encoder, but `labels` is ignored, so that labelled batches can be used. (It is no
                named argument, because `Trainer` would then report an evaluation loss for labelled batches only.)

        Raises:
            ValueError: for a loss with nothing masked, and as [`MAEModel.forward`].
        """
        kwargs.pop("labels", None)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.vit(
            pixel_values,
            noise=noise,
            bool_masked_pos=bool_masked_pos,
            mask_ratio=mask_ratio,
            generator=generator,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        mask = self._patch_mask(outputs, pixel_values)
        if return_loss and not mask.ids_masked.shape[1]:
            given = f"mask_ratio {self.config.mask_ratio if mask_ratio is None else mask_ratio}"
            if bool_masked_pos is not None:
                given = "a bool_masked_pos that masks none"
            raise ValueError(f"the loss needs masked patches, got {given}; pass return_loss=False to only reconstruct")
        if return_logits is None:
            return_logits = not (self.training and return_loss)
        patches = split_into_patches(pixel_values, self.config.patch_size)
        predictions, decoder_hidden_states = self.decoder(
            outputs.last_hidden_state, mask, patches.shape[1:3], not return_logits, bool(output_hidden_states)
        )
        return MAEForPreTrainingOutput(
            loss=self._loss(predictions, patches, mask, not return_logits) if return_loss else None,
            logits=predictions if return_logits else None,
            mask=mask.mask,
            ids_restore=mask.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            decoder_hidden_states=decoder_hidden_states,
        )

    def _patch_mask(self, outputs: MAEModelOutput, pixel_values: torch.Tensor) -> PatchMask:
        if outputs.mask is not None:
            return PatchMask(outputs.ids_keep, outputs.ids_masked, outputs.ids_restore, outputs.mask)
        length = outputs.last_hidden_state.shape[1] - 1
        ids = torch.arange(length, device=pixel_values.device).expand(pixel_values.shape[0], -1)
        return PatchMask(ids, ids[:, :0], ids, torch.zeros(ids.shape, device=ids.device))

    def _loss(self, predictions, patches, mask, masked_only) -> torch.Tensor:
        """Mean squared error over the removed patches, in float32 if the model's dtype is lower (paper, section 3)."""
        predictions = at_least_float32(predictions)
        if masked_only:
            target = self._target(gather_patches(patches, mask.ids_masked).flatten(2))
            return nn.functional.mse_loss(predictions, target)
        target = self._target(patches.flatten(3).flatten(1, 2))
        per_patch = (predictions - target).square().mean(dim=-1)
        return (per_patch * mask.mask).sum() / mask.mask.sum()

    @torch.no_grad()
    def _target(self, patches: torch.Tensor) -> torch.Tensor:
        """Pixels, or with `norm_pix_loss` pixels normalised by the (unbiased) statistics of their own patch."""
        patches = at_least_float32(patches)
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        return patches

    def patchify(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """
        Cuts images `[B, C, H, W]` into patches `[B, L, p * p * C]`, pixels in the order (row, column, channel).

        Raises:
            ValueError: if the channels or the size do not fit the configuration.
        """
        self.vit.embeddings.check_pixel_values(pixel_values, True)
        return split_into_patches(pixel_values, self.config.patch_size).flatten(3).flatten(1, 2)

    def unpatchify(
        self, patchified_pixel_values: torch.Tensor, original_image_size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """
        The inverse of [`patchify`]: `[B, L, p * p * C]` to `[B, C, H, W]`.

        Args:
            patchified_pixel_values (`torch.Tensor`): patches.
            original_image_size (`tuple[int, int]`, *optional*): height and width in pixels, the configured ones by
                default.

        Raises:
            ValueError: if the number of patches is not that of the size.
        """
        patch, channels = self.config.patch_size, self.config.num_channels
        height, width = original_image_size or self.config.image_height_width
        rows, columns = height // patch, width // patch
        if rows * columns != patchified_pixel_values.shape[1]:
            raise ValueError(
                f"{patchified_pixel_values.shape[1]} patches do not make an image of {rows}x{columns} patches"
            )
        patches = patchified_pixel_values.reshape(-1, rows, columns, patch, patch, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)

    @torch.no_grad()
    def reconstruct(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        generator: torch.Generator | None = None,
        denormalise: bool | None = None,
    ) -> MAEReconstructionOutput:
        """
        Masks images and reconstructs them (official demo). The model is run in evaluation mode.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images, of any size the patches divide.
            noise, bool_masked_pos, mask_ratio, generator: see [`MAEModel.forward`].
            denormalise (`bool`, *optional*): undo the per-patch normalisation of a `norm_pix_loss` model, which
                predicts
                patches of mean 0 and variance 1: the mean and deviation of the *true* patches are put back, so these
                pictures use the ground truth. Default: `config.norm_pix_loss`.

        Raises:
            ValueError: if `pixel_values` holds a value that is not finite, if weights of the decoder were not among the
                loaded ones and not trained since, and as [`MAEModel.forward`].
        """
        check_images(pixel_values, self.config.num_channels)
        self.decoder.check_weights()
        if not torch.isfinite(pixel_values).all():
            raise ValueError("pixel_values must be finite, got NaN or infinity")
        with evaluation_mode(self):
            output = self(
                pixel_values,
                noise=noise,
                bool_masked_pos=bool_masked_pos,
                mask_ratio=mask_ratio,
                generator=generator,
                interpolate_pos_encoding=True,
                return_loss=False,
            )
        target, predictions = at_least_float32(self.patchify(pixel_values)), at_least_float32(output.logits)
        if self.config.norm_pix_loss if denormalise is None else denormalise:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            predictions = predictions * (variance + 1e-6).sqrt() + mean
        size = tuple(pixel_values.shape[-2:])
        mask_image = self.unpatchify(output.mask[..., None].expand_as(target), size)
        reconstruction = self.unpatchify(predictions, size)
        return MAEReconstructionOutput(
            mask_image=mask_image,
            masked=pixel_values * (1 - mask_image),
            reconstruction=reconstruction,
            pasted=pixel_values * (1 - mask_image) + reconstruction * mask_image,
            error=(predictions - target).square().mean(dim=-1).unflatten(1, self._grid(pixel_values)),
        )


class MAEForImageClassification(MAEPreTrainedModel):
    """
    MAE encoder with a classifier: fine-tuning, partial fine-tuning and the linear probe.

    With `config.pooling = "mean"` the patch tokens of the last layer are averaged without the final norm and pass
    `fc_norm`; with `"cls"` the class token after the final norm is read. The position table is trainable here, as in
    the official fine-tuning. `config.probe_batch_norm` adds the BatchNorm without affine parameters of the linear
    probe.

    Args:
        config (`MAEConfig`): configuration with `num_labels`.

    Example:

    ```python
    >>> model = MAEForImageClassification.from_pretrained("path/to/pretrained", num_labels=10)
    >>> model(pixel_values, labels=labels).loss.backward()
    ```
    """

    # A mean-pooled classifier has no final norm and no decoder: loading a pre-trained model leaves these out.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^(vit\.)?layernorm\."]
    _trainable_positions = True

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        mean_pooling = config.pooling == "mean"
        self.vit = MAEModel(config, add_final_norm=not mean_pooling)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if mean_pooling else nn.Identity()
        probe_norm = nn.BatchNorm1d(config.hidden_size, affine=False, eps=1e-6)
        self.probe_norm = probe_norm if config.probe_batch_norm else nn.Identity()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._set_trainable_positions()
        self.post_init()

    def freeze_encoder(self) -> None:
        """Freezes all but the classifier (linear probe); the encoder then runs without autograd."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)

    def freeze_all_but_last_blocks(self, num_blocks: int) -> None:
        """
        Trains only the last layers, the norms after them and the classifier (paper, section 4.3 "Partial fine-tuning").

        Args:
            num_blocks (`int`): how many encoder layers stay trainable, 0 to all of them.

        Raises:
            ValueError: if there are not as many layers.
        """
        if not 0 <= num_blocks <= len(self.vit.layers):
            raise ValueError(f"num_blocks must be in [0, {len(self.vit.layers)}], got {num_blocks}")
        self.requires_grad_(False)
        for module in (*self.vit.layers[len(self.vit.layers) - num_blocks :], self.fc_norm, self.classifier):
            module.requires_grad_(True)
        self.vit.layernorm.requires_grad_(True)

    def features(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, MAEModelOutput]:
        """What the classifier reads, `[B, D]`, and the output of the encoder; arguments as [`MAEModel.forward`]."""
        check_images(pixel_values, self.config.num_channels)
        trainable = any(p.requires_grad for p in self.vit.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and (trainable or pixel_values.requires_grad)):
            outputs = self.vit(pixel_values, mask_ratio=0.0, **kwargs)
        tokens = outputs.last_hidden_state
        pooled = tokens[:, 1:].mean(dim=1) if self.config.pooling == "mean" else tokens[:, 0]
        return self.probe_norm(self.fc_norm(pooled)), outputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        drop_path_uniform: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            labels (`torch.Tensor`, *optional*): classes `[B]` (integers) or, after mixing, target distributions
                `[B, num_labels]` (floats; the loss is `-sum(t * log_softmax)`). With `config.problem_type` set to
                `"regression"` or `"multi_label_classification"` transformers' losses for these are used instead.
            interpolate_pos_encoding (`bool`, *optional*): accept image sizes other than the configured one.
            drop_path_uniform (`torch.Tensor` of shape `[layers, 2, B]`, *optional*): stochastic-depth draws in [0, 1).

        Raises:
            ValueError: for labels of a wrong shape, type or class, and as [`MAEModel.forward`].
        """
        pooled, outputs = self.features(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            drop_path_uniform=drop_path_uniform,
            **kwargs,
        )
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels.to(logits.device))
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits, labels):
        check_label_shape(labels, logits)
        if self.config.problem_type in ("regression", "multi_label_classification"):
            return self.loss_function(labels.float(), logits.float(), self.config)
        logits = at_least_float32(logits)
        return nn.functional.cross_entropy(logits, class_targets(labels, logits))


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """
    MAE encoder as a transformers backbone: feature maps `[B, D, H / p, W / p]` of any layer, any input size, no
    masking.

    Stages are `stem` (the embeddings) and `stage1 ... stageN` (the layers). The maps are raw layer outputs, or pass the
    final norm with `config.apply_layernorm`; [`MAEFeaturePyramid`] makes four scales of them for detectors.

    Args:
        config (`MAEConfig`): configuration with `out_features` or `out_indices`.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^(vit\.)?layernorm\.", r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vit = MAEModel(config, add_final_norm=config.apply_layernorm)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images of any size the patch size divides.

        Returns:
            One feature map `[B, D, H / p, W / p]` per entry of `out_features`.
        """
        outputs = self.vit(pixel_values, **kwargs | {"mask_ratio": 0.0, "interpolate_pos_encoding": True})
        feature_maps = tuple(
            self._feature_map(self.vit.layernorm(states), pixel_values)
            for stage, states in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["MAEBackbone", "MAEForImageClassification", "MAEForPreTraining", "MAEModel", "MAEPreTrainedModel"]

# Saving writes these code files next to the weights, so that a folder or repository loads where hubmodels is missing.
MAEConfig.register_for_auto_class()
MAEModel.register_for_auto_class("AutoModel")
MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
MAEForImageClassification.register_for_auto_class("AutoModelForImageClassification")
MAEBackbone.register_for_auto_class("AutoBackbone")
