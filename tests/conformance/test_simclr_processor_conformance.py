"""transformers' common suite for image processors on SimCLR's."""

import unittest

from hubmodels.modeling.simclr import SimCLRImageProcessor

from tests.conformance.skips import IMAGE_PROCESSOR_SELF_SKIPS
from tests.conformance.suites import ImageProcessorConformance


class TestSimCLRImageProcessor(ImageProcessorConformance, unittest.TestCase):
    processor_class = SimCLRImageProcessor
    settings = {"size": {"height": 36, "width": 40}, "strength": 0.5}
    self_skips = IMAGE_PROCESSOR_SELF_SKIPS | {
        "test_fast_image_processor_explicit_none_preserved": "the processor has no `do_resize` and the like"
    }
