"""Does a map point at what is there, and do two maps point at the same place?

Every function takes batches: maps float (N, h, w), signed and raw, masks (N, h, w) on the same grid, where
anything but 0 is inside. Only the positive part of a map, evidence for its class, is scored, unless a
function says otherwise. A film with an empty mask scores NaN, never a hit; `kxray.metrics.summarise` counts
such films.
"""

import numpy as np
from scipy import ndimage
from sklearn import metrics

# Corners connect: a thin bone that runs diagonally is one region.
_NEIGHBOURS = np.ones((3, 3), bool)
MEASURES = ("iou", "iobb")


def pointing_game(maps, masks, tolerance=0.0):
    """Whether the map's largest value lies inside the mask (Zhang et al., 2016).

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        tolerance: largest distance to the mask that still counts, in pixels of the mask. Zhang et al. took 15
            on photographs of some 500 pixels.

    Returns:
        float64 (N,): 1 hit, 0 miss, NaN for an empty mask. Where several pixels share the largest value: the
        share of them that hits, which is what drawing one of them scores on average. A map without a positive
        value, or of one value everywhere, points nowhere: 0.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a negative tolerance.
    """
    maps, masks = maps_and_masks(maps, masks)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 pixels or more, got {tolerance}")
    scores = np.zeros(len(maps))
    for film, (map_, mask) in enumerate(zip(maps, masks, strict=True)):
        peak = map_.max()
        if not mask.any():
            scores[film] = np.nan
        elif peak > 0 and peak > map_.min():
            near = ndimage.distance_transform_edt(~mask) <= tolerance if tolerance else mask
            scores[film] = near[map_ == peak].mean()
    return scores


def mass_inside(maps, masks):
    """Share of the positive relevance that lies inside: sum_inside max(R, 0) / sum max(R, 0).

    The relevance mass accuracy of Arras et al. (2022), of the positive part.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask; 0 for a map without a positive value. A map of one
        positive value everywhere scores the mask's share of the area, as chance does.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    maps, masks = maps_and_masks(maps, masks)
    # Divided by the peak first, so that sums of very small or large maps neither vanish nor overflow.
    positive = _to_one(maps)
    total = positive.sum(axis=(1, 2))
    inside = (positive * masks).sum(axis=(1, 2))
    shares = np.where(total > 0, inside / np.maximum(total, np.finfo(float).tiny), 0.0)
    return np.where(masks.any(axis=(1, 2)), shares, np.nan)


def rank_accuracy(maps, masks, top=None):
    """Share of the `top` most relevant pixels that lie inside (Arras et al., 2022: `top` = area of the mask).

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        top: number of pixels; by default as many as the mask has. With a number: top-k intersection.

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask. Pixels without positive relevance are never chosen, so
        a map with fewer than `top` positive ones cannot reach 1. Where several pixels tie for the last
        places: the share of them that lies inside, times these places.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or `top` below 1.
    """
    maps, masks = maps_and_masks(maps, masks)
    if top is not None and not 1 <= top <= maps[0].size:
        raise ValueError(f"top must be 1 to {maps[0].size} pixels, got {top}")
    scores = np.full(len(maps), np.nan)
    for film, (map_, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask.any():
            places = int(mask.sum() if top is None else top)
            last = np.partition(map_, map_.size - places, axis=None)[map_.size - places]
            above = map_ > max(last, 0)
            hits = (above & mask).sum()
            if last > 0:
                hits = hits + (places - above.sum()) * mask[map_ == last].mean()
            scores[film] = hits / places
    return scores


def map_auroc(maps, masks):
    """Area under the ROC curve of the map as a detector of the mask's pixels; the sign is kept.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).

    Returns:
        float64 (N,) in [0, 1], 0.5 for chance and for a constant map; NaN for a mask that is empty or full.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    maps, masks = maps_and_masks(maps, masks)
    scores = [
        metrics.roc_auc_score(mask.ravel(), map_.ravel()) if mask.any() and not mask.all() else np.nan
        for map_, mask in zip(maps, masks, strict=True)
    ]
    return np.array(scores, dtype=float)


def outside_inside_ratio(maps, masks, signed=False):
    """Mean relevance outside the mask over the mean inside (Lapuschkin et al., 2016); below 1 is good.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        signed: of the whole map, where negative relevance cancels positive, in place of max(R, 0).

    Returns:
        float64 (N,): 0 or more unless signed. NaN for a mask that is empty or full, and for 0 / 0; infinite
        where only the inside is 0, so prefer the median over films to the mean.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    maps, masks = maps_and_masks(maps, masks)
    # Divided by the largest value first: sums neither vanish nor overflow, the ratio stays.
    scale = np.abs(maps).max(axis=(1, 2), keepdims=True)
    relevance = (maps if signed else np.maximum(maps, 0)) / np.where(scale > 0, scale, 1)
    inside, outside = masks.sum(axis=(1, 2)), (~masks).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_outside = (relevance * ~masks).sum(axis=(1, 2)) / outside
        mean_inside = (relevance * masks).sum(axis=(1, 2)) / inside
        return mean_outside / mean_inside


def iou_at(maps, masks, fraction=0.5):
    """Intersection over union of the mask and the region at or above a fraction of the map's maximum.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        fraction: of the largest value, in (0, 1].

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask; 0 for a map without a positive value.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a fraction outside (0, 1].
    """
    maps, masks = maps_and_masks(maps, masks)
    regions = _regions(maps, fraction)
    both = (regions & masks).sum(axis=(1, 2))
    either = (regions | masks).sum(axis=(1, 2))
    return np.where(masks.any(axis=(1, 2)), both / np.maximum(either, 1), np.nan)


def soft_jaccard(maps, others):
    """How much two maps point at the same place: sum min(a, b) / sum max(a, b) (Ruzicka, 1958).

    a and b are the positive parts of the two maps, each divided by its own largest value: the places are
    compared, not how strongly each class argues.

    Args:
        maps, others: float (N, h, w), signed and raw; the maps of two classes on the same films.

    Returns:
        float64 (N,) in [0, 1]: 1 for maps that are equal up to a factor, 0 for disjoint ones and where one of
        the two has no positive value; NaN where neither has.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    a, b = _to_one(_maps(maps)), _to_one(_maps(others))
    if a.shape != b.shape:
        raise ValueError(f"expected two batches of maps of one shape, got {a.shape} and {b.shape}")
    either = np.maximum(a, b).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.minimum(a, b).sum(axis=(1, 2)) / np.where(either > 0, either, np.nan)


def area_above_half(maps):
    """Share of the film's area where the map reaches half of its maximum.

    Args:
        maps: float (N, h, w).

    Returns:
        float64 (N,) in [0, 1]; 0 for a map without a positive value, 1 for one positive value everywhere.

    Raises:
        ValueError: not (N, h, w), or values that are not finite.
    """
    return _regions(_maps(maps), 0.5).mean(axis=(1, 2))


def region_box(maps, fraction=0.5):
    """The box around the largest connected region at or above a fraction of the map's maximum.

    Args:
        maps: float (N, h, w).
        fraction: of the largest value, in (0, 1].

    Returns:
        int (N, 4): x0, y0, x1, y1 in pixels of the map; x1 and y1 are the first ones outside. Pixels that
        touch at a corner are connected; of regions of equal size the one with the highest value is taken. -1
        four times for a map without a positive value.

    Raises:
        ValueError: not (N, h, w), values that are not finite, or a fraction outside (0, 1].
    """
    maps = _maps(maps)
    boxes = np.full((len(maps), 4), -1)
    for film, region in enumerate(_regions(maps, fraction)):
        numbered, count = ndimage.label(region, structure=_NEIGHBOURS)
        if count:
            places = np.arange(1, count + 1)
            sizes = ndimage.sum_labels(region, numbered, places)
            peaks = ndimage.maximum(maps[film], numbered, places)
            rows, columns = ndimage.find_objects(numbered)[np.lexsort((peaks, sizes))[-1]]
            boxes[film] = columns.start, rows.start, columns.stop, rows.stop
    return boxes


def region_boxes(maps, fraction=0.5):
    """The boxes around all connected regions at or above a fraction of the map's maximum.

    Args:
        maps: float (N, h, w).
        fraction: of the largest value, in (0, 1]. Wang et al. (2017) took 60 / 255 and 180 / 255.

    Returns:
        N arrays int (K, 4), as `region_box`; K is 0 for a map without a positive value.

    Raises:
        ValueError: not (N, h, w), values that are not finite, or a fraction outside (0, 1].
    """
    return [_boxes(region) for region in _regions(_maps(maps), fraction)]


def box_hits(maps, masks, overlap=0.1, measure="iou", fraction=0.5):
    """Whether a box of the map overlaps a box of the mask by more than T (Wang et al., 2017).

    The boxes of a mask are those around its connected regions: findings whose boxes touch count as one.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        overlap: T, in [0, 1); the paper has 0.1 to 0.7 (IoU) and 0.1 to 0.9 (IoBB).
        measure: "iou", intersection over union, or "iobb", intersection over the area of the map's box.
        fraction: see `region_boxes`.

    Returns:
        (hits float64 (N,): share of the mask's boxes that some box of the map overlaps by more than T,
        false_boxes float64 (N,): number of the map's boxes that overlap none of the mask's so); both NaN for
        an empty mask.

    Raises:
        ValueError: shapes or numbers that do not fit, or values that are not finite.
    """
    maps, masks = maps_and_masks(maps, masks)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}")
    if measure not in MEASURES:
        raise ValueError(f"measure must be iou or iobb, got {measure!r}")
    hits, false_boxes = np.full((2, len(maps)), np.nan)
    for film, (found, mask) in enumerate(zip(region_boxes(maps, fraction), masks, strict=True)):
        if mask.any():
            true = _boxes(mask)
            enough = box_overlaps(found, true, measure) > overlap
            hits[film] = enough.any(axis=0).mean()
            false_boxes[film] = (~enough.any(axis=1)).sum()
    return hits, false_boxes


def box_overlaps(found, true, measure="iou"):
    """How much each of K boxes overlaps each of M.

    Args:
        found: (K, 4) as x0, y0, x1, y1.
        true: (M, 4) likewise.
        measure: "iou", intersection over union, or "iobb", intersection over the area of the box found.

    Returns:
        float64 (K, M) in [0, 1].
    """
    if measure not in MEASURES:
        raise ValueError(f"measure must be iou or iobb, got {measure!r}")
    found, true = (np.asarray(boxes, float).reshape(-1, 4) for boxes in (found, true))
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    both = np.maximum(high - low, 0).prod(axis=2)
    found_area, true_area = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (found, true))
    whole = found_area[:, None] + (true_area - both if measure == "iou" else 0)
    return both / np.maximum(whole, np.finfo(float).tiny)


def _maps(maps):
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"expected maps (N, h, w), got {maps.shape}")
    maps = maps.astype(float)
    if not np.isfinite(maps).all():
        raise ValueError("the maps hold values that are not finite")
    return maps


def maps_and_masks(maps, masks):
    """Maps as float64 and masks as bool, both (N, h, w); ValueError where they do not fit."""
    maps, masks = _maps(maps), np.asarray(masks)
    if masks.shape != maps.shape:
        raise ValueError(f"expected masks of the maps' shape {maps.shape}, got {masks.shape}")
    return maps, masks != 0


def _to_one(maps):
    """The positive parts, each divided by its largest value; zeros where nothing is positive."""
    positive = np.maximum(maps, 0)
    peaks = positive.max(axis=(1, 2), keepdims=True)
    return positive / np.where(peaks > 0, peaks, 1)


def _regions(maps, fraction):
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    peaks = maps.max(axis=(1, 2), keepdims=True)
    return (peaks > 0) & (maps >= fraction * peaks)


def _boxes(region):
    numbered, _ = ndimage.label(region, structure=_NEIGHBOURS)
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in ndimage.find_objects(numbered)
    ]
    return np.array(boxes, dtype=int).reshape(-1, 4)
