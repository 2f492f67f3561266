"""Scores of findings against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from kxray import metrics

NAMES = ("Mass", "Nodule")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_average_precision_is_scikit_learns(pairs):
    positive, scores = np.array([one for one, _ in pairs]), np.array([score for _, score in pairs])
    ours = metrics.average_precision(positive, scores)
    if not positive.any():
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(sklearn_metrics.average_precision_score(positive, scores))


def test_weights_are_copies():
    positive, scores = np.array([1, 0, 1, 0, 0], bool), np.array([0.9, 0.8, 0.8, 0.3, 0.1])
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 1], [0, 2, 0, 1, 1]])
    ours = metrics.average_precision(positive, scores, weights)
    repeated = [(np.repeat(positive, row), np.repeat(scores, row)) for row in weights[:2]]
    expected = [sklearn_metrics.average_precision_score(*one) for one in repeated]
    np.testing.assert_allclose(ours[:2], expected)
    assert math.isnan(ours[2])


def toy(films=60, seed=0):
    random = np.random.default_rng(seed)
    truths = (random.random((films, 2)) < 0.3).astype(float)
    probabilities = expit(2 * truths - 1 + random.normal(size=(films, 2)))
    truths[::7, 0] = np.nan
    return truths, probabilities, np.arange(films) // 2


def test_an_unknown_finding_counts_for_nothing():
    truths, probabilities, patients = toy()
    scores = metrics.finding_scores(
        truths, probabilities, patients, NAMES, decided=probabilities >= 0.5, resamples=200
    )
    known = np.isfinite(truths[:, 0])
    mass = scores["findings"]["Mass"]
    area = sklearn_metrics.roc_auc_score(truths[known, 0], probabilities[known, 0])
    assert mass["auroc"]["value"] == pytest.approx(area)
    assert mass["unknown"] == 9 and mass["positive"] + mass["negative"] == 51
    there = truths[:, 0] == 1
    assert mass["sensitivity"]["value"] == pytest.approx((probabilities[there, 0] >= 0.5).mean())
    assert mass["specificity"]["low"] < mass["specificity"]["value"] < mass["specificity"]["high"]
    both = [scores["findings"][name]["auroc"] for name in NAMES]
    assert scores["auroc"]["value"] == pytest.approx(np.mean([one["value"] for one in both]))
    assert scores["auroc"]["low"] < scores["auroc"]["value"] < scores["auroc"]["high"]
    # The draws are those of the other bootstrap.
    low, high = metrics.patient_bootstrap(
        lambda weights: metrics.auroc(
            there[known].astype(int),
            np.stack([1 - probabilities[known, 0], probabilities[known, 0]], axis=1),
            2,
            weights[:, known],
        ),
        patients,
        resamples=200,
    )
    assert (mass["auroc"]["low"], mass["auroc"]["high"]) == pytest.approx((low, high))


def test_resamples_in_pieces_are_the_same(monkeypatch):
    truths, probabilities, patients = toy()
    whole = metrics.finding_scores(truths, probabilities, patients, NAMES, resamples=50)
    monkeypatch.setattr("kxray.metrics.findings._MOST_WEIGHTS", 400)
    assert metrics.finding_scores(truths, probabilities, patients, NAMES, resamples=50) == whole


def test_a_finding_that_no_film_has_is_not_in_the_mean():
    truths, probabilities, patients = toy()
    truths[truths[:, 1] == 1, 1] = np.nan
    scores = metrics.finding_scores(truths, probabilities, patients, NAMES, resamples=50)
    assert math.isnan(scores["findings"]["Nodule"]["auroc"]["value"])
    assert scores["auroc"]["value"] == scores["findings"]["Mass"]["auroc"]["value"]
    with pytest.raises(ValueError, match="one column a finding"):
        metrics.finding_scores(truths[:, :1], probabilities, patients, NAMES)


def test_thresholds_are_youdens():
    stated = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    truths = np.array([0, 0, 1, 0, 1, 1.0])
    probabilities = np.stack([stated, stated], axis=1)
    known = np.stack([truths, np.where(truths == 1, np.nan, truths)], axis=1)
    # From 0.25 all three are found and two of three cleared; from 0.65 two are found and all are cleared.
    assert metrics.youden_thresholds(probabilities, known, NAMES) == {"Mass": 0.25, "Nodule": 0.5}
    known[1, 0] = np.nan
    assert metrics.youden_thresholds(probabilities, known, NAMES)["Mass"] == pytest.approx(0.65)


def test_findings_share_a_temperature():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 2)) * 2
    truths = (random.random(logits.shape) < expit(logits)).astype(float)
    truths[:, 1][random.random(4000) < 0.5] = np.nan
    assert metrics.fit_temperature(3 * logits, truths) == pytest.approx(3, rel=0.05)
    lone = metrics.fit_temperature(logits[:, :1], truths[:, 0].astype(int))
    assert metrics.fit_temperature(logits[:, :1], truths[:, :1]) == pytest.approx(lone)
    assert metrics.expected_calibration_error(expit(logits), truths) < 0.02
    curve = metrics.reliability_curve(expit(logits), truths)
    assert curve["films"].sum() == np.isfinite(truths).sum()
