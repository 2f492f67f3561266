"""Sign flips and Holm's correction, by hand."""

import itertools

import numpy as np
import pytest

from kxray.metrics import holm, paired_permutation_test


def test_every_sign_pattern_of_a_few_films():
    differences = np.array([1.0, 2.0, -0.5, 3.0])
    patterns = np.array(list(itertools.product((-1, 1), repeat=4)))
    exact = np.mean(np.abs(patterns @ differences) >= abs(differences.sum()))
    p = paired_permutation_test(differences, range(4), resamples=40_000)
    assert p == pytest.approx(exact, abs=0.01)


def test_no_difference_and_a_difference_everywhere():
    assert paired_permutation_test(np.zeros(20), range(20)) == 1.0
    assert paired_permutation_test(np.ones(20), range(20)) < 0.001


def test_films_of_one_patient_are_flipped_together():
    differences = np.ones(20)
    assert paired_permutation_test(differences, np.repeat([0, 1], 10)) == pytest.approx(0.5, abs=0.02)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.2]), [0.2])
