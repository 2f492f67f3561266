"""What a map is like, without a mask: complete, stable, simple, sparse."""

from typing import NamedTuple

import numpy as np
from scipy.special import entr


def complexity(maps):
    """Entropy of |R| / sum |R| in nats (Bhatt et al., 2020): how many pixels it takes to explain.

    Args:
        maps: float (N, ...), signed and raw.

    Returns:
        float64 (N,) from 0, one pixel, to log(pixels), all alike; NaN for a map of zeros.
    """
    shares = _shares(maps)
    return entr(shares).sum(axis=1)


def sparseness(maps):
    """Gini index of |R| (Chalasani et al., 2020).

    Args:
        maps: float (N, ...), signed and raw.

    Returns:
        float64 (N,) from 0, all alike, to 1 - 1 / pixels, one pixel; NaN for a map of zeros.
    """
    shares = np.sort(_shares(maps), axis=1)
    pixels = shares.shape[1]
    return (shares * (2 * np.arange(1, pixels + 1) - pixels - 1)).sum(axis=1) / pixels


def completeness_error(maps, differences):
    """How far a map is from adding up to what it explains: (sum R - difference) / |difference|.

    Sundararajan et al. (2017) ask for sum R = f(x) - f(baseline); conservation in LRP and RAP asks for the
    logit itself, f(x).

    Args:
        maps: float (N, ...), signed and raw, every pixel and channel of it.
        differences: float (N,), f(x) - f(baseline), or f(x).

    Returns:
        float64 (N,), signed; 0 is complete. Where the difference is 0: 0 if the sum is too, else infinite.
    """
    maps, differences = _flat(maps), np.asarray(differences, dtype=float)
    if differences.shape != (len(maps),):
        raise ValueError(f"expected one difference a map, {len(maps)}, got {differences.shape}")
    errors = maps.sum(axis=1) - differences
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(errors == 0, 0.0, errors / np.abs(differences))


def is_complete(maps, differences, tolerance=1e-3):
    """Whether |completeness_error| is at most `tolerance`: bool (N,).

    A tolerance, because no sum of float32 gradients equals a difference of logits to the last bit.
    """
    return np.abs(completeness_error(maps, differences)) <= tolerance


class Sensitivity(NamedTuple):
    """Largest and mean relative change of a map over the draws, float64 (N,) each."""

    largest: np.ndarray
    mean: np.ndarray


def sensitivity(explain, images, maps=None, radius=0.2, draws=10, seed=0):
    """How much maps change when films change a little: |R(x + u) - R(x)| / |R(x)|, u uniform in [-r, r].

    Max-sensitivity of Yeh et al. (2019), divided by the map's own norm, so that methods compare; Euclidean
    norms over the whole map. Low is good, if the score does not change either.

    Args:
        explain: function from images (N, H, W, C) to maps (N, ...); bind model, target and method to it. The
            target must stay the same when the film changes.
        images: float (N, H, W, C); a batch that `explain` takes at once.
        maps: its maps of the images, if they are known.
        radius: r, in the units of the images.
        draws: number of noisy copies of each film; one is held at a time.
        seed: of the draws.

    Returns:
        Sensitivity; NaN where the map is all zeros.

    Raises:
        ValueError: no draws, a radius below 0, or maps that do not fit the images.
    """
    images = np.asarray(images)
    if int(draws) != draws or draws < 1 or not radius >= 0:
        raise ValueError(f"expected draws of 1 or more and a radius of 0 or more, got {draws} and {radius}")
    maps = _flat(explain(images) if maps is None else maps)
    if len(maps) != len(images):
        raise ValueError(f"expected one map an image, {len(images)}, got {len(maps)}")
    norms = np.linalg.norm(maps, axis=1)
    norms[norms == 0] = np.nan
    random = np.random.default_rng(seed)
    largest, total = np.zeros(len(maps)), np.zeros(len(maps))
    for _ in range(int(draws)):
        noise = random.uniform(-radius, radius, images.shape).astype(images.dtype)
        change = np.linalg.norm(_flat(explain(images + noise)) - maps, axis=1) / norms
        largest, total = np.maximum(largest, change), total + change
    return Sensitivity(largest, total / draws)


def _flat(maps):
    maps = np.asarray(maps)
    if maps.ndim < 2 or 0 in maps.shape[1:]:
        raise ValueError(f"expected maps (N, h, w) or (N, h, w, C), got {maps.shape}")
    maps = maps.astype(float).reshape(len(maps), np.prod(maps.shape[1:]))
    if not np.isfinite(maps).all():
        raise ValueError("the maps hold values that are not finite")
    return maps


def _shares(maps):
    sizes = np.abs(_flat(maps))
    # Divided by the largest first: sums neither vanish nor overflow.
    peaks = sizes.max(axis=1, keepdims=True)
    sizes = sizes / np.where(peaks > 0, peaks, np.nan)
    return sizes / sizes.sum(axis=1, keepdims=True)
