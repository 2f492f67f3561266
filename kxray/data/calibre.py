"""How wide a bone is: the calibre of the strongest bright ridge of a film, or of a mask, in pixels."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

WIDEST = 0.36  # of the film's short side: a wider thing is a part of the body, not a defect in it
LONGEST_SIDE = 1024
# Of the strongest ridge's strength: a wider structure with as much counts as the film's ridge. Vertebrae lose
# a part of theirs to their own end plates, while seams of the muscle reach half of that of a thin bone.
SHARE = 0.6
# A flank falls this much of its height within a quarter of the width; what falls slower is soft tissue.
STEEPEST = 0.45
LEAST_CONTRAST = 1 / 255
_PEAKS = 16
_OFFSETS = np.arange(-32, 33) / 8  # across the ridge, in sigmas
_MIDDLE, _REACH = 32, 24
_ALONG = np.linspace(-1, 1, 13)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """The strongest bright ridge of a film.

    Attributes:
        width: pixels between the two places across the ridge where half of its height is left; NaN where the
            film has no ridge.
        x, y: where its middle was measured, pixels from the centre of the top left pixel.
        angle: radians; (-sin, cos) of it is the direction across the ridge as (y, x).
        contrast: height above the brighter of its two flanks, in units of the film's [0, 1].
    """

    width: float
    x: float = math.nan
    y: float = math.nan
    angle: float = math.nan
    contrast: float = 0.0

    def ends(self) -> tuple[float, float, float, float]:
        """x, y, x, y of the line across the ridge whose length is its width."""
        across = self.width / 2 * math.cos(self.angle), -self.width / 2 * math.sin(self.angle)
        return self.x - across[0], self.y - across[1], self.x + across[0], self.y + across[1]


NO_RIDGE = Ridge(math.nan)


def ridge_calibre(pixels: np.ndarray) -> float:
    """Width in pixels of the strongest bright ridge of a film (H, W) in [0, 1], see `strongest_ridge`."""
    return strongest_ridge(pixels).width


def strongest_ridge(pixels: np.ndarray, boxes: Sequence[Mapping] = ()) -> Ridge:
    """Finds the strongest bright ridge of a film and measures its width.

    In two steps. The response of Sato et al. (1998), multiplied by sigma^2 so that ridges of all widths
    compete (Lindeberg, 1998), names places over a range of sigmas. At each of them the film is averaged along
    the ridge. The profile across it has to fall on both sides, as in Koller et al. (1995), so that the edge
    of a fillet or of the collimated field is no ridge. Its full width at half maximum is the calibre: an
    ideal bar of width w measures w, a round bone 0.87 of its diameter, a column of hourglass vertebrae about
    0.73 of its end plates. Of the structures that are about as strong as the strongest the widest counts,
    because vertebrae have ribs beside them and plates in them.

    Args:
        pixels: float (H, W) in [0, 1], bone bright.
        boxes: only ridges with their middle in one of these (`x`, `y`, `width`, `height` in pixels) count.

    Returns:
        The ridge; `NO_RIDGE` for a film that is flat, or has a side below 16 pixels. Widths from about 1.6
        pixels to half of the short side are told apart; a film longer than 1024 pixels is averaged down
        before, which raises the lower end. A bone whose flank the film's border cuts off is not seen as a
        whole, only the structures within it.

    Raises:
        ValueError: not a grey film in [0, 1].
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 2 or not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"expected float pixels (H, W) in [0, 1], got {pixels.dtype} {pixels.shape}")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"expected pixels in [0, 1], got {pixels.min():g} to {pixels.max():g}")
    if min(pixels.shape) < 16 or np.ptp(pixels) < LEAST_CONTRAST:
        return NO_RIDGE
    factor = math.ceil(max(pixels.shape) / LONGEST_SIDE)
    if factor > 1:
        smaller = [dict(zip(box, _scaled(box, factor), strict=True)) for box in map(_numbers, boxes)]
        found = strongest_ridge(_averaged(pixels, factor), smaller)
        place = [(value + 0.5) * factor - 0.5 for value in (found.x, found.y)]
        return Ridge(found.width * factor, *place, found.angle, found.contrast)
    pixels = pixels.astype(np.float32, copy=False)
    places = _sato_maxima(pixels, boxes)
    if not len(places):
        return NO_RIDGE
    profile = _across(_profiles(pixels, places), places[:, 3])
    strength = np.where(profile.fall >= STEEPEST * profile.contrast, profile.strength, 0)
    if not strength.max() > 0:
        return NO_RIDGE
    widths = np.where(strength >= SHARE * strength.max(), profile.width, -1)
    return _sharpened(pixels, places, profile, int(widths.argmax()))


def mask_width(mask: np.ndarray) -> float:
    """Width in pixels of the thickest part of a mask, bool (H, W); 0 for an empty one.

    The median diameter of the discs that fit in it and cannot grow by moving, of those at least 0.6 of the
    largest: a rib beside a vertebra does not count, and one step of a slanted rib's jagged edge is not its
    width. Distances are taken to the edges of pixels, on a grid of half pixels, so that a bar of w rows
    measures w whether w is odd or even. What lies beyond the film counts as background.
    """
    mask = _checked_mask(mask)
    # Pixels at odd places, their edges and corners at even ones; background pixels own their edges.
    background = np.zeros((2 * mask.shape[0] + 5, 2 * mask.shape[1] + 5), bool)
    background[1::2, 1::2] = ~np.pad(mask, 1)
    background = ndimage.binary_dilation(background, np.ones((3, 3), bool))
    diameters = ndimage.distance_transform_edt(~background)
    if not diameters.any():
        return 0.0
    widest = (diameters == ndimage.maximum_filter(diameters, 3)) & (diameters >= 0.6 * diameters.max())
    return float(np.median(diameters[widest]))


def mask_area(mask: np.ndarray) -> float:
    """Number of pixels of a mask, bool (H, W)."""
    return float(_checked_mask(mask).sum())


def _checked_mask(mask):
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask (H, W), got {mask.dtype} {mask.shape}")
    return mask


def _numbers(box):
    return {name: box[name] for name in ("x", "y", "width", "height")}


def _scaled(box, factor):
    return [value / factor for value in box.values()]


def _averaged(pixels, factor):
    height, width = (side - side % factor for side in pixels.shape)
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(1, 3))


def _sato_maxima(pixels, boxes):
    """The largest responses at every sigma: float (M, 4) of row, column, angle, sigma in pixels."""
    from skimage.feature import hessian_matrix, peak_local_max
    from skimage.filters import sato

    half_widest = WIDEST * min(pixels.shape) / 2
    steps = max(4, math.ceil(2.5 * math.log2(half_widest / 0.8)))
    small, factor, found = pixels, 1, []
    for sigma in np.geomspace(0.8, half_widest, steps):
        while sigma / factor > 4:  # a coarse ridge is as plain on a smaller film, and far quicker to find
            small, factor = _averaged(small, 2), 2 * factor
        here = sigma / factor
        response = sato(small, sigmas=[here], black_ridges=False, mode="reflect")
        apart = max(2, round(1.5 * here))
        peaks = peak_local_max(response, min_distance=apart, num_peaks=_PEAKS, exclude_border=False)
        second = hessian_matrix(
            small, sigma=max(here, 1.2), mode="reflect", order="rc", use_gaussian_derivatives=True
        )
        rows, both, columns = (derivative[peaks[:, 0], peaks[:, 1]] for derivative in second)
        angles = np.arctan2(2 * both, rows - columns) / 2
        centres = (peaks + 0.5) * factor - 0.5
        found.append(np.column_stack([centres, angles, np.full(len(peaks), sigma)]))
    found = np.concatenate(found)
    if not len(boxes):
        return found
    inside = np.zeros(len(found), bool)
    for box in boxes:
        beyond = found[:, :2] - (box["y"] - 0.5, box["x"] - 0.5)
        inside |= ((beyond >= 0) & (beyond <= (box["height"], box["width"]))).all(axis=1)
    return found[inside]


def _profiles(pixels, places):
    """Brightness across each place, averaged along the ridge: (M, 65), NaN where most is beyond the film."""
    row, column, angle, sigma = places.T[:, :, None, None]
    along = _ALONG[None, :, None] * (2.5 * sigma + 2)
    across = _OFFSETS * sigma
    rows = row - np.sin(angle) * across + np.cos(angle) * along
    columns = column + np.cos(angle) * across + np.sin(angle) * along
    values = ndimage.map_coordinates(pixels, [rows, columns], order=1, mode="nearest")
    height, width = pixels.shape
    inside = (rows >= -0.5) & (columns >= -0.5) & (rows <= height - 0.5) & (columns <= width - 0.5)
    count = inside.sum(axis=1)
    mean = np.where(inside, values, 0).sum(axis=1) / np.maximum(count, 1)
    return np.where(count >= 0.4 * len(_ALONG), mean, np.nan)


@dataclasses.dataclass(frozen=True)
class _Profile:
    """What `_across` reads from profiles, each (M,): `width` and `offset` of its middle in pixels, `contrast`
    above the brighter flank, `fall` of the slower flank within a quarter of the width, and `strength`."""

    width: np.ndarray
    offset: np.ndarray
    contrast: np.ndarray
    fall: np.ndarray

    @property
    def strength(self):
        return np.sqrt(self.contrast * self.fall)


def _across(profiles, sigma):
    each = np.arange(len(profiles))
    # The crest of a bar is flat: its middle is where a window as wide as the bar holds most.
    level = ndimage.uniform_filter1d(np.nan_to_num(profiles), 17, axis=1, mode="nearest")
    near = np.where(np.isnan(profiles), -1, level)[:, _MIDDLE - 8 : _MIDDLE + 9]
    crest = _MIDDLE - 8 + near.argmax(axis=1)
    padded = np.pad(profiles, ((0, 0), (_REACH, _REACH)), constant_values=np.nan)
    around = padded[each[:, None], crest[:, None] + np.arange(2 * _REACH + 1)]
    middle = around[:, _REACH - 3 : _REACH + 4]
    known = np.isfinite(middle)
    top = np.where(known, middle, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    flanks = []
    for flank in (around[:, _REACH::-1], around[:, _REACH:]):
        beyond = np.cumsum(np.isnan(flank), axis=1) > 0
        flanks.append(np.where(beyond, np.inf, flank))
    contrast = top - np.maximum(*(flank.min(axis=1) for flank in flanks))
    half = top - contrast / 2
    halves, found = [], contrast >= LEAST_CONTRAST
    for flank in flanks:
        below = flank < half[:, None]
        first = np.maximum(below.argmax(axis=1), 1)
        high, low = np.maximum(flank[each, first - 1], half), flank[each, first]
        found &= below.any(axis=1) & (high > low) & np.isfinite(high)
        high, low = np.where(found, high, 1), np.where(found, low, 0)
        halves.append((first - 1 + (high - np.where(found, half, 0)) / (high - low)) / 8)
    width = np.where(found, halves[0] + halves[1], 1)
    steps = np.clip(np.round(8 * np.maximum(2 / sigma, width / 4)), 1, _REACH - 1).astype(int)
    later = np.arange(_REACH + 1) + steps[:, None]
    falls = []
    for flank in flanks:
        end = np.where(later <= _REACH, flank[each[:, None], np.minimum(later, _REACH)], np.inf)
        fall = np.where(np.isfinite(end), flank, -np.inf) - np.where(np.isfinite(end), end, 0)
        falls.append(fall.max(axis=1))
    fall = np.minimum(np.minimum(*falls), contrast)
    found &= fall > 0
    return _Profile(
        np.where(found, width * sigma, np.nan),
        ((crest - _MIDDLE) / 8 + (halves[1] - halves[0]) / 2) * sigma,
        np.where(found, contrast, 0),
        np.where(found, fall, 0),
    )


def _sharpened(pixels, places, profile, best):
    """Measures a ridge again at the sigma of its own width, turned to where it is sharpest: one that is
    crossed askew, or averaged along too great a length, looks wider than it is."""
    row, column, angle, sigma = places[best]
    width, offset, contrast = profile.width[best], profile.offset[best], profile.contrast[best]
    for degrees in (4, 2):
        row, column = row - np.sin(angle) * offset, column + np.cos(angle) * offset
        offset = 0.0
        angles = angle + np.radians(np.arange(-4, 5) * degrees)
        turned = np.column_stack([np.full((9, 2), (row, column)), angles, np.full(9, max(width / 2, 0.8))])
        again = _across(_profiles(pixels, turned), turned[:, 3])
        if again.contrast.max() <= contrast / 2:
            break
        high = again.contrast >= 0.95 * again.contrast.max()
        sharpest = int(np.where(high, again.width, np.inf).argmin())
        width, offset, contrast = (values[sharpest] for values in (again.width, again.offset, again.contrast))
        angle = angles[sharpest]
    row, column = row - np.sin(angle) * offset, column + np.cos(angle) * offset
    return Ridge(float(width), float(column), float(row), float(angle), float(contrast))
