"""Poses of films: hand-computed positions, phantoms turned by known transforms, and the way back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kxray.data import Similarity, quad_box
from kxray.data.phantom import thorax
from kxray.data.similarity import box_quad

numbers = {"allow_nan": False, "allow_infinity": False}
similarities = st.builds(
    Similarity,
    st.floats(-180, 180, **numbers),
    st.floats(0.2, 5, **numbers),
    st.tuples(st.floats(-0.5, 0.5, **numbers), st.floats(-0.5, 0.5, **numbers)),
)
shapes = st.tuples(st.integers(32, 3000), st.integers(32, 3000))
points = st.lists(st.tuples(st.floats(-500, 3500), st.floats(-500, 3500)), min_size=1, max_size=5)


def test_a_quarter_turn_anticlockwise_brings_the_right_up():
    turned = Similarity(90).apply([[0.5, 0.0], [0.0, 0.5]])
    np.testing.assert_allclose(turned, [[0.0, -0.5], [0.5, 0.0]], atol=1e-12)


def test_scale_and_shift_are_shares_of_the_width():
    # On a film of 100 x 200 pixels, 0.1 of the width is 20 pixels, right and down.
    pose = Similarity(0, 2.0, (0.1, 0.1))
    np.testing.assert_allclose(pose.to_film([100, 50], (100, 200), (100, 200)), [120, 70])
    np.testing.assert_allclose(pose.to_film([110, 50], (100, 200), (100, 200)), [140, 70])
    # The same point of an aligned frame of half the resolution.
    np.testing.assert_allclose(pose.to_film([55, 25], (50, 100), (100, 200)), [140, 70])


@settings(max_examples=200, deadline=None)
@given(similarities, points, shapes, shapes)
def test_points_come_back_to_a_thousandth_of_a_pixel(pose, where, film, aligned):
    there = pose.to_aligned(where, film, aligned)
    np.testing.assert_allclose(pose.to_film(there, aligned, film), where, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(similarities, shapes, shapes, st.tuples(*[st.floats(1, 300)] * 4))
def test_boxes_come_back(pose, film, aligned, numbers):
    box = dict(zip(("x", "y", "width", "height"), numbers, strict=True))
    back = pose.to_film(pose.box_to_aligned(box, film, aligned), aligned, film)
    np.testing.assert_allclose(back, box_quad(box), atol=1e-3)
    assert quad_box(back) == pytest.approx(box, abs=1e-3)
    there = pose.to_aligned(pose.box_to_film(box, aligned, film), film, aligned)
    np.testing.assert_allclose(there, box_quad(box), atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(similarities, similarities, points)
def test_compositions_and_inverses(first, second, where):
    np.testing.assert_allclose(first.then(second).apply(where), second.apply(first.apply(where)), atol=1e-6)
    np.testing.assert_allclose(first.then(first.inverse()).apply(where), where, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(similarities)
def test_poses_of_networks(pose):
    again = Similarity.from_pose(pose.pose)
    assert again.rotation == pytest.approx(pose.rotation, abs=1e-4)
    assert again.scale == pytest.approx(pose.scale, rel=1e-5)
    assert again.shift == pytest.approx(pose.shift, abs=1e-6)


def test_the_identity_leaves_a_film_as_it_is():
    film = np.random.default_rng(0).random((20, 31), np.float32)
    np.testing.assert_allclose(Similarity().warp(film), film, atol=1e-5)


def test_a_phantom_is_turned_back_by_its_transform():
    transform = (17.0, 1.2, (0.08, -0.06))
    upright, posed = (
        thorax(3, 4, patient=4, view=0.0, size=128, transform=given).pixels
        for given in ((0, 1, (0, 0)), transform)
    )
    aligned = Similarity(*transform).warp(posed)
    middle = (slice(26, -26), slice(26, -26))
    likeness = [np.corrcoef(upright[middle].ravel(), film[middle].ravel())[0, 1] for film in (posed, aligned)]
    assert likeness[0] < 0.6 and likeness[1] > 0.9
    back = Similarity(*transform).warp(upright, inverse=True)
    assert np.corrcoef(posed[middle].ravel(), back[middle].ravel())[0, 1] > 0.97


def test_what_lies_outside_is_filled():
    shown = Similarity(0, 1, (1.0, 0.0)).warp(np.ones((8, 8)), fill_value=0.25)
    np.testing.assert_allclose(shown, 0.25)


@pytest.mark.parametrize("given", [(0, 0), (0, -1), (math.nan, 1), (0, 1, (0, math.inf)), (0, 1, (0, 0, 0))])
def test_impossible_similarities(given):
    with pytest.raises(ValueError, match="a similarity needs"):
        Similarity(*given)


def test_pixels_that_are_no_film():
    with pytest.raises(ValueError, match="expected pixels"):
        Similarity().warp(np.zeros((2, 3, 4)))
