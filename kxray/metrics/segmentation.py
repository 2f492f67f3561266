"""A map taken as a segmentation: inside where it lies above its own mean. An empty mask gives NaN."""

import numpy as np

from kxray.metrics.localization import maps_and_masks


def mean_iou(maps, masks):
    """Intersection over union of foreground and of background, averaged (Chefer et al., 2021), film by film.

    The foreground is where the signed map lies above its own mean, which is where the map scaled to [0, 1]
    lies above the mean of that. A constant map has no foreground.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    both, either = overlaps(maps, masks)
    return (both / either).mean(axis=1)


def pooled_mean_iou(maps, masks, weights=None):
    """As `mean_iou`, of the summed intersections and unions of a set of films: the mIOU of segmentation.

    Args:
        maps: float (N, h, w).
        masks: (N, h, w).
        weights: float (N,), or (B, N) for B re-weighted copies of the set at once (`patient_bootstrap`).

    Returns:
        float, or float64 (B,); films with an empty mask are left out; NaN where no film is left.
    """
    both, either = overlaps(maps, masks)
    known = ~np.isnan(either[:, 0])
    weights = np.ones(len(known)) if weights is None else np.asarray(weights, dtype=float)
    with np.errstate(invalid="ignore"):
        return (weights[..., known] @ both[known] / (weights[..., known] @ either[known])).mean(axis=-1)


def pixel_accuracy(maps, masks):
    """Share of pixels that the map, above or below its own mean, puts on the right side of the mask.

    Args, returns, raises: as `mean_iou`.
    """
    maps, masks = maps_and_masks(maps, masks)
    right = (_above_mean(maps) == masks).mean(axis=(1, 2))
    return np.where(masks.any(axis=(1, 2)), right, np.nan)


def _above_mean(maps):
    # Between the least and the largest value, whatever rounding says: a constant map has nothing above.
    means = np.minimum(maps.mean(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True))
    return (maps > means) & (maps > maps.min(axis=(1, 2), keepdims=True))


def overlaps(maps, masks):
    """Intersections and unions (N, 2) of background and foreground; NaN for an empty mask."""
    maps, masks = maps_and_masks(maps, masks)
    regions, empty = _above_mean(maps), ~masks.any(axis=(1, 2))
    both = np.stack([(~regions & ~masks).sum(axis=(1, 2)), (regions & masks).sum(axis=(1, 2))], axis=1)
    either = np.stack([(~regions | ~masks).sum(axis=(1, 2)), (regions | masks).sum(axis=(1, 2))], axis=1)
    return np.where(empty[:, None], np.nan, both), np.where(empty[:, None], np.nan, either)
