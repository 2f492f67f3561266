"""How far larger films are the smaller ones, on films drawn by hand."""

import numpy as np
import pytest

from kxray.metrics import scale_agreement


def enlarged(films, factor):
    return films.repeat(factor, axis=1).repeat(factor, axis=2)


def test_a_film_and_its_enlargement_agree_and_two_films_do_not():
    random = np.random.default_rng(0)
    small = random.random((6, 8, 8, 1))
    # Detail that averages out, and another brightness and contrast, change nothing.
    detail = np.tile([[1, -1], [-1, 1]], (8, 8))[None, ..., None]
    large = 0.3 + 0.5 * enlarged(small, 2) + 0.1 * detail
    first, second = scale_agreement(
        {16: large, 8: small, 32: enlarged(small[::-1], 4)}, np.array([0, 0, 0, 1, 1, 1])
    )
    assert (first["side"], first["against"], second["side"]) == (16, 8, 32)
    for name in ("correlation", "lowest", "own"):
        assert first[name] == pytest.approx(1)
    assert abs(first["another"]) < 0.4 and abs(second["correlation"]) < 0.4


def test_what_all_films_of_a_class_share_is_told_apart_from_what_is_their_own():
    random = np.random.default_rng(1)
    shared = 10 * random.random((1, 8, 8, 1))
    small, large = shared + random.random((20, 8, 8, 1)), enlarged(shared + random.random((20, 8, 8, 1)), 2)
    (scale,) = scale_agreement({8: small, 16: large}, np.zeros(20, int))
    assert scale["correlation"] > 0.95 and scale["another"] > 0.95
    assert abs(scale["own"]) < 0.2


def test_by_hand():
    small = np.array([[[0.0, 1.0], [2.0, 3.0]]])[..., None]
    large = enlarged(np.array([[[0.0, 2.0], [1.0, 3.0]]])[..., None], 2)
    (scale,) = scale_agreement({2: small, 4: large}, [0])
    # Around the mean: (-1.5, -0.5, 0.5, 1.5) and (-1.5, 0.5, -0.5, 1.5): 4 / 5.
    assert scale["correlation"] == scale["lowest"] == pytest.approx(0.8)
    assert scale["own"] is None and scale["another"] is None


def test_black_films_have_no_correlation_and_one_scale_no_rows():
    films = {4: np.zeros((2, 4, 4, 1)), 8: np.zeros((2, 8, 8, 1))}
    (scale,) = scale_agreement(films, [0, 0])
    assert scale["correlation"] is None and scale["lowest"] is None
    assert scale_agreement({4: np.zeros((2, 4, 4, 1))}, [0, 0]) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="as many films of every side"):
        scale_agreement({4: np.zeros((2, 4, 4, 1)), 8: np.zeros((3, 8, 8, 1))}, [0, 0])
    with pytest.raises(ValueError, match="6 pixels cannot be averaged to 4"):
        scale_agreement({4: np.zeros((1, 4, 4, 1)), 6: np.zeros((1, 6, 6, 1))}, [0])
