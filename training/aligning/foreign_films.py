"""Pictures that are no frontal chest, for the aligner to refuse: generated, or made of films."""

import numpy as np

KINDS = ("lateral", "limb", "fillet", "shuffled", "blobs", "noise", "plain", "half")


def foreign_films(films, size, count, seed=0) -> tuple:
    """Draws pictures that are no frontal chest.

    Args:
        films: float32 (N, s, s), frontal chests, of which shuffled and halved ones are made.
        size: side of the pictures in pixels.
        count: number of pictures, shared out evenly among KINDS.
        seed: integer >= 0.

    Returns:
        (float32 (count, size, size) in [0, 1], list of the kinds' names).
    """
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    pictures = [draw(kind, films, size, seed, index) for index, kind in enumerate(kinds)]
    return np.stack(pictures).astype(np.float32), kinds


def draw(kind, films, size, seed, index) -> np.ndarray:
    """One picture (size, size) of a kind of KINDS."""
    from kxray.data import phantom

    rng = np.random.default_rng([seed, index, 7])
    if kind == "lateral":
        view = float(rng.uniform(55, 125) * rng.choice([-1, 1]))
        return phantom.thorax(seed, index, view=view, size=size).pixels
    if kind == "fillet":
        # The sharpest edges of a fillet are beyond what float32 can raise e to; they come out right.
        with np.errstate(over="ignore"):
            return phantom.fillet(seed, index, size=size).pixels
    if kind == "limb":
        return limb(rng, size)
    if kind == "blobs":
        return blobs(rng, size)
    if kind == "noise":
        return noise(rng, size)
    if kind == "plain":
        return plain(rng, size)
    film = resized(films[rng.integers(len(films))], size)
    return shuffled(film, rng) if kind == "shuffled" else halved(film, rng)


def limb(rng, size) -> np.ndarray:
    """A hand, or an arm or leg: long bones with bright walls in soft tissue, on dark ground."""
    x, y = _grid(size)
    thickness, bone = np.zeros((size, size)), np.zeros((size, size))
    fingers = int(rng.choice([1, 2, 4, 5, 5, 5]))
    root = rng.uniform(-0.15, 0.15, 2) + (0, rng.uniform(0.05, 0.3))
    wide = rng.uniform(0.02, 0.035) if fingers > 2 else rng.uniform(0.05, 0.11)
    spread = rng.uniform(0.2, 1.7) if fingers > 2 else rng.uniform(0.0, 0.2)
    lean = rng.uniform(-0.5, 0.5)
    for finger in range(fingers):
        angle = lean + spread * (finger / max(1, fingers - 1) - 0.5)
        ahead = np.array([np.sin(angle), -np.cos(angle)])
        start = root + 0.08 * ahead + ((finger - (fingers - 1) / 2) * 1.6 * wide, 0)
        for length in rng.uniform(0.1, 0.22, 4) if fingers > 2 else rng.uniform(0.35, 0.6, 2):
            end = start + length * ahead
            _bone(thickness, bone, (x, y), start, end, wide)
            start = end + 0.01 * ahead
    if fingers > 2:
        palm = ((x - root[0]) / rng.uniform(0.1, 0.2)) ** 2 + ((y - root[1]) / rng.uniform(0.12, 0.2)) ** 2
        thickness = np.maximum(thickness, np.sqrt(np.maximum(0, 1 - palm)))
        for _ in range(8):
            centre = root + rng.uniform(-0.07, 0.07, 2) + (0, 0.06)
            bone += 0.6 * (np.hypot(x - centre[0], y - centre[1]) < rng.uniform(0.015, 0.035))
        for side in (-1, 1):
            start = root + (side * 0.05, 0.15)
            _bone(thickness, bone, (x, y), start, start + (side * rng.uniform(0, 0.04), 0.4), 1.6 * wide)
    shown = rng.uniform(0.15, 0.4) * thickness + rng.uniform(0.3, 0.6) * bone + rng.uniform(0, 0.15)
    return np.clip(shown + rng.normal(0, 0.01, shown.shape), 0, 1)


def _bone(thickness, bone, grid, start, end, wide):
    """Adds a bone from `start` to `end` and the flesh around it."""
    x, y = grid
    ahead = end - start
    along = np.clip(((x - start[0]) * ahead[0] + (y - start[1]) * ahead[1]) / (ahead @ ahead), 0, 1)
    distance = np.hypot(x - start[0] - along * ahead[0], y - start[1] - along * ahead[1])
    np.maximum(thickness, np.sqrt(np.maximum(0, 1 - (distance / (1.8 * wide)) ** 2)), out=thickness)
    radius = wide * (0.55 + 0.4 * np.abs(2 * along - 1) ** 3)
    wall = np.sqrt(np.maximum(0, 1 - (distance / radius) ** 2))
    np.maximum(bone, wall - 0.6 * np.sqrt(np.maximum(0, 1 - (distance / (0.6 * radius)) ** 2)), out=bone)


def blobs(rng, size) -> np.ndarray:
    """Overlapping ellipses and bars of any grey, smooth or sharp."""
    x, y = _grid(size)
    shown = np.full((size, size), rng.uniform(0, 1))
    for _ in range(rng.integers(1, 9)):
        angle, centre, axes = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5, 2), rng.uniform(0.04, 0.5, 2)
        u = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / axes[0]
        v = ((y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)) / axes[1]
        away = np.hypot(u, v) if rng.random() < 0.6 else np.maximum(abs(u), abs(v))
        soft = np.clip((1 - away) / rng.uniform(0.02, 1), 0, 1)
        shown += soft * rng.uniform(-0.8, 0.8)
    return _levelled(shown + rng.normal(0, rng.uniform(0, 0.05), shown.shape))


def noise(rng, size) -> np.ndarray:
    """Noise whose power falls with frequency, from white to cloudy."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / (frequency + 0.5 / size) ** rng.uniform(0, 2.2)
    return _levelled(np.fft.irfft2(spectrum, s=(size, size)))


def plain(rng, size) -> np.ndarray:
    """One grey, a ramp, or a bright field within black margins."""
    x, y = _grid(size)
    kind = rng.integers(3)
    if kind == 0:
        return np.full((size, size), rng.choice([0.0, 1.0, rng.uniform()]))
    ramp = 0.5 + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y
    if kind == 1:
        return np.clip(ramp, 0, 1)
    opened = (abs(x) < rng.uniform(0.1, 0.5)) & (abs(y) < rng.uniform(0.1, 0.5))
    return np.clip(ramp, 0, 1) * opened


def shuffled(film, rng) -> np.ndarray:
    """A film cut into 2 x 2 to 6 x 6 blocks that were dealt anew."""
    parts = int(rng.choice([2, 3, 4, 6]))
    side = film.shape[0] // parts
    blocks = [
        film[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(parts)
        for column in range(parts)
    ]
    # Dealt around one circle, so that no block stays where it was.
    circle = rng.permutation(len(blocks))
    dealt = [None] * len(blocks)
    for place, block in zip(circle, np.roll(circle, 1), strict=True):
        dealt[place] = blocks[block]
    rows = [np.concatenate(dealt[row * parts : (row + 1) * parts], axis=1) for row in range(parts)]
    return resized(np.concatenate(rows, axis=0), film.shape[0])


def halved(film, rng) -> np.ndarray:
    """A film of which one half is missing or turned upside down, or a part of it, magnified."""
    size, film = film.shape[0], film.copy()
    kind = rng.integers(4)
    if kind == 0:
        film[:, : size // 2] = rng.uniform()
    elif kind == 1:
        film[: size // 2] = rng.uniform()
    elif kind == 2:
        film[:, size // 2 :] = film[::-1, size // 2 :]
    else:
        side = round(size * rng.uniform(0.2, 0.45))
        left, top = rng.integers(0, size - side, 2)
        film = resized(film[top : top + side, left : left + side], size)
    return film[:, ::-1] if rng.random() < 0.5 else film


def resized(pixels, size) -> np.ndarray:
    """A square picture of another size, antialiased."""
    from kxray.io.resize import resize

    return resize(np.asarray(pixels, np.float32), (size, size))


def _levelled(values):
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-6)


def _grid(size):
    across = (np.arange(size) + 0.5) / size - 0.5
    return np.meshgrid(across, across)
