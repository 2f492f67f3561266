"""Precision, recall, density and coverage on point clouds drawn by hand."""

import numpy as np
import pytest

from kxray.metrics import precision_recall_density_coverage


def line(*places):
    return np.array(places, float)[:, None]


def test_by_hand_on_a_line():
    # k = 1: real balls of 0, 1, 4, 5 have radius 1; generated ones of 1, 2 radius 1, of 9 radius 7.
    scores = precision_recall_density_coverage(line(0, 1, 4, 5), line(1, 2, 9), k=1)
    # 1 is in the balls of 0 and 1, 2 in that of 1, 9 in none.
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["density"] == pytest.approx((2 + 1 + 0) / 3)
    assert scores["coverage"] == pytest.approx(2 / 4)
    # 0 and 1 are in the ball of 1, 4 and 5 in that of 9.
    assert scores["recall"] == 1.0


def test_the_second_neighbour():
    # k = 2: real radii of 0, 1, 3: 3, 2, 3. The generated 4 lies in the ball of 3 alone, 10, 11, 12 in none.
    scores = precision_recall_density_coverage(line(0, 1, 3), line(4, 10, 11, 12), k=2)
    assert scores["precision"] == 1 / 4 and scores["coverage"] == pytest.approx(1 / 3)
    assert scores["density"] == pytest.approx(1 / (2 * 4))


def test_identical_sets():
    films = np.random.default_rng(0).standard_normal((50, 3))
    scores = precision_recall_density_coverage(films, films)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1.0
    assert scores["density"] > 1


def test_one_distribution():
    real, generated = np.random.default_rng(1).standard_normal((2, 800, 4))
    scores = precision_recall_density_coverage(real, generated)
    assert scores["density"] == pytest.approx(1.0, abs=0.07)
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)


def test_far_away_films():
    real, generated = np.random.default_rng(2).standard_normal((2, 30, 2))
    scores = precision_recall_density_coverage(real, generated + 100)
    assert set(scores.values()) == {0.0}


def test_fidelity_without_diversity():
    random = np.random.default_rng(3)
    real = np.concatenate([random.standard_normal((40, 2)), random.standard_normal((40, 2)) + 50])
    # Only one of the two kinds is made, and all of it looks real.
    scores = precision_recall_density_coverage(real, 0.7 * random.standard_normal((80, 2)))
    assert scores["precision"] > 0.9 and scores["density"] > 0.8
    assert scores["recall"] <= 0.5 and scores["coverage"] <= 0.5


def test_diversity_without_fidelity():
    random = np.random.default_rng(4)
    real = random.standard_normal((80, 2))
    scores = precision_recall_density_coverage(real, 8 * random.standard_normal((80, 2)))
    assert scores["precision"] < 0.4 and scores["recall"] > 0.8


def test_outliers_raise_recall_but_not_coverage():
    real = np.random.default_rng(5).standard_normal((60, 2))
    outliers = np.array([[30, 0], [0, 30], [-30, 0], [0, -30], [30, 30], [-30, -30]])
    scores = precision_recall_density_coverage(real, outliers)
    assert scores["recall"] == 1.0 and scores["coverage"] == 0.0


def test_in_parts(monkeypatch):
    real, generated = np.random.default_rng(6).standard_normal((2, 40, 3))
    whole = precision_recall_density_coverage(real, generated)
    monkeypatch.setattr("kxray.metrics.fidelity._ROWS", 7)
    assert precision_recall_density_coverage(real, generated) == whole


def test_wrong_sets():
    films = np.zeros((6, 2))
    with pytest.raises(ValueError, match="more than 5 films of each kind, got 6 real and 5 generated"):
        precision_recall_density_coverage(films, films[:5])
    with pytest.raises(ValueError, match="same feature model"):
        precision_recall_density_coverage(films, np.zeros((6, 3)))
    with pytest.raises(ValueError, match="not finite"):
        precision_recall_density_coverage(films, np.full((6, 2), np.inf))
