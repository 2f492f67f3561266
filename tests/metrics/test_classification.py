"""Scores against scikit-learn and by hand; intervals against simulations and published examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from kxray.metrics import (
    auroc,
    balanced_accuracy,
    classification_scores,
    confusion,
    patient_bootstrap,
    wilson_interval,
)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_balanced_accuracy_is_scikit_learns(pairs):
    labels, predictions = np.array(pairs).T
    ours = balanced_accuracy(labels, predictions, 3)
    if len(np.unique(labels)) < 3:
        assert math.isnan(ours), "a label without a film has no recall"
    else:
        assert ours == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predictions))


def test_weights_are_copies():
    labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 1], [0, 0, 0, 1, 1]])
    ours = balanced_accuracy(labels, predictions, 2, weights)
    expected = [
        balanced_accuracy(np.repeat(labels, row), np.repeat(predictions, row), 2) for row in weights[:2]
    ]
    np.testing.assert_allclose(ours[:2], expected)
    np.testing.assert_allclose(ours[:2], [(2 / 3 + 1 / 2) / 2, (2 / 3 + 0) / 2])
    assert math.isnan(ours[2])


def test_confusion_has_the_truth_in_rows():
    assert confusion([0, 0, 1], [0, 1, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def simulated(num_films, num_labels, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, num_films)
    scores = random.normal(size=(num_films, num_labels)) + 1.5 * np.eye(num_labels)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, np.round(probabilities, 2) / np.round(probabilities, 2).sum(axis=1, keepdims=True)


def test_two_labels_score_as_scikit_learn_scores_them():
    labels, probabilities = simulated(200, 2)
    scores = classification_scores(labels, probabilities, np.arange(200), ("frontal", "lateral"), 50)
    predictions = probabilities.argmax(axis=1)
    assert scores["auroc"]["value"] == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, probabilities[:, 1])
    )
    assert scores["accuracy"]["value"] == pytest.approx(np.mean(labels == predictions))
    assert scores["balanced_accuracy"]["value"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predictions)
    )
    assert scores["confusion"] == sklearn_metrics.confusion_matrix(labels, predictions).tolist()
    recall = scores["recall"]["lateral"]
    assert recall["value"] == pytest.approx(sklearn_metrics.recall_score(labels, predictions))
    assert recall["films"] == (labels == 1).sum()
    for name in ("auroc", "accuracy", "balanced_accuracy"):
        assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]


def test_three_labels_average_one_against_the_rest():
    labels, probabilities = simulated(150, 3)
    scores = classification_scores(labels, probabilities, np.arange(150), ("a", "b", "c"), 20)
    expected = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert scores["auroc"]["value"] == pytest.approx(expected)


def test_one_label_only_has_no_auroc():
    scores = classification_scores([0, 0], [[0.9, 0.1], [0.4, 0.6]], ["p", "q"], ("frontal", "lateral"), 20)
    assert math.isnan(scores["auroc"]["value"]) and math.isnan(scores["auroc"]["low"])
    assert scores["accuracy"]["value"] == 0.5
    assert math.isnan(scores["recall"]["lateral"]["value"]) and scores["recall"]["lateral"]["films"] == 0
    assert (scores["films"], scores["patients"]) == (2, 2)


def accuracy_of(correct):
    return lambda weights: (weights * correct).sum(-1) / weights.sum(-1)


def test_the_bootstrap_is_a_function_of_its_seed():
    correct = np.random.default_rng(0).random(60) < 0.8
    patients = np.arange(60) // 3
    first, again, other = (
        patient_bootstrap(accuracy_of(correct), patients, 200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_names_of_patients_do_not_matter():
    correct = np.random.default_rng(0).random(60) < 0.8
    numbers = np.arange(60) // 3
    named = np.array([f"P{number:03}" for number in numbers])
    assert patient_bootstrap(accuracy_of(correct), numbers) == patient_bootstrap(accuracy_of(correct), named)


def test_few_patients_are_less_certain_than_as_many_independent_films():
    correct = np.repeat(np.random.default_rng(3).random(12) < 0.7, 10)  # all films of a patient alike
    by_patient = patient_bootstrap(accuracy_of(correct), np.arange(120) // 10)
    by_film = patient_bootstrap(accuracy_of(correct), np.arange(120))
    assert np.diff(by_patient) > 2 * np.diff(by_film)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered, trials = 0, 200
    for trial in range(trials):
        # 40 patients of 5 films; each patient is right with a chance of its own, 0.8 on average.
        chance = random.beta(8, 2, size=40)
        correct = random.random((40, 5)) < chance[:, None]
        low, high = patient_bootstrap(accuracy_of(correct.ravel()), np.arange(200) // 5, 300, seed=trial)
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / trials <= 0.99


def test_a_statistic_that_is_mostly_undefined_has_no_interval():
    assert all(map(math.isnan, patient_bootstrap(lambda weights: np.full(len(weights), math.nan), [1, 2])))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: the score interval.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_of_the_published_examples(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_trials():
    assert all(map(math.isnan, wilson_interval(0, 0)))


@pytest.mark.parametrize("num_labels", [2, 3])
def test_areas_of_reweighted_films_are_scikit_learns(num_labels):
    labels, probabilities = simulated(80, num_labels)
    weights = np.random.default_rng(1).multinomial(80, np.full(80, 1 / 80), size=5)
    ours = auroc(labels, probabilities, num_labels, weights)
    told_apart = [1] if num_labels == 2 else range(num_labels)
    for value, row in zip(ours, weights, strict=True):
        theirs = [
            sklearn_metrics.roc_auc_score(labels == label, probabilities[:, label], sample_weight=row)
            for label in told_apart
        ]
        assert value == pytest.approx(np.mean(theirs))
    if num_labels > 2:
        macro = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert auroc(labels, probabilities, num_labels) == pytest.approx(macro)


def test_area_by_hand():
    # Of the four pairs one is tied and one the wrong way round.
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.5, 0.5]])
    assert auroc([0, 0, 1, 1], scores, 2) == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert math.isnan(auroc([1, 1, 1, 1], scores, 2))
    assert math.isnan(auroc([0, 0, 1, 1], scores, 2, [[1, 1, 0, 0]])[0])
