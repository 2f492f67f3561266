"""Temperature, calibration error and thresholds: known answers on simulated and on tiny sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from kxray.metrics import (
    decision_thresholds,
    expected_calibration_error,
    fit_temperature,
    reliability_curve,
    sensitivity_thresholds,
)

NAMES = ("frontal", "lateral")


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_with_many_films(true_temperature):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 8000)
    labels = (random.random(8000) < expit(logits)).astype(int)
    found = fit_temperature(logits[:, None] * true_temperature, labels)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_a_known_temperature_of_a_softmax_is_found():
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (6000, 3))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    labels = (random.random((6000, 1)) > chances).sum(axis=1)
    assert fit_temperature(logits * 2.5, labels) == pytest.approx(2.5, rel=0.05)


def test_three_separable_films_say_little():
    found = fit_temperature(np.array([[4.0], [-5.0], [6.0]]), np.array([1, 0, 1]))
    assert 0.9 < found < 1.0


def test_no_films_say_nothing():
    assert fit_temperature(np.zeros((0, 1)), np.zeros(0, int)) == 1.0


def test_sixty_separable_films_do_not_make_it_certain_of_everything():
    logits = np.where(np.arange(60) % 2, 3.0, -3.0)
    assert 0.3 < fit_temperature(logits[:, None], np.arange(60) % 2) < 1.0


def test_reliability_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.3, 0.7], [0.0, 1.0]])
    curve = reliability_curve(probabilities, [0, 1, 1, 1])
    assert curve["films"].tolist() == [0] * 7 + [1, 0, 3]
    assert np.isnan(curve["confidence"][:7]).all()
    assert curve["confidence"][7] == pytest.approx(0.7)
    assert curve["confidence"][9] == pytest.approx((0.95 + 0.91 + 1.0) / 3)
    assert curve["accuracy"][9] == pytest.approx(2 / 3)


def test_expected_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.3, 0.7], [0.0, 1.0]])
    # Bin 7: |0.7 - 1| of one film. Bin 9: |0.9533 - 0.6667| of three.
    expected = (0.3 * 1 + (2.86 / 3 - 2 / 3) * 3) / 4
    assert expected_calibration_error(probabilities, [0, 1, 1, 1]) == pytest.approx(expected)


def test_perfect_certainty_has_no_calibration_error():
    assert expected_calibration_error(np.eye(2)[[0, 1, 1]], [0, 1, 1]) == 0


def lateral_films(confidences, right):
    """Films decided lateral with these confidences, and whether that is right."""
    confidences = np.asarray(confidences, float)
    return np.stack([1 - confidences, confidences], axis=1), np.asarray(right, int)


def test_thresholds_by_hand():
    confidences = [0.99, 0.95, 0.9, 0.85, 0.8, 0.7]
    probabilities, labels = lateral_films(confidences, [1, 1, 1, 0, 1, 1])
    assert decision_thresholds(probabilities, labels, NAMES) == {"frontal": 0.6, "lateral": 0.851}
    assert decision_thresholds(probabilities, labels, NAMES, largest_error=0.25)["lateral"] == 0.6
    assert decision_thresholds(probabilities, labels, NAMES, largest_error=0.17)["lateral"] == 0.6
    assert decision_thresholds(probabilities, labels, NAMES, largest_error=0.16)["lateral"] == 0.851


def test_no_wrong_film_leaves_the_smallest_threshold():
    probabilities, labels = lateral_films([0.99, 0.7], [1, 1])
    assert decision_thresholds(probabilities, labels, NAMES) == {"frontal": 0.6, "lateral": 0.6}
    assert decision_thresholds(probabilities, labels, NAMES, smallest=0.8)["lateral"] == 0.8


def test_one_early_mistake_is_forgiven_by_enough_right_films():
    probabilities, labels = lateral_films(np.linspace(0.99, 0.7, 200), [1, 0, *[1] * 198])
    assert decision_thresholds(probabilities, labels, NAMES)["lateral"] == 0.6


def test_the_surest_film_is_wrong():
    probabilities, labels = lateral_films([0.97, 0.9], [0, 1])
    assert decision_thresholds(probabilities, labels, NAMES)["lateral"] == 0.971


@given(
    st.lists(st.tuples(st.floats(0.5, 1.0), st.booleans()), max_size=60),
    st.sampled_from([0.0, 0.01, 0.1, 0.3]),
)
def test_a_threshold_keeps_its_promise_and_is_the_smallest_that_does(films, largest_error):
    confidences = np.array([confidence for confidence, _ in films])
    probabilities, labels = lateral_films(confidences, [right for _, right in films])
    probabilities, chosen = probabilities.reshape(-1, 2), confidences > 0.5
    threshold = decision_thresholds(probabilities, labels, NAMES, largest_error)["lateral"]
    assert 0.6 <= threshold <= 1 and round(threshold, 3) == threshold

    def keeps(candidate):
        decided = chosen & (confidences >= candidate)
        return (labels[decided] == 0).sum() <= largest_error * decided.sum()

    assert keeps(threshold) or threshold == 1
    if threshold > 0.6:
        assert not any(keeps(candidate) for candidate in np.arange(600, round(threshold * 1000)) / 1000)


def test_a_chosen_sensitivity_is_reached_midway_to_the_next_film():
    stated = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.5, 0.1])[:, None]
    there = np.array([1, 1, 1, 1, 0, 0, 0.0])[:, None]

    def threshold(sensitivity):
        return sensitivity_thresholds(stated, there, ("Mass",), sensitivity)["Mass"]

    # The third of four films with it has 0.6; the next film below, without it, 0.5.
    assert [threshold(share) for share in (0.75, 0.5, 1.0)] == pytest.approx([0.55, 0.75, 0.2])
    assert sensitivity_thresholds(stated, 0 * there, ("Mass",), 0.9)["Mass"] == 0.5


def test_no_threshold_lets_every_film_through():
    stated = np.array([0.9, 0.0, 0.4])[:, None]
    there = np.array([1, 1, 0.0])[:, None]
    threshold = sensitivity_thresholds(stated, there, ("Mass",), 1.0)["Mass"]
    assert 0 < np.float32(threshold) < 1e-30
