"""Training of MAE: masked views with their noise, reconstructions as pictures."""

from typing import Any

import timm
import torch

from hubmodels.data import ImageCollator, PretrainTransform
from hubmodels.training.methods.base import MethodTraining, method_class
from hubmodels.training.recipe import RecipeError

DECODER_KEYS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)


class MAETraining(MethodTraining):
    """See [`MethodTraining`]."""

    shape_keys = (
        "image_size",
        "patch_size",
        "num_channels",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        *DECODER_KEYS,
    )
    sheet_file = "reconstructions.png"

    def shape_keys_of(self, task):
        """All keys for pre-training, those of the encoder for the rest."""
        return tuple(key for key in self.shape_keys if task == "pretrain" or key not in DECODER_KEYS)

    def pretrain_collators(self, recipe, config, evaluation):
        """Crops and flips, with the masking noise of every image."""
        section = recipe.transform
        train = PretrainTransform(
            config.image_size,
            scale=section.crop_scale,
            flip=section.flip,
            num_channels=config.num_channels,
            mean=section.mean,
            std=section.std,
        )
        rows, columns = config.grid_size
        return (
            ImageCollator(train, recipe.run.seed, train=True, noise_length=rows * columns),
            ImageCollator(evaluation, recipe.run.seed, train=False, noise_length=rows * columns),
        )

    def processor(self, recipe, config, evaluation):
        """Resize, centre crop, normalise."""
        height, width = evaluation.size
        return method_class(self.name, "AutoImageProcessor")(
            size={"shortest_edge": evaluation.short_side},
            crop_size={"height": height, "width": width},
            image_mean=list(evaluation.mean),
            image_std=list(evaluation.std),
        )

    def draw(self, model, collator, samples, evaluation, path):
        """A sheet of images, masks and reconstructions."""
        from hubmodels.visualization import reconstruction_sheet

        batch = {key: value.to(model.device) for key, value in collator(samples).items()}
        reconstruction_sheet(
            model,
            batch["pixel_values"],
            path,
            mean=list(evaluation.mean),
            std=list(evaluation.std),
            noise=batch["noise"],
        )

    def use_timm_shape(self, recipe, backbone, replaced):
        """Take the shape of a plain ViT."""
        with torch.device("meta"):
            encoder = timm.create_model(backbone, pretrained=False)
        if not isinstance(encoder, timm.models.VisionTransformer):
            raise RecipeError(f"backbone = {backbone} is no plain ViT, which this method needs; see timm.list_models")
        block: Any = encoder.blocks[0]
        shape = {
            "image_size": encoder.patch_embed.img_size[0],
            "patch_size": encoder.patch_embed.patch_size[0],
            "hidden_size": encoder.embed_dim,
            "num_hidden_layers": len(encoder.blocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.fc1.out_features,
        }
        recipe.model |= {key: value for key, value in shape.items() if key in replaced}
