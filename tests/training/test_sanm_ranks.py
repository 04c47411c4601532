"""Two processes co-train together: one split, one set of weights, every image judged once."""

from pathlib import Path

import pytest
import torch
from hubmodels.modeling.sanm import SANMEnsembleForImageClassification

from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.training.cotraining_data import co_training_steps, share_of_process, warm_up_steps
from tests.launching import torchrun

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo processes ended with."""
    folder = tmp_path_factory.mktemp("sanm_ranks")
    torchrun(HERE / "sanm_ranks.py", folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_processes_end_with_the_same_split_weights_and_momenta(ranks):
    first, second = ranks
    assert torch.equal(first["clean_prob"], second["clean_prob"]) and first["clean_prob"].shape == (2, 61)
    assert first["steps"] == second["steps"] > 0
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    for ours, theirs in zip(first["momenta"], second["momenta"], strict=True):
        assert torch.equal(ours, theirs)


def test_every_image_is_judged_once_in_its_place(ranks):
    first, second = ranks
    assert torch.equal(first["losses"], second["losses"])
    from sanm_ranks import SANMConfig

    model = SANMEnsembleForImageClassification(
        SANMConfig(widths=[2, 4], depths=[1, 1], image_size=28, num_labels=10, num_channels=1)
    )
    model.load_state_dict(first["weights"])
    images = load_image_dataset("fashion-mnist-small", "train").subset(61)
    transform = EvalTransform(28, crop_fraction=1.0, num_channels=1)
    expected = predict_samples([model.net1, model.net2], images, transform)
    torch.testing.assert_close(first["losses"], expected.losses)
    assert model.training and predict_samples([model.net1], images, transform).losses.shape == (1, 61)


def test_steps_are_shared_without_loss_or_repetition():
    mask = torch.arange(30) % 3 > 0
    steps = co_training_steps(mask.numpy(), batch=6, key=[0, 2, 1])
    assert sorted(p for step in steps for p in step.labelled) == [i for i in range(30) if i % 3]
    assert {len(step.labelled) for step in steps} == {6, 2}
    # The ten unlabelled images begin again, in another order, and say so.
    assert [step.turn for step in steps] == [0, 0, 1, 1]
    assert [len(step.unlabelled) for step in steps] == [6, 4, 6, 4]
    shares = [share_of_process(steps, process, 2) for process in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(steps)
    for step, *parts in zip(steps, *shares, strict=True):
        assert sorted([*parts[0].labelled, *parts[1].labelled]) == sorted(step.labelled)
    assert len(share_of_process(steps, 0, 3)) == 3  # the last two images are too few for three processes
    again = co_training_steps(mask.numpy(), batch=6, key=[0, 2, 1])
    assert all((a.labelled == b.labelled).all() for a, b in zip(steps, again, strict=True))
    other = co_training_steps(mask.numpy(), batch=6, key=[0, 3, 1])
    assert any((a.labelled != b.labelled).any() for a, b in zip(steps, other, strict=True))


def test_a_last_image_alone_is_left_out():
    assert [len(step.labelled) for step in warm_up_steps(9, 4, [0])] == [4, 4]
    assert [len(step.labelled) for step in warm_up_steps(1, 4, [0])] == [1]
