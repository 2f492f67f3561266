"""Localisation by boxes (Wang et al., 2017), on maps whose boxes are known."""

import numpy as np
import pytest

from kxray.metrics import (
    WANG_FRACTIONS,
    WANG_THRESHOLDS,
    box_hits,
    box_localization,
    box_overlaps,
    box_pointing,
    boxes_found,
    boxes_mask,
)


def blob(shape, top, left, height, width, value=1.0):
    map_ = np.zeros(shape)
    map_[top : top + height, left : left + width] = value
    return map_


def test_overlaps_by_hand():
    found, true = [[0, 0, 4, 2]], [[2, 0, 6, 2], [0, 0, 2, 1], [4, 0, 5, 2]]
    # 4 of 12; 2 of 8; they touch.
    assert box_overlaps(found, true) == pytest.approx(np.array([[4 / 12, 2 / 8, 0]]))
    assert box_overlaps(found, true, "iobb") == pytest.approx(np.array([[4 / 8, 2 / 8, 0]]))
    assert box_overlaps(true, found, "iobb") == pytest.approx(np.array([[4 / 8], [1], [0]]))


def test_a_box_is_found_above_its_overlap_only():
    map_ = blob((8, 8), 0, 0, 2, 4)
    # IoU with x 2-6, y 0-2: 4 / 12, so T 0.3 is passed and 0.4 is not; the IoBB of exactly 0.5 passes 0.4.
    for measure, passed in (("iou", 3), ("iobb", 4)):
        found, boxes, false_boxes = boxes_found([map_], [[[2, 0, 4, 2]]], measure)
        assert found[0].tolist() == [1] * passed + [0] * (7 - passed)
        assert false_boxes[0].tolist() == [0] * passed + [1] * (7 - passed)
        assert boxes.tolist() == [1]


def test_corners_may_lie_within_pixels():
    found, _, _ = boxes_found([blob((8, 8), 0, 0, 2, 4)], [[[0, 0, 4, 1.5]]], thresholds=(0.74, 0.75, 0.76))
    assert found[0].tolist() == [1, 0, 0]


def test_every_box_is_judged_by_itself():
    """Two true boxes that touch: one is found; as one region of a mask they would be one box, half found."""
    map_ = blob((8, 8), 0, 0, 4, 4)
    boxes = [[0, 0, 4, 4], [4, 0, 4, 4]]
    found, counts, _ = boxes_found([map_], [boxes], thresholds=(0.5,))
    assert (found[0, 0], counts[0]) == (1, 2)
    hits, _ = box_hits(map_[None], boxes_mask(boxes, (8, 8))[None], 0.5)
    assert hits.tolist() == [0]


def test_apart_and_on_whole_pixels_it_is_box_hits():
    random = np.random.default_rng(0)
    maps = random.random((20, 16, 16)) ** 4
    boxes = [[[1, 2, 5, 4], [9, 8, 6, 7]]] * 20
    masks = np.stack([boxes_mask(true, (16, 16)) for true in boxes])
    for measure in ("iou", "iobb"):
        for threshold in (0.1, 0.3):
            hits, false_boxes = box_hits(maps, masks, threshold, measure, fraction=0.4)
            found, counts, false_ = boxes_found(maps, boxes, measure, (threshold,), fraction=0.4)
            assert (found[:, 0] / counts).tolist() == hits.tolist()
            assert false_[:, 0].tolist() == false_boxes.tolist()


def test_the_boxes_of_several_fractions_all_count():
    map_ = blob((10, 10), 1, 1, 8, 8, 0.5)
    map_[2:4, 2:4] = 1
    small, large = [[2, 2, 2, 2]], [[1, 1, 8, 8]]
    assert (WANG_FRACTIONS[0] < 0.5 < WANG_FRACTIONS[1]) and WANG_THRESHOLDS[-1] == 0.7
    for boxes, fraction, expected in (
        (small, WANG_FRACTIONS, (1, 1)),
        (large, WANG_FRACTIONS, (1, 1)),
        (small, 0.4, (0, 1)),
        (large, 0.4, (1, 0)),
        (large, (0.4, 0.45), (1, 0)),  # the same box twice is one
    ):
        found, _, false_boxes = boxes_found([map_], [boxes], thresholds=(0.7,), fraction=fraction)
        assert (found[0, 0], false_boxes[0, 0]) == expected


def test_a_map_that_points_nowhere_finds_nothing():
    found, counts, false_boxes = boxes_found(np.zeros((1, 4, 4)), [[[0, 0, 2, 2]]])
    assert not found.any() and not false_boxes.any() and counts.tolist() == [1]


def test_accuracy_of_each_disease_by_hand():
    hit, miss = blob((8, 8), 0, 0, 4, 4), blob((8, 8), 4, 4, 4, 4)
    box = [[0, 0, 4, 4]]
    maps = [hit, miss, hit, hit, hit]
    boxes = [box, box, box, box, []]
    rows = box_localization(
        maps, boxes, ["Mass", "Mass", "Mass", "Nodule", "Nodule"], list("aabcc"), thresholds=(0.1, 0.5)
    )
    assert [(row["label"], row["threshold"]) for row in rows] == [
        (label, threshold) for label in ("Mass", "Nodule", "mean over diseases") for threshold in (0.1, 0.5)
    ]
    mass, nodule, mean = rows[::2]
    assert mass["accuracy"] == pytest.approx(2 / 3) and mass["false_boxes"] == pytest.approx(1 / 3)
    assert (mass["found"], mass["boxes"], mass["films"], mass["patients"]) == (2, 3, 3, 2)
    # Patient a alone scores 1/2, b alone 1, both 2/3.
    assert (mass["low"], mass["high"]) == (0.5, 1)
    assert (nodule["accuracy"], nodule["boxes"], nodule["films"]) == (1, 1, 1)
    assert mean["accuracy"] == pytest.approx((2 / 3 + 1) / 2) and mean["boxes"] == 4
    assert mean["low"] <= mean["accuracy"] <= mean["high"]


def test_films_of_one_patient_widen_the_interval():
    random = np.random.default_rng(1)
    hit, miss = blob((6, 6), 0, 0, 3, 3), blob((6, 6), 3, 3, 3, 3)
    luck = np.repeat(random.random(12) < 0.5, 5)
    maps, boxes = [hit if lucky else miss for lucky in luck], [[[0, 0, 3, 3]]] * 60
    widths = []
    for patients in (np.arange(60), np.repeat(np.arange(12), 5)):
        row = box_localization(maps, boxes, ["Mass"] * 60, patients, thresholds=(0.5,))[0]
        assert row["accuracy"] == luck.mean()
        widths.append(row["high"] - row["low"])
    assert widths[1] > 1.5 * widths[0]


def test_films_may_differ_in_size_and_no_box_is_no_row():
    maps = [blob((4, 6), 0, 0, 2, 2), blob((9, 5), 0, 0, 2, 2)]
    assert box_localization(maps, [[], []], ["Mass"] * 2, ["a", "b"]) == []
    rows = box_localization(maps, [[], [[0, 0, 2, 2]]], ["Mass"] * 2, ["a", "b"], "iobb")
    assert len(rows) == 14 and all(row["accuracy"] == 1 for row in rows)


def test_pointing_beside_it():
    maps = [blob((4, 4), 0, 0, 1, 1), blob((4, 4), 3, 3, 1, 1) + blob((4, 4), 0, 0, 1, 1, 0.5)]
    rows = box_pointing(maps, [[[0, 0, 1.2, 1]], [[0, 0, 2, 1]]], ["Mass"] * 2, ["a", "b"])
    assert [row["label"] for row in rows] == ["Mass"]
    assert rows[0]["pointing_game"]["value"] == 0.5 and rows[0]["boxes"] == 2
    # Both truths are two pixels: nothing outside, then 1/14 outside over 0.5/2 inside.
    assert rows[0]["outside_inside_ratio"]["value"] == pytest.approx((0 + (1 / 14) / (0.5 / 2)) / 2)
    assert rows[0]["pointing_game"]["films"] == 2


def test_a_mask_of_boxes_holds_every_pixel_they_touch():
    mask = boxes_mask([[-2, 1.2, 3.1, 1], [3, 3, 9, 9]], (4, 5))
    expected = np.zeros((4, 5), bool)
    expected[1:3, 0:2] = expected[3, 3:] = True
    assert (mask == expected).all()
    assert not boxes_mask([], (4, 5)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": [np.zeros(4)]}, r"maps \(h, w\)"),
        ({"maps": [np.full((4, 4), np.nan)]}, "not finite"),
        ({"boxes": []}, "boxes for each of 1 maps, got 0"),
        ({"boxes": [[[0, 0, 0, 2]]]}, "width and height above 0"),
        ({"boxes": [[[0, 0, 2]]]}, r"boxes \(K, 4\)"),
        ({"labels": ["Mass", "Mass"]}, "one label a map, 1"),
        ({"patients": []}, "one patient a map, 1"),
        ({"measure": "dice"}, "iou or iobb, got 'dice'"),
        ({"thresholds": (0.5, 1)}, "below 1"),
        ({"fraction": 0}, "fraction must be above 0"),
    ],
)
def test_what_is_refused(options, message):
    given = {"maps": [np.ones((4, 4))], "boxes": [[[0, 0, 2, 2]]], "labels": ["Mass"], "patients": ["a"]}
    with pytest.raises(ValueError, match=message):
        box_localization(**(given | options))
