"""SANM models: a classifier with the reconstruction decoder, and the ensemble of two co-trained ones."""

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbones_sanm import build_backbone, feature_maps, probe_feature_map
from .class_labels_sanm import IGNORED, check_label_shape, class_targets
from .configuration_sanm import SANMConfig
from .decoder_sanm import SANMDecoder, check_decoded_size
from .inputs_sanm import check_images
from .losses_sanm import reconstruction_loss, sharpen, soft_cross_entropy
from .masking_sanm import AdversarialNoisyMasking, check_probabilities
from .networks_sanm import SANMResNet
from .outputs_sanm import SANMOutput
from .precision_sanm import at_least_float32
from .pretrained_sanm import SANMPreTrainedModel


class SANMForImageClassification(SANMPreTrainedModel):
    """
    Network with feature map, linear classifier and reconstruction decoder (official names `linear`/`fc`,
    `recon_module`).

    In the light mode (`config.framework = "ce"`) a training forward with labels returns the whole SANM loss of a single
    network, so that `transformers.Trainer` runs it as it is; `clean_prob` is one more column of the data set.
    Otherwise, and in evaluation, the loss is the cross entropy.

    Args:
        config (`SANMConfig`): configuration with `num_labels`.

    Example:

    ```python
    >>> model = SANMForImageClassification(SANMConfig(framework="ce", num_labels=10))
    >>> model.train()(pixel_values, labels=labels, clean_prob=clean_prob).loss.backward()
    ```
    """

    def __init__(self, config: SANMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = build_backbone(config)
        if config.backbone_config is not None:
            self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        channels, stride = self._feature_map_shape()
        self.classifier = nn.Linear(channels, config.num_labels)
        self.decoder = SANMDecoder(config, channels, stride)
        self._masking = AdversarialNoisyMasking.from_config(config)
        self.post_init()

    def _feature_map_shape(self) -> tuple[int, int]:
        """Channels of the last map, and its stride."""
        if isinstance(self.backbone, SANMResNet):
            return self.backbone.channels[-1], (4 if self.config.pool else 1) * 2 ** (self.backbone.num_stages - 1)
        return probe_feature_map(self.backbone, self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution, or the input layer of `backbone_config`'s model."""
        return self.backbone.conv1 if isinstance(self.backbone, SANMResNet) else self.backbone.get_input_embeddings()

    def encode(
        self,
        pixel_values: torch.Tensor | None,
        output_reconstruction: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SANMOutput:
        """
        One pass without a loss; arguments as in `forward`.

        Returns:
            [`SANMOutput`] with scores, feature map, pooled features and, where asked for, the reconstruction.

        Raises:
            ValueError: for images of another shape or of an integer type.
        """
        check_images(pixel_values, self.config.num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last, hidden_states, attentions = feature_maps(
            self.backbone, pixel_values, output_hidden_states, **self._with_attentions(kwargs)
        )
        pooled = last.mean(dim=(2, 3))
        logits = self.classifier(pooled)
        return SANMOutput(
            logits=at_least_float32(logits).softmax(dim=1).to(logits) if self.config.softmax_outputs else logits,
            last_hidden_state=last,
            pooler_output=pooled,
            reconstruction=self.decoder(last, pixel_values.shape[-2:]) if output_reconstruction else None,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        clean_prob: torch.Tensor | None = None,
        output_reconstruction: bool = False,
        draws: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SANMOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            labels (`torch.Tensor`, *optional*): classes `[B]` (integers; -100 leaves an image out, but not in the light
                mode) or target distributions `[B, num_labels]` (floats). With `config.problem_type` set to
                `"regression"` or `"multi_label_classification"` transformers' losses for these are used instead.
            clean_prob (`torch.Tensor` of shape `[B]`, *optional*): probability that each label is right, 1 by default;
                used in the light mode only.
            output_reconstruction (`bool`): whether to run the decoder on these images.
            draws (`torch.Tensor` of shape `[B, 2 + 2C]`, *optional*): random numbers of the masks, see
                [`AdversarialNoisyMasking`].
            generator (`torch.Generator`, *optional*): draws them.
            output_hidden_states (`bool`, *optional*): also return the feature maps after the stem and every stage.

        Returns:
            [`SANMOutput`].

        Raises:
            ValueError: for labels out of range, of another shape or number, probabilities outside [0, 1], images of
                another shape or of an integer type, and a decoder whose output is not as large as the images.
        """
        outputs = self.encode(pixel_values, output_reconstruction, output_hidden_states, **kwargs)
        if labels is None:
            return outputs
        labels = labels.to(outputs.logits.device)
        if self.config.problem_type in ("regression", "multi_label_classification"):
            check_label_shape(labels, outputs.logits)
            outputs.loss = self.loss_function(labels.float(), outputs.logits.float(), self.config)
            return outputs
        targets = class_targets(labels, at_least_float32(outputs.logits))
        if self.training and self.config.framework == "ce" and self.num_labels > 1:
            if targets.ndim == 1:
                targets = self._distributions(targets)
            return self._with_masked_views(outputs, pixel_values, targets, clean_prob, draws, generator)
        cross_entropy = nn.functional.cross_entropy if targets.ndim == 1 else soft_cross_entropy
        outputs.loss = outputs.classification_loss = cross_entropy(at_least_float32(outputs.logits), targets)
        return outputs

    def _distributions(self, classes):
        """Classes `[B]` as distributions `[B, num_labels]`."""
        if not torch.compiler.is_compiling() and classes.device.type == "cpu" and (classes == IGNORED).any():
            raise ValueError(
                f"labels of a training in the light mode (framework 'ce') must not be {IGNORED}, as it refines "
                "the label of every image; give any class and clean_prob 0 where it is unknown"
            )
        return nn.functional.one_hot(classes, self.num_labels).float()

    def _with_masked_views(self, outputs, pixel_values, targets, clean_prob, draws, generator):
        """
        The loss of the light mode. The maps that place the masks and the guesses that refine the labels are those of
        the forward that is trained.
        """
        config = self.config
        if clean_prob is None:
            clean_prob = targets.new_ones(len(targets))
        guesses = at_least_float32(outputs.logits.detach()).softmax(dim=1)
        clean_prob, targets = clean_prob.to(guesses), targets.to(guesses)
        if clean_prob.shape == (len(targets), 1):
            clean_prob = clean_prob.flatten()
        if clean_prob.shape != targets.shape[:1]:
            raise ValueError(f"clean_prob must have shape {tuple(targets.shape[:1])}, got {tuple(clean_prob.shape)}")
        check_probabilities(clean_prob)
        targets = sharpen(clean_prob[:, None] * targets + (1 - clean_prob[:, None]) * guesses, config.temperature)
        loss = outputs.classification_loss = soft_cross_entropy(outputs.logits, targets)
        decodes, reconstruction = config.recon_weight > 0, None
        if config.mask != "none" or config.mask_labels:
            views = self._masking(pixel_values, outputs.last_hidden_state, clean_prob, targets, draws, generator)
            masked = self.encode(torch.cat([views.max_views, views.min_views]), output_reconstruction=decodes)
            outputs.masked_loss = soft_cross_entropy(masked.logits, torch.cat([views.targets, views.min_targets]))
            loss, reconstruction = loss + outputs.masked_loss, masked.reconstruction
        elif decodes:  # nothing is masked: both views are the images
            reconstruction = self.decoder(outputs.last_hidden_state, pixel_values.shape[-2:]).repeat(2, 1, 1, 1)
        if decodes:
            check_decoded_size(reconstruction[: len(pixel_values)], pixel_values)
            outputs.reconstruction_loss = reconstruction_loss(reconstruction, pixel_values)
            loss = loss + config.recon_weight * outputs.reconstruction_loss
        outputs.loss = loss
        return outputs


class SANMEnsembleForImageClassification(SANMPreTrainedModel):
    """
    Two networks that were trained together, `net1` and `net2`; the scores are the sum of theirs (official evaluation).

    `SANMTrainer` trains it. A plain `Trainer` would train both networks beside each other, each with its own loss.

    Args:
        config (`SANMConfig`): configuration of both networks.

    Example:

    ```python
    >>> ensemble = SANMEnsembleForImageClassification.from_pretrained("run/")
    >>> ensemble(pixel_values).logits.argmax(-1)
    ```
    """

    is_ensemble = True

    def __init__(self, config: SANMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.net1 = SANMForImageClassification(config)
        self.net2 = SANMForImageClassification(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input layer of the first network."""
        return self.net1.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SANMOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `[B, C, H, W]`): normalised images.
            labels (`torch.Tensor`, *optional*): classes `[B]` or target distributions `[B, num_labels]`.
            kwargs: as in [`SANMForImageClassification`].

        Returns:
            [`SANMOutput`]: the sum of both scores, the mean of both losses, feature maps joined along the channels, the
            hidden states and the attentions of the first, then of the second network.

        Raises:
            ValueError: as [`SANMForImageClassification`].
        """
        kwargs.pop("return_dict", None)
        first = self.net1(pixel_values, labels=labels, return_dict=True, **kwargs)
        second = self.net2(pixel_values, labels=labels, return_dict=True, **kwargs)
        pairs = {name: (first[name], second[name]) for name in first}
        outputs = {name: torch.cat(pairs[name], dim=1) for name in ("last_hidden_state", "pooler_output")}
        outputs |= {
            name: sum(pair) / 2 for name, pair in pairs.items() if name.endswith("loss") or name == "reconstruction"
        }
        outputs |= {name: first[name] + second[name] for name in ("hidden_states", "attentions") if name in pairs}
        return SANMOutput(logits=first.logits + second.logits, **outputs)


__all__ = ["SANMEnsembleForImageClassification", "SANMForImageClassification"]

# Saving writes these code files next to the weights, so that a folder or repository loads where hubmodels is missing.
SANMConfig.register_for_auto_class()
SANMForImageClassification.register_for_auto_class("AutoModelForImageClassification")
SANMEnsembleForImageClassification.register_for_auto_class("AutoModelForImageClassification")
