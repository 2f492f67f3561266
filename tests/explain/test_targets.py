"""Targets: their names and order, when they are reached, and which films have them."""

import numpy as np
import pytest

from kxray import ModelSpec
from kxray.explain import Target, opposite, target_index, target_names, targets_of
from kxray.explain.targets import held, other_labels, reached, target_numbers, wanted_probability

FINDINGS = ModelSpec("toy", ("Effusion", "Mass"), "multilabel", (8, 8), thresholds={"Effusion": 0.3})
VIEWS = ModelSpec("toy", ("frontal", "lateral"), "binary", (8, 8))
WIDTHS = ModelSpec("toy", ("thin", "medium", "wide"), "multiclass", (8, 8))


def test_each_finding_is_two_targets_and_each_exclusive_label_is_one():
    assert target_names(FINDINGS) == ("no Effusion", "Effusion", "no Mass", "Mass")
    assert targets_of(FINDINGS)[2:] == (Target("no Mass", 1, False), Target("Mass", 1, True))
    assert targets_of(WIDTHS)[1] == Target("medium", 1, True) and len(targets_of(VIEWS)) == 2


def test_a_finding_is_reached_at_its_own_threshold():
    probabilities = [[0.3, 0.5], [0.29, 0.49]]
    assert reached(FINDINGS, probabilities, [1, 1]).tolist() == [True, False]
    assert reached(FINDINGS, probabilities, [0, 0]).tolist() == [False, True]
    assert reached(FINDINGS, probabilities, [3, 2]).tolist() == [True, True]


def test_exclusive_labels_are_reached_where_they_are_the_most_probable():
    assert reached(VIEWS, [[0.5, 0.5], [0.6, 0.4]], [1, 1]).tolist() == [True, False]
    assert reached(WIDTHS, [[0.4, 0.35, 0.25]] * 2, [0, 1]).tolist() == [True, False]


def test_the_absence_of_a_finding_is_wanted_with_what_its_probability_leaves():
    found = wanted_probability(FINDINGS, [[0.2, 0.7]] * 4, [0, 1, 2, 3])
    np.testing.assert_allclose(found, [0.8, 0.2, 0.3, 0.7])
    np.testing.assert_allclose(wanted_probability(WIDTHS, [[0.2, 0.7, 0.1]], 2), [0.1])


def test_the_opposite_is_absence_or_the_next_probable_label():
    assert opposite(FINDINGS, 1, [0.2, 0.9]) == target_index(FINDINGS, "no Mass") == 2
    assert opposite(VIEWS, 1, [0.1, 0.9]) == 0
    assert opposite(WIDTHS, 0, [0.5, 0.2, 0.3]) == 2


def test_films_hold_the_targets_of_their_labels():
    labels = np.array([[1, np.nan], [0, 1]])
    np.testing.assert_array_equal(held(FINDINGS, labels), [[0, 1], [1, 0], [-1, 0], [-1, 1]])
    np.testing.assert_array_equal(held(WIDTHS, [2, -1]), [[0, -1], [0, -1], [1, -1]])


def test_one_target_stands_for_all_films():
    assert target_numbers(FINDINGS, "Mass", 2).tolist() == [3, 3]
    assert target_numbers(FINDINGS, ["Mass", 0], 2).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("spec", "targets", "told"),
    [
        (FINDINGS, "Efusion", "unknown target 'Efusion'; .* are: no Effusion, Effusion, no Mass, Mass"),
        (FINDINGS, 4, "unknown target 4; .* 0 to 3"),
        (FINDINGS, 0.5, "a target is a name or a whole number, got 0.5"),
        (FINDINGS, [0, 1, 2], "one for each of 2 films, got 3"),
        (ModelSpec("cdcgan", ("a",), "generator", (8, 8)), 0, "classifies nothing"),
        (ModelSpec("toy", ("a", "no a"), "multilabel", (8, 8)), 0, "rename the label"),
    ],
)
def test_what_is_no_target_is_told(spec, targets, told):
    with pytest.raises(ValueError, match=told):
        target_numbers(spec, targets, 2)


def test_labels_of_another_kind_are_told():
    with pytest.raises(ValueError, match=r"expected labels \(N, 2\)"):
        held(FINDINGS, [0, 1])
    with pytest.raises(ValueError, match=r"expected probabilities \(N, 3\)"):
        reached(WIDTHS, [[0.5, 0.5]], [0])


def test_other_labels_are_those_that_nobody_asks_to_change():
    before = np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.7]])
    several = ModelSpec("m", ("A", "B", "C"), "multilabel", (8, 8))
    assert other_labels(several, before, [0, 5]).tolist() == [[False, True, True], [True, True, False]]
    exclusive = ModelSpec("m", ("A", "B", "C"), "multiclass", (8, 8))
    assert other_labels(exclusive, before, [1, 0]).tolist() == [[False, False, True], [False, True, False]]
