"""The fish fillet of the phantom films: muscle with bones of three calibres, seen from above.

Millimetres do not matter here: lengths are pixels of the customary 100-pixel patch, scaled with the film.
"""

import numpy as np

from kxray.data.phantom.exposure import noise_field

# Width in pixels of a 100-pixel patch: hair-thin ribs, medium ribs, vertebrae and fins.
CALIBRE_PX = {1: (1.8, 2.6), 2: (3.8, 5.4), 3: (14.0, 26.0)}


def render(seed, index, size, calibre):
    """A patch of fillet.

    Args:
        seed, index: the film's place in its series.
        size: side of the square patch in pixels.
        calibre: 0 no bone, 1 thin, 2 medium, 3 thick.

    Returns:
        (pixels float32 (size, size) in [0, 1], bone mask bool, width in pixels of the widest bone, 0.0
        without).
    """
    rng = np.random.default_rng([seed, index, 100])
    unit = size / 100
    x, y = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / np.float32(unit) - 50] * 2)
    path = _muscle(rng, x, y)
    contrast = rng.uniform(0.14, 0.34)
    mask = np.zeros((size, size), bool)
    width = 0.0
    heading, middle = rng.uniform(0, np.pi), rng.uniform(-18, 18)
    if calibre:
        width = rng.uniform(*CALIBRE_PX[calibre])
        if calibre == 3:
            column, shown = _vertebrae(rng, x, y, heading, middle, width)
        else:
            column, shown = _ribs(rng, x, y, heading, middle, width)
        path += np.float32(contrast) * column
        mask |= shown
    noise = rng.uniform(0.004, 0.022)
    base, span = rng.uniform(0.18, 0.75), rng.uniform(0.45, 1.1)
    film = base + span * (path - path.mean())
    film += np.float32(noise) * rng.standard_normal(film.shape, dtype=np.float32)
    return np.clip(film, 0, 1).astype(np.float32), mask, width * unit


def _muscle(rng, x, y):
    """Soft tissue: thickness that slopes, grain, dark seams between flakes, sometimes the edge of the
    fillet."""
    slope = rng.uniform(-0.0028, 0.0028, 2)
    path = np.float32(slope[0]) * x + np.float32(slope[1]) * y
    path += noise_field(rng, x.shape, (2, 5, 12, 40), (0.05, 0.03, 0.012, 0.010))
    angle, count = rng.uniform(0, np.pi), int(rng.integers(0, 6))
    across = np.cos(angle) * x + np.sin(angle) * y
    along = np.cos(angle) * y - np.sin(angle) * x
    across += rng.uniform(-0.004, 0.004) * along**2
    place = rng.uniform(-45, 45)
    for _ in range(count):
        depth, spread = rng.uniform(0.015, 0.06), rng.uniform(1.5, 4.5)
        end = 1 / (1 + np.exp(-(along - rng.uniform(-60, 10)) / 8))
        path -= np.float32(depth) * np.exp(-0.5 * ((across - place) / spread) ** 2) * end
        place += rng.uniform(7, 16)
    if rng.random() < 0.2:  # the fillet ends, or is folded over
        edge = np.cos(angle + 1) * x + np.sin(angle + 1) * y - rng.uniform(20, 45)
        path += np.float32(rng.choice([-0.22, -0.12, 0.12])) / (1 + np.exp(-edge / rng.uniform(0.8, 3)))
    return path.astype(np.float32)


def _ribs(rng, x, y, heading, middle, width):
    """Two to four nearly parallel curved tubes: (path, mask)."""
    path, mask = np.zeros_like(x), np.zeros(x.shape, bool)
    count = int(rng.integers(2, 5)) if width < 3 else int(rng.integers(1, 4))
    gap, bow = rng.uniform(18, 30), rng.uniform(-0.006, 0.006)
    for k in range(count):
        turn = heading + rng.uniform(-0.04, 0.04)
        along = np.cos(turn) * x + np.sin(turn) * y
        across = np.cos(turn) * y - np.sin(turn) * x - middle - gap * (k - (count - 1) / 2)
        added, shown = _tube(along, across, bow * rng.uniform(0.95, 1.05), width * rng.uniform(0.94, 1.0) / 2)
        if rng.random() < 0.3:  # some end inside the patch
            stop = along < rng.uniform(0, 35)
            added, shown = added * stop, shown & stop
        path += added
        mask |= shown
    return path, mask


def _tube(along, across, bow, radius):
    # Distance to a parabola, to first order; the chord of a tube of that radius, 1 at its middle.
    distance = (across - bow * along**2) / np.sqrt(1 + (2 * bow * along) ** 2)
    chord = np.sqrt(np.maximum(1 - (distance / radius) ** 2, 0))
    # A rib thinner than a pixel's reach is blurred rather than stepped.
    soft = np.exp(-0.5 * (distance / (0.75 * radius + 0.25)) ** 2)
    return (0.5 * chord + 0.5 * soft).astype(np.float32), np.abs(distance) <= radius


def _vertebrae(rng, x, y, heading, middle, width):
    """A column of hourglass vertebrae with bright end plates, and thin ribs that leave it: (path, mask)."""
    along = np.cos(heading) * x + np.sin(heading) * y
    across = np.cos(heading) * y - np.sin(heading) * x - middle
    across = across - rng.uniform(-0.001, 0.001) * along**2
    length = width * rng.uniform(1.0, 1.4)
    phase = (along / length + rng.random()) % 1
    waist = rng.uniform(0.62, 0.8)
    # The stated width is that of the end plates.
    radius = width / 2 * (waist + (1 - waist) * (2 * np.abs(phase - 0.5)) ** 1.5)
    chord = np.sqrt(np.maximum(1 - (across / radius) ** 2, 0))
    cone = np.exp(-0.5 * ((np.abs(across) - radius * 0.8 * np.abs(2 * phase - 1)) / (0.06 * width)) ** 2)
    plate = np.exp(-0.5 * (np.minimum(phase, 1 - phase) * length / 1.1) ** 2)
    mask = np.abs(across) <= radius
    path = (0.75 * chord + (0.7 * cone + 0.7 * plate) * mask).astype(np.float32)
    if rng.random() < 0.6:
        side = rng.choice([-1, 1])
        for k in range(int(rng.integers(1, 4))):
            turn = heading + side * rng.uniform(0.9, 1.3)
            start = (k - 1) * 2 * length
            u, v = along - start, across
            forward = np.cos(turn - heading) * u + np.sin(turn - heading) * v
            sideways = np.cos(turn - heading) * v - np.sin(turn - heading) * u
            added, shown = _tube(forward, sideways, rng.uniform(-0.006, 0.006), rng.uniform(0.9, 1.3))
            outside = (forward > 0) & ~mask
            path += 0.6 * added * outside
            mask |= shown & outside
    return path, mask
