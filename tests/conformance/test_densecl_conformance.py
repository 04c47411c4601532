"""transformers' common suites on every DenseCL class."""

import unittest

from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel

from tests.conformance.skips import (
    BASE_MODEL,
    CONVOLUTIONAL_SELF_SKIPS,
    NO_BACKBONE,
    NO_BASE_MODEL,
    NO_CLASSIFIER,
    NO_LOSS,
)
from tests.conformance.suites import BackboneConformance, ConfigTester, ConvolutionalConformance, uniform

RANDOM_QUEUES = {"test_init_weights_can_init_buffers": "the queues start at random, the suite wants equal buffers"}


def small_config(**changes) -> DenseCLConfig:
    """Maps of 16, 8 and 4 cells a side."""
    resnet = {"embedding_size": 4, "depths": [1, 1], "strides": [1, 2], "dilations": [1, 1], "num_stages": 2}
    contrast = {"projection_hidden_size": 8, "projection_size": 6, "queue_length": 16}
    return DenseCLConfig(**(resnet | contrast | changes))


class DenseCLConformance(ConvolutionalConformance):
    config = small_config()
    map_shapes = ((4, 16, 16), (16, 8, 8), (32, 4, 4))
    skips = NO_BACKBONE

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 32, 32)}

    def test_config_common(self):
        common = ["num_channels", "queue_length", "temperature"]
        ConfigTester(
            self, config_class=DenseCLConfig, has_text_modality=False, common_properties=common
        ).run_common_tests()


class TestDenseCLModel(DenseCLConformance, unittest.TestCase):
    model_class = DenseCLModel
    self_skips = CONVOLUTIONAL_SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestDenseCLForPreTraining(DenseCLConformance, unittest.TestCase):
    model_class = DenseCLForPreTraining
    skips = NO_BACKBONE | RANDOM_QUEUES
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_CLASSIFIER

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, 2, config.num_channels, 32, 32)}


class TestDenseCLBackbone(BackboneConformance, DenseCLConformance, unittest.TestCase):
    model_class = DenseCLBackbone
    has_attentions = False
    skips = NO_BACKBONE | BackboneConformance.skips
    config = small_config(out_features=["stage1", "stage2"])
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_LOSS | NO_CLASSIFIER
