"""k nearest neighbours and the linear probe on made-up features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from hubmodels.evaluation import knn_accuracy, knn_predict, linear_probe
from hubmodels.evaluation.linear_probe import make_head, train_head


def clusters(count: int, seed: int, spread: float = 1.0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Five Gaussian clusters in 16 dimensions, the same centres for every seed."""
    centers = torch.randn(5, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    return (centers[labels] + spread * torch.randn(count, 16, generator=generator)) * scale, labels


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_agrees_with_scikit_learn(k):
    train, train_labels = clusters(300, 0, spread=1.5)
    test, _ = clusters(120, 1, spread=1.5)
    temperature = 0.07
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.double().numpy(), train_labels.numpy())
    scores = knn_predict(train, train_labels, test, k=k, temperature=temperature)
    np.testing.assert_allclose(scores, reference.predict_proba(test.double().numpy()), atol=2e-5)


def test_knn_does_not_depend_on_chunks_or_scale():
    train, test = clusters(300, 0), clusters(100, 1)
    whole = knn_predict(*train, test[0])
    torch.testing.assert_close(whole, knn_predict(*train, test[0], chunk_size=7), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, knn_predict(train[0] * 50, train[1], test[0] * 0.1), atol=1e-5, rtol=0)
    assert knn_accuracy(*train, *test) == (whole.argmax(1) == test[1]).float().mean().item()


def test_knn_finds_itself():
    features, labels = clusters(100, 0)
    assert knn_accuracy(features, labels, features, labels, k=1) == 1.0


@pytest.mark.parametrize("batch_norm", [True, False])
def test_linear_probe_learns_separable_data(batch_norm):
    train, test = clusters(500, 0, spread=0.3), clusters(200, 1, spread=0.3)
    result = linear_probe(*train, *test, batch_norm=batch_norm, epochs=20)
    assert result.accuracy > 0.97
    assert result.scores.shape == (200, 5)
    assert [type(layer) for layer in result.head] == [nn.BatchNorm1d, nn.Linear][0 if batch_norm else 1 :]
    assert not result.head.training
    assert torch.equal(result.head(test[0]), result.scores)


def test_linear_probe_is_near_logistic_regression():
    train, test = clusters(2000, 0, spread=1.5), clusters(1000, 1, spread=1.5)
    best = LogisticRegression(max_iter=500).fit(*map(np.asarray, train)).score(*map(np.asarray, test))
    assert linear_probe(*train, *test, epochs=30).accuracy > best - 0.02


def test_batch_norm_makes_the_probe_independent_of_the_scale_of_features():
    small, large = ([clusters(400, seed, scale=scale) for seed in (0, 1)] for scale in (1e-2, 1e2))
    settings = {"epochs": 10, "trust_coefficient": 0.01}
    accuracies = [linear_probe(*train, *test, **settings).accuracy for train, test in (small, large)]
    assert abs(accuracies[0] - accuracies[1]) < 0.02
    plain = linear_probe(*small[0], *small[1], batch_norm=False, **settings).accuracy
    assert plain < accuracies[0] - 0.1


def test_linear_probe_is_reproducible_and_leaves_the_global_generator_alone():
    train, test = clusters(300, 0), clusters(100, 1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = linear_probe(*train, *test, epochs=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(linear_probe(*train, *test, epochs=5).scores, first.scores)
    assert not torch.equal(linear_probe(*train, *test, epochs=5, seed=1).scores, first.scores)


def test_the_trust_coefficient_is_chosen_without_the_test_data():
    train, test = clusters(300, 0), clusters(100, 1)
    choice = {"trust_coefficient": [1e-4, 0.1], "epochs": 5}
    wrong_labels = (test[1] + 1) % 5
    chosen = [linear_probe(*train, test[0], labels, **choice).trust_coefficient for labels in (test[1], wrong_labels)]
    assert chosen == [0.1, 0.1]


def test_head_is_initialised_as_published():
    head = make_head(512, 200, batch_norm=True)
    assert head[0].eps == 1e-6 and not head[0].affine
    assert head[1].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head[1].weight.abs().max() <= 2.0 and head[1].bias.abs().max() == 0


def test_first_step_of_the_warm_up_changes_nothing():
    features, labels = clusters(64, 0)
    head = make_head(16, 5, batch_norm=True)
    before = head[1].weight.clone()
    train_head(head, features, labels, lr=1.0, epochs=1, warmup_epochs=1, batch_size=64)
    assert torch.equal(head[1].weight, before)  # the only step: the rate starts at exactly 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: knn_accuracy(*a, *b, k=0), r"k must be in \[1, 30\] \(the number of training images\), got 0"),
        (lambda a, b: knn_accuracy(*a, *b, k=31), "got 31"),
        (lambda a, b: knn_accuracy(*a, *b, temperature=0), "temperature must be positive"),
        (lambda a, b: knn_accuracy(a[0], None, *b), "the training data has no labels"),
        (lambda a, b: knn_accuracy(*a, b[0], None), "the test data has no labels"),
        (lambda a, b: linear_probe(*a, b[0], None), "the test data has no labels"),
        (lambda a, b: linear_probe(*a, b[0][:, :3], b[1]), "training features have width 16, test 3"),
        (lambda a, b: linear_probe(*a, *b, epochs=0), "epochs must be >= 1"),
        (lambda a, b: linear_probe(a[0], a[1][:5], *b), "expected training features"),
        (lambda a, b: linear_probe(*a, *b, epochs=2, warmup_epochs=3), "warmup_epochs must be in"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call(clusters(30, 0), clusters(10, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    features, labels = clusters(100, 0)
    broken = features.clone()
    broken[3:5, 2] = value
    message = "{} features must be finite, those of 2 of 100 images are not"
    for probe in (knn_accuracy, linear_probe):
        with pytest.raises(ValueError, match=message.format("training")):
            probe(broken, labels, features, labels)
        with pytest.raises(ValueError, match=message.format("test")):
            probe(features, labels, broken, labels)
    with pytest.raises(ValueError, match=message.format("test")):
        knn_predict(features, labels, broken)


def test_features_of_half_precision():
    train, test = clusters(100, 0, spread=0.3), clusters(50, 1, spread=0.3)
    halves = [(features.half(), labels) for features, labels in (train, test)]
    assert linear_probe(*halves[0], *halves[1], epochs=10).accuracy > 0.9


def test_few_images_are_enough_or_refused():
    features, labels = clusters(10, 0)
    for count, trust in ((3, (0.1, 1.0)), (2, 0.1)):
        result = linear_probe(features[:count], labels[:count], features, labels, epochs=2, trust_coefficient=trust)
        assert 0 <= result.accuracy <= 1
        with pytest.raises(ValueError, match=f"needs at least {count} training images, got {count - 1}"):
            linear_probe(features[: count - 1], labels[: count - 1], features, labels, trust_coefficient=trust)
