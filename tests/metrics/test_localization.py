"""Maps against masks and against each other, on toys whose answers are known."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kxray.metrics import (
    area_above_half,
    box_hits,
    iou_at,
    map_auroc,
    mass_inside,
    mean_iou,
    outside_inside_ratio,
    patient_bootstrap,
    pixel_accuracy,
    pointing_game,
    pooled_mean_iou,
    rank_accuracy,
    region_box,
    region_boxes,
    soft_jaccard,
    summarise,
)

ORACLES = Path(__file__).resolve().parents[3] / "shared" / "oracles"

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


def test_ranks_and_ratios_by_hand():
    # The three largest, 4, 3 and 2: two of them inside.
    assert rank_accuracy(MAP, MASK) == pytest.approx([2 / 3])
    assert rank_accuracy(MAP, MASK, top=2).tolist() == [1]
    # Six places, of which four have positive relevance, two of these inside.
    assert rank_accuracy(MAP, MASK, top=6) == pytest.approx([2 / 6])
    # Of 3 x 3 pairs (inside, outside) with 4, -8, 3 inside and 0, 1, 2 outside: six in order.
    assert map_auroc(MAP, MASK) == pytest.approx([6 / 9])
    # Positive relevance 3 on three pixels outside, 7 on three inside; signed, 4 + 3 - 8 inside.
    assert outside_inside_ratio(MAP, MASK) == pytest.approx([3 / 7])
    assert outside_inside_ratio(MAP, MASK, signed=True) == pytest.approx([-3])
    assert outside_inside_ratio(np.maximum(MAP, 0), (MAP < 0) * 1).tolist() == [np.inf]


def test_ties_for_the_last_places_count_by_their_share():
    maps = np.array([[[5.0, 1, 1], [1, 1, 0]]])
    mask = np.array([[[1, 1, 0], [0, 0, 0]]])
    # One place for the 5, one for four ones, of which a quarter is inside.
    assert rank_accuracy(maps, mask) == pytest.approx([(1 + 1 / 4) / 2])


def test_segmentation_by_hand():
    # The mean is 1/3: above it lie 1, 4, 2, 3; of the mask's three pixels all but the -8.
    assert mean_iou(MAP, MASK) == pytest.approx([(2 / 5 + 1 / 4) / 2])
    assert pixel_accuracy(MAP, MASK) == pytest.approx([3 / 6])
    maps, masks = np.concatenate([MAP, MAP, MAP]), np.concatenate([MASK, 1 - MASK, 0 * MASK])
    # Foreground 2 of 5 and 2 of 5, background 1 of 4 and 1 of 4; the film without a mask is left out.
    assert pooled_mean_iou(maps, masks) == pytest.approx((4 / 10 + 2 / 8) / 2)
    twice = pooled_mean_iou(maps, masks, [[1, 1, 9], [2, 0, 5]])
    assert twice == pytest.approx([0.325, (2 / 5 + 1 / 4) / 2])
    assert np.isnan(pooled_mean_iou(MAP, 0 * MASK))
    # A pooled figure has an interval, too.
    low, high = patient_bootstrap(lambda weights: pooled_mean_iou(maps, masks, weights), [0, 1, 2], 50)
    assert low <= 0.325 <= high
    # 0.1 three times has a mean that rounds away from 0.1: still no foreground.
    assert mean_iou(np.full((1, 1, 3), 0.1), np.array([[[1, 0, 0]]])) == pytest.approx([(0 + 2 / 3) / 2])


def test_boxes_of_all_regions():
    maps = np.zeros((1, 8, 8))
    maps[0, 1:3, 1:4], maps[0, 6, 5:8], maps[0, 7, 0] = 4, 3, 1
    assert region_boxes(maps)[0].tolist() == [[1, 1, 4, 3], [5, 6, 8, 7]]
    assert region_boxes(maps, 0.2)[0].tolist() == [[1, 1, 4, 3], [5, 6, 8, 7], [0, 7, 1, 8]]
    assert region_boxes(-maps)[0].shape == (0, 4)
    mask = np.zeros((1, 8, 8))
    mask[0, 1:5, 1:4] = 1
    # Box 2 x 3 within 4 x 3: IoU one half, IoBB one; the second box is false.
    assert [values.tolist() for values in box_hits(maps, mask, 0.49)] == [[1], [1]]
    assert [values.tolist() for values in box_hits(maps, mask, 0.5)] == [[0], [2]]
    assert [values.tolist() for values in box_hits(maps, mask, 0.9, "iobb")] == [[1], [1]]
    # Two true boxes, one found: half a hit.
    mask[0, 6:, 0:2] = 1
    assert [values.tolist() for values in box_hits(maps, mask, 0.4)] == [[0.5], [1]]
    assert [values.tolist() for values in box_hits(-maps, mask)] == [[0], [0]]


@pytest.mark.parametrize(
    "score",
    [
        rank_accuracy,
        map_auroc,
        outside_inside_ratio,
        mean_iou,
        pixel_accuracy,
        lambda *pair: box_hits(*pair)[0],
    ],
)
def test_new_scores_give_nothing_for_an_empty_mask(score):
    for maps in (MAP, FLAT, NEGATIVE, ZERO):
        assert np.isnan(score(maps, np.zeros_like(MASK))).all()


def test_maps_that_say_nothing():
    assert map_auroc(FLAT, MASK).tolist() == [0.5]
    assert rank_accuracy(FLAT, MASK) == pytest.approx([0.5])
    assert rank_accuracy(NEGATIVE, MASK).tolist() == [0]
    assert outside_inside_ratio(FLAT, MASK).tolist() == [1]
    assert np.isnan(outside_inside_ratio(ZERO, MASK)).all()
    assert np.isnan(outside_inside_ratio(FLAT, np.ones_like(MASK))).all()
    assert np.isnan(map_auroc(MAP, np.ones_like(MASK))).all()
    assert mean_iou(FLAT, MASK) == pytest.approx([0.25]) == mean_iou(ZERO, MASK)


@settings(max_examples=50, deadline=None)
@given(batches, masks, st.sampled_from([0.125, 0.5, 4, 64]))
def test_new_scores_are_shares_and_do_not_depend_on_scale(maps, mask, factor):
    mirrored = maps[:, :, ::-1], mask[:, :, ::-1]
    for score in (rank_accuracy, map_auroc, mean_iou, pixel_accuracy, lambda *pair: box_hits(*pair)[0]):
        scores = score(maps, mask)
        assert ((scores >= 0) & (scores <= 1 + 1e-9) | np.isnan(scores)).all()
        np.testing.assert_array_equal(scores, score(factor * maps, mask))
        np.testing.assert_allclose(scores, [score(maps[[k]], mask[[k]])[0] for k in range(3)])
    for score in (rank_accuracy, map_auroc, outside_inside_ratio):
        # Which pixel lies where is no matter.
        np.testing.assert_allclose(score(maps, mask), score(*mirrored), rtol=1e-9)
    np.testing.assert_allclose(map_auroc(maps, mask) + map_auroc(-maps, mask), map_auroc(maps, mask) * 0 + 1)
    ratios = outside_inside_ratio(maps, mask)
    assert ((ratios >= 0) | np.isnan(ratios)).all()
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
            outside_inside_ratio(maps, ~mask)[~np.isnan(ratios)], (1 / ratios)[~np.isnan(ratios)]
        )


def test_films_without_a_score_are_counted():
    told = summarise([0.25, np.nan, 0.75, np.inf, np.nan])
    assert told["value"] == 0.5 and told["median"] == 0.75
    assert (told["films"], told["undefined"], told["infinite"]) == (2, 2, 1)
    assert 0.25 <= told["low"] <= told["high"] <= 0.75
    one_patient = summarise([0.0, 1.0, 1.0], ["a", "a", "a"])
    assert one_patient["low"] == one_patient["high"] == pytest.approx(2 / 3)
    nothing = summarise([np.nan])
    assert np.isnan([nothing["value"], nothing["low"], nothing["median"]]).all() and nothing["undefined"] == 1


@pytest.fixture(scope="module")
def oracle():
    path = Path(os.environ.get("KXRAY_TEST_ORACLES", ORACLES)) / "oracle_metrics_gap.npz"
    if not path.is_file():
        pytest.skip(f"{path} not found; set KXRAY_TEST_ORACLES to the folder of the oracles")
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def test_scores_of_the_oracle(oracle):
    """All but pointing_game_EMPTY_MASK, where the original counts a hit: ours is NaN, never a hit."""
    maps, mask = oracle["attribution"][:, 0], oracle["mask"][:, 0]
    exact = {"rtol": 0, "atol": 1e-15}
    # Sums of float32 in the original.
    rounded = {"rtol": 2e-7, "atol": 0}
    assert (maps > 0).all(), "so that the variants of positive maps only are met by the same functions"
    for suffix in ("", "_posonly"):
        np.testing.assert_allclose(pointing_game(maps, mask), oracle["pointing_game" + suffix], **exact)
        np.testing.assert_allclose(
            rank_accuracy(maps, mask), oracle["relevance_rank_accuracy" + suffix], **exact
        )
        np.testing.assert_allclose(map_auroc(maps, mask), oracle["auc" + suffix], **exact)
        np.testing.assert_allclose(
            mass_inside(maps, mask), oracle["relevance_mass_accuracy" + suffix], **rounded
        )
        np.testing.assert_allclose(
            mass_inside(maps, mask), oracle["attribution_localisation" + suffix], **rounded
        )
    np.testing.assert_allclose(rank_accuracy(maps, mask, top=20), oracle["top_k_intersection_k20"], **exact)
    for signed, name in ((False, "pos"), (True, "signed")):
        ratio = outside_inside_ratio(maps, mask, signed)
        np.testing.assert_allclose(ratio, oracle[f"outside_inside_ratio_{name}"], **rounded)
    np.testing.assert_allclose(mean_iou(maps, mask), oracle["miou_mean_threshold"], **exact)
    np.testing.assert_allclose(pixel_accuracy(maps, mask), oracle["pixacc_mean_threshold"], **exact)
    assert oracle["pointing_game_EMPTY_MASK"].any() and np.isnan(pointing_game(maps, 0 * mask)).all()


def test_wrong_input_is_told():
    for call, sentence in (
        (lambda: pointing_game(MAP[0], MASK[0]), r"maps \(N, h, w\), got \(2, 3\)"),
        (lambda: iou_at(MAP, MASK[:, :1]), r"masks of the maps' shape \(1, 2, 3\), got \(1, 1, 3\)"),
        (lambda: iou_at(MAP, MASK, fraction=0), "fraction must be above 0"),
        (lambda: pointing_game(MAP, MASK, tolerance=-1), "tolerance must be 0 pixels or more"),
        (lambda: soft_jaccard(MAP, np.zeros((1, 3, 3))), "of one shape"),
        (lambda: area_above_half(MAP * np.nan), "not finite"),
        (lambda: rank_accuracy(MAP, MASK, top=7), "top must be 1 to 6"),
        (lambda: box_hits(MAP, MASK, overlap=1), "overlap must be"),
        (lambda: box_hits(MAP, MASK, measure="dice"), "measure must be iou or iobb"),
        (lambda: mean_iou(MAP, MASK[:, :1]), "masks of the maps' shape"),
        (lambda: summarise(MAP), r"scores \(N,\)"),
        (lambda: summarise([1.0], [1, 2]), "one patient a film"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
