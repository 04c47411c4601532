"""transformers' common suite on DenseCL's image processor."""

import unittest

from hubmodels.modeling.densecl import DenseCLImageProcessor

from tests.conformance.suites import ImageProcessorConformance


class TestDenseCLImageProcessor(ImageProcessorConformance, unittest.TestCase):
    processor_class = DenseCLImageProcessor
    settings = {
        "size": {"height": 18, "width": 20},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
