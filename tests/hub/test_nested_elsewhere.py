"""Models that hold a network of another method load where hubmodels cannot be imported, and save there again."""

import numpy as np
import pytest
import torch
from client_code import WITHOUT_HUBMODELS, run_client
from hub_server import HubServer
from hubmodels.modeling.mae import MAEImageProcessor
from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification, SANMImageProcessor
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRForPreTraining, SimCLRImageProcessor, SimCLRModel
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hubmodels.nested_code import nested_methods
from hubmodels.repository import prepare_repository
from tests.modeling.tiny_mae import tiny_config

PUBLISH = """
import sys
from pathlib import Path
from hubmodels.publishing import publish
for name in ("simclr", "upernet", "sanm"):
    publish(Path(sys.argv[1]) / name, f"alice/{name}")
"""

STRANGER = """
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import (AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining,
                          AutoModelForSemanticSegmentation)
work = Path(sys.argv[1])
trust = {"trust_remote_code": True}
pixels, views = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "views"))
seen = {}

def loaded(auto, name):
    model, info = auto.from_pretrained(name, output_loading_info=True, **trust)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model.eval()

@torch.no_grad()
def use(way, contrastive, segmenter, pair):
    model = loaded(AutoModelForPreTraining, contrastive)
    seen[f"{way}/loss"] = model(views).loss
    seen[f"{way}/features"] = AutoModel.from_pretrained(contrastive, **trust).eval()(pixels).pooler_output
    model.save_pretrained(work / f"{way}-simclr-again")
    segmenter = loaded(AutoModelForSemanticSegmentation, segmenter)
    seen[f"{way}/map"] = segmenter(pixels).logits
    segmenter.save_pretrained(work / f"{way}-upernet-again")
    pair = loaded(AutoModelForImageClassification, pair)
    seen[f"{way}/scores"] = pair(pixels).logits
    pair.save_pretrained(work / f"{way}-sanm-again")

AutoImageProcessor.from_pretrained("alice/simclr", **trust)
AutoImageProcessor.from_pretrained("alice/sanm", **trust)
use("published", "alice/simclr", "alice/upernet", "alice/sanm")
use("folder", *(str(work / f"repository-{name}") for name in ("simclr", "upernet", "sanm")))
np.savez(work / "stranger.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""

# In a process of its own: nothing that the first one registered helps it.
SAVED_AGAIN = """
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, AutoModelForSemanticSegmentation
work = Path(sys.argv[1])
pixels, views = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "views"))
seen = {}
with torch.no_grad():
    for way in ("published", "folder"):
        contrastive, segmenter, pair = (str(work / f"{way}-{name}-again") for name in ("simclr", "upernet", "sanm"))
        model = AutoModelForPreTraining.from_pretrained(contrastive, trust_remote_code=True)
        seen[f"{way}/loss"] = model.eval()(views).loss
        model = AutoModelForSemanticSegmentation.from_pretrained(segmenter, trust_remote_code=True)
        seen[f"{way}/map"] = model.eval()(pixels).logits
        model = AutoModelForImageClassification.from_pretrained(pair, trust_remote_code=True)
        seen[f"{way}/scores"] = model.eval()(pixels).logits
np.savez(work / "again.npz", **{key: np.asarray(value) for key, value in seen.items()})
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with the models and what two strangers' processes got from them."""
    work = tmp_path_factory.mktemp("nested")
    torch.manual_seed(0)
    simclr = SimCLRConfig(backbone_config=tiny_config(image_size=32, patch_size=8), image_size=32, proj_out_dim=8)
    stages = ["stage1", "stage2"]
    upernet = UperNetConfig(
        backbone_config=tiny_config(image_size=32, patch_size=8, out_features=stages),
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=3,
    )
    SimCLRForPreTraining(simclr).save_pretrained(work / "simclr")
    SimCLRImageProcessor(size={"height": 32, "width": 32}).save_pretrained(work / "simclr")
    UperNetForSemanticSegmentation(upernet).save_pretrained(work / "upernet")
    MAEImageProcessor(size={"height": 32, "width": 32}).save_pretrained(work / "upernet")
    inner = SimCLRConfig(layer_type="basic", stem_width=4, depths=[1, 1, 1, 1], image_size=32)
    pair = SANMConfig(backbone_config=inner, image_size=32, num_labels=3)
    SANMEnsembleForImageClassification(pair).save_pretrained(work / "sanm")
    SANMImageProcessor(size={"shortest_edge": 32}).save_pretrained(work / "sanm")
    generator = np.random.default_rng(0)
    np.save(work / "pixels.npy", generator.random((2, 3, 32, 32), dtype=np.float32))
    np.save(work / "views.npy", generator.random((3, 2, 3, 32, 32), dtype=np.float32))
    for name in ("simclr", "upernet", "sanm"):
        prepare_repository(work / name, work / f"repository-{name}")
    with HubServer() as hub:
        run_client(hub, work, PUBLISH)
        run_client(hub, work, WITHOUT_HUBMODELS + STRANGER, token="hf_read_secret")
        run_client(hub, work, WITHOUT_HUBMODELS + SAVED_AGAIN, token=None)
    return work


def assert_equal(seen, key: str, ours: torch.Tensor) -> None:
    np.testing.assert_allclose(seen[key], ours.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("way", ["published", "folder"])
def test_method_around_another_gives_the_same_outputs_elsewhere(work, way):
    pixels, views = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("pixels", "views"))
    with torch.no_grad():
        loss = SimCLRForPreTraining.from_pretrained(work / "simclr").eval()(views).loss
        features = SimCLRModel.from_pretrained(work / "simclr").eval()(pixels).pooler_output
    stranger, again = np.load(work / "stranger.npz"), np.load(work / "again.npz")
    assert_equal(stranger, f"{way}/loss", loss)
    assert_equal(stranger, f"{way}/features", features)
    assert_equal(again, f"{way}/loss", loss)


@pytest.mark.parametrize("way", ["published", "folder"])
def test_pair_of_networks_around_another_method_gives_the_same_scores_elsewhere(work, way):
    pixels = torch.from_numpy(np.load(work / "pixels.npy"))
    with torch.no_grad():
        ours = SANMEnsembleForImageClassification.from_pretrained(work / "sanm").eval()(pixels).logits
    assert_equal(np.load(work / "stranger.npz"), f"{way}/scores", ours)
    assert_equal(np.load(work / "again.npz"), f"{way}/scores", ours)


@pytest.mark.parametrize("way", ["published", "folder"])
def test_transformers_model_around_a_method_gives_the_same_outputs_elsewhere(work, way):
    pixels = torch.from_numpy(np.load(work / "pixels.npy"))
    with torch.no_grad():
        ours = UperNetForSemanticSegmentation.from_pretrained(work / "upernet").eval()(pixels).logits
    assert_equal(np.load(work / "stranger.npz"), f"{way}/map", ours)
    assert_equal(np.load(work / "again.npz"), f"{way}/map", ours)


def test_repository_carries_the_unchanged_files_of_both_methods(work):
    names = {path.name for path in (work / "repository-simclr").iterdir()}
    assert {"composed_simclr.py", "modeling_simclr.py", "modeling_mae.py", "configuration_mae.py"} <= names
    assert "composed_mae.py" not in names


def test_nested_methods_are_found_at_any_depth():
    inner = {"model_type": "mae"}
    assert nested_methods({"model_type": "mae"}) == []
    assert [m.name for m in nested_methods({"model_type": "simclr", "backbone_config": inner})] == ["mae"]
    assert [m.name for m in nested_methods({"parts": [{"model_type": "vit", "encoder": inner}]})] == ["mae"]
