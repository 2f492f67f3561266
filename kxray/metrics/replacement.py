"""In which order pixels of a film are replaced, and by what."""

import numpy as np
from scipy import ndimage

FRACTIONS = tuple(step / 10 for step in range(1, 10))


def pixel_order(maps, pixels_per_step=None, ascending=False):
    """When each pixel is replaced: the most relevant first, or (`ascending`) the least relevant.

    Args:
        maps: float (N, H, W) or (N, H, W, C), signed and raw, on the films' grid; channels are summed.
        pixels_per_step: replaced at once; by default W, as Petsiuk et al. (2018).
        ascending: least relevant first (LeRF) in place of most relevant first (MoRF).

    Returns:
        int32 (N, H, W): step 1, 2, ... of each pixel. Of equal values the first in reading order goes first.
    """
    maps = flat_maps(maps)
    pixels_per_step = (
        maps.shape[2] if pixels_per_step is None else positive_count(pixels_per_step, "pixels_per_step")
    )
    return (_ranks(maps, ascending) // pixels_per_step + 1).reshape(maps.shape).astype(np.int32)


def patch_order(maps, patch=8, ascending=False, limit=None):
    """When each square patch is replaced, by the sum of its relevance (Samek et al., 2017).

    Args:
        maps: float (N, H, W) or (N, H, W, C), signed and raw, on the films' grid; channels are summed.
        patch: side in pixels. The grid starts at the upper left; patches at the far edges may be cut.
        ascending: least relevant first (LeRF) in place of most relevant first (MoRF).
        limit: number of patches that are replaced, 100 in the paper; by default all.

    Returns:
        int32 (N, H, W): step 1, 2, ... of each pixel, 0 for patches that are never replaced.
    """
    maps, patch = flat_maps(maps), positive_count(patch, "patch")
    height, width = maps.shape[1:]
    rows, columns = range(0, height, patch), range(0, width, patch)
    sums = np.add.reduceat(np.add.reduceat(maps, rows, axis=1), columns, axis=2)
    steps = _ranks(sums, ascending).reshape(sums.shape) + 1
    if limit is not None:
        steps[steps > positive_count(limit, "limit")] = 0
    grid = np.ix_(np.arange(height) // patch, np.arange(width) // patch)
    return steps[:, grid[0], grid[1]].astype(np.int32)


def fraction_order(maps, fractions=FRACTIONS, ascending=True):
    """Step k replaces all pixels up to the k-th fraction of the film, least relevant first by default.

    Args:
        maps: float (N, H, W) or (N, H, W, C); channels are summed.
        fractions: rising, in (0, 1]; int(fraction * H * W) pixels are replaced, as Chefer et al. (2021) do.
        ascending: least relevant first.

    Returns:
        int32 (N, H, W): step 1 ... len(fractions) of each pixel, 0 for pixels that are never replaced.
    """
    maps = flat_maps(maps)
    fractions = np.asarray(fractions, dtype=float)
    rising = fractions.ndim == 1 and len(fractions) and (np.diff(fractions, prepend=0) > 0).all()
    if not rising or fractions[-1] > 1:
        raise ValueError(f"fractions must rise within (0, 1], got {fractions.tolist()}")
    # A little more than the product, so that 0.3 * 10 counts as 3.
    counts = (fractions * maps[0].size + 1e-9).astype(int)
    steps = np.searchsorted(counts, _ranks(maps, ascending), side="right") + 1
    steps[steps > len(fractions)] = 0
    return steps.reshape(maps.shape).astype(np.int32)


def substrate_of(image, substrate):
    """What replaces pixels of one film.

    Args:
        image: float (H, W, C).
        substrate: "minimum" or "mean" of the film, "zero", "blur" (Gaussian of 11 x 11 pixels, sigma 5, of
            Petsiuk et al., 2018; edges repeated, where theirs darken), a number, or a function of the image.

    Returns:
        float (H, W, C), of the image's dtype.
    """
    if callable(substrate):
        values = substrate(image)
    elif substrate == "minimum":
        values = image.min()
    elif substrate == "mean":
        values = image.mean(dtype=np.float64)
    elif substrate == "zero":
        values = 0
    elif substrate == "blur":
        # 5 pixels to each side: 1 = 5 / sigma.
        values = ndimage.gaussian_filter(image, sigma=(5, 5, 0), truncate=1, mode="nearest")
    elif isinstance(substrate, (int, float, np.number)):
        values = substrate
    else:
        raise ValueError(
            f"substrate must be minimum, mean, zero, blur, a number or a function, got {substrate!r}"
        )
    return np.broadcast_to(np.asarray(values, dtype=image.dtype), image.shape)


def flat_maps(maps):
    """The maps as float64 (N, H, W), channels summed; ValueError for other shapes or values not finite."""
    maps = np.asarray(maps)
    if maps.ndim not in (3, 4) or 0 in maps.shape:
        raise ValueError(f"expected maps (N, H, W) or (N, H, W, C), got {maps.shape}")
    maps = maps.astype(float)
    if not np.isfinite(maps).all():
        raise ValueError("the maps hold values that are not finite")
    return maps.sum(axis=3) if maps.ndim == 4 else maps


def positive_count(number, name):
    """The number as an int; ValueError unless it is whole and 1 or more."""
    if int(number) != number or number < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {number}")
    return int(number)


def _ranks(values, ascending):
    """Rank (N, n) of every value within its film, from 0; equal values keep their reading order."""
    values = values.reshape(len(values), -1)
    order = np.argsort(values if ascending else -values, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return ranks
