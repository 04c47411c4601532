"""transformers' common suites on every MAE class."""

import re
import tempfile
import unittest
from pathlib import Path

import torch
from hubmodels.modeling.mae import (
    MAEBackbone,
    MAEConfig,
    MAEFeaturePyramid,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conformance.skips import BASE_MODEL, MODEL_SELF_SKIPS, NO_BASE_MODEL, NO_CLASSIFIER, NO_LOSS
from tests.conformance.suites import (
    BackboneConformance,
    FeatureMapConformance,
    ImageProcessorConformance,
    ModelConformance,
    PipelineConformance,
    uniform,
)

# Current names to those of facebook/vit-mae-* on the Hub.
HUB_NAMES = {
    r"^(vit\.)?layers\.": r"\1encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
# transformers 5 writes the decoder of a ViTMAE like this.
TRANSFORMERS_5_NAMES = {r"^decoder\.decoder_layers\.": "decoder.decoder_encoder.layer.", **HUB_NAMES}


def small_config(**changes) -> MAEConfig:
    """16 patches of 4 x 4 pixels, of which 6 are kept."""
    sizes = {"image_size": 16, "patch_size": 4, "num_channels": 3, "mask_ratio": 0.6, "num_labels": 3}
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
    decoder = {f"decoder_{name}": size for name, size in (encoder | {"hidden_size": 16}).items()}
    return MAEConfig(**(sizes | encoder | decoder | changes))


class MAEConformance(ModelConformance):
    """All patches, as the classifier and the backbone see them."""

    config = small_config()
    seq_length = 17

    def make_inputs(self, config, batch_size):
        return {"pixel_values": uniform(batch_size, config.num_channels, 16, 16)}

    def test_reverse_loading_mapping(self):
        """Both older layouts load; saving writes the current names (the suite wants to get the old names back)."""
        model = self.model_class(self.model_tester.get_config())
        current = model.state_dict()
        for layout in (HUB_NAMES, TRANSFORMERS_5_NAMES):
            renamed = {rename(name, layout): tensor for name, tensor in current.items()}
            self.assertNotIn("layers.0.mlp.fc1.weight", " ".join(renamed))
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                save_file(renamed, Path(folder) / "model.safetensors", metadata={"format": "pt"})
                loaded, report = self.model_class.from_pretrained(folder, output_loading_info=True)
                self.assertFalse(any(report.values()), report)
                torch.testing.assert_close(loaded.state_dict(), current, rtol=0, atol=0)
                loaded.save_pretrained(folder)
                self.assertEqual(set(load_file(Path(folder) / "model.safetensors")), set(current))


def rename(name: str, names: dict[str, str]) -> str:
    """`name` in another layout."""
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)
    return name


class MaskedMAEConformance(MAEConformance):
    """Random masks come from the inputs."""

    seq_length = 7
    num_masks = (10, 16)

    def make_inputs(self, config, batch_size):
        return super().make_inputs(config, batch_size) | {"noise": uniform(batch_size, 16, seed=1)}


class TestMAEModel(MaskedMAEConformance, unittest.TestCase):
    model_class = MAEModel
    self_skips = MODEL_SELF_SKIPS | BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestMAEForPreTraining(MaskedMAEConformance, unittest.TestCase):
    model_class = MAEForPreTraining
    num_hidden_states_types = 2
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL | NO_CLASSIFIER


class TestMAEForImageClassificationMean(MAEConformance, unittest.TestCase):
    model_class = MAEForImageClassification
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL


class TestMAEForImageClassificationCls(MAEConformance, unittest.TestCase):
    model_class = MAEForImageClassification
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL
    config = small_config(pooling="cls")


class TestMAEForImageClassificationProbe(MAEConformance, unittest.TestCase):
    model_class = MAEForImageClassification
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL
    config = small_config(pooling="cls", probe_batch_norm=True)


class TestMAEBackbone(BackboneConformance, MAEConformance, unittest.TestCase):
    model_class = MAEBackbone
    config = small_config(out_features=["stage1", "stage2"])
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL | NO_LOSS | NO_CLASSIFIER


class TestMAEFeaturePyramid(FeatureMapConformance, MAEConformance, unittest.TestCase):
    model_class = MAEFeaturePyramid
    config = small_config(num_hidden_layers=4)
    self_skips = MODEL_SELF_SKIPS | NO_BASE_MODEL | NO_CLASSIFIER
    skips = FeatureMapConformance.skips | NO_LOSS | {"test_num_layers_is_small": "a pyramid reads four layers"}


class TestMAEImageProcessor(ImageProcessorConformance, unittest.TestCase):
    processor_class = MAEImageProcessor
    settings = {
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 18, "width": 18},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


class MAEPipelineConformance(PipelineConformance):
    processor = MAEImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})

    def make_example(self, seed):
        return Image.fromarray((uniform(20, 24 + seed, 3, seed=seed) * 255).to(torch.uint8).numpy())


class TestMAEImageClassificationPipeline(MAEPipelineConformance, unittest.TestCase):
    task = "image-classification"
    model_class = MAEForImageClassification
    config = small_config(classifier_init_std=1.0)


class TestMAEImageFeatureExtractionPipeline(MAEPipelineConformance, unittest.TestCase):
    task = "image-feature-extraction"
    model_class = MAEModel
    config = small_config(mask_ratio=0.0)
