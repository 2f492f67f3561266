"""Sign flips, McNemar and Holm's correction, by hand."""

import itertools

import numpy as np
import pytest

from kxray.metrics import holm, mcnemar_test, paired_permutation_test


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


def test_mcnemar_by_hand():
    # Ten films that only the one has right, two that only the other has, thirty that say nothing:
    # p = 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12.
    one = np.repeat([True, False, True, False], (10, 2, 20, 10))
    other = np.repeat([False, True, True, False], (10, 2, 20, 10))
    only_one, only_other, p = mcnemar_test(one, other)
    assert (only_one, only_other) == (10, 2)
    assert p == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar_test(other, one)[2] == pytest.approx(p)


def test_mcnemar_without_difference_and_of_other_films():
    assert mcnemar_test([True, False], [True, False]) == (0, 0, 1.0)
    # One film each way: as even as can be.
    assert mcnemar_test([True, False], [False, True]) == (1, 1, 1.0)
    with pytest.raises(ValueError, match="one value a film"):
        mcnemar_test([True], [True, False])


def test_sign_flips_of_single_films_agree_with_mcnemar():
    one, other = np.arange(40) < 30, np.arange(40) < 22
    exact = mcnemar_test(one, other)[2]
    flips = paired_permutation_test(one.astype(float) - other, range(40), resamples=40_000)
    assert flips == pytest.approx(exact, abs=0.005)
