"""The golden case of DenseCL's backbone: conversion, features of all stages, and every converted tensor."""

import pickle

import pytest
import torch
from hubmodels.conversion import convert, to_official
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLForPreTraining, DenseCLModel

from tests.golden.harness import load_case

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def case():
    return load_case("densecl", "backbone_export")


@pytest.fixture(scope="module")
def training_run(case, tmp_path_factory):
    return convert("densecl", case.folder / "checkpoint_full.pth", tmp_path_factory.mktemp("full") / "model")


@pytest.fixture(scope="module")
def backbone(case, tmp_path_factory):
    return convert("densecl", case.folder / "extracted.pth", tmp_path_factory.mktemp("extracted") / "model")


def assert_same_tensors(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("source", ["training_run", "backbone"])
@torch.no_grad()
def test_backbone_gives_the_official_maps(case, source, request):
    """A backbone loads from either folder, with all stages."""
    model = DenseCLBackbone.from_pretrained(request.getfixturevalue(source), out_features=list(STAGES)).eval()
    maps = model(case.inputs["pixel_values"]).feature_maps
    for name, feature_map in zip(STAGES, maps, strict=True):
        torch.testing.assert_close(feature_map, case.outputs[name], **TOLERANCE)


@torch.no_grad()
def test_heads_give_the_official_embeddings(case, training_run):
    output = DenseCLModel.from_pretrained(training_run).eval()(case.inputs["pixel_values"])
    for name, actual in {
        "neck_global": output.global_embedding,
        "neck_dense": output.dense_embedding,
        "neck_dense_pooled": output.pooled_dense_embedding,
        "normalised_grid": torch.nn.functional.normalize(output.last_hidden_state.flatten(2), dim=1),
    }.items():
        torch.testing.assert_close(actual, case.outputs[name], **TOLERANCE)


def test_training_run_and_back(case, training_run, tmp_path):
    written = torch.load(to_official(training_run, tmp_path / "back.pth"), weights_only=True)
    official = torch.load(case.folder / "checkpoint_full.pth", weights_only=True)
    assert list(written) == ["meta", "state_dict", "optimizer"]
    assert_same_tensors(written["state_dict"], official["state_dict"])


def test_backbone_and_back(case, backbone, tmp_path):
    written = torch.load(to_official(backbone, tmp_path / "back.pth"), weights_only=True)
    official = torch.load(case.folder / "extracted.pth", weights_only=True)
    assert written["author"] == official["author"] == "DenseCL"
    assert_same_tensors(written["state_dict"], official["state_dict"])


@pytest.mark.parametrize("source", ["training_run", "backbone"])
def test_detectron2_file_has_every_official_tensor(case, source, request, tmp_path):
    out = to_official(request.getfixturevalue(source), tmp_path / "model.pkl", layout="detectron2")
    with out.open("rb") as file:
        content = pickle.load(file)
    expected = case.group("detectron2")
    assert content.pop("model").keys() == expected.keys()
    assert content == {"__author__": "OpenSelfSup", "matching_heuristics": True}
    with out.open("rb") as file:
        arrays = pickle.load(file, encoding="latin1")["model"]  # as detectron2 opens it
    for name, tensor in expected.items():
        assert arrays[name].shape == tensor.shape, name
        assert torch.equal(torch.from_numpy(arrays[name]), tensor), name


def test_training_state_survives(case, training_run):
    model, info = DenseCLForPreTraining.from_pretrained(training_run, output_loading_info=True)
    assert not any(info.values())
    official = torch.load(case.folder / "checkpoint_full.pth", weights_only=True)["state_dict"]
    for name in ("queue", "queue_ptr", "queue2", "queue2_ptr"):
        assert torch.equal(getattr(model, name), official[name])
    assert not any(parameter.requires_grad for parameter in model.momentum_encoder.parameters())
