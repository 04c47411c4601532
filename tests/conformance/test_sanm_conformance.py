"""transformers' common suites on every SANM class."""

import unittest

import torch
from hubmodels.modeling.sanm import (
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    SANMImageProcessor,
)
from PIL import Image

from tests.conformance.skips import CONVOLUTIONAL_SELF_SKIPS, NO_BASE_MODEL
from tests.conformance.suites import (
    ConfigTester,
    ConvolutionalConformance,
    ImageProcessorConformance,
    PipelineConformance,
    uniform,
)


def small_config(**changes) -> SANMConfig:
    """Images of 16 pixels in a network of two stages."""
    return SANMConfig(**({"image_size": 16, "widths": [4, 8], "depths": [1, 1], "num_labels": 3} | changes))


NO_ENCODER_CLASS = {"test_torch_save_load": "compares a model with its base model, which this method has not"}
DECODER_WITHOUT_GRADIENT = {
    "test_training_gradient_checkpointing*": "the decoder learns from masked views, in the light mode (below) "
    "and in the steps of the trainer"
}


class SANMConformance(ConvolutionalConformance):
    config = small_config()
    map_shapes = ((4, 16, 16), (4, 16, 16), (8, 8, 8))
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_ENCODER_CLASS

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
        return super().make_inputs(config, batch_size) | {"draws": uniform(batch_size, 8).double() * 0.05 + 0.02}


class TestSANMEnsembleForImageClassification(SANMConformance, unittest.TestCase):
    model_class = SANMEnsembleForImageClassification
    skips = DECODER_WITHOUT_GRADIENT
    map_shapes = 2 * SANMConformance.map_shapes
    self_skips = SANMConformance.self_skips | {
        "test_can_load_ignoring_mismatched_shapes": "looks for one classifier, an ensemble has two"
    }


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
