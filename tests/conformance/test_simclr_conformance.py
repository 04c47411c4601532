"""transformers' common suites on every SimCLR class."""

import unittest

import torch
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from PIL import Image

from tests.conformance.skips import (
    BASE_MODEL,
    CONVOLUTIONAL_SELF_SKIPS,
    NO_BACKBONE,
    NO_BASE_MODEL,
    NO_CLASSIFIER,
    NO_LOSS,
)
from tests.conformance.suites import (
    BackboneConformance,
    ConfigTester,
    ConvolutionalConformance,
    PipelineConformance,
    uniform,
)


def small_config(**changes) -> SimCLRConfig:
    """Images of 16 pixels in a network of two groups."""
    sizes = {"image_size": 16, "stem_width": 4, "depths": [1, 1], "num_labels": 3, "cifar_stem": False}
    return SimCLRConfig(**(sizes | {"proj_out_dim": 8, "num_proj_layers": 2} | changes))


class SimCLRConformance(ConvolutionalConformance):
    config = small_config()
    map_shapes = ((4, 4, 4), (16, 4, 4), (32, 2, 2))
    skips = NO_BACKBONE

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 16, 16)}

    def test_config_common(self):
        ConfigTester(
            self, config_class=SimCLRConfig, has_text_modality=False, common_properties=["num_channels", "image_size"]
        ).run_common_tests()


class TestSimCLRModel(SimCLRConformance, unittest.TestCase):
    model_class = SimCLRModel
    self_skips = CONVOLUTIONAL_SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestSimCLRForPreTraining(SimCLRConformance, unittest.TestCase):
    model_class = SimCLRForPreTraining
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_CLASSIFIER
    skips = NO_BACKBONE | {
        "test_batching_equivalence": "the loss compares the images of a batch, one alone has no negatives"
    }

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, 2, config.num_channels, 16, 16)}


class TestSimCLRForImageClassification(SimCLRConformance, unittest.TestCase):
    model_class = SimCLRForImageClassification
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL


class TestSimCLRForImageClassificationSelectiveKernel(SimCLRConformance, unittest.TestCase):
    model_class = SimCLRForImageClassification
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL
    config = small_config(sk_ratio=0.0625, se_ratio=0.25, ft_proj_selector=1)


class TestSimCLRBackbone(BackboneConformance, SimCLRConformance, unittest.TestCase):
    model_class = SimCLRBackbone
    has_attentions = False
    skips = NO_BACKBONE | BackboneConformance.skips
    config = small_config(out_features=["stage1", "stage2"])
    self_skips = CONVOLUTIONAL_SELF_SKIPS | NO_BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class SimCLRPipelineConformance(PipelineConformance):
    config = small_config()
    processor = SimCLRImageProcessor(size=16, crop_proportion=0.875)

    def make_example(self, seed):
        return Image.fromarray((uniform(20, 24 + seed, 3, seed=seed) * 255).to(torch.uint8).numpy())


class TestSimCLRImageClassificationPipeline(SimCLRPipelineConformance, unittest.TestCase):
    task = "image-classification"
    model_class = SimCLRForImageClassification


class TestSimCLRImageFeatureExtractionPipeline(SimCLRPipelineConformance, unittest.TestCase):
    task = "image-feature-extraction"
    model_class = SimCLRModel
