"""SimCLR models (Chen et al., arXiv 2002.05709 "v1" and arXiv 2006.10029 "v2")."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .backbones_simclr import build_backbone, class_token, pool, run_backbone
from .class_labels_simclr import check_label_shape
from .classifier_simclr import classification_loss, kernel_decay, make_classifier
from .configuration_simclr import SimCLRConfig
from .heads_simclr import SimCLRProjectionHead
from .inputs_simclr import check_images, image_channels
from .loaded_shapes_simclr import check_shapes
from .loading_simclr import check_encoder, check_head
from .losses_simclr import nt_xent
from .normalization_simclr import SimCLRBatchNorm
from .outputs_simclr import SimCLRForPreTrainingOutput
from .resnet_simclr import SimCLRResidualLayer, SimCLRResNet, SimCLRStem
from .token_backbone_simclr import channels_first
from .views_simclr import flat_views, is_range_known

logger = logging.get_logger(__name__)

# Standard deviation of the unit normal after truncation at two deviations.
TRUNCATED_STD = 0.87962566103423978
DENSE_STD = 0.01
# The similarities, which the loss itself never holds, are returned by default for up to so many images per process.
MAX_IMAGES_WITH_LOGITS = 256


class SimCLRPreTrainedModel(PreTrainedModel):
    """Base of the SimCLR models: the encoder, which all of them hold as `backbone`, and the official initialisation."""

    config_class = SimCLRConfig
    config: SimCLRConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = [SimCLRStem.__name__, SimCLRResidualLayer.__name__]
    supports_gradient_checkpointing = True
    # Of a `backbone_config`'s model, which refuses what it has not.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # Losses are means over the batch: `Trainer` must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.backbone = build_backbone(config)
        if config.backbone_config is not None:
            self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self._num_channels = image_channels(config)
        self._pixel_range_is_known = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path=None,
        *model_args,
        from_head: bool | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        zero_init_logits_layer: bool | None = None,
        **kwargs,
    ):
        """
        As in transformers, and strict about the official ResNet and the projection head.

        Args:
            from_head (`bool`, *optional*):
                Whether the projection head must come from the file. By default the layers in front of a classifier
                must (`config.ft_proj_selector`), and a head that only pre-training uses may be new; with `True` all
                of it must be there, with `False` all of it may be new.
            zero_init_logits_layer (`bool`, *optional*):
                `True` starts the classifier at zero, also if the file has one. By default a classifier that is new
                follows the configuration.

        Raises:
            ValueError: for a file that lacks weights of the ResNet or of a required head, or has another ResNet.
            RuntimeError: for heads of another shape than the configuration says, as in transformers;
                `ignore_mismatched_sizes=True` starts them anew (never the ResNet).
        """
        if zero_init_logits_layer is False:
            kwargs["zero_init_logits_layer"] = False
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if pretrained_model_name_or_path is not None:
            check_encoder(model.config, info, pretrained_model_name_or_path)
            check_head(model._required_head_layers(from_head), info, pretrained_model_name_or_path)
        if not ignore_mismatched_sizes:
            check_shapes(info["mismatched_keys"], pretrained_model_name_or_path)
        if zero_init_logits_layer:
            model._zero_classifier()
        model._complete_loading()
        if "proj_head_mode" not in kwargs:
            model._warn_of_missing_head(pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model

    def _required_head_layers(self, from_head: bool | None) -> int:
        """How many layers of the projection head a file must hold."""
        if from_head is None:
            return self._head_layers_in_use()
        if from_head and not hasattr(self, "projection_head"):
            name = type(self).__name__
            raise ValueError(f"from_head must be False or None for a {name}, which has no projection head, got True")
        if from_head and not self.config.num_head_layers:
            raise ValueError("from_head=True needs a projection head, got proj_head_mode 'none' in the configuration")
        return self.config.num_head_layers if from_head else 0

    def _head_layers_in_use(self) -> int:
        """How many layers of the projection head the output depends on, and are not to be trained first."""
        return 0

    def _zero_classifier(self) -> None:
        self.config.zero_init_logits_layer = True
        if isinstance(classifier := getattr(self, "classifier", None), nn.Linear):
            for parameter in classifier.parameters():
                nn.init.zeros_(parameter)

    def _complete_loading(self) -> None:
        """What remains to be done after weights were loaded."""

    def _warn_of_missing_head(self, source) -> None:
        """Says so if the configuration of the file leaves out a projection head that the model should have."""

    @torch.no_grad()
    def _init_weights(self, module):
        zero = getattr(module, "zero_init", False)
        if isinstance(module, nn.Conv2d):
            # Variance 1 / fan_in after truncation at two standard deviations.
            std = module.weight[0].numel() ** -0.5 / TRUNCATED_STD
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.0 if zero else DENSE_STD)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SimCLRBatchNorm):
            # Zero for the last one of every residual layer, which so starts as its shortcut.
            init.constant_(module.weight, 0.0 if zero else 1.0)
            if module.bias is not None:
                init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def no_layer_adaptation(self) -> set[str]:
        """Matrices that LARS neither decays nor adapts: the supervised head's (official `LARSOptimizer`)."""
        return {"classifier.weight"} if isinstance(getattr(self, "classifier", None), nn.Linear) else set()

    def decayed_vectors(self) -> set[str]:
        """Vectors that optimisers other than LARS decay, as official: biases, but nothing of a normalisation."""
        return {
            f"{name}.bias"
            for name, module in self.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and module.bias is not None
            and (self.config.backbone_config is None or not name.startswith("backbone."))
        }

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution, or the input layer of `backbone_config`'s model."""
        if not isinstance(self.backbone, SimCLRResNet):
            return self.backbone.get_input_embeddings()
        return next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))

    def encode(
        self,
        pixel_values: torch.Tensor | None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        The encoder `f` of the paper.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images; the official weights want RGB in [0, 1].
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every group.

        Returns:
            Last feature map `[B, D, H', W']` and its pooled representation `h`, `[B, D]`.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        check_images(pixel_values, self._num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if isinstance(self.backbone, SimCLRResNet):
            feature_maps = self._official_maps(pixel_values)
            hidden_states, attentions = feature_maps if output_hidden_states else None, None
            last_map = feature_maps[-1]
            pooled = pool(last_map)
        else:
            tokens_needed = self.config.pooling == "cls"
            states_needed = output_hidden_states or tokens_needed
            outputs = run_backbone(self.backbone, self.config, pixel_values, states_needed, **kwargs)
            attentions = outputs.attentions
            hidden_states = outputs.hidden_states if output_hidden_states else None
            last_map = channels_first(outputs.feature_maps[-1], self.backbone.channels[-1])
            pooled = class_token(self.backbone, outputs) if tokens_needed else pool(last_map)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_map,
            pooler_output=pooled,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _official_maps(self, pixel_values):
        """Feature maps of the official ResNet, whose weights want pixels in [0, 1]; looked at if nothing was raised."""
        feature_maps = self.backbone(pixel_values)
        if not (self._pixel_range_is_known or pixel_values.is_meta or torch.compiler.is_compiling()):
            self._pixel_range_is_known = is_range_known(pixel_values)
        return feature_maps


class SimCLRModel(SimCLRPreTrainedModel):
    """
    SimCLR encoder: feature maps, and the representation `h` as `pooler_output`.

    Args:
        config (`SimCLRConfig`): configuration.

    Example:

    ```python
    >>> features = model(pixel_values).pooler_output  # [B, D]
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^projection_head\.", r"^classifier\."]

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images in [0, 1].
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every group.

        Returns:
            `last_hidden_state` `[B, D, H', W']` and `pooler_output` `[B, D]`.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        return self.encode(pixel_values, output_hidden_states, **kwargs)


class SimCLRForPreTraining(SimCLRPreTrainedModel):
    """
    Contrastive pre-training (v1 paper, section 2.1): encoder, projection head and NT-Xent over two views per image.

    Under `torch.distributed` the negatives are those of all processes, with gradients through the gather; do not divide
    the loss by the number of processes. Gradient accumulation does not enlarge the set of negatives, but
    `config.encoder_chunk_size` lets batches of any size fit.

    Args:
        config (`SimCLRConfig`): configuration. `linear_probe` adds a classifier on detached features.

    Raises:
        ValueError: if `config.fine_tune_after_block` freezes something.

    Example:

    ```python
    >>> views = processor(images, views=2, mode="pretrain").pixel_values  # [B, 2, 3, H, W]
    >>> model(views).loss.backward()
    ```
    """

    # The loss compares the images of a batch with each other: a trainer must leave out a smaller last one.
    compares_images = True
    # Scalars of the output that tell how training goes, for a trainer that logs them.
    logged_outputs = ("contrastive_loss", "supervised_loss", "contrast_accuracy", "contrast_entropy")

    def __init__(self, config: SimCLRConfig):
        if config.fine_tune_after_block > -1:
            raise ValueError(
                f"fine_tune_after_block must be -1 in pre-training (all is trained), got {config.fine_tune_after_block}"
            )
        super().__init__(config)
        self.num_labels = config.num_labels
        self.projection_head = SimCLRProjectionHead(config, self.backbone.channels[-1])
        if config.linear_probe:
            self.classifier = make_classifier(config, self.projection_head)
        else:
            self._keys_to_ignore_on_load_unexpected = [r"^classifier\."]
        self.post_init()

    def _warn_of_missing_head(self, source) -> None:
        if self.config.proj_head_mode == "none":
            logger.warning(
                f"{source} has no projection head (proj_head_mode 'none', as converted checkpoints of v1): the loss "
                "compares the representations themselves. For a new head, as in the papers, give from_pretrained "
                'proj_head_mode="nonlinear", num_proj_layers=2 (v1) or 3 (v2).'
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        return_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SimCLRForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, 2, C, H, W]`):
                Two views of every image, in [0, 1]. `[2B, C, H, W]` is taken as all first views, then all second ones.
                Both views pass the encoder in one batch: batch normalisation sees both.
            labels (`torch.Tensor` of shape `[B]` or `[B, num_labels]`, *optional*):
                Classes of the images for the linear probe; without one they are ignored.
            return_loss (`bool`): without it any number of images `[R, C, H, W]` is projected and nothing compared.
            return_logits (`bool`, *optional*):
                Return the similarities `logits_ab`, `[B, N]`; by default for at most 256 images per process.
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every group.

        Raises:
            ValueError: if `pixel_values` are not two views of every image, for labels of another shape or missing
                while a linear probe is trained, and for a global batch of one image, which has no negatives.
        """
        pixel_values = flat_views(pixel_values, pairs=return_loss)
        if return_loss and self.config.linear_probe and labels is None:
            raise ValueError("labels are required: config.linear_probe trains a classifier on them")
        if self.config.encoder_chunk_size is None:
            outputs = self.encode(pixel_values, output_hidden_states, **kwargs)
        else:
            outputs = BaseModelOutputWithPooling(pooler_output=self._encode_in_chunks(pixel_values))
        states = self.projection_head(outputs.pooler_output)
        logits = self.classifier(states[self.config.selected_layer].detach()) if self.config.linear_probe else None
        losses = self._losses(states[-1], logits, labels, return_logits) if return_loss else {}
        return SimCLRForPreTrainingOutput(
            **losses,
            projections=states[-1],
            pooler_output=states[0],
            projection_states=states,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _encode_in_chunks(self, pixel_values):
        """Representations `h`, with the activations of one chunk at a time; the backward pass computes them again."""
        if any(isinstance(module, _BatchNorm) and module.training for module in self.backbone.modules()):
            raise ValueError(
                "encoder_chunk_size needs an encoder without batch statistics, which would be those of a chunk; "
                f"got a {type(self.backbone).__name__} with batch normalisation in training mode"
            )
        chunks = pixel_values.split(self.config.encoder_chunk_size)
        return torch.cat([checkpoint(self._represent, chunk, use_reentrant=False) for chunk in chunks])

    def _represent(self, pixel_values):
        return self.encode(pixel_values, output_hidden_states=False).pooler_output

    def _losses(self, projections, logits, labels, return_logits):
        """The fields of the output that compare."""
        config = self.config
        if return_logits is None:
            return_logits = len(projections) <= 2 * MAX_IMAGES_WITH_LOGITS
        contrast = nt_xent(
            projections,
            config.temperature,
            hidden_norm=config.hidden_norm,
            reduction=config.loss_reduction,
            return_logits=return_logits,
        )
        loss, supervised_loss = contrast.loss, None
        if config.linear_probe:
            labels = labels.to(logits.device)
            supervised_loss = sum(classification_loss(view, labels) for view in logits.chunk(2)) / 2
            loss = loss + supervised_loss + kernel_decay(config, self.classifier)
        return {
            "loss": loss,
            "contrastive_loss": contrast.loss,
            "supervised_loss": supervised_loss,
            "logits_ab": contrast.logits_ab,
            "labels": contrast.labels,
            "contrast_accuracy": contrast.accuracy,
            "contrast_entropy": contrast.entropy,
        }


class SimCLRForImageClassification(SimCLRPreTrainedModel):
    """
    SimCLR encoder with a classifier: fine-tuning (also semi-supervised, with 1 % or 10 % of the labels) and linear
    evaluation.

    The classifier reads `h` or, by `config.ft_proj_selector`, the output of a layer of the projection head.
    `config.fine_tune_after_block` freezes the stem and the first groups, or all but the classifier. As in the official
    code the projection head is always evaluated whole in training, and its moving statistics follow.

    Args:
        config (`SimCLRConfig`): configuration with `num_labels`.

    Example:

    ```python
    >>> model = SimCLRForImageClassification.from_pretrained("path/to/pretrained", num_labels=10)
    >>> model(pixel_values, labels=labels).loss.backward()
    ```
    """

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.projection_head = SimCLRProjectionHead(config, self.backbone.channels[-1])
        self.classifier = make_classifier(config, self.projection_head)
        self.post_init()
        self._freeze()

    def _head_layers_in_use(self) -> int:
        return self.config.selected_layer

    def _complete_loading(self) -> None:
        # Loading in transformers 5 makes every parameter trainable.
        self._freeze()

    def freeze_encoder(self) -> None:
        """
        Freezes all but the classifier (linear evaluation): the encoder runs in inference mode and without autograd.

        The same as `fine_tune_after_block` = 4, which is what the configuration says from now on.
        """
        self.config.fine_tune_after_block = len(self.config.depths)
        self._freeze()

    def train(self, mode: bool = True) -> "SimCLRForImageClassification":
        """As in torch; frozen blocks stay in inference mode where the official code has them so."""
        super().train(mode)
        if self.config.trains_classifier_only or self.config.frozen_bn == "inference":
            for block in self._frozen_blocks():
                block.eval()
        return self

    def _frozen_blocks(self) -> list[nn.Module]:
        config = self.config
        if config.trains_classifier_only:
            return [self.backbone]
        if config.fine_tune_after_block < 0:
            return []
        return self.backbone.blocks()[: config.fine_tune_after_block + 1]

    def _freeze(self):
        config = self.config
        for block in self._frozen_blocks():
            block.requires_grad_(False)
        trained = config.train_projection_in_finetune and not config.trains_classifier_only
        for number, layer in enumerate(self.projection_head.layers):
            layer.requires_grad_(trained and number < config.selected_layer)
        self.train(self.training)

    def features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """What the classifier reads, `[B, D]`, and the output of the encoder; arguments as [`SimCLRModel.forward`]."""
        outputs = self.encode(pixel_values, output_hidden_states, **kwargs)
        selected = self.config.selected_layer
        states = self.projection_head(outputs.pooler_output, stop=selected)
        if self.training:
            # What lies behind the selected layer is evaluated for its moving statistics only.
            with torch.no_grad():
                self.projection_head(states[-1], start=selected)
        return states[-1], outputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images in [0, 1].
            labels (`torch.Tensor`, *optional*): classes `[B]` (integers) or target distributions `[B, num_labels]`
                (floats; the loss is `-sum(t * log_softmax)`). With `config.problem_type` set to `"regression"` or
                `"multi_label_classification"` transformers' losses for these are used instead.
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every group.

        Raises:
            ValueError: for labels of the wrong shape, and for images of another shape or of an integer type.
        """
        selected, outputs = self.features(pixel_values, output_hidden_states, **kwargs)
        logits = self.classifier(selected)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            if self.config.problem_type in ("regression", "multi_label_classification"):
                check_label_shape(labels, logits)
                loss = self.loss_function(labels.float(), logits.float(), self.config)
            else:
                loss = classification_loss(logits, labels)
            loss = loss + kernel_decay(self.config, self.classifier)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SimCLRBackbone(BackboneMixin, SimCLRPreTrainedModel):
    """
    SimCLR encoder as a transformers backbone: feature maps of the stem and of any group.

    With a `backbone_config` the maps and stages are those of its model.

    Args:
        config (`SimCLRConfig`): configuration with `out_features` or `out_indices`.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^projection_head\.", r"^classifier\."]

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.post_init()

    def post_init(self):
        # As for a model that is no backbone: the mixin would install the hooks that record hidden states a second time
        # in the backbone inside, which has its own.
        super(BackboneMixin, self).post_init()

    def _init_transformers_backbone(self):
        if isinstance(self.backbone, SimCLRResNet):
            super()._init_transformers_backbone()
            self.num_features = self.backbone.channels
        else:
            self.has_attentions = self.backbone.has_attentions
            self.stage_names = self.config.stage_names = self.backbone.stage_names
            self.num_features = self.backbone.num_features
            self.config.set_output_features_output_indices(self.backbone.out_features, self.backbone.out_indices)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): images in [0, 1].
            output_hidden_states (`bool`, *optional*): also return the maps of all stages.

        Returns:
            One feature map `[B, D, H', W']` per entry of `out_features`.
        """
        check_images(pixel_values, self._num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if not isinstance(self.backbone, SimCLRResNet):
            return run_backbone(self.backbone, self.config, pixel_values, output_hidden_states, **kwargs)
        hidden_states = self._official_maps(pixel_values)
        feature_maps = tuple(
            states for stage, states in zip(self.stage_names, hidden_states, strict=True) if stage in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states if output_hidden_states else None)


__all__ = [
    "SimCLRBackbone",
    "SimCLRForImageClassification",
    "SimCLRForPreTraining",
    "SimCLRModel",
    "SimCLRPreTrainedModel",
]

# Saving writes these code files next to the weights, so that a folder or repository loads where hubmodels is missing.
SimCLRConfig.register_for_auto_class()
SimCLRModel.register_for_auto_class("AutoModel")
SimCLRForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SimCLRForImageClassification.register_for_auto_class("AutoModelForImageClassification")
SimCLRBackbone.register_for_auto_class("AutoBackbone")
