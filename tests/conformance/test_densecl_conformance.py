"""transformers' common suites on every DenseCL class."""

import unittest

import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLConfig, DenseCLForPreTraining, DenseCLModel

from tests.conformance.skips import (
    BASE_MODEL,
    MODEL_SELF_SKIPS,
    NO_ATTENTION,
    NO_BASE_MODEL,
    NO_CLASSIFIER,
    NO_HOOKS,
    NO_LOSS,
    ONE_LAYOUT,
)
from tests.conformance.suites import BackboneConformance, ConfigTester, ModelConformance, uniform

SELF_SKIPS = MODEL_SELF_SKIPS | NO_ATTENTION | NO_HOOKS | ONE_LAYOUT
NO_BACKBONE = {"test_model_weights_reload_no_missing_tied_weights": "a file without weights of the backbone is refused"}
RANDOM_QUEUES = {"test_init_weights_can_init_buffers": "the queues start at random, the suite wants equal buffers"}


def small_config(**changes) -> DenseCLConfig:
    """Maps of 16, 8 and 4 cells a side."""
    resnet = {"embedding_size": 4, "depths": [1, 1], "strides": [1, 2], "dilations": [1, 1], "num_stages": 2}
    contrast = {"projection_hidden_size": 8, "projection_size": 6, "queue_length": 16}
    return DenseCLConfig(**(resnet | contrast | changes))


class DenseCLConformance(ModelConformance):
    config = small_config()
    has_attentions = False
    skips = NO_BACKBONE

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 32, 32)}

    def test_config_common(self):
        common = ["num_channels", "queue_length", "temperature"]
        ConfigTester(
            self, config_class=DenseCLConfig, has_text_modality=False, common_properties=common
        ).run_common_tests()

    def test_hidden_states_output(self):
        """The maps of the stem and of every stage (the suite expects tokens)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for requested in ({"output_hidden_states": True}, {}):
            config.output_hidden_states = not requested
            with torch.no_grad():
                maps = self.model_class(config).eval()(**inputs, **requested).hidden_states
            self.assertEqual([tuple(m.shape[1:]) for m in maps], [(4, 16, 16), (16, 8, 8), (32, 4, 4)])


class TestDenseCLModel(DenseCLConformance, unittest.TestCase):
    model_class = DenseCLModel
    self_skips = SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestDenseCLForPreTraining(DenseCLConformance, unittest.TestCase):
    model_class = DenseCLForPreTraining
    skips = NO_BACKBONE | RANDOM_QUEUES
    self_skips = SELF_SKIPS | NO_BASE_MODEL | NO_CLASSIFIER

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, 2, config.num_channels, 32, 32)}


class TestDenseCLBackbone(BackboneConformance, DenseCLConformance, unittest.TestCase):
    model_class = DenseCLBackbone
    has_attentions = False
    skips = NO_BACKBONE | BackboneConformance.skips
    config = small_config(out_features=["stage1", "stage2"])
    self_skips = SELF_SKIPS | NO_BASE_MODEL | NO_LOSS | NO_CLASSIFIER
