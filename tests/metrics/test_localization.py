"""Maps against masks and against each other, on toys whose answers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kxray.metrics import area_above_half, iou_at, mass_inside, pointing_game, region_box, soft_jaccard

MAP = np.array([[[0.0, 1.0, 4.0], [-8.0, 2.0, 3.0]]])
MASK = np.array([[[0, 0, 1], [1, 0, 1]]])
FLAT, NEGATIVE, ZERO = np.full((1, 2, 3), 2.0), np.full((1, 2, 3), -1.0), np.zeros((1, 2, 3))

batches = arrays.arrays(
    np.float64, (3, 4, 5), elements=st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))
)
masks = arrays.arrays(np.bool_, (3, 4, 5))


def test_scores_by_hand():
    assert pointing_game(MAP, MASK).tolist() == [1.0]
    assert pointing_game(MAP, 1 - MASK).tolist() == [0.0]
    # Positive relevance 1 + 4 + 2 + 3, of which 4 + 3 inside; the -8 inside the mask counts nowhere.
    assert mass_inside(MAP, MASK) == pytest.approx([0.7])
    # At or above 2: the values 4, 2, 3; the mask holds 4, -8, 3.
    assert iou_at(MAP, MASK) == pytest.approx([2 / 4])
    assert iou_at(MAP, MASK, fraction=1) == pytest.approx([1 / 3])
    assert area_above_half(MAP) == pytest.approx([3 / 6])
    assert region_box(MAP).tolist() == [[1, 0, 3, 2]]
    assert region_box(MAP, fraction=1).tolist() == [[2, 0, 3, 1]]


def test_two_maps_by_hand():
    other = np.array([[[0.0, 8.0, 4.0], [2.0, -1.0, 0.0]]])
    # Divided by 4 and by 8: minima .25 + .5, maxima 1 + 1 + .25 + .5 + .75.
    assert soft_jaccard(MAP, other) == pytest.approx([0.75 / 3.5])
    assert soft_jaccard(MAP, 7 * MAP) == pytest.approx([1])
    assert soft_jaccard(MAP, -MAP).tolist() == [0]


def test_tolerance_is_a_distance_in_pixels():
    maps, mask = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    maps[0, 4, 4], mask[0, 1, 0] = 1, 1
    assert [pointing_game(maps, mask, tolerance)[0] for tolerance in (0, 4.9, 5)] == [0, 0, 1]


def test_tied_peaks_count_by_their_share():
    maps, mask = np.zeros((1, 2, 2)), np.array([[[1, 0], [0, 0]]])
    maps[0, 0] = 3
    assert pointing_game(maps, mask).tolist() == [0.5]


def test_an_empty_mask_is_never_a_hit():
    for maps in (MAP, FLAT, NEGATIVE, ZERO):
        for score in (pointing_game, mass_inside, iou_at):
            assert np.isnan(score(maps, np.zeros_like(MASK))).all()


def test_a_map_that_says_nothing_is_no_hit():
    everywhere = np.ones_like(MASK)
    for maps in (NEGATIVE, ZERO):
        for score in (pointing_game, mass_inside, iou_at):
            assert score(maps, everywhere).tolist() == [0]
        assert area_above_half(maps).tolist() == [0] and region_box(maps).tolist() == [[-1] * 4]
        assert soft_jaccard(maps, MAP).tolist() == [0] == soft_jaccard(MAP, maps).tolist()
        assert np.isnan(soft_jaccard(maps, maps)).all()
    assert pointing_game(FLAT, MASK).tolist() == [0]
    # Chance: the mask covers half of the film.
    assert mass_inside(FLAT, MASK) == pytest.approx([0.5]) == iou_at(FLAT, MASK)


def test_regions_connect_at_corners_and_the_largest_is_taken():
    maps = np.zeros((2, 6, 6))
    maps[0, 0, 0] = maps[0, 0, 1] = 9
    for step in range(4):
        maps[0, 2 + step, 1 + step] = 6
    # Of two regions of one size the one with the highest value.
    maps[1, 0, 0], maps[1, 5, 4] = 6, 9
    assert region_box(maps).tolist() == [[1, 2, 5, 6], [4, 5, 5, 6]]


@settings(max_examples=50, deadline=None)
@given(batches, masks, st.floats(0.01, 100))
def test_scores_are_shares_and_do_not_depend_on_scale(maps, mask, factor):
    for score in (pointing_game, mass_inside, iou_at):
        scores = score(maps, mask)
        assert (np.isnan(scores) == ~mask.any(axis=(1, 2))).all()
        assert ((scores >= 0) & (scores <= 1 + 1e-9) | np.isnan(scores)).all()
        one_by_one = [score(maps[[k]], mask[[k]])[0] for k in range(3)]
        np.testing.assert_array_equal(scores, one_by_one)
    np.testing.assert_allclose(mass_inside(factor * maps, mask), mass_inside(maps, mask), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(batches, masks)
def test_mass_inside_and_outside_make_one(maps, mask):
    both = mask.any(axis=(1, 2)) & (~mask).any(axis=(1, 2)) & (maps.max(axis=(1, 2)) > 0)
    np.testing.assert_allclose((mass_inside(maps, mask) + mass_inside(maps, ~mask))[both], 1)


@settings(max_examples=50, deadline=None)
@given(batches, batches, st.floats(0.01, 100))
def test_soft_jaccard_is_symmetric_and_ignores_strength(maps, others, factor):
    value = soft_jaccard(maps, others)
    np.testing.assert_array_equal(value, soft_jaccard(others, maps))
    np.testing.assert_allclose(value, soft_jaccard(factor * maps, others), rtol=1e-9)
    assert ((value >= 0) & (value <= 1) | np.isnan(value)).all()
    itself = soft_jaccard(maps, maps)
    np.testing.assert_allclose(itself, np.where(maps.max(axis=(1, 2)) > 0, 1, np.nan))


@settings(max_examples=50, deadline=None)
@given(batches)
def test_the_box_holds_a_region_above_half(maps):
    for film, (x0, y0, x1, y1) in zip(maps, region_box(maps), strict=True):
        if film.max() <= 0:
            assert x0 == -1
        else:
            inside = film[y0:y1, x0:x1] >= film.max() / 2
            assert inside.any() and inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()


def test_wrong_input_is_told():
    for call, sentence in (
        (lambda: pointing_game(MAP[0], MASK[0]), r"maps \(N, h, w\), got \(2, 3\)"),
        (lambda: iou_at(MAP, MASK[:, :1]), r"masks of the maps' shape \(1, 2, 3\), got \(1, 1, 3\)"),
        (lambda: iou_at(MAP, MASK, fraction=0), "fraction must be above 0"),
        (lambda: pointing_game(MAP, MASK, tolerance=-1), "tolerance must be 0 pixels or more"),
        (lambda: soft_jaccard(MAP, np.zeros((1, 3, 3))), "of one shape"),
        (lambda: area_above_half(MAP * np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
