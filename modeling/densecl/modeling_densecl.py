"""DenseCL models (Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR 2021)."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_densecl import DenseCLConfig
from .encoder_densecl import DenseCLEncoder, DenseCLEncoding, build_backbone, pool_to_grid
from .inputs_densecl import check_images
from .loaded_shapes_densecl import check_shapes
from .loading_densecl import check_backbone, check_queue_pointers, check_queue_shapes
from .losses_densecl import info_nce
from .matching_densecl import (
    check_boxes,
    check_matches,
    distinct_matches,
    match_accuracy,
    match_by_geometry,
    match_by_similarity,
    normalize_positions,
)
from .outputs_densecl import DenseCLForPreTrainingOutput, DenseCLModelOutput
from .precision_densecl import at_least_float32
from .queue_densecl import QUEUES, DenseCLQueues, StepDetector, update_momentum_encoder
from .resnet_densecl import DenseCLResidualLayer, DenseCLResNet
from .saving_densecl import DenseCLTrainingState
from .shuffle_densecl import BatchShuffle, check_equal_batches, check_permutation, world_size

logger = logging.get_logger(__name__)

QUEUE_CHECK_INTERVAL = 100
TRAINING_STATE = [r"^momentum_encoder\.", r"^queue2?(_ptr)?$", r"^steps$"]
HEADS = [r"^encoder\.(global|dense)_head\."]


class DenseCLPreTrainedModel(PreTrainedModel):
    """Base of the DenseCL models: initialisation of the official code, and loading that misses no backbone weight."""

    config_class = DenseCLConfig
    config: DenseCLConfig
    base_model_prefix = "densecl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Of a `backbone_config`'s model, which refuses what it has not.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["DenseCLResidualLayer", "DenseCLStem"]
    # Losses are means over the batch: `Trainer` must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path=None,
        *model_args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """
        As in transformers, and strict about the backbone.

        Raises:
            RuntimeError: for weights of other shapes than the configuration says, as in transformers;
                `ignore_mismatched_sizes=True` starts these anew.
            ValueError: for a file without weights of the ResNet or with a ResNet of another depth, and for queues and
                pointers of another shape or type or pointers outside of their queue.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if not ignore_mismatched_sizes:
            check_queue_shapes(info["mismatched_keys"], pretrained_model_name_or_path)
            check_shapes(info["mismatched_keys"], pretrained_model_name_or_path)
        if pretrained_model_name_or_path is not None and model.config.backbone_config is None:
            check_backbone(model.config, info, pretrained_model_name_or_path)
        model._complete_loading({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        return (model, info) if output_loading_info else model

    def _complete_loading(self, missing: set[str]) -> None:
        # Loading in transformers 5 makes every parameter trainable.
        for module in self.modules():
            if isinstance(module, DenseCLResNet):
                module.freeze()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and module.bias is None:  # of the backbone
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d):  # of the dense head: the official initialiser leaves torch's default
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, DenseCLResidualLayer) and self.config.zero_init_residual:
            init.zeros_(module.layer[-1].normalization.weight)

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # transformers takes modules without parameters of their own for initialised in models outside of it, because
        # such code might overwrite loaded weights; `_init_weights` does not: the functions of `init` leave them alone.
        super()._initialize_weights(module, is_custom_code=False)

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution of the ResNet, or the input embedding of another backbone."""
        backbone = self.encoder.backbone
        if isinstance(backbone, DenseCLResNet):
            return backbone.embedder.embedder.convolution
        return backbone.get_input_embeddings()

    def encode(
        self,
        pixel_values: torch.Tensor | None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Features without the heads, in training as in evaluation.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images of any size.
            output_hidden_states (`bool`, *optional*): also return the maps of all stages.
            kwargs: of another backbone (`interpolate_pos_encoding` ...).

        Returns:
            `last_hidden_state`, the last map of the backbone `[B, C', h, w]`, and its mean `pooler_output` `[B, C']`.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.encoder.run_backbone(pixel_values, output_hidden_states=output_hidden_states, **kwargs)
        last = outputs.feature_maps[-1]
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(2, 3)),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


class DenseCLModel(DenseCLPreTrainedModel):
    """
    DenseCL encoder: backbone, global head and dense head (paper, section 3.2).

    Args:
        config (`DenseCLConfig`): configuration.

    Example:

    ```python
    >>> output = model(pixel_values)
    >>> output.last_hidden_state, output.global_embedding, output.dense_embedding
    ```
    """

    _keys_to_ignore_on_load_unexpected = TRAINING_STATE

    def __init__(self, config: DenseCLConfig):
        super().__init__(config)
        self.encoder = DenseCLEncoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DenseCLModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images of any size.
            output_hidden_states (`bool`, *optional*): also return the maps of all stages.
            kwargs: of another backbone (`interpolate_pos_encoding`, `output_attentions` ...).

        Raises:
            ValueError: as [`DenseCLEncoder.forward`].
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoding = self.encoder(pixel_values, output_hidden_states=output_hidden_states, **kwargs)
        return DenseCLModelOutput(
            last_hidden_state=encoding.feature_map,
            pooler_output=encoding.feature_map.mean(dim=(2, 3)),
            global_embedding=encoding.global_embedding,
            dense_embedding=encoding.dense_embedding.flatten(2),
            pooled_dense_embedding=encoding.dense_embedding.mean(dim=(2, 3)),
            hidden_states=encoding.hidden_states if output_hidden_states else None,
            attentions=encoding.attentions,
        )


class DenseCLForPreTraining(DenseCLQueues, DenseCLTrainingState, DenseCLPreTrainedModel):
    """
    DenseCL for pre-training: encoder, momentum encoder, two queues and the two contrastive losses.

    A forward in training mode does all of a step but the optimiser's part: it moves the momentum encoder, computes the
    loss and replaces the oldest keys of the queues. In evaluation mode it changes nothing. Expect the loss to *rise* in
    the beginning: random keys are easy negatives, and they are replaced by real ones during the first
    `queue_length / batch` steps. With few images choose `queue_length` of at most half their number, otherwise most
    negatives are other views of images that are in the batch.

    - **Several processes** (DDP): the keys are shuffled between the processes, the queues are equal on all of them.
      Batches must be equally large. No buffer is broadcast, as it must be (the model tells DDP so itself; with other
      wrappers set `ddp_broadcast_buffers=False`): statistics differ between the processes, and rank 0's are saved.
    - **Gradient accumulation**: the momentum encoder moves once per optimiser step; keys are enqueued at every forward.
      The first forward of a step is recognised by changed weights or absent gradients (`update_momentum` overrides).
    - **Saving**: `save_pretrained` writes all of the state, for an exact continuation, or without it the encoder only.
      A file of the encoder or backbone only is loaded with new heads, a momentum encoder that is a copy, and fresh
      queues; a warning says which.

    Args:
        config (`DenseCLConfig`): configuration.

    Example:

    ```python
    >>> output = model(pixel_values)  # [B, 2, 3, H, W]: query and key view
    >>> output.loss.backward()
    >>> model.save_pretrained("encoder", include_training_state=False)
    ```
    """

    _keep_in_fp32_modules_strict = ["queue$", "queue2$"]
    # Scalars of the output that tell how training goes, for a trainer that logs them.
    logged_outputs = ("loss_global", "loss_dense", "accuracy_global", "accuracy_dense", "match_targets")

    def __init__(self, config: DenseCLConfig):
        super().__init__(config)
        self.encoder = DenseCLEncoder(config)
        self.momentum_encoder = DenseCLEncoder(config)
        self.add_queues(config.projection_size, config.queue_length)
        if config.loss_lambda_warmup_steps:
            self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        self.post_init()
        self._copy_encoder()
        # Read by DistributedDataParallel: it must broadcast neither the queues nor the statistics of a process.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._step_detector = StepDetector()
        self._forwards = 0

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            self.initialize_queues()
            if self.config.loss_lambda_warmup_steps:
                init.zeros_(self.steps)

    @torch.no_grad()
    def _copy_encoder(self) -> None:
        for key, query in zip(
            (*self.momentum_encoder.parameters(), *self.momentum_encoder.buffers()),
            (*self.encoder.parameters(), *self.encoder.buffers()),
            strict=True,
        ):
            key.copy_(query)
        self.momentum_encoder.requires_grad_(False)

    def _complete_loading(self, missing: set[str]) -> None:
        super()._complete_loading(missing)
        self.momentum_encoder.requires_grad_(False)
        changes = []
        if any("_head." in name and name.startswith("encoder.") for name in missing):
            changes.append("the projection heads start at random")
        if any(name.startswith("momentum_encoder.") for name in missing):
            self._copy_encoder()
            changes.append("the momentum encoder is a copy of the encoder")
        for name in QUEUES:
            if name in missing:
                getattr(self, f"{name}_ptr").zero_()
                changes.append(f"{name} starts with random keys")
            elif f"{name}_ptr" in missing:
                changes.append(f"{name}_ptr starts at 0")
        check_queue_pointers(dict(self.named_buffers(recurse=False)), self.config.queue_length)
        if changes:
            logger.warning(f"No complete training state was loaded: {'; '.join(changes)}.")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        shuffle_index: torch.Tensor | None = None,
        match_index: torch.Tensor | None = None,
        crop_boxes: torch.Tensor | None = None,
        flips: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        update_momentum: bool | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DenseCLForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, 2, C, H, W]`): two views of every image, query and key.
            shuffle_index (`torch.Tensor` of shape `[R * B]`, *optional*):
                Permutation of the images of all R processes for shuffling batch normalisation, the same on each; by
                default rank 0 draws it. One process does not shuffle.
            match_index (`torch.Tensor` of shape `[B, L]`, *optional*): key cells to use in place of `config.matching`.
            crop_boxes (`torch.Tensor` of shape `[B, 2, 4]`, *optional*):
                `(top, left, height, width)` of the views in their image, for `matching="geometry"` and
                `match_accuracy`.
            flips (`torch.Tensor` of shape `[B, 2]`, *optional*): whether a view is mirrored; by default none is.
            generator (`torch.Generator`, *optional*): source of `matching="random"`.
            update_momentum (`bool`, *optional*):
                In training, whether this forward begins an optimiser step; recognised by default.
            return_loss (`bool`): return `loss`; true by default, so that `Trainer` reports an evaluation loss.
            output_hidden_states (`bool`, *optional*): also return the maps of all stages of the query.
            kwargs: of another backbone (`interpolate_pos_encoding`, `output_attentions` ...).

        Raises:
            ValueError: for pixel values of another shape; a batch that does not divide the queues; batches of unequal
                size; a `shuffle_index` that is no permutation; geometry matching without boxes; and as
                [`DenseCLEncoder.forward`].
            RuntimeError: in training under `DataParallel`, which would lose the queues.
        """
        check_images(pixel_values, self.encoder.num_channels, views=2)
        check_boxes(crop_boxes, flips, len(pixel_values))
        if self.config.matching == "geometry" and crop_boxes is None and match_index is None:
            raise ValueError("matching='geometry' needs crop_boxes, which the image processor returns with the views")
        begins_step = False
        if self.training:
            self._prepare_training(pixel_values, shuffle_index, match_index)
            begins_step = self._begins_step(update_momentum)
        weight = self._dense_weight()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        options = kwargs | {"output_hidden_states": output_hidden_states}
        query = self.encoder(pixel_values[:, 0], dense=weight > 0, **options)
        if begins_step:
            update_momentum_encoder(self.momentum_encoder, self.encoder, self.config.momentum)
        with torch.no_grad():
            key = self._encode_keys(pixel_values[:, 1], shuffle_index, kwargs)
            if not weight:  # measured, without gradients
                query = self.encoder.with_dense_embedding(query)
        with torch.autocast(pixel_values.device.type, enabled=False):
            parts = self._global_branch(query, key, weight)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                parts |= self._dense_branch(query, key, weight, match_index, crop_boxes, flips, generator)
            loss = parts["contra_single"] + (parts["contra_dense"] if weight else self._idle_dense_head())
            if self.training:
                self._enqueue(parts["key_features"], parts["key_pooled_features"])
        return DenseCLForPreTrainingOutput(
            loss=loss if return_loss else None,
            **parts,
            hidden_states=query.hidden_states if output_hidden_states else None,
            attentions=query.attentions,
        )

    @torch.compiler.disable
    def _prepare_training(
        self, pixel_values: torch.Tensor, shuffle_index: torch.Tensor | None, match_index: torch.Tensor | None
    ) -> None:
        """Finds out what is wrong with a step before it changes anything; gives all processes the same queues."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "DataParallel copies the model for every batch, and the queues with it; start one process per device "
                "(torchrun, accelerate launch) or show one device only (CUDA_VISIBLE_DEVICES=0)"
            )
        batch, _, _, *image_size = pixel_values.shape
        ranks, length = world_size(), self.config.queue_length
        if ranks > 1:
            check_equal_batches(batch, self.queue.device)
        if length % (ranks * batch) and self.config.queue_partial == "error":
            raise ValueError(
                f"queue_length {length} is not divisible by the global batch {ranks * batch}; choose a multiple of it "
                "or queue_partial='wrap'"
            )
        if shuffle_index is not None:
            check_permutation(shuffle_index, ranks * batch)
        cells = self.encoder.check_step(batch, *image_size)
        if match_index is not None and cells is not None:
            check_matches(match_index, batch, cells)
        if self._forwards == 0:
            self._share_training_state()
            if int(self.queue_ptr) == 0:
                logger.warning_once(
                    "DenseCL: the loss rises while the random keys of the queues are replaced by real ones, in the "
                    f"first {math.ceil(length / (ranks * batch))} steps, and falls afterwards. This is no error."
                )
        self._forwards += 1
        if ranks > 1 and dist.get_debug_level() != dist.DebugLevel.OFF and self._forwards % QUEUE_CHECK_INTERVAL == 0:
            self.check_queues()

    @torch.compiler.disable
    def _begins_step(self, update_momentum: bool | None) -> bool:
        """Whether this forward is the first one of an optimiser step."""
        detected = self._step_detector.is_new_step(self.encoder)
        begins = detected if update_momentum is None else update_momentum
        if begins and self.config.loss_lambda_warmup_steps:
            self.steps += 1
        return begins

    def _dense_weight(self) -> float:
        """The lambda of this forward; its warm-up counts optimiser steps from 0."""
        warmup = self.config.loss_lambda_warmup_steps
        if self.training and warmup and int(self.steps) <= warmup:
            return 0.0
        return float(self.config.loss_lambda)

    def _encode_keys(
        self, pixel_values: torch.Tensor, shuffle_index: torch.Tensor | None, kwargs: dict
    ) -> DenseCLEncoding:
        """Momentum encoding of the keys (paper, section 3.1), with the feature map pooled to the grid."""
        shuffles = self.training and self.config.shuffle_bn and world_size() > 1
        if shuffles:
            shuffle = BatchShuffle(len(pixel_values), shuffle_index, pixel_values.device)
            pixel_values = shuffle.scatter(pixel_values)
        key = self.momentum_encoder(
            pixel_values, **kwargs | {"output_hidden_states": False, "output_attentions": False}
        )
        needs_map = self.config.matching == "backbone"
        parts = {
            "feature_map": pool_to_grid(key.feature_map, self.config.num_grid) if needs_map else None,
            "global_embedding": key.global_embedding,
            "dense_embedding": key.dense_embedding,
        }
        if shuffles:
            parts = {name: None if part is None else shuffle.restore(part) for name, part in parts.items()}
        return DenseCLEncoding(**parts, hidden_states=())

    def _global_branch(self, query: DenseCLEncoding, key: DenseCLEncoding, weight: float) -> dict:
        """InfoNCE of the images (paper, equation 1), and what the queues need."""
        queries = functional.normalize(at_least_float32(query.global_embedding), dim=1)
        keys = functional.normalize(at_least_float32(key.global_embedding), dim=1)
        loss, accuracy = info_nce(queries, keys, self.queue, self.config.temperature)
        pooled = functional.normalize(at_least_float32(key.dense_embedding).mean(dim=(2, 3)), dim=1)
        return {
            "loss_global": loss,
            "contra_single": (1 - weight) * loss,
            "accuracy_global": accuracy,
            "query_features": queries,
            "key_features": keys,
            "key_pooled_features": pooled,
            "query_feature_map": query.feature_map,
        }

    def _dense_branch(
        self,
        query: DenseCLEncoding,
        key: DenseCLEncoding,
        weight: float,
        match_index: torch.Tensor | None,
        crop_boxes: torch.Tensor | None,
        flips: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> dict:
        """InfoNCE of the cells (paper, equation 2): each against its matched key and the pooled keys of the queue."""
        grid = query.dense_embedding.shape[-2:]
        cells = grid.numel()
        queries, keys = normalize_positions(query.dense_embedding), normalize_positions(key.dense_embedding)
        key_features = None if key.feature_map is None else normalize_positions(key.feature_map)
        if crop_boxes is not None and flips is None:
            flips = torch.zeros(crop_boxes.shape[:2], dtype=torch.bool, device=crop_boxes.device)
        if match_index is not None:
            check_matches(match_index, len(queries), cells)
        elif self.config.matching == "backbone":
            query_map = pool_to_grid(query.feature_map.detach(), self.config.num_grid)
            match_index = match_by_similarity(normalize_positions(query_map), key_features)
        elif self.config.matching == "projection":
            match_index = match_by_similarity(queries, keys)
        elif self.config.matching == "random":
            match_index = torch.randint(cells, (len(queries), cells), generator=generator, device=queries.device)
        else:
            match_index = match_by_geometry(crop_boxes, flips, grid)
        positives = keys.gather(2, match_index[:, None].expand_as(keys))
        rows = (vectors.transpose(1, 2).flatten(0, 1) for vectors in (queries, positives))
        further = {"image_keys": keys, "match_index": match_index} if self.config.same_image_negatives else {}
        loss, accuracy = info_nce(*rows, self.queue2, self.config.temperature, **further)
        return {
            "loss_dense": loss,
            "contra_dense": weight * loss,
            "accuracy_dense": accuracy,
            "match_targets": distinct_matches(match_index, cells),
            "match_accuracy": None if crop_boxes is None else match_accuracy(match_index, crop_boxes, flips, grid),
            "match_index": match_index,
            "query_dense_features": queries,
            "key_dense_features": keys,
            "key_backbone_features": key_features,
        }

    def _idle_dense_head(self) -> torch.Tensor | float:
        """Zero with a gradient of zero for the dense head: DDP waits for one, and weight decay goes on."""
        if not (self.training and torch.is_grad_enabled()):
            return 0.0
        return 0.0 * sum(parameter.sum() for parameter in self.encoder.dense_head.parameters())


class DenseCLBackbone(BackboneMixin, DenseCLPreTrainedModel):
    """
    DenseCL encoder as a transformers backbone, for detectors and segmentation models: maps of any stage, any input
    size.

    Stages are `stem` (before its max pool, stride 2) and `stage1 ...` (strides 4, 8, 16, 32 by default), or those of
    `config.backbone_config`.

    Args:
        config (`DenseCLConfig`): configuration with `out_features` or `out_indices`.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = TRAINING_STATE + HEADS

    def __init__(self, config: DenseCLConfig):
        if config.stage_names is None:  # of timm and plain transformers: only the network knows
            with torch.device("meta"):
                backbone = build_backbone(config)
            config.stage_names = backbone.stage_names
            config.set_output_features_output_indices(backbone.out_features, backbone.out_indices)
        super().__init__(config)
        self.encoder = DenseCLEncoder(config, with_heads=False)
        if config.backbone_config is None:
            self.num_features = self.encoder.backbone.channels
        else:
            self.num_features = self.encoder.backbone.num_features
            self.has_attentions = self.encoder.backbone.has_attentions
        # An inner backbone has its hooks for hidden states already; transformers would install them once more.
        self._output_capturing_hooks_installed = True
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images of any size.
            kwargs: also those of another backbone (`interpolate_pos_encoding` ...).

        Returns:
            One feature map per entry of `out_features`.
        """
        if self.config.backbone_config is not None:
            return self.encoder.run_backbone(pixel_values, **kwargs)
        return self._maps_of_resnet(pixel_values, **kwargs)

    @filter_output_hidden_states
    def _maps_of_resnet(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        outputs = self.encoder.run_backbone(pixel_values)
        maps = zip(self.stage_names, outputs.feature_maps, strict=True)
        outputs.feature_maps = tuple(feature_map for stage, feature_map in maps if stage in self.out_features)
        return outputs


__all__ = ["DenseCLBackbone", "DenseCLForPreTraining", "DenseCLModel", "DenseCLPreTrainedModel"]

# Saving writes these code files next to the weights, so that a folder or repository loads where hubmodels is missing.
DenseCLConfig.register_for_auto_class()
DenseCLModel.register_for_auto_class("AutoModel")
DenseCLForPreTraining.register_for_auto_class("AutoModelForPreTraining")
DenseCLBackbone.register_for_auto_class("AutoBackbone")
