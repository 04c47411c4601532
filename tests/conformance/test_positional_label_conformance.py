"""transformers' common suites on every Positional Label class."""

import unittest

import torch
from hubmodels.modeling.mae import MAEConfig
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionalLabelForPreTraining,
    PositionalLabelModel,
)
from PIL import Image
from transformers import BitImageProcessor, SwinConfig, ViTConfig, ViTMAEConfig

from tests.conformance.skips import BASE_MODEL, MODEL_SELF_SKIPS, NO_BASE_MODEL, NO_CLASSIFIER, NO_LOSS
from tests.conformance.suites import ConfigTester, ModelConformance, PipelineConformance, uniform

VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
AUTOENCODER = VIT | {
    "mask_ratio": 0.6,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 36,
}
ONE_LAYOUT = dict.fromkeys(
    ("test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"),
    "there is no older layout of the authors' networks",
)
SELF_SKIPS = MODEL_SELF_SKIPS | NO_BASE_MODEL


class PositionalLabelConformance(ModelConformance):
    self_skips = SELF_SKIPS
    model_class = PositionalLabelForImageClassification

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 16, 16)}

    def test_config_common(self):
        ConfigTester(
            self, config_class=PositionalLabelConfig, has_text_modality=False, common_properties=["hidden_size"]
        ).run_common_tests()


class TestPositionalLabelModel(PositionalLabelConformance, unittest.TestCase):
    model_class = PositionalLabelModel
    self_skips = MODEL_SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER
    config = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), pooling="cls", num_labels=3)
    seq_length = 17


class TestPositionalLabelViT(PositionalLabelConformance, unittest.TestCase):
    config = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), position_label="both", num_labels=3)
    seq_length = 17


class TestPositionalLabelAuthorsViT(PositionalLabelConformance, unittest.TestCase):
    self_skips = SELF_SKIPS | ONE_LAYOUT
    skips = {"test_correct_missing_keys": "saves the authors' backbone as if it were a stock one"}
    config = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), backbone_variant="authors", num_labels=3)
    seq_length = 16


class SwinConformance(PositionalLabelConformance):
    """Tokens and windows of every stage (the suite expects as many tokens in every layer)."""

    state_shapes: tuple[tuple[int, int], ...]
    attention_shapes: tuple[tuple[int, int], ...]

    def outputs(self, **requested):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        with torch.no_grad():
            return self.model_class(config).eval()(**inputs, **requested)

    def test_hidden_states_output(self):
        shapes = tuple(tuple(states.shape[1:]) for states in self.outputs(output_hidden_states=True).hidden_states)
        self.assertEqual(shapes, self.state_shapes)

    def test_attention_outputs(self):
        attentions = self.outputs(output_attentions=True).attentions
        self.assertEqual(tuple((a.shape[1], a.shape[-1]) for a in attentions), self.attention_shapes)


class TestPositionalLabelSwin(SwinConformance, unittest.TestCase):
    config = PositionalLabelConfig(backbone_config=SwinConfig(**SWIN), position_label="relative", num_labels=3)
    state_shapes = ((64, 16), (16, 32), (16, 32))
    attention_shapes = ((2, 16), (4, 16))


class TestPositionalLabelAuthorsSwin(SwinConformance, unittest.TestCase):
    self_skips = SELF_SKIPS | ONE_LAYOUT
    config = PositionalLabelConfig(backbone_config=SwinConfig(**SWIN), backbone_variant="authors", num_labels=3)
    state_shapes = ((64, 16), (64, 32), (64, 32))
    attention_shapes = ((2, 16), (4, 64))


class TestPositionalLabelForPreTraining(PositionalLabelConformance, unittest.TestCase):
    model_class = PositionalLabelForPreTraining
    config = PositionalLabelConfig(backbone_config=MAEConfig(**AUTOENCODER), position_label="both")
    self_skips = SELF_SKIPS | NO_CLASSIFIER
    skips = {"test_reverse_loading_mapping": "our MAE reads older layouts and writes the current one"}
    seq_length = 7

    def make_inputs(self, config, batch_size):
        return super().make_inputs(config, batch_size) | {"noise": uniform(batch_size, 16, seed=1)}


class TestPositionalLabelForPreTrainingStock(TestPositionalLabelForPreTraining):
    config = PositionalLabelConfig(backbone_config=ViTMAEConfig(**AUTOENCODER), position_label="relative")
    skips = TestPositionalLabelForPreTraining.skips | {
        "test_can_init_all_missing_weights": "transformers' own ViTMAE leaves its tables of positions at zero"
    }


class TestPositionalLabelImageClassificationPipeline(PipelineConformance, unittest.TestCase):
    task = "image-classification"
    model_class = PositionalLabelForImageClassification
    config = PositionalLabelConfig(backbone_config=ViTConfig(**VIT), num_labels=3)
    processor = BitImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})

    def make_example(self, seed):
        return Image.fromarray((uniform(20, 24 + seed, 3, seed=seed) * 255).to(torch.uint8).numpy())
