"""From line integrals to a film: detector, scatter, noise, grey curve, collimation and burned-in markers."""

import functools

import numpy as np
from scipy import ndimage

from kxray.data.phantom.rays import enlarge, weighted_lines

# 5 x 7 letters of burned-in markers, one hexadecimal row of five bits after the other.
_LETTERS = {
    "A": "0e11111f111111", "C": "0e11101010110e", "D": "1e11111111111e", "E": "1f10101e10101f",
    "I": "0e04040404040e", "L": "1010101010101f", "N": "11191513111111", "O": "0e11111111110e",
    "P": "1e11111e101010", "R": "1e11111e141211", "S": "0f10100e01011e", "T": "1f040404040404",
    "U": "1111111111110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e",
    "7": "1f010204080808", " ": "00000000000000",
}  # fmt: skip
_MARKERS = ("L", "R", "L", "R", "L 1", "R 2", "SN 17", "D", "S", "RAD 3", "UNIT 2", "STAND", "CR 1", "POLO 3")


def noise_field(rng, shape, cells, weights):
    """Smooth random texture: for each entry of `cells` a grid of normal numbers with so many cells across the
    film, stretched over it. Returns float32 (H, W), mean about 0."""
    field = np.zeros(shape, np.float32)
    for count, weight in zip(cells, weights, strict=True):
        grid = rng.standard_normal((count + 3, count + 3), dtype=np.float32)
        rows, columns = (_spline(side, count) for side in shape)
        field += np.float32(weight) * weighted_lines(grid, rows, columns)
    return field


@functools.lru_cache(maxsize=64)
def _spline(side, count):
    """Quadratic B-spline of `count` cells over `side` pixels, for `weighted_lines`."""
    place = np.linspace(0, count, side, dtype=np.float32)
    first = np.minimum(place.astype(int), count - 1)
    t = place - first
    return first, np.stack([0.5 * (1 - t) ** 2, 0.75 - (t - 0.5) ** 2, 0.5 * t**2], -1)


def transmission(path):
    """Beer-Lambert: the share of photons left after attenuation `path` (dimensionless)."""
    return np.exp(-path)


def expose(path, reference, lungs, rng):
    """The film of a path.

    Args:
        path: attenuation of every pixel, float32 (H, W).
        reference: attenuation of the same body without findings and bones, coarse, from which the detector
            sets exposure and grey window, so that a finding does not change the picture elsewhere.
        lungs: bool, of the shape of `reference`: where it is mostly lung, which the window keeps dark.
        rng: the film's own random stream.

    Returns:
        float32 (H, W) in [0, 1], bone bright.
    """
    scatter = rng.uniform(0.08, 0.4)
    photons = np.exp(rng.uniform(np.log(150), np.log(6000)))  # a pixel behind the thickest tenth of the body
    blur = rng.uniform(0.25, 0.75)
    detail, reach = rng.uniform(0, 0.65) * (rng.random() < 0.6), rng.uniform(14, 30)
    low_tail, high_tail = rng.uniform(1, 12), rng.uniform(0, 6)
    floor = rng.uniform(0.05, 0.4)
    headroom = rng.uniform(-0.02, 0.45)
    gamma = float(np.exp(rng.normal(-0.08, 0.28)))
    steep = rng.uniform(0, 3.5) * (rng.random() < 0.5)

    primary = transmission(path)
    coarse = primary[2::4, 2::4]
    for reach_of_scatter in (5, 7):
        width = max(3, min(coarse.shape) // reach_of_scatter)
        coarse = ndimage.uniform_filter(coarse, width, mode="nearest")
    haze = enlarge(coarse, path.shape, 4)
    thick = np.percentile(reference[reference > 0.35], 90)
    signal = (primary + np.float32(scatter) * haze) / np.float32(1 + scatter)
    # Counts are large, so Poisson noise is normal with the square root of the count. The detector blurs some
    # of it.
    gain = np.float32(photons / np.exp(-thick))
    counts = signal * gain
    noise = rng.standard_normal(path.shape, dtype=np.float32)
    counts += np.sqrt(counts) * noise
    counts = ndimage.gaussian_filter(counts, blur, truncate=2.5)
    density = -np.log(np.maximum(counts, 1.0) / gain)
    if detail:
        # Storage phosphor and flat-panel consoles compress large structures and keep small ones.
        small = density[4::8, 4::8]
        base = ndimage.gaussian_filter(small, reach / 8, mode="nearest")
        density -= np.float32(detail) * enlarge(base, path.shape, 8)
        reference = reference * (1 - 0.75 * detail)
    body = reference[reference > 0.35 * (1 - 0.75 * detail)]
    low, high = np.percentile(reference[lungs], low_tail), np.percentile(body, 100 - high_tail)
    high += headroom * (high - low)
    low -= floor * (high - low)
    film = np.clip((density - np.float32(low)) / np.float32(max(high - low, 0.3)), 0, 1)
    if gamma != 1:
        film **= np.float32(gamma)
    if steep:
        film = 1 / (1 + np.exp(np.float32(steep + 2) * (np.float32(0.5) - film)))
        edge = 1 / (1 + np.exp((steep + 2) * 0.5))
        film = np.clip((film - np.float32(edge)) / np.float32(1 - 2 * edge), 0, 1)
    return film.astype(np.float32, copy=False)


def collimate(film, rng):
    """Closes the collimator on some films, in place. Returns the open field (rows, columns) as slices."""
    height, width = film.shape
    margin = rng.uniform(0, 0.09, 4) * (rng.random(4) < 0.6)
    closed, tone = rng.random() < 0.35, (1.0 if rng.random() < 0.25 else 0.0)
    level = np.float32(tone if tone else rng.uniform(0, 0.06))
    if not closed:
        return slice(0, height), slice(0, width)
    top, bottom = int(margin[0] * height), height - int(margin[1] * height)
    left, right = int(margin[2] * width), width - int(margin[3] * width)
    film[:top] = film[bottom:] = level
    film[:, :left] = film[:, right:] = level
    return slice(top, bottom), slice(left, right)


def stamp(film, rng):
    """Burns a marker into most films, in place; letters and place tell nothing about view or finding."""
    height, width = film.shape
    wanted, text = rng.random() < 0.7, _MARKERS[int(rng.integers(len(_MARKERS)))]
    size, place, tone = rng.uniform(0.016, 0.032), rng.uniform(0.02, 0.98, 2), rng.uniform(0.8, 1.0)
    side, framed = rng.random(4), rng.random() < 0.15
    if not wanted:
        return
    rows = [
        [int(_LETTERS[letter][2 * k : 2 * k + 2], 16) for k in range(7)]
        for letter in text
        if letter in _LETTERS
    ]
    bits = np.zeros((9, 6 * len(rows) + 3), bool)
    for index, letter in enumerate(rows):
        for k, row in enumerate(letter):
            for bit in range(5):
                bits[k + 1, 6 * index + 2 + bit] = row >> (4 - bit) & 1
    pixel = max(1, round(size * height / 7))
    bits = np.kron(bits, np.ones((pixel, pixel), bool))
    if framed:
        bits[:1] = bits[-1:] = bits[:, :1] = bits[:, -1:] = True
    # Markers sit near an edge of the film: one coordinate is pushed to the border.
    if side[0] < 0.5:
        place[0] = 0.01 + 0.1 * side[1] if side[2] < 0.7 else 0.99 - 0.1 * side[1]
    else:
        place[1] = 0.01 + 0.08 * side[1] if side[2] < 0.5 else 0.99 - 0.08 * side[1]
    bits = bits[:height, :width]
    top = int(place[0] * (height - bits.shape[0]))
    left = int(place[1] * (width - bits.shape[1]))
    film[top : top + bits.shape[0], left : left + bits.shape[1]][bits] = np.float32(tone)
