"""Older layouts of ViTMAE weights on the Hub, which load into the MAE models as they are."""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from .configuration_mae import MAEConfig


class LegacyRenaming(WeightRenaming):
    """A renaming of older checkpoint layouts that is read and never written: saving always uses the current names."""

    def reverse_transform(self):
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


def register_legacy_layouts() -> None:
    """
    Lets `from_pretrained` read the layout of facebook/vit-mae-* (`vit.encoder.layer.N...`), and
    `decoder.decoder_encoder.layer.N...`, which transformers 5 writes for ViTMAE.
    """
    register_checkpoint_conversion_mapping(
        MAEConfig.model_type,
        [
            LegacyRenaming(r"decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
            LegacyRenaming(r"(?<!\w)encoder\.layer\.", "layers."),
            LegacyRenaming(r"attention\.attention\.query", "attention.q_proj"),
            LegacyRenaming(r"attention\.attention\.key", "attention.k_proj"),
            LegacyRenaming(r"attention\.attention\.value", "attention.v_proj"),
            LegacyRenaming(r"attention\.output\.dense", "attention.o_proj"),
            LegacyRenaming(r"intermediate\.dense", "mlp.fc1"),
            LegacyRenaming(r"(?<!attention\.)output\.dense", "mlp.fc2"),
        ],
        overwrite=True,
    )
