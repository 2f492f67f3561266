"""Frechet and kernel distance: against scipy and by hand, on toys that grow apart, and their intervals."""

import itertools

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from kxray import metrics
from kxray.metrics import equal_rows, frechet_distance, kernel_distance, kid
from kxray.metrics.fdd import _frechet, fdd


def correlated(random, count, features, shift=0.0):
    return random.standard_normal((count, features)) @ random.standard_normal((features, features)) + shift


def by_definition(real, generated):
    one, other = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = np.real(np.trace(sqrtm(one @ other)))
    return np.square(real.mean(0) - generated.mean(0)).sum() + np.trace(one) + np.trace(other) - 2 * root


@pytest.mark.parametrize("features, n, m", [(2, 50, 70), (8, 40, 400), (16, 100, 100)])
def test_the_distance_is_that_of_scipys_matrix_root(features, n, m):
    random = np.random.default_rng(features)
    real, generated = correlated(random, n, features), correlated(random, m, features, 0.5)
    assert frechet_distance(real, generated) == pytest.approx(by_definition(real, generated), rel=1e-9)


def test_the_distance_of_two_known_gaussians():
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2, with -1, 1 of variance 2 and 2, 4, 6 of variance 4.
    assert frechet_distance([[-1.0], [1.0]], [[2.0], [4.0], [6.0]]) == pytest.approx(16 + (2**0.5 - 2) ** 2)


def test_more_features_than_films():
    random = np.random.default_rng(0)
    real, generated = random.standard_normal((12, 64)), random.standard_normal((9, 64)) + 0.3
    # Turned into their own span, the films have 19 features: the distance is the same.
    basis, _ = np.linalg.qr(np.concatenate([real, generated]).T)
    wide = frechet_distance(real, generated)
    assert wide == pytest.approx(frechet_distance(real @ basis, generated @ basis), rel=1e-12)
    # scipy's root of a singular matrix is good to about the root of the rounding.
    assert wide == pytest.approx(by_definition(real, generated), rel=1e-4)


@pytest.mark.parametrize("features", [3, 40, 200])
def test_identical_sets_are_at_distance_zero(features):
    films = 1e-3 * correlated(np.random.default_rng(1), 60, features)
    assert frechet_distance(films, films) <= 1e-12 * films.var(axis=0).sum()
    assert frechet_distance(films, films[::-1]) <= 1e-12 * films.var(axis=0).sum()
    assert frechet_distance(np.ones((3, 2)), np.ones((4, 2))) == 0.0


def toy_films(random, count, place):
    """Texture and a bright disc, (N, 144)."""
    y, x = np.mgrid[:12, :12]
    disc = np.hypot(y - place, x - 6) < 3
    texture = gaussian_filter(random.standard_normal((count, 12, 12)), (0, 0.8, 0.8))
    return (texture + 3 * disc).reshape(count, -1)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_grow_with_blur_noise_and_wrong_classes(distance):
    random = np.random.default_rng(2)
    real, other, wrong = (toy_films(random, 400, place) for place in (4, 4, 8))
    square = other.reshape(-1, 12, 12)
    blurred = [gaussian_filter(square, (0, s, s)).reshape(400, -1) for s in (0.5, 0.8, 1.2, 2.0)]
    noisy = [other + s * random.standard_normal(other.shape) for s in (0.8, 1.2, 2.0, 3.0)]
    mixed = [np.concatenate([wrong[:count], other[count:]]) for count in (40, 120, 240, 400)]
    for series in (blurred, noisy, mixed):
        distances = [distance(real, films) for films in (other, *series)]
        assert all(nearer < farther for nearer, farther in itertools.pairwise(distances)), distances


def test_kernel_distance_by_hand():
    # F = 1, kernel (xy + 1)^3: 0 and 1 against 1 and 2.
    # Within: k(0, 1) = 1; k(1, 2) = 27. Between: k(0, .) = 1, 1; k(1, 1) = 8; k(1, 2) = 27.
    assert kernel_distance([[0.0], [1.0]], [[1.0], [2.0]]) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    # Two features count as their mean: (2 * 3 + 0 * 5) / 2 + 1 = 4.
    pair, point = [[2.0, 0.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]
    assert kernel_distance(pair, point) == pytest.approx(64 + 1 - 2)


def test_kernel_distance_is_unbiased_at_few_films_and_the_frechet_distance_is_not():
    random = np.random.default_rng(3)
    pairs = random.standard_normal((2000, 2, 5, 4))
    distances = np.array([kernel_distance(real, generated) for real, generated in pairs])
    error = distances.std() / np.sqrt(len(distances))
    assert abs(distances.mean()) < 4 * error and (distances < 0).any()
    assert np.mean([frechet_distance(*pair) for pair in pairs[:200]]) > 2


def test_kernel_distance_in_parts(monkeypatch):
    random = np.random.default_rng(4)
    real, generated = random.standard_normal((23, 6)), random.standard_normal((31, 6))
    whole = kernel_distance(real, generated)
    monkeypatch.setattr("kxray.metrics.fdd._ROWS", 7)
    assert kernel_distance(real, generated) == pytest.approx(whole, rel=1e-12)


def test_equal_counts_class_by_class():
    real, generated = np.repeat([0, 1, 2], (5, 2, 3)), np.repeat([2, 0, 1, 3], (3, 4, 6, 2))
    rows = equal_rows(real, generated, seed=1)
    for classes, own in zip((real, generated), rows, strict=True):
        assert np.bincount(classes[own], minlength=4).tolist() == [4, 2, 3, 0]
        assert len(set(own)) == len(own) and (np.diff(own) > 0).all()
    again = equal_rows(real, generated, seed=1)
    assert all((one == other).all() for one, other in zip(rows, again, strict=True))
    other_films = {tuple(equal_rows(real, generated, seed)[0]) for seed in range(20)}
    assert len(other_films) > 1


def test_scores_of_classes_and_overall():
    random = np.random.default_rng(5)
    real, generated = random.standard_normal((90, 3)), random.standard_normal((70, 3))
    real_names, generated_names = np.repeat(["Mass", "Nodule"], 45), np.repeat(["Nodule", "Mass"], 35)
    generated[generated_names == "Mass"] += 2
    scores = fdd(real, generated, classes=(real_names, generated_names), resamples=50)
    assert list(scores["classes"]) == ["Mass", "Nodule"]
    for score in (*scores["classes"].values(), scores["overall"]):
        assert 0 <= score["low"] <= score["value"] <= score["high"]
        assert score["real"] == score["generated"] and score["reliable"] and score["note"] == ""
    assert scores["overall"]["real"] == 70
    assert scores["classes"]["Mass"]["low"] > scores["classes"]["Nodule"]["high"]
    mass = generated[generated_names == "Mass"]
    unequal = fdd(real, generated, classes=(real_names, generated_names), equal=False, resamples=0)[
        "classes"
    ]["Mass"]
    assert (unequal["real"], unequal["generated"]) == (45, 35) and np.isnan(unequal["low"])
    assert unequal["value"] == pytest.approx(frechet_distance(real[:45], mass))


def test_the_same_films_for_both_distances():
    random = np.random.default_rng(6)
    real, generated = random.standard_normal((40, 3)), random.standard_normal((20, 3))
    rows, _ = equal_rows(np.zeros(40), np.zeros(20), seed=3)
    for measure, distance in ((fdd, frechet_distance), (kid, kernel_distance)):
        score = measure(real, generated, resamples=0, seed=3)["overall"]
        assert score["value"] == pytest.approx(distance(real[rows], generated), rel=1e-9)


def test_few_films_are_marked():
    random = np.random.default_rng(7)
    real, generated = random.standard_normal((30, 10)), random.standard_normal((30, 10))
    classes = np.repeat(["few", "many", "one"], (10, 19, 1))
    scores = fdd(real, generated, classes=(classes, classes), resamples=20)["classes"]
    assert scores["many"]["reliable"] and not scores["few"]["reliable"]
    assert "10 films in 10 dimensions" in scores["few"]["note"] and np.isfinite(scores["few"]["low"])
    assert np.isnan(scores["one"]["value"]) and "takes two" in scores["one"]["note"]
    assert kid(real, generated, classes=(classes, classes))["classes"]["few"]["reliable"]


@pytest.mark.parametrize("measure", [fdd, kid])
def test_intervals_shrink_with_the_number_of_films(measure):
    random = np.random.default_rng(8)
    widths = []
    for count in (30, 120, 480):
        real, generated = random.standard_normal((count, 3)), 0.7 * random.standard_normal((count, 3)) + 0.3
        score = measure(real, generated, resamples=100)["overall"]
        assert score["low"] < score["value"] < score["high"]
        widths.append(score["high"] - score["low"])
    # A quarter of the films: about half as wide.
    assert all(0.3 < narrow / wide < 0.75 for wide, narrow in itertools.pairwise(widths)), widths


@pytest.mark.parametrize("measure, distance", [(fdd, frechet_distance), (kid, kernel_distance)])
def test_intervals_hold_what_other_films_would_give(measure, distance):
    random = np.random.default_rng(9)

    def films():
        return random.standard_normal((40, 4)), 1.3 * random.standard_normal((40, 4)) + 0.4

    expected = np.mean([distance(*films()) for _ in range(1500)])
    scores = [measure(*films(), resamples=60)["overall"] for _ in range(120)]
    covered = np.mean([score["low"] <= expected <= score["high"] for score in scores])
    assert 0.87 <= covered <= 1.0


def test_patients_are_left_out_together():
    random = np.random.default_rng(10)
    generated = random.standard_normal((40, 2))
    # Ten patients with four alike films each say no more than ten films.
    patients = np.repeat(np.arange(10), 4)
    real = random.standard_normal((10, 2))[patients] + 0.01 * random.standard_normal((40, 2)) + 3
    alone, together = (
        fdd(real, generated, patients=given, resamples=200)["overall"] for given in (None, patients)
    )
    assert alone["value"] == together["value"]
    assert together["high"] - together["low"] > 1.3 * (alone["high"] - alone["low"])


@pytest.mark.parametrize(
    "real, generated, message",
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 features and generated ones 2"),
        (np.zeros((1, 3)), np.zeros((4, 3)), r"at least 2 real films, got shape \(1, 3\)"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "generated films hold values that are not finite"),
        (np.zeros(4), np.zeros((4, 3)), r"got shape \(4,\)"),
    ],
)
def test_wrong_features(real, generated, message):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=message):
            distance(real, generated)


def test_wrong_classes_and_exports():
    films = np.zeros((4, 3))
    with pytest.raises(ValueError, match="got 3, 4, 4"):
        fdd(films, films, classes=(np.zeros(3), np.zeros(4)))
    assert metrics.fdd.fdd is fdd and {"frechet_distance", "kernel_distance", "kid"} <= set(metrics.__all__)


@pytest.mark.parametrize("films", [30, 12])
def test_the_draws_of_an_interval_measure_the_same_distance(films):
    random = np.random.default_rng(8)
    real, made = random.normal(size=(films, 20)), random.normal(size=(films, 20)) * 1.5 + 0.2
    quick = _frechet(real, made, quick=True)
    assert quick == pytest.approx(frechet_distance(real, made), rel=1e-6)
    assert _frechet(real, real, quick=True) < 1e-5
