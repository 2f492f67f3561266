"""How a chest lies on a film: a rotation, a scale and a shift, and the ways back and forth.

Coordinates are in shares of the frame's width, the origin in its middle, x right, y down: the middle of pixel
(column i, row j) of an (H, W) grid is at x = (i + 0.5 - W / 2) / W, y = (j + 0.5 - H / 2) / W. They hold for
grids of any resolution of one frame. The frame of a film is the network's input, to which a film that is not
of its shape was stretched: a pose is a similarity of that frame.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The pose of a film: how the chest lies on it, against the upright, centred chest of the aligned frame.

    A point p of the aligned frame lies on the film at q = scale * R p + shift, with
    R = [[cos, sin], [-sin, cos]], which turns anticlockwise as seen (y points down). It is what
    `kxray.data.phantom` writes as a film's `transform`.

    Args:
        rotation: degrees, anticlockwise as seen.
        scale: above 0; 1.25 is a chest that is larger on the film.
        shift: (right, down), in shares of the film's width.

    Raises:
        ValueError: a scale of 0 or less, or a number that is not finite.
    """

    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        values = [float(self.rotation), float(self.scale), *map(float, self.shift)]
        if len(values) != 4 or not all(map(math.isfinite, values)) or values[1] <= 0:
            raise ValueError(
                "a similarity needs a finite rotation, a scale above 0 and a shift (right, down), got "
                f"rotation={self.rotation}, scale={self.scale}, shift={self.shift}"
            )
        for name, value in (("rotation", values[0]), ("scale", values[1]), ("shift", tuple(values[2:]))):
            object.__setattr__(self, name, value)

    @classmethod
    def from_pose(cls, pose):
        """From (rotation in radians, log scale, shift right, shift down), as networks give it."""
        rotation, log_scale, right, down = (float(value) for value in pose)
        return cls(math.degrees(rotation), math.exp(log_scale), (right, down))

    @property
    def pose(self) -> np.ndarray:
        """float32 (4,): rotation in radians, log scale, shift right, shift down."""
        return np.array([math.radians(self.rotation), math.log(self.scale), *self.shift], np.float32)

    @property
    def matrix(self) -> np.ndarray:
        """float64 (2, 2): scale * R."""
        angle = math.radians(self.rotation)
        cos, sin = self.scale * math.cos(angle), self.scale * math.sin(angle)
        return np.array([[cos, sin], [-sin, cos]])

    def apply(self, points) -> np.ndarray:
        """Aligned points (..., 2) in shares of the width -> where they lie on the film, likewise."""
        return np.asarray(points, np.float64) @ self.matrix.T + self.shift

    def inverse(self):
        """The similarity that undoes this one."""
        back = np.linalg.inv(self.matrix)
        return Similarity(-self.rotation, 1 / self.scale, tuple(-back @ self.shift))

    def then(self, other):
        """The similarity that first applies this one and then `other`: other.apply(self.apply(p))."""
        return Similarity(
            self.rotation + other.rotation, self.scale * other.scale, tuple(other.apply(self.shift))
        )

    def to_film(self, points, aligned_shape, film_shape) -> np.ndarray:
        """Pixel positions of the aligned frame -> those of the film.

        Args:
            points: (..., 2) as (x, y); 0 is the left or upper edge of the first pixel, whose middle is 0.5.
            aligned_shape, film_shape: (H, W) of the grids.

        Returns:
            float64 (..., 2); not cut off at the film's edges, so that `to_aligned` gives `points` back.
        """
        return from_shares(self.apply(to_shares(points, aligned_shape)), film_shape)

    def to_aligned(self, points, film_shape, aligned_shape) -> np.ndarray:
        """Pixel positions of the film -> those of the aligned frame; the inverse of `to_film`."""
        return from_shares(self.inverse().apply(to_shares(points, film_shape)), aligned_shape)

    def box_to_aligned(self, box, film_shape, aligned_shape) -> np.ndarray:
        """A box of the film {"x", "y", "width", "height"} in pixels -> its four corners in the aligned frame.

        Returns:
            float64 (4, 2): upper left, upper right, lower right, lower left. Corners, as an upright box leans
            in the other frame; `quad_box` encloses them.
        """
        return self.to_aligned(box_quad(box), film_shape, aligned_shape)

    def box_to_film(self, box, aligned_shape, film_shape) -> np.ndarray:
        """A box of the aligned frame -> its four corners on the film; see `box_to_aligned`."""
        return self.to_film(box_quad(box), aligned_shape, film_shape)

    def warp(self, pixels, shape=None, inverse=False, fill_value=0.0) -> np.ndarray:
        """Resamples a film to the aligned frame, or with `inverse` a map of the aligned frame to the film.

        Args:
            pixels: float (H, W).
            shape: (H', W') of the result; None: that of `pixels`.
            inverse: from aligned to film.
            fill_value: what lies outside of `pixels`.

        Returns:
            float32 (H', W'): bilinear, without antialiasing; what `kxray.layers.SimilaritySampler` gives.
        """
        pixels = np.asarray(pixels, np.float32)
        if pixels.ndim != 2:
            raise ValueError(f"expected pixels (H, W), got an array of shape {pixels.shape}")
        shape = tuple(pixels.shape if shape is None else shape)
        towards = self.inverse() if inverse else self
        rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
        middles = np.stack([columns, rows], axis=-1) + 0.5
        x, y = np.moveaxis(from_shares(towards.apply(to_shares(middles, shape)), pixels.shape) - 0.5, -1, 0)
        # One pixel of fill around the film: beyond it nothing else comes.
        framed = np.pad(pixels, 1, constant_values=fill_value)
        x = np.clip(x + 1, 0, pixels.shape[1] + 1)
        y = np.clip(y + 1, 0, pixels.shape[0] + 1)
        left = np.minimum(x.astype(int), pixels.shape[1])
        top = np.minimum(y.astype(int), pixels.shape[0])
        right, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
        upper = framed[top, left] * (1 - right) + framed[top, left + 1] * right
        lower = framed[top + 1, left] * (1 - right) + framed[top + 1, left + 1] * right
        return upper * (1 - down) + lower * down


def to_shares(points, shape) -> np.ndarray:
    """Pixel positions (..., 2) of an (H, W) grid -> shares of its width from its middle."""
    height, width = shape
    return (np.asarray(points, np.float64) - (width / 2, height / 2)) / width


def from_shares(points, shape) -> np.ndarray:
    """Shares of the width from the middle (..., 2) -> pixel positions of an (H, W) grid."""
    height, width = shape
    return np.asarray(points, np.float64) * width + (width / 2, height / 2)


def box_quad(box) -> np.ndarray:
    """The corners (4, 2) of a box {"x", "y", "width", "height"}, clockwise from the upper left."""
    left, top, width, height = (float(box[name]) for name in ("x", "y", "width", "height"))
    return np.array(
        [[left, top], [left + width, top], [left + width, top + height], [left, top + height]], np.float64
    )


def quad_box(quad) -> dict:
    """The smallest upright box {"x", "y", "width", "height"} around corners (K, 2)."""
    low, high = np.min(quad, axis=0), np.max(quad, axis=0)
    return {
        "x": float(low[0]),
        "y": float(low[1]),
        "width": float(high[0] - low[0]),
        "height": float(high[1] - low[1]),
    }
