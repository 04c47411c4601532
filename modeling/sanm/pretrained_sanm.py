"""What all SANM models share: configuration class, flags, the initialisation of the official networks."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_sanm import SANMConfig
from .networks_sanm import LAYERS

ENSEMBLE = "SANMEnsembleForImageClassification"


class SANMPreTrainedModel(PreTrainedModel):
    """Base of the SANM models: configuration, and the initialisation of the official networks."""

    config_class = SANMConfig
    config: SANMConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = [layer.__name__ for layer in LAYERS.values()]
    supports_gradient_checkpointing = True
    # Of a `backbone_config`'s model; a classifier runs it once while it is built, where the others cannot run.
    _supports_sdpa = _supports_attention_backend = True
    # Losses are means over the batch: `Trainer` must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False
    is_ensemble = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers.

        Raises:
            ValueError: if one network is asked of a folder with two, or two of a folder with one.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        architecture = (model.config.architectures or [cls.__name__])[0]
        if (architecture == ENSEMBLE) != cls.is_ensemble:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {architecture}, which {cls.__name__} cannot load; "
                f"AutoModelForImageClassification loads either; net1 and net2 of a {ENSEMBLE} are single networks"
            )
        return loaded

    def _with_attentions(self, kwargs: dict) -> dict:
        """Arguments of the network, with attentions where the configuration asks for them."""
        if kwargs.get("output_attentions") is None and self.config.output_attentions:
            return kwargs | {"output_attentions": True}
        return kwargs

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d) and self.config.layer_type != "preact":
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's default
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


__all__ = ["SANMPreTrainedModel"]
