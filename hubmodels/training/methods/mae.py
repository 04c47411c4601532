"""Training of MAE: masked views with their noise, reconstructions as pictures."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from transformers import PreTrainedConfig

from hubmodels.data import ImageCollator, ImageTransform
from hubmodels.data.randomness import random_bits
from hubmodels.modeling.mae.masking_mae import sample_mask
from hubmodels.training.methods.base import MethodTraining, method_class, pretrain_transform
from hubmodels.training.recipe import RecipeError

DECODER_KEYS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)

_MASK_STREAM = 2


class MAECollator(ImageCollator):
    """An [`ImageCollator`] whose noise removes the patches that `mask_sampling` of the config says.

    Args:
        transform: Turns uint8 images and a table of uniforms into pixel values.
        seed: Seed of the run.
        train: Whether the epoch counts.
        config: `MAEConfig` of the model.
    """

    def __init__(self, transform: ImageTransform, seed: int, train: bool, config: PreTrainedConfig):
        self.grid_size = config.grid_size
        self.mask_ratio, self.mask_sampling = config.mask_ratio, config.mask_sampling
        super().__init__(transform, seed, train, noise_length=self.grid_size[0] * self.grid_size[1])

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As [`ImageCollator`]; the noise of removed patches is above that of kept ones.

        Raises:
            ValueError: As in `sample_mask`, for a grid that `mask_ratio` does not fit.
        """
        batch = super().__call__(items)
        if self.mask_sampling != "random":
            indices = [item["index"] for item in items]
            seeds = random_bits(self.seed, self.epoch, indices, 1, _MASK_STREAM)[:, 0].tolist()
            batch["noise"] += torch.cat([self._mask(seed) for seed in seeds])
        return batch

    def _mask(self, seed: int) -> torch.Tensor:
        """A mask [1, L], 1 where a patch is removed."""
        generator = torch.Generator().manual_seed(seed)
        return sample_mask(1, self.grid_size, self.mask_ratio, self.mask_sampling, generator=generator).mask


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

    def implied_settings(self, recipe):
        """A linear probe drops no paths of the frozen encoder, however that was trained."""
        return {"drop_path_rate": 0.0} if recipe.task == "linear_probe" else {}

    def pretrain_collators(self, recipe, config, evaluation):
        """Crops and flips, with the masking noise of every image."""
        train, seed = pretrain_transform(recipe, config), recipe.run.seed
        return MAECollator(train, seed, True, config), MAECollator(evaluation, seed, False, config)

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
