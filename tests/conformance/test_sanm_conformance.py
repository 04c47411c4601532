"""transformers' common suites on every SANM class."""

import unittest

import torch
from hubmodels.modeling.sanm import (
    SANMBackbone,
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
    SANMModel,
)
from PIL import Image

from tests.conformance.skips import BASE_MODEL, CONVOLUTIONAL_SELF_SKIPS, NO_BASE_MODEL, NO_CLASSIFIER, NO_LOSS
from tests.conformance.suites import (
    BackboneConformance,
    ConfigTester,
    ConvolutionalConformance,
    ImageProcessorConformance,
    PipelineConformance,
    uniform,
)


def small_config(**changes) -> SANMConfig:
    """Images of 16 pixels in a network of two stages."""
    return SANMConfig(**({"image_size": 16, "widths": [4, 8], "depths": [1, 1], "num_labels": 3} | changes))


DECODER_WITHOUT_GRADIENT = {
    "test_training_gradient_checkpointing*": "the decoder learns from masked views, in the light mode (below) "
    "and in the steps of the trainer"
}


class SANMConformance(ConvolutionalConformance):
    config = small_config()
    map_shapes = ((4, 16, 16), (4, 16, 16), (8, 8, 8))
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 16, 16), "output_reconstruction": True}

    def test_config_common(self):
        ConfigTester(
            self, config_class=SANMConfig, has_text_modality=False, common_properties=["num_channels", "image_size"]
        ).run_common_tests()


class TestSANMForImageClassification(SANMConformance, unittest.TestCase):
    model_class = SANMForImageClassification
    skips = DECODER_WITHOUT_GRADIENT


class TestSANMForImageClassificationBottleneck(SANMConformance, unittest.TestCase):
    model_class = SANMForImageClassification
    skips = DECODER_WITHOUT_GRADIENT
    config = small_config(layer_type="bottleneck", pool=True)
    map_shapes = ((4, 4, 4), (16, 4, 4), (32, 2, 2))


class TestSANMForImageClassificationLightMode(SANMConformance, unittest.TestCase):
    model_class = SANMForImageClassification
    config = small_config(framework="ce", layer_type="basic")

    def make_inputs(self, config, batch_size):
        draws = torch.cat([torch.full((batch_size, 1), 0.05), torch.ones(batch_size, 1), uniform(batch_size, 6)], dim=1)
        return super().make_inputs(config, batch_size) | {"draws": draws.double()}


class TestSANMEnsembleForImageClassification(SANMConformance, unittest.TestCase):
    model_class = SANMEnsembleForImageClassification
    skips = DECODER_WITHOUT_GRADIENT
    map_shapes = 2 * SANMConformance.map_shapes
    self_skips = SANMConformance.self_skips | {
        "test_can_load_ignoring_mismatched_shapes": "looks for one classifier, an ensemble has two"
    }


class SANMEncoderConformance(SANMConformance):
    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 16, 16)}


class TestSANMModel(SANMEncoderConformance, unittest.TestCase):
    model_class = SANMModel
    self_skips = CONVOLUTIONAL_SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestSANMBackbone(BackboneConformance, SANMEncoderConformance, unittest.TestCase):
    model_class = SANMBackbone
    has_attentions = False
    config = small_config(out_features=["stage1", "stage2"])
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class SANMPipelineConformance(PipelineConformance):
    config = small_config()
    task = "image-classification"
    processor = SANMImageProcessor(size={"height": 16, "width": 16})

    def make_example(self, seed):
        return Image.fromarray((uniform(20, 24 + seed, 3, seed=seed) * 255).to(torch.uint8).numpy())


class TestSANMPipeline(SANMPipelineConformance, unittest.TestCase):
    model_class = SANMForImageClassification


class TestSANMEnsemblePipeline(SANMPipelineConformance, unittest.TestCase):
    model_class = SANMEnsembleForImageClassification


class TestSANMImageProcessor(ImageProcessorConformance, unittest.TestCase):
    processor_class = SANMImageProcessor
    settings = {"size": {"height": 18, "width": 18}}
