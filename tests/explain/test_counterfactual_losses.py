"""The terms of a counterfactual's loss, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from kxray.explain.counterfactual_losses import Weights, decision_logits, film_losses, said_losses
from kxray.spec import ModelSpec

FINDINGS = ModelSpec(
    "toy", ("A", "B", "C"), "multilabel", (32, 32), thresholds={"A": 0.2, "B": 0.0, "C": 1.0}, temperature=2.0
)


def logit(probability):
    return np.log(probability / (1 - probability))


def said(spec, before, after, label, present):
    found = said_losses(
        spec,
        tf.constant([before], tf.float32),
        tf.constant([after], tf.float32),
        tf.constant([label]),
        tf.constant([present]),
    )
    return float(found["classifier"][0]), float(found["keep"][0])


def test_logits_are_zero_at_the_threshold():
    at = 2.0 * logit(np.array([[0.2, 0.001, 0.999]]))
    np.testing.assert_allclose(decision_logits(FINDINGS, tf.constant(at, tf.float32)), 0, atol=1e-5)


def test_a_finding_is_wanted_absent_or_present():
    after = [2 * (1.5 + logit(0.2)), 0.0, 0.0]
    absent, kept = said(FINDINGS, after, after, 0, False)
    assert absent == pytest.approx(np.log(1 + np.exp(1.5)), rel=1e-5)
    assert kept == pytest.approx(0, abs=1e-6)
    present, _ = said(FINDINGS, after, after, 0, True)
    assert present == pytest.approx(np.log(1 + np.exp(-1.5)), rel=1e-5)


def test_other_findings_are_to_be_said_as_before():
    before, after = 2 * logit(np.array([0.5, 0.5, 0.5])), 2 * logit(np.array([0.1, 0.8, 0.5]))
    _, kept = said(FINDINGS, before, after, 0, False)
    # Mean over B and C of the divergence of (1/2, 1/2) from what is said now.
    expected = (0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)) / 2
    assert kept == pytest.approx(expected, rel=1e-5)


def test_exclusive_labels():
    one_unit = ModelSpec("toy", ("normal", "ill"), "binary", (32, 32))
    assert said(one_unit, [0.0], [3.0], 1, True)[0] == pytest.approx(np.log1p(np.exp(-3)), rel=1e-5)
    assert said(one_unit, [0.0], [3.0], 0, True)[0] == pytest.approx(np.log1p(np.exp(3)), rel=1e-5)
    several = ModelSpec("toy", ("a", "b", "c"), "multiclass", (32, 32))
    loss, kept = said(several, [0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 1, True)
    assert loss == pytest.approx(np.log(np.exp([1, 2, 3]).sum()) - 2, rel=1e-5) and kept == 0


def test_what_was_changed():
    films = np.zeros((1, 4, 4, 1), np.float32)
    changed, mask = films.copy(), films.copy()
    changed[0, 1, 1], mask[0, 1, 1] = 0.8, 1.0
    found = {
        name: float(value[0])
        for name, value in film_losses(*map(tf.constant, (films, changed, mask))).items()
    }
    # A lone pixel: two differences along each axis.
    assert found == pytest.approx({"proximity": 0.8 / 16, "sparsity": 1 / 16, "variation": 4 / 16})


def test_weights():
    weights = Weights(classifier=2.0, proximity=3.0)
    terms = {"classifier": tf.constant(1.0), "proximity": tf.constant(0.5)}
    assert float(weights.total(terms)) == pytest.approx(3.5)
    with pytest.raises(ValueError, match="weight keep must be 0 or more, got -1"):
        Weights(keep=-1)
