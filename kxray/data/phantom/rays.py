"""Line integrals of ellipsoids and tubes along parallel rays: the geometry under the phantom films.

Frame of the patient, in millimetres: x to the patient's left, y to the front, z up. The chord of an ellipsoid
is a closed form; where bodies overlap, their intervals along the ray are united or subtracted exactly. Tubes
are summed point by point on the film.
"""

import dataclasses
import functools
import math

import numpy as np

WHOLE = (slice(None), slice(None))


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
    """Centre and semi-axes in mm, and a rotation (3, 3) from its own axes to the patient's."""

    centre: np.ndarray
    semi_axes: np.ndarray
    rotation: np.ndarray

    def form(self):
        """Matrix Q with (p - centre) Q (p - centre) <= 1 inside, in 1/mm^2."""
        return (self.rotation / self.semi_axes**2) @ self.rotation.T

    def contains(self, points):
        offset = points - self.centre
        return ((offset @ self.form()) * offset).sum(-1) <= 1

    def scaled(self, factor, about=None):
        about = self.centre if about is None else np.asarray(about)
        return dataclasses.replace(
            self, centre=about + factor * (self.centre - about), semi_axes=self.semi_axes * factor
        )

    def extent(self, direction):
        """Half-width in mm along a unit vector."""
        direction = np.asarray(direction, float)
        return float(np.linalg.norm(self.semi_axes * (direction @ self.rotation)))


def ellipsoid(centre, semi_axes, degrees=(0, 0, 0)):
    """An ellipsoid turned by `degrees` about x, then y, then z."""
    x, y, z = np.radians(degrees)
    about_x = [[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]]
    about_y = [[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]]
    about_z = [[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]]
    rotation = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
    return Ellipsoid(np.asarray(centre, float), np.asarray(semi_axes, float), rotation)


class Rays:
    """The parallel rays of one film.

    Args:
        shape: (height, width) of the film in pixels.
        spacing: millimetres a pixel, in the patient.
        angle: degrees the patient is turned about z: 0 frontal, 90 and -90 lateral.
        rotation: degrees the patient leans in the film plane, anticlockwise on the film.
        shift: (right, down) displacement of the patient on the film, in pixels.
    """

    def __init__(self, shape, spacing, angle=0.0, rotation=0.0, shift=(0.0, 0.0)):
        self.shape, self.spacing = tuple(shape), float(spacing)
        turn, lean = math.radians(angle), math.radians(rotation)
        across = np.array([math.cos(turn), math.sin(turn), 0.0])
        up, depth = np.array([0.0, 0.0, 1.0]), np.array([-math.sin(turn), math.cos(turn), 0.0])
        self.axes = np.stack(
            [
                math.cos(lean) * across - math.sin(lean) * up,
                math.sin(lean) * across + math.cos(lean) * up,
                depth,
            ]
        )
        height, width = self.shape
        self.u = ((np.arange(width) - (width - 1) / 2 - shift[0]) * spacing).astype(np.float32)
        self.v = (((height - 1) / 2 - np.arange(height) + shift[1]) * spacing).astype(np.float32)

    def heights(self, window=WHOLE):
        """The patient's z, in mm, at every pixel of `window`."""
        up = self.axes[:, 2].astype(np.float32)
        return up[0] * self.u[None, window[1]] + up[1] * self.v[window[0], None]

    def coarse(self, factor):
        """The same view with pixels `factor` times as large."""
        rays = object.__new__(Rays)
        rays.axes, rays.spacing = self.axes, self.spacing * factor
        rays.u, rays.v = (
            axis[: len(axis) // factor * factor].reshape(-1, factor).mean(1) for axis in (self.u, self.v)
        )
        rays.shape = (len(rays.v), len(rays.u))
        return rays

    def window(self, body):
        """Slices (rows, columns) of the smallest part of the film that holds the shadow of `body`."""
        centre = self.axes @ body.centre
        half_u, half_v = body.extent(self.axes[0]), body.extent(self.axes[1])
        columns = np.searchsorted(self.u, [centre[0] - half_u, centre[0] + half_u])
        rows = np.searchsorted(-self.v, [-centre[1] - half_v, -centre[1] + half_v])
        return slice(*rows), slice(*columns)

    def interval(self, body, window=WHOLE):
        """Where each ray enters and leaves `body`: two float32 arrays in mm, equal where it misses."""
        middle, half = self._middle_and_half(body, window)
        return middle - half, middle + half

    def chord(self, body, window=WHOLE):
        """Length in mm of each ray inside `body`, float32."""
        half = self._half(body, window)[0]
        half *= 2
        return half

    def _half(self, body, window):
        centre = self.axes @ body.centre
        q = self.axes @ body.form() @ self.axes.T
        # A point of the ray (du, dv, t) is inside where a t^2 + 2 b t + c <= 0 with a = q_tt; b and c follow
        # from q.
        a = q[2, 2]
        du = self.u[None, window[1]] - np.float32(centre[0])
        dv = self.v[window[0], None] - np.float32(centre[1])
        p_uu = q[0, 0] / a - (q[0, 2] / a) ** 2
        p_uv = 2 * (q[0, 1] / a - q[0, 2] * q[1, 2] / a**2)
        p_vv = q[1, 1] / a - (q[1, 2] / a) ** 2
        square = np.float32(-p_uu) * du + np.float32(-p_uv) * dv
        square *= du
        square += np.float32(1 / a) - np.float32(p_vv) * dv * dv
        np.maximum(square, 0, out=square)
        np.sqrt(square, out=square)
        return square, du, dv, centre[2], q[2, 0] / a, q[2, 1] / a

    def _middle_and_half(self, body, window):
        half, du, dv, centre, slope_u, slope_v = self._half(body, window)
        middle = np.float32(-slope_u) * du + (np.float32(centre) - np.float32(slope_v) * dv)
        return middle, half

    def hull(self, bodies, window=WHOLE):
        """From the first entry to the last exit over several bodies: equal ends where all are missed."""
        first = last = None
        for body in bodies:
            middle, half = self._middle_and_half(body, window)
            hit = half > 0
            enter = np.where(hit, middle - half, np.float32(np.inf))
            leave = np.where(hit, middle + half, np.float32(-np.inf))
            first = enter if first is None else np.minimum(first, enter)
            last = leave if last is None else np.maximum(last, leave)
        missed = last < first
        first[missed] = last[missed] = 0
        return first, last

    def splat(self, *clouds):
        """Sums point masses into pixels: float32 (H, W) without dimension, smoothed over a pixel.

        Args:
            clouds: triples of arrays (u and v in mm on the film, mass in mm^2), as `tubes` returns them.
        """
        u, v, mass = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*clouds, strict=True))
        height, width = self.shape
        u -= self.u[0]
        u /= np.float32(self.spacing)
        u += np.float32(1.5)
        np.subtract(self.v[0], v, out=v)
        v /= np.float32(self.spacing)
        v += np.float32(1.5)
        # A rim of one pixel takes what falls outside.
        np.clip(u, 0, width + 1, out=u)
        np.clip(v, 0, height + 1, out=v)
        cell = v.astype(np.int32)
        cell *= width + 2
        cell += u.astype(np.int32)
        total = np.bincount(cell, mass, (height + 2) * (width + 2))
        total = (total / (4 * self.spacing) ** 2).astype(np.float32).reshape(height + 2, width + 2)
        total[[0, -1]] = 0
        total[:, [0, -1]] = 0
        total = total[:-2] + 2 * total[1:-1] + total[2:]
        return total[:, :-2] + 2 * total[:, 1:-1] + total[:, 2:]

    def tubes(self, centres, radii, rim, core, across, reference=(0.0, 0.0, 1.0)):
        """Point masses for `splat` that stand for curved tubes with a dense rim.

        Args:
            centres: (T, n, 3) points along each tube, mm.
            radii: (T, n, 2) or broadcastable: half-widths along `reference` and across it, mm.
            rim, core: attenuation per mm added by the outer fifth of the radius and by the inside: numbers,
                or arrays (T, n) along the tubes.
            across: points in a cross-section.
            reference: direction the first radius points to, (3,) or (T, 1, 3); no tube may run along it.

        Returns:
            (u, v, mass): float32 (T, n, across) each.
        """
        centres = np.asarray(centres, np.float32)
        radii = np.broadcast_to(np.asarray(radii, np.float32), centres.shape[:2] + (2,))
        tangent = np.gradient(centres, axis=1)
        step = np.linalg.norm(tangent, axis=-1)
        tangent /= np.maximum(step, 1e-6)[..., None]
        first = np.asarray(reference, np.float32)
        first = first - (tangent * first).sum(-1, keepdims=True) * tangent
        first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-6)
        second = np.cross(tangent, first)
        # Sunflower points fill a disc evenly; a turn from slice to slice keeps them from lining up on the
        # film.
        index = np.arange(across)
        radius = np.sqrt((index + 0.5) / across).astype(np.float32)
        turn = 2.399963 * index + np.random.default_rng(0).uniform(0, 2 * np.pi, (centres.shape[1], 1))
        cosine, sine = (np.cos(turn) * radius).astype(np.float32), (np.sin(turn) * radius).astype(np.float32)
        film = self.axes[:2].astype(np.float32)
        middle, first, second = (
            centres @ film.T,
            first @ film.T * radii[..., :1],
            second @ film.T * radii[..., 1:],
        )
        points = [
            middle[..., k, None] + first[..., k, None] * cosine + second[..., k, None] * sine for k in (0, 1)
        ]
        mass = step * np.pi * radii[..., 0] * radii[..., 1] / across
        rim, core = (np.asarray(value, np.float32)[..., None] for value in (rim, core))
        weights = mass[..., None] * np.where(radius > 0.8, rim, core)
        return *points, weights.astype(np.float32)


def uncovered(interval, covers):
    """Length of `interval` that none of `covers` covers; every one a pair of arrays (enter, leave) in mm."""
    low, high = interval
    ends = []
    for enter, leave in covers:
        ends.append(tuple(np.minimum(np.maximum(end, low), high) for end in (enter, leave)))
    for last in range(len(ends) - 1, 0, -1):
        for k in range(last):
            (a, b), (c, d) = ends[k], ends[k + 1]
            swap = c < a
            ends[k] = np.minimum(a, c), np.where(swap, d, b)
            ends[k + 1] = np.maximum(a, c), np.where(swap, b, d)
    reached, free = low, np.zeros_like(low)
    for enter, leave in ends:
        free += np.maximum(enter - reached, 0)
        reached = np.maximum(reached, leave)
    return free + (high - reached)


def enlarge(coarse, shape, factor):
    """Bilinear enlargement of a picture made with `Rays.coarse(factor)`: float32 of `shape`."""
    rows, columns = (_between(side, count, factor) for side, count in zip(shape, coarse.shape, strict=True))
    return weighted_lines(coarse.astype(np.float32, copy=False), rows, columns)


def weighted_lines(grid, rows, columns):
    """A picture whose lines are weighted sums of lines of `grid`, down and across.

    Written out rather than as two matrix products: on a busy machine the threads of a product wait for each
    other many times longer than it takes.

    Args:
        grid: float32 (h, w).
        rows, columns: (first, weights): int (side,) and float32 (side, K); line i of the result is the sum of
            weights[i, k] times line first[i] + k of `grid`.

    Returns:
        float32 (number of rows, number of columns).
    """
    first, weights = columns
    wide = sum(grid[:, first + k] * weights[:, k] for k in range(weights.shape[1]))
    first, weights = rows
    return sum(wide[first + k] * weights[:, k, None] for k in range(weights.shape[1]))


@functools.lru_cache(maxsize=64)
def _between(side, count, factor):
    place = np.clip((np.arange(side) + 0.5) / factor - 0.5, 0, count - 1)
    first = np.minimum(place.astype(int), max(count - 2, 0))
    share = (place - first).astype(np.float32)
    return (first, np.stack([1 - share, share], -1)) if count > 1 else (first, np.ones((side, 1), np.float32))
