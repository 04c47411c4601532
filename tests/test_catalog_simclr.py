"""The catalog's records of the released SimCLR checkpoints agree with the networks and figures of their authors."""

import re

import pytest
import torch
from hubmodels.modeling.simclr import SimCLRConfig, SimCLRModel

from hubmodels import catalog

RECORDS = {c.name: c for c in catalog.CHECKPOINTS if c.method == "simclr" and not c.is_packaged}
# Official README: network -> millions of parameters.
MILLIONS = {
    "r50_1x_sk0": 24,
    "r50_1x_sk1": 35,
    "r50_2x_sk0": 94,
    "r50_2x_sk1": 140,
    "r101_1x_sk0": 43,
    "r101_1x_sk1": 65,
    "r101_2x_sk0": 170,
    "r101_2x_sk1": 257,
    "r152_1x_sk0": 58,
    "r152_1x_sk1": 89,
    "r152_2x_sk0": 233,
    "r152_2x_sk1": 354,
    "r152_3x_sk1": 795,
}


def test_all_released_checkpoints_are_listed():
    assert sum(name.startswith("simclrv2_") for name in RECORDS) == 65
    assert sum(name.startswith("simclrv1_") for name in RECORDS) == 9
    assert len({record.source for record in RECORDS.values()}) == len(RECORDS)
    for record in RECORDS.values():
        assert record.source == f"gs://simclr-checkpoints/{record.official_file}"
        assert record.official_file.replace("/", "_") == record.name


@pytest.mark.parametrize("network", MILLIONS)
def test_parameters_are_those_of_the_network(network):
    """Built without memory on the meta device; the authors count moving statistics, too."""
    depth, width, selective = map(int, re.fullmatch(r"r(\d+)_(\d)x_sk(\d)", network).groups())
    with torch.device("meta"):
        model = SimCLRModel(SimCLRConfig(resnet_depth=depth, width_multiplier=width, sk_ratio=0.0625 * selective))
    values = sum(t.numel() for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked"))
    assert round(values / 1e6) == MILLIONS[network]
    assert {r.parameters for name, r in RECORDS.items() if name.endswith(f"_{network}")} == {values}


def test_figures_are_those_of_the_readme():
    figures = {name: record.metrics[0].value for name, record in RECORDS.items()}
    assert figures["simclrv2_pretrained_r50_1x_sk0"] == 71.7
    assert figures["simclrv2_finetuned_1pct_r152_3x_sk1"] == 74.9
    assert figures["simclrv2_finetuned_100pct_r101_2x_sk1"] == 82.4
    assert figures["simclrv2_supervised_r152_2x_sk0"] == 79.1
    assert figures["simclrv1_pretrain_4x"] == 76.6
    assert figures["simclrv1_finetune_10pct_2x"] == 71.6


def test_fine_tuned_checkpoints_name_their_base():
    tuned = [record for record in RECORDS.values() if record.base_model]
    assert len(tuned) == 3 * 13 + 2 * 3
    assert all(record.base_model in RECORDS for record in tuned)


def test_the_path_in_the_bucket_is_what_to_convert():
    with pytest.raises(ValueError, match=r"gs://.*hubmodels convert simclr simclrv2/pretrained/r50_1x_sk0 OUT"):
        catalog.packaged_path("simclrv2_pretrained_r50_1x_sk0")
    assert catalog.get_checkpoint("mae_pretrain_vit_base").official_file == "mae_pretrain_vit_base.pth"
