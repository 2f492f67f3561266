"""Localisation of diseases by their boxes, as Wang et al. (2017, ChestX-ray8, section 4.2) judge it.

A map gives one box around every region at or above a share of its maximum. A box of the truth counts as found
where one of them overlaps it by more than T: accuracy is the share of boxes found, beside the number of false
boxes a film.
"""

import numpy as np

from kxray.metrics.classification import patient_bootstrap
from kxray.metrics.localization import box_overlaps, outside_inside_ratio, pointing_game, region_boxes
from kxray.metrics.summary import summarise

WANG_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
# Wang et al. scale a map to 0-255 and cut it at both.
WANG_FRACTIONS = (60 / 255, 180 / 255)
MEAN = "mean over diseases"


def boxes_found(maps, boxes, measure="iou", thresholds=WANG_THRESHOLDS, fraction=WANG_FRACTIONS):
    """How many boxes of each film its map finds at every T, and how many of the map's boxes find none.

    Every box is judged by itself, with its own corners. `kxray.metrics.box_hits` judges masks: there boxes
    that touch are one, and corners lie between pixels.

    Args:
        maps: N maps (h, w), or one array (N, h, w): each of one disease on one film, signed and raw; films
            may differ in size.
        boxes: N arrays (K, 4), the boxes of that disease on that film: x, y, width, height in pixels of the
            map, from the left upper corner of its first pixel. K may be 0.
        measure: "iou" or "iobb", see `box_overlaps`.
        thresholds: the T, each in [0, 1).
        fraction: of the map's maximum, in (0, 1], or several: the boxes of all of them count.

    Returns:
        (found int (N, T), boxes int (N,), false_boxes int (N, T)): of a film without boxes all of the map's
        boxes are false.

    Raises:
        ValueError: shapes or numbers that do not fit, or values that are not finite.
    """
    maps, boxes = _paired(maps, boxes)
    thresholds = np.atleast_1d(np.asarray(thresholds, float))
    if thresholds.ndim != 1 or not len(thresholds) or not ((thresholds >= 0) & (thresholds < 1)).all():
        raise ValueError(f"thresholds must be at least 0 and below 1, got {thresholds.tolist()}")
    found, false_boxes = np.zeros((2, len(maps), len(thresholds)), int)
    for film, (map_, true) in enumerate(zip(maps, boxes, strict=True)):
        drawn = np.concatenate([region_boxes(map_[None], share)[0] for share in np.atleast_1d(fraction)])
        drawn = np.unique(drawn, axis=0)
        overlaps = box_overlaps(drawn, _corners(true), measure)
        enough = overlaps[:, :, None] > thresholds
        found[film] = enough.any(axis=0).sum(axis=0)
        false_boxes[film] = (~enough.any(axis=1)).sum(axis=0)
    return found, np.array([len(true) for true in boxes], int), false_boxes


def box_localization(
    maps, boxes, labels, patients, measure="iou", thresholds=WANG_THRESHOLDS, fraction=WANG_FRACTIONS
):
    """Localisation accuracy of each disease at every T (Wang et al., 2017, table 4).

    Args:
        maps, boxes, measure, thresholds, fraction: see `boxes_found`; films without a box are left out.
        labels: (N,), the disease of each map.
        patients: (N,), whom each map is of.

    Returns:
        list of dicts, a row a disease and T, then `MEAN` over the diseases for every T: label, measure,
        threshold, accuracy with low and high (95%, patients resampled), found, boxes, films, patients,
        false_boxes (mean a film). Every disease weighs the same in the mean; of a resample those that it
        holds. Without any box: []. An interval of boxes that are all found, or all missed, is of no width.

    Raises:
        ValueError: see `boxes_found`.
    """
    found, counts, false_boxes = boxes_found(maps, boxes, measure, thresholds, fraction)
    labels, patients = _of_every(labels, len(counts), "label"), _of_every(patients, len(counts), "patient")
    kept = counts > 0
    found, counts, false_boxes, labels, patients = (
        values[kept] for values in (found, counts, false_boxes, labels, patients)
    )
    diseases = sorted(set(labels.tolist()))
    rows = []
    for name in (*diseases, MEAN) if diseases else ():
        members = labels == name if name != MEAN else np.ones(len(labels), bool)
        groups = [labels[members] == disease for disease in (diseases if name == MEAN else [name])]
        for index, threshold in enumerate(np.atleast_1d(thresholds)):

            def accuracy(weights, hits=found[members, index], boxes=counts[members], groups=groups):
                return _mean_accuracy(weights, hits, boxes, groups)

            low, high = patient_bootstrap(accuracy, patients[members])
            rows.append(
                {
                    "label": name,
                    "measure": measure,
                    "threshold": float(threshold),
                    "accuracy": float(accuracy(np.ones((1, members.sum())))[0]),
                    "low": low,
                    "high": high,
                    "found": int(found[members, index].sum()),
                    "boxes": int(counts[members].sum()),
                    "films": int(members.sum()),
                    "patients": len(np.unique(patients[members])),
                    "false_boxes": float(false_boxes[members, index].mean()),
                }
            )
    return rows


def box_pointing(maps, boxes, labels, patients, tolerance=0.0):
    """Pointing game and outside-inside ratio of each disease, of films whose boxes together are the truth.

    Args:
        maps, boxes, labels, patients: see `box_localization`.
        tolerance: of `kxray.metrics.pointing_game`, in pixels of the map.

    Returns:
        list of dicts, a row a disease: label, boxes, films, pointing_game and outside_inside_ratio, each a
        dict of `kxray.metrics.summarise` (of the ratio read the median: a map that is 0 inside makes it
        infinite).
    """
    maps, boxes = _paired(maps, boxes)
    labels, patients = _of_every(labels, len(maps), "label"), _of_every(patients, len(maps), "patient")
    truths = [boxes_mask(true, map_.shape) for map_, true in zip(maps, boxes, strict=True)]
    hits, ratios = np.full((2, len(maps)), np.nan)
    for film, (map_, truth) in enumerate(zip(maps, truths, strict=True)):
        hits[film] = pointing_game(map_[None], truth[None], tolerance)[0]
        ratios[film] = outside_inside_ratio(map_[None], truth[None])[0]
    counts = np.array([len(true) for true in boxes], int)
    rows = []
    for name in sorted(set(labels[counts > 0].tolist())):
        members = (labels == name) & (counts > 0)
        rows.append(
            {
                "label": name,
                "boxes": int(counts[members].sum()),
                "films": int(members.sum()),
                "pointing_game": summarise(hits[members], patients[members]),
                "outside_inside_ratio": summarise(ratios[members], patients[members]),
            }
        )
    return rows


def boxes_mask(boxes, shape):
    """Boxes (K, 4) as x, y, width, height in pixels -> bool (h, w): every pixel that one of them touches."""
    inside = np.zeros(shape, bool)
    for left, top, right, bottom in _corners(_boxes(boxes)):
        rows = slice(max(0, int(np.floor(top))), max(0, int(np.ceil(bottom))))
        columns = slice(max(0, int(np.floor(left))), max(0, int(np.ceil(right))))
        inside[rows, columns] = True
    return inside


def _mean_accuracy(weights, hits, boxes, groups):
    """Mean over groups of boxes found / boxes, by film weights (B, N) -> (B,); NaN where no group has any."""
    with np.errstate(invalid="ignore"):
        shares = np.stack(
            [(weights[:, group] @ hits[group]) / (weights[:, group] @ boxes[group]) for group in groups]
        )
        there = np.isfinite(shares)
        return np.where(there, shares, 0).sum(axis=0) / there.sum(axis=0)


def _paired(maps, boxes):
    maps, boxes = [np.asarray(map_) for map_ in maps], [_boxes(true) for true in boxes]
    if len(maps) != len(boxes):
        raise ValueError(f"expected boxes for each of {len(maps)} maps, got {len(boxes)}")
    for map_ in maps:
        if map_.ndim != 2:
            raise ValueError(f"expected maps (h, w), got one of {map_.shape}")
    return maps, boxes


def _boxes(boxes):
    boxes = np.asarray(boxes, float)
    if not boxes.size:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all() or not (boxes[:, 2:] > 0).all():
        raise ValueError(f"expected boxes (K, 4) of x, y, width and height above 0, got {boxes.tolist()}")
    return boxes


def _corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _of_every(values, number, what):
    values = np.asarray(values)
    if values.shape != (number,):
        raise ValueError(f"expected one {what} a map, {number}, got {values.shape}")
    return values
