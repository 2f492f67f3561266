"""Scores of counterfactuals on numbers worked out by hand."""

import numpy as np
import pytest

from kxray import metrics


def test_a_film_that_had_the_answer_is_not_counted_as_turned():
    before = np.array([False, False, True, False])
    after = np.array([True, False, True, True])
    np.testing.assert_array_equal(metrics.flipped(before, after), [1, 0, np.nan, 1])
    assert metrics.flip_rate(before, after) == pytest.approx(2 / 3)
    assert np.isnan(metrics.flip_rate(np.ones(2, bool), np.ones(2, bool)))
    with pytest.raises(ValueError, match=r"expected bool \(N,\) before and after the change, got float64"):
        metrics.flipped(np.zeros(2), np.zeros(2, bool))


def test_drift_is_of_the_other_labels():
    before = np.array([[0.9, 0.2, 0.4], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]])
    after = np.array([[0.1, 0.3, 0.1], [0.2, 0.1, 0.1], [0.0, 1.0, 0.0]])
    others = np.array([[False, True, True], [False, True, True], [False, False, False]])
    np.testing.assert_allclose(metrics.label_drift(before, after, others), [0.2, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(metrics.label_drift(before, after, [True, False, False]), [0.8, 0.6, 0.3])
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(2, 3\)"):
        metrics.label_drift(before, after[:2], others)


def test_how_much_of_a_film_changes():
    films = np.full((2, 4, 4, 1), 0.5, "float32")
    changed = films.copy()
    changed[0, :2, 0] = 0.9
    changed[0, 3, 3] = 0.51
    np.testing.assert_allclose(metrics.mean_change(films, changed), [(2 * 0.4 + 0.01) / 16, 0], atol=1e-7)
    np.testing.assert_array_equal(metrics.changed_share(films, changed), [2 / 16, 0])
    np.testing.assert_array_equal(metrics.changed_share(films, changed, 0.005), [3 / 16, 0])
    with pytest.raises(ValueError, match="of one shape"):
        metrics.mean_change(films, changed[..., 0])


def test_a_path_that_falls_on_its_way_is_not_monotone():
    scores = [[0, 0.5, 1], [0, 1, 0.5], [1, 0.5, 0], [0.3, 0.3, 0.3], [0.2, 0.2, 0.9]]
    np.testing.assert_allclose(metrics.path_monotonicity(scores), [1, 0.5 / 1.5, -1, np.nan, 1])
    with pytest.raises(ValueError, match="two or more places"):
        metrics.path_monotonicity([[1.0]])


def test_noise_is_bounded_and_a_films_own():
    films = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
    copies = metrics.noisy(films, 0.1, 5)
    assert copies.dtype == np.float32 and copies.min() >= 0 and copies.max() <= 1
    assert 0.05 < np.abs(copies - films).max() <= 0.1 + 1e-6
    np.testing.assert_array_equal(metrics.noisy(films[1:], 0.1, 5, [1, 2]), copies[1:])
    assert (metrics.noisy(films, 0.1, 6) != copies).any()
    np.testing.assert_array_equal(metrics.noisy(films, 0), films)
    for radius, numbers, told in ((-1, None, "radius of 0 or more"), (0.1, [1], "one number a film, 3")):
        with pytest.raises(ValueError, match=told):
            metrics.noisy(films, radius, 0, numbers)


def test_an_answer_at_its_border_does_not_outlast_noise():
    films = np.full((4, 8, 8, 1), 0.5)
    films[0] += 0.3
    films[3] -= 0.3
    films[1, 0, 0] += 1e-6

    def first_pixel(films):
        return films[:, 0, 0, 0] > 0.5

    robust = metrics.noise_robustness(first_pixel, films, draws=200)
    assert robust[0] == pytest.approx(1) and 0.35 < robust[1] < 0.65 and np.isnan(robust[2:]).all()
    one = metrics.noise_robustness(lambda one: one[:, 0, 0, 0] > 0.5, films[1:2], draws=200, numbers=[1])
    np.testing.assert_array_equal(one, robust[1:2])
    with pytest.raises(ValueError, match="draws of 1 or more"):
        metrics.noise_robustness(first_pixel, films, draws=0)
