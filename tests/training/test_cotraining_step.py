"""Switches of the co-training step: which views are mixed, who guesses, what moves; what is refused."""

import pytest
import torch
from hubmodels.modeling.sanm import (
    AdversarialNoisyMasking,
    SANMConfig,
    SANMEnsembleForImageClassification,
    SANMForImageClassification,
    sharpen,
)

from hubmodels.training import HubTrainingArguments, SANMTrainer
from hubmodels.training.cotraining_step import VIEWS, CoTrainingSettings, StepRandomness, co_training_loss, warm_up_loss

TINY = {"widths": [4, 8], "depths": [1, 1], "image_size": 16, "num_labels": 3}


def batch(count, seed, labels=False):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(count, 3, 16, 16, generator=generator) for name in VIEWS}
    values["clean_prob"] = torch.rand(count, generator=generator)
    return values | ({"labels": torch.randint(0, 3, (count,), generator=generator)} if labels else {})


def step(moment=30.0, config=None, labelled=4, unlabelled=3, **settings):
    torch.manual_seed(0)
    networks = [SANMForImageClassification(SANMConfig(**TINY, **(config or {}))) for _ in range(2)]
    masking = AdversarialNoisyMasking.from_config(networks[0].config)
    chosen = CoTrainingSettings(**settings)
    randomness = StepRandomness.draw([0], chosen.alpha, masking, labelled + unlabelled, 3)
    networks[0].train()
    networks[1].eval()
    batches = batch(labelled, 1, labels=True), batch(unlabelled, 2)
    return networks, batches, co_training_loss(*networks, *batches, masking, chosen, moment, randomness)


def test_last_batches_may_have_other_sizes():
    _, _, output = step()
    assert (len(output.logits_x), len(output.logits_u), len(output.targets)) == (6 * 4, 6 * 3, 7)
    assert output.lambda_u == 25.0 and torch.isfinite(output.loss)


def test_without_masks_it_is_dividemix():
    networks, _, output = step(config={"mask": "none", "mask_labels": False, "recon_weight": 0.0})
    assert output.views is None and output.reconstruction_loss == 0
    assert (len(output.logits_x), len(output.logits_u)) == (4 * 4, 4 * 3)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in networks[0].decoder.parameters())


def test_the_weak_mixing_learns_from_the_labelled_rows_of_four_views():
    _, _, output = step(mixing="weak", lambda_u=7.0)
    assert (len(output.logits_x), len(output.logits_u)) == (4 * 4, 0)
    assert output.unlabelled_loss == 0
    expected = output.labelled_loss + output.penalty + 0.02 * output.reconstruction_loss
    torch.testing.assert_close(output.loss, expected)


def test_labels_are_refined_and_guessed_only_where_asked():
    networks, (labelled, unlabelled), output = step(co_refine=False, co_guess=False)
    given = torch.nn.functional.one_hot(labelled["labels"], 3).float()
    assert torch.equal(output.targets[:4], given)
    copy = SANMForImageClassification(networks[0].config)
    torch.manual_seed(0)
    fresh = SANMForImageClassification(networks[0].config)
    copy.load_state_dict(fresh.state_dict())
    with torch.no_grad():
        both = [copy.train().encode(unlabelled[name]).logits.softmax(1) for name in ("guess1", "guess2")]
    torch.testing.assert_close(output.targets[4:], sharpen(sum(both) / 2, 0.5))


def test_guessing_in_evaluation_mode_leaves_the_statistics_alone():
    """Two of the six passes in training mode remain: masked and mixed views."""
    for in_train_mode, passes in ((True, 6), (False, 2)):
        networks, _, _ = step(guess_in_train_mode=in_train_mode)
        assert networks[0].backbone.bn1.num_batches_tracked == passes
        assert networks[1].backbone.bn1.num_batches_tracked == 0
        assert networks[0].training and not networks[1].training


def test_random_numbers_depend_on_their_key_alone():
    masking = AdversarialNoisyMasking()
    first, again, other = (StepRandomness.draw(key, 4.0, masking, 5, 3) for key in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first.draws, again.draws) and (first.beta, first.seed) == (again.beta, again.seed)
    assert not torch.equal(first.draws, other.draws) and first.beta != other.beta


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mixing": "strong"}, r"mixing must be one of \('all', 'weak'\), got 'strong'"),
        ({"warm_up_epochs": -1}, "warm_up_epochs must be at least 0, got -1"),
        ({"lambda_u": -1.0}, "lambda_u must be at least 0"),
        ({"alpha": 0.0}, "alpha must be greater than 0, got 0.0"),
        ({"p_threshold": 1.0}, r"p_threshold must be in \(0, 1\), got 1.0"),
        ({"history": 0}, "history must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        CoTrainingSettings(**setting)


@pytest.mark.parametrize(
    "model",
    [
        lambda: SANMForImageClassification(SANMConfig(**TINY)),
        lambda: SANMEnsembleForImageClassification(SANMConfig(**TINY, framework="ce")),
    ],
    ids=["single", "light"],
)
def test_the_trainer_wants_two_networks(model, tmp_path):
    with pytest.raises(
        ValueError, match="model must be a SANMEnsembleForImageClassification with framework 'dividemix'"
    ):
        SANMTrainer(model(), HubTrainingArguments(str(tmp_path), use_cpu=True), CoTrainingSettings(), None)


class FewImages(torch.utils.data.Dataset):
    labels = torch.tensor([0, 1, 2, 1])

    def __len__(self):
        return 4


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ({"max_steps": 3}, {}, "max_steps must be -1 for co-training, which has no use for it, got 3"),
        ({"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps must be 1"),
        ({"mixup": 0.5}, {}, "mixup must be 0.0"),
        ({"label_smoothing": 0.1}, {}, "label_smoothing must be 0.0"),
        ({"num_train_epochs": 1.5}, {}, "co-training takes whole epochs, got num_train_epochs=1.5"),
        ({}, {"evaluate_every": -1}, "evaluate_every must be at least 0, got -1"),
        ({}, {"train_dataset": FewImages()}, r"must be in 0..1 \(config.num_labels\), got 2 at index 2"),
    ],
)
def test_the_trainer_refuses_what_it_does_not_use(arguments, given, message, tmp_path):
    model = SANMEnsembleForImageClassification(SANMConfig(**TINY | {"num_labels": 2}))
    with pytest.raises(ValueError, match=message):
        SANMTrainer(
            model, HubTrainingArguments(str(tmp_path), use_cpu=True, **arguments), CoTrainingSettings(), None, **given
        )


def test_labels_that_do_not_fit_are_refused():
    network, peer = (SANMForImageClassification(SANMConfig(**TINY)) for _ in range(2))
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\) .* got 7 at index 1"):
        warm_up_loss(network, images, torch.tensor([0, 7]), CoTrainingSettings())
    masking = AdversarialNoisyMasking.from_config(network.config)
    randomness = StepRandomness.draw([0], 4.0, masking, 4, 3)
    for labels, message in (([0, 3], r"labels must be in \[0, 3\) .* got 3 at index 1"), ([-100, 0], "not be -100")):
        labelled = batch(2, 1) | {"labels": torch.tensor(labels)}
        with pytest.raises(ValueError, match=message):
            co_training_loss(network, peer, labelled, batch(2, 2), masking, CoTrainingSettings(), 1.0, randomness)


def test_labels_may_be_distributions():
    _, (labelled, _), output = step(co_refine=False)
    given = torch.nn.functional.one_hot(labelled["labels"], 3).float()
    network, peer = (SANMForImageClassification(SANMConfig(**TINY)) for _ in range(2))
    masking = AdversarialNoisyMasking.from_config(network.config)
    arguments = masking, CoTrainingSettings(co_refine=False), 30.0, StepRandomness.draw([0], 4.0, masking, 7, 3)
    found = co_training_loss(network, peer, labelled | {"labels": given}, batch(3, 2), *arguments)
    assert torch.equal(found.targets[:4], output.targets[:4])


def test_float64_networks_learn_in_float64():
    network = SANMForImageClassification(SANMConfig(**TINY)).double().train()
    pixels, labels = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2])
    loss = warm_up_loss(network, pixels, labels, CoTrainingSettings())
    expected = torch.nn.functional.cross_entropy(network.encode(pixels).logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
