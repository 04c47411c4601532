"""The conformance classes: a new model gets transformers' suites by naming its class, a small configuration and inputs.

```python
class TestMAEModel(ModelConformance, unittest.TestCase):
    model_class = MAEModel
    config = MAEConfig(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    seq_length = 5

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, 3, 16, 16), "noise": uniform(batch_size, 16)}
```

A test that does not fit a class is listed with its reason in `skips`. A test that skips itself, or passes without
having built a model, fails unless `self_skips` lists it, and so does an entry that names no test (any more): what is
not run is always on record.
"""

import copy
import functools
import tempfile
import unittest
import unittest.mock
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from transformers import pipeline

import hubmodels  # noqa: F401  (registers the models with the Auto classes, whose tables the suites read)
from tests.conformance.skips import IMAGE_PROCESSOR_SELF_SKIPS, MODEL_SELF_SKIPS, NOT_IN_EVERY_RELEASE
from tests.conformance.transformers_suites import UNAVAILABLE, load

ModelTesterMixin = load("test_modeling_common", "ModelTesterMixin")
BackboneTesterMixin = load("test_backbone_common", "BackboneTesterMixin")
ConfigTester = load("test_configuration_common", "ConfigTester")
ImageProcessingTester = load("test_image_processing_common", "ImageProcessingTester")
ImageProcessingTestMixin = load("test_image_processing_common", "ImageProcessingTestMixin")


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same float32 numbers in [0, 1) at every call."""
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


class Conformance:
    """
    What all conformance classes share: the record of skips.

    Attributes:
        skips (`dict[str, str]`): tests that are not run, as names or patterns, with the reason.
        self_skips (`dict[str, str]`): tests that find out themselves that they do not apply, with the reason.
    """

    skips: dict[str, str] = {}
    self_skips: dict[str, str] = {}

    def __init_subclass__(cls):
        # ModelTesterMixin's own hook is left out: it copies every inherited test to each subclass, wrapped to retry
        # downloads. Nothing is downloaded here, and the copies would hide what other base classes override.
        last_left_out = ModelTesterMixin if issubclass(cls, ModelTesterMixin) else Conformance
        super(last_left_out, cls).__init_subclass__()
        for pattern, reason in cls.skips.items():
            for name in cls.names_matching(pattern):
                setattr(cls, name, unittest.skip(reason)(getattr(cls, name)))

    @classmethod
    def names_matching(cls, pattern: str) -> list[str]:
        """Names of the tests of this class that match a `fnmatch` pattern."""
        return [name for name in dir(cls) if fnmatchcase(name, pattern) and callable(getattr(cls, name))]

    @classmethod
    def listed_reason(cls, test: str) -> str | None:
        """Why `test` may be skipped, or `None` if no table lists it."""
        tables = {**cls.self_skips, **cls.skips}
        return next((reason for pattern, reason in tables.items() if fnmatchcase(test, pattern)), None)

    def setUp(self):
        if UNAVAILABLE:
            self.fail(UNAVAILABLE)

    def test_suite_is_complete(self):
        """transformers' suites are there (see `setUp`), and every listed skip names a test of theirs."""
        listed = {**self.self_skips, **self.skips}.keys() - NOT_IN_EVERY_RELEASE
        stale = sorted(pattern for pattern in listed if not self.names_matching(pattern))
        self.assertFalse(stale, "these listed skips name no test of the suite (any more)")


class ModelTester:
    """
    What the model suites ask about the model under test: sizes, and a configuration with inputs.

    Args:
        case (`ModelConformance`): the conformance class.
    """

    is_training = True

    def __init__(self, case: "ModelConformance"):
        self.case = case
        self.batch_size = case.batch_size
        self.seq_length = case.seq_length
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_labels",
            "image_size",
            "patch_size",
        ):
            if hasattr(case.config, name):
                setattr(self, name, getattr(case.config, name))
        # For models with `bool_masked_pos`: how many of how many patches the suite masks.
        self.num_masks, self.mask_length = case.num_masks
        self.num_hidden_states_types = case.num_hidden_states_types

    def get_config(self):
        """A fresh copy of the small configuration."""
        return copy.deepcopy(self.case.config)

    def prepare_config_and_inputs_for_common(self):
        """The small configuration and the same inputs at every call."""
        config = self.get_config()
        return config, self.case.make_inputs(config, self.batch_size)


class ModelConformance(Conformance, ModelTesterMixin):
    """
    transformers' `ModelTesterMixin` and `ConfigTester` for one model class, and `torch.export`.

    Attributes:
        model_class: the model.
        config: a small configuration (at most 2 layers).
        seq_length (`int`): tokens of the encoder for the inputs.
        num_masks (`tuple[int, int]`): masked patches and all patches, for models with `bool_masked_pos`.
        num_hidden_states_types (`int`): how many tuples `output_hidden_states` returns, of encoder, decoder ...
        batch_size (`int`): of the inputs.
        tests_without_model (`tuple[str, ...]`): tests that need no model; all others have to build one.
    """

    model_class: Any = None
    config: Any = None
    seq_length = 0
    num_masks = (0, 0)
    num_hidden_states_types = 1
    batch_size = 8
    self_skips = MODEL_SELF_SKIPS

    # The models have no tokens; all weights must be initialised by `_init_weights`, whatever the year of the file.
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    tests_without_model = (
        "test_config*",
        "test_generation_tester_mixin_inheritance",
        "test_model_main_input_name",
        "test_num_layers_is_small",
        "test_suite_is_complete",
    )

    def make_inputs(self, config, batch_size: int) -> dict[str, torch.Tensor]:
        """The inputs of `forward` for `batch_size` samples, equal at every call; random masks belong here."""
        raise NotImplementedError

    @property
    def all_model_classes(self) -> tuple:
        return (self.model_class,)

    def setUp(self):
        super().setUp()
        self.model_tester = ModelTester(self)
        self.models_built = 0
        build = self.model_class.__init__

        @functools.wraps(build)
        def build_and_count(model, *args, **kwargs):
            self.models_built += 1
            build(model, *args, **kwargs)

        self.enterContext(unittest.mock.patch.object(self.model_class, "__init__", build_and_count))

    def _callTestMethod(self, method):
        """Turns a pass without a model into a skip: the suites leave out what a class is not meant for, silently."""
        super()._callTestMethod(method)
        may_have_none = any(fnmatchcase(self._testMethodName, pattern) for pattern in self.tests_without_model)
        if not self.models_built and not may_have_none:
            self.skipTest("ends without having built a model")

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """As in the suite; one of its tests gives every kind of mask at once, of which the models accept one."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if "bool_masked_pos" in inputs:
            inputs.pop("noise", None)
        return inputs

    def test_config_common(self):
        """transformers' `ConfigTester`."""
        widths = {"hidden_size": self.config.hidden_size, "num_attention_heads": self.config.num_attention_heads}
        ConfigTester(self, config_class=type(self.config), has_text_modality=False, **widths).run_common_tests()

    def test_model_get_set_embeddings(self):
        """As in the suite for tokens; for pixels the input embedding is a projection, no `nn.Embedding`."""
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        if "input_ids" in inputs:
            super().test_model_get_set_embeddings()
        else:
            model = self.model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_torch_export(self):
        """`torch.export` captures the forward as one graph, with equal outputs (transformers' `ExportTesterMixin`)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_class(config).eval()
        exported = torch.export.export(model, (), inputs).module()
        with torch.no_grad():
            expected, actual = model(**inputs), exported(**inputs)
        self.assertEqual(list(expected), list(actual))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


class FeatureMapConformance(ModelConformance):
    """The same for a model that returns feature maps and no loss, trained as a part of something else."""

    skips = {"test_retain_grad_hidden_states_attentions": "the first output is a tuple of feature maps, no tensor"}

    def test_gradients_reach_every_parameter(self):
        """Without and with activation checkpointing, and the gradients are equal."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        models = [self.model_class(config)]
        config.gradient_checkpointing = True
        models.append(self.model_class(config))
        models[1].load_state_dict(models[0].state_dict())
        gradients = []
        for model in models:
            sum(feature_map.square().sum() for feature_map in model(**inputs).feature_maps).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        self.assertEqual([name for name, gradient in gradients[0].items() if gradient is None], [])
        torch.testing.assert_close(gradients[1], gradients[0])


class ConvolutionalConformance(ModelConformance):
    """
    The suites for networks whose hidden states are feature maps.

    Attributes:
        map_shapes: shapes `[C, h, w]` of the maps of `config` for `make_inputs`.
    """

    has_attentions = False
    map_shapes: tuple[tuple[int, int, int], ...]

    def test_hidden_states_output(self):
        """The maps of the stem and of every stage (the suite expects tokens)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for requested in ({"output_hidden_states": True}, {}):
            config.output_hidden_states = not requested
            with torch.no_grad():
                maps = self.model_class(config).eval()(**inputs, **requested).hidden_states
            self.assertEqual(tuple(tuple(m.shape[1:]) for m in maps), self.map_shapes)


class BackboneConformance(BackboneTesterMixin, FeatureMapConformance):
    """The same for a backbone, with transformers' `BackboneTesterMixin`."""

    all_model_classes = ModelConformance.all_model_classes

    @property
    def config_class(self) -> type:
        return type(self.config)


class ImageProcessorConformance(Conformance, ImageProcessingTestMixin):
    """
    transformers' `ImageProcessingTestMixin` for one image processor.

    Attributes:
        processor_class: the processor (torchvision backend).
        settings (`dict`): small values of its arguments; `image_mean`, `size` and so on.
    """

    processor_class: Any = None
    settings: dict[str, Any] = {}
    self_skips = IMAGE_PROCESSOR_SELF_SKIPS

    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        classes = {"torchvision": self.processor_class}

        class Tester(ImageProcessingTester):
            def _get_image_processing_classes(self):
                return classes

        np.random.seed(0)
        self.image_processor_tester = Tester(self, **copy.deepcopy(self.settings))


class PipelineConformance(Conformance):
    """
    `transformers.pipeline` on a saved folder (transformers' `PipelineTesterMixin` needs its models on the Hub).

    Attributes:
        task (`str`): name of the pipeline.
        model_class, config: the model and a small configuration.
        processor: an instance of its processor.
    """

    task = ""
    model_class: Any = None
    config: Any = None
    processor: Any = None

    def make_example(self, seed: int) -> Any:
        """An input of the pipeline."""
        raise NotImplementedError

    def test_pipeline(self):
        """Ten examples in batches of four, the last one unfinished, give what they give one by one."""
        examples = [self.make_example(seed) for seed in range(10)]
        for dtype in (torch.float32, torch.bfloat16):
            with self.subTest(dtype), tempfile.TemporaryDirectory() as folder:
                self.model_class(copy.deepcopy(self.config)).save_pretrained(folder)
                self.processor.save_pretrained(folder)
                run = pipeline(self.task, model=folder, dtype=dtype)
                self.assertIs(type(run.model), self.model_class)
                self.assertEqual(run.model.dtype, dtype)
                batched, single = run(examples, batch_size=4), [run(example) for example in examples]
                tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
                torch.testing.assert_close(numbers(batched), numbers(single), **tolerance)


def numbers(outputs: Any) -> torch.Tensor:
    """All numbers of nested lists and dictionaries; the entries of a ranking in the order of their labels."""
    if isinstance(outputs, dict):
        return numbers([value for _, value in sorted(outputs.items()) if not isinstance(value, str)])
    if isinstance(outputs, list):
        if outputs and isinstance(outputs[0], dict) and "label" in outputs[0]:
            outputs = sorted(outputs, key=lambda entry: entry["label"])
        return torch.cat([numbers(value) for value in outputs])
    return torch.tensor([outputs], dtype=torch.float32)
