"""Slices against scikit-learn and by hand; what is undefined stays undefined."""

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact
from sklearn import metrics as sklearn_metrics

from kxray.metrics import balanced_accuracy, classification_scores, slice_scores, wilson_interval
from kxray.metrics.slices import UNKNOWN


def simulated(count, num_labels, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, count)
    scores = np.exp(random.normal(size=(count, num_labels)) + 1.2 * np.eye(num_labels)[labels])
    return labels, scores / scores.sum(axis=1, keepdims=True)


def by_value(rows):
    return {(row["slice"], row["value"]): row for row in rows}


@pytest.mark.parametrize("num_labels", [2, 3])
def test_every_slice_scores_as_scikit_learn_scores_it(num_labels):
    labels, probabilities = simulated(300, num_labels)
    sex = np.random.default_rng(1).choice(["F", "M"], 300)
    names = [f"label {index}" for index in range(num_labels)]
    rows = by_value(slice_scores(labels, probabilities, np.arange(300), {"sex": sex}, names))
    for value in "FM":
        row, inside = rows["sex", value], sex == value
        decided = probabilities[inside].argmax(axis=1)
        shown = probabilities[inside, 1] if num_labels == 2 else probabilities[inside]
        assert row["films"] == row["groups"] == inside.sum() == sum(row["by_label"].values())
        assert row["accuracy"]["value"] == pytest.approx(
            sklearn_metrics.accuracy_score(labels[inside], decided)
        )
        assert row["balanced_accuracy"]["value"] == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(labels[inside], decided)
        )
        assert row["auroc"]["value"] == pytest.approx(
            sklearn_metrics.roc_auc_score(labels[inside], shown, multi_class="ovr", average="macro")
        )
        for score in ("accuracy", "balanced_accuracy", "auroc"):
            assert row[score]["low"] < row[score]["value"] < row[score]["high"]


# Ten films of each view; the model errs on four lateral ones of label 1.
LABELS = np.tile([0, 1], 10)
VIEW = np.repeat(["frontal", "lateral"], 10)
WRONG = [11, 13, 15, 17]


def planted():
    probability = np.where(LABELS == 1, 0.9, 0.1)
    probability[WRONG] = 0.2
    return np.stack([1 - probability, probability], axis=1)


def test_films_that_are_their_own_groups_by_hand():
    rows = by_value(slice_scores(LABELS, planted(), np.arange(20), {"view": VIEW}, ("no", "yes")))
    frontal, lateral = rows["view", "frontal"], rows["view", "lateral"]
    low, high = wilson_interval(6, 10)
    assert lateral["accuracy"] == {"value": 0.6, "low": pytest.approx(low), "high": pytest.approx(high)}
    assert lateral["by_label"] == {"no": 5, "yes": 5}
    # Recalls 5/5 and 1/5: distances to the ends of their Wilson intervals add up squared.
    ends = np.array([wilson_interval(5, 5), wilson_interval(1, 5)])
    below, above = np.sqrt(np.sum((np.array([[1.0], [0.2]]) - ends) ** 2, axis=0)) / 2
    assert lateral["balanced_accuracy"] == {
        "value": pytest.approx(0.6), "low": pytest.approx(0.6 - below), "high": pytest.approx(0.6 + above)
    }  # fmt: skip
    # Every right film outranks; the four wrong ones tie with none: 0.2 is above all 0.1.
    assert lateral["auroc"]["value"] == 1.0 and math.isnan(lateral["auroc"]["low"])
    # All ten are right: resampling would call that certain.
    assert frontal["accuracy"]["low"] == pytest.approx(wilson_interval(10, 10)[0])
    p = fisher_exact([[10, 0], [6, 4]])[1]
    assert frontal["p"] == lateral["p"] == pytest.approx(p)
    assert frontal["p_holm"] == pytest.approx(min(1, 2 * p))
    assert frontal["differs"] == lateral["differs"] == []


def test_a_worse_site_is_found_with_and_without_groups():
    labels, probabilities = simulated(400, 2)
    bad = np.arange(400) < 100
    probabilities[bad] = probabilities[bad][:, ::-1]
    site = np.where(bad, "B", "A")
    for films in (1, 5):
        groups = np.arange(400) // films
        row = by_value(slice_scores(labels, probabilities, groups, {"site": site}, ("no", "yes")))[
            "site", "B"
        ]
        assert row["groups"] == 100 / films and row["differs"] == ["accuracy", "balanced_accuracy", "auroc"]
        assert row["p"] <= row["p_holm"] < 0.001


def test_ten_copies_of_a_film_are_no_more_evidence_than_one():
    labels, probabilities = simulated(30, 2)
    sex = np.random.default_rng(2).choice(["F", "M"], 30)
    copied = [np.repeat(array, 10, axis=0) for array in (labels, probabilities, np.arange(30), sex)]
    rows = slice_scores(copied[0], copied[1], copied[2], {"sex": copied[3]}, ("no", "yes"))
    once = slice_scores(labels, probabilities, np.arange(30), {"sex": sex}, ("no", "yes"))
    for row, alone in zip(rows, once, strict=True):
        assert row["accuracy"]["value"] == pytest.approx(alone["accuracy"]["value"])
        low, high = wilson_interval(round(row["accuracy"]["value"] * row["films"]), row["films"])
        assert row["accuracy"]["high"] - row["accuracy"]["low"] > 2 * (high - low)
        assert row["p"] == pytest.approx(alone["p"], abs=0.3) and row["p"] > 0.05


def test_the_p_value_over_groups_holds_its_level():
    random = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        # Films of a patient are right or wrong together; slices are of patients.
        right = np.repeat(random.random(40) < 0.7, 4)
        labels = np.zeros(160, int)
        probabilities = np.stack([np.where(right, 0.9, 0.1), np.where(right, 0.1, 0.9)], axis=1)
        value = np.repeat(random.random(40) < 0.5, 4)
        (row, _) = slice_scores(
            labels, probabilities, np.repeat(np.arange(40), 4), {"sex": value}, ("a", "b")
        )
        below += row["p"] < 0.05
    assert below / 200 < 0.09


def test_small_slices_are_shown_and_not_compared():
    labels, probabilities = simulated(40, 2)
    sex = np.array(["F"] * 3 + ["M"] * 37)
    rows = by_value(slice_scores(labels, probabilities, np.arange(40), {"sex": sex}, ("a", "b"), smallest=5))
    assert rows["sex", "F"]["films"] == 3 and not rows["sex", "F"]["compared"]
    assert math.isnan(rows["sex", "F"]["p"]) and math.isnan(rows["sex", "F"]["p_holm"])
    assert rows["sex", "M"]["p_holm"] == rows["sex", "M"]["p"], "the only comparison"


def test_one_label_one_group_one_value_and_no_film():
    probabilities = np.array([[0.9, 0.1]] * 4)
    (row,) = slice_scores(np.zeros(4, int), probabilities, [1] * 4, {"x": ["a"] * 4}, ("no", "yes"))
    assert row["accuracy"]["value"] == 1.0 and row["accuracy"]["low"] == pytest.approx(
        wilson_interval(1, 1)[0]
    )
    assert all(math.isnan(row[score]["value"]) for score in ("balanced_accuracy", "auroc"))
    assert not row["compared"] and row["differs"] == []
    (row,) = slice_scores([0, 0, 1], probabilities[:3], [1] * 3, {"x": ["a"] * 3}, ("no", "yes"))
    assert row["accuracy"]["value"] == pytest.approx(2 / 3) and math.isnan(row["auroc"]["low"])
    assert row["accuracy"]["low"] < 0.3, "three films of one patient are one trial"
    assert slice_scores([], np.zeros((0, 2)), [], {"x": []}, ("no", "yes")) == []
    assert slice_scores([0], probabilities[:1], [1], {}, ("no", "yes")) == []


def test_values_of_any_kind_and_what_is_unknown():
    labels, probabilities = simulated(6, 2)
    values = [8.0, 16, "", None, math.nan, 8]
    rows = slice_scores(labels, probabilities, range(6), {"bits": values}, ("a", "b"))
    assert [(row["value"], row["films"]) for row in rows] == [("16", 1), ("8", 2), (UNKNOWN, 3)]


def test_all_films_as_one_slice_score_as_all_films():
    labels, probabilities = simulated(80, 3)
    groups = np.arange(80) // 4
    (row,) = slice_scores(labels, probabilities, groups, {"x": [1] * 80}, ("a", "b", "c"))
    scores = classification_scores(labels, probabilities, groups, ("a", "b", "c"))
    for score in ("accuracy", "balanced_accuracy", "auroc"):
        assert row[score] == pytest.approx({key: scores[score][key] for key in ("value", "low", "high")})
    assert row["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy(labels, probabilities.argmax(axis=1), 3)
    )


def test_arrays_that_do_not_fit():
    labels, probabilities = simulated(6, 2)
    with pytest.raises(ValueError, match="expected 3 probabilities, a label and a group a film, got"):
        slice_scores(labels, probabilities, range(6), {}, ("a", "b", "c"))
    with pytest.raises(ValueError, match="slice 'sex': expected 6 values, one a film, got 5"):
        slice_scores(labels, probabilities, range(6), {"sex": ["F"] * 5}, ("a", "b"))
