"""Exact pixel moves: every drawn view is one of the eight, and none is blurred."""

import numpy as np
import pytest

from kxray.layers import RandomDihedral, dihedral_views


@pytest.fixture
def films():
    return np.random.default_rng(0).random((4, 6, 6, 1)).astype("float32")


def drawn(films, left_right, up_down, transposed):
    draws = np.tile(np.float32([[1 - left_right, 1 - up_down, 1 - transposed]]), (len(films), 1))
    return np.asarray(RandomDihedral()(films, draws=draws))


def test_each_draw_by_hand(films):
    np.testing.assert_array_equal(drawn(films, 0, 0, 0), films)
    np.testing.assert_array_equal(drawn(films, 1, 0, 0), films[:, :, ::-1])
    np.testing.assert_array_equal(drawn(films, 0, 1, 0), films[:, ::-1])
    np.testing.assert_array_equal(drawn(films, 0, 0, 1), films.transpose(0, 2, 1, 3))


def test_the_eight_views_differ_and_are_those_that_can_be_drawn(films):
    views = [np.asarray(view) for view in dihedral_views(films)]
    assert len({view.tobytes() for view in views}) == 8
    rolled = [drawn(films, *(int(bit) for bit in f"{number:03b}")) for number in range(8)]
    assert {view.tobytes() for view in views} == {view.tobytes() for view in rolled}


def test_films_of_a_batch_are_drawn_one_by_one(films):
    draws = np.float32([[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
    together = np.asarray(RandomDihedral()(films, draws=draws))
    alone = [np.asarray(RandomDihedral()(films[[i]], draws=draws[[i]]))[0] for i in range(4)]
    np.testing.assert_array_equal(together, alone)


def test_a_film_that_is_not_square_is_flipped_only():
    films = np.random.default_rng(1).random((2, 4, 6, 1)).astype("float32")
    assert len(dihedral_views(films)) == 4
    np.testing.assert_array_equal(drawn(films, 1, 1, 1), films[:, ::-1, ::-1])


def test_own_draws_and_none_outside_training(films):
    np.testing.assert_array_equal(RandomDihedral()(films, training=False), films)
    many = np.repeat(films[:1], 200, axis=0)
    seen = {view.tobytes() for view in np.asarray(RandomDihedral(seed=1)(many))}
    assert len(seen) == 8
