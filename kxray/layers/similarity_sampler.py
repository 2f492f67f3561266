"""Resampling by a similarity, differentiable in the maps and in the pose."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kxray")
class SimilaritySampler(keras.layers.Layer):
    """Brings maps from the film's frame to the aligned frame, or back.

    A point p of the aligned frame lies on the film at q = scale * R p + shift (`kxray.data.similarity` says
    in which coordinates). The layer gives aligned(p) = film(q(p)), and with `inverse` film(q) =
    aligned(p(q)), by bilinear interpolation as in Jaderberg et al. (2015), eq. 5, with gradients to both
    arguments.

    Args:
        inverse: from the aligned frame to the film's.
        size: (H', W') of the result, or None for that of the maps.
        fill_value: what lies outside of the maps.

    Call arguments:
        inputs: [maps float (N, h, w, C), pose float (N, 4)]; a pose is rotation in radians (anticlockwise as
            seen), log scale, shift right and down in shares of the width.

    Returns:
        Tensor (N, H', W', C) of the maps' dtype.
    """

    def __init__(self, inverse=False, size=None, fill_value=0.0, **kwargs):
        super().__init__(**kwargs)
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size must be (height, width) in pixels or None, got {size!r}")
        self.inverse = inverse
        self.size = None if size is None else tuple(int(side) for side in size)
        self.fill_value = fill_value
        self.built = True

    def call(self, inputs):
        maps, pose = inputs
        return sample(maps, pose, self.size, self.inverse, self.fill_value)

    def compute_output_shape(self, input_shape):
        maps = tuple(input_shape[0])
        return (maps[0], *(self.size or maps[1:3]), maps[3])

    def get_config(self):
        fields = {"inverse": self.inverse, "size": self.size, "fill_value": self.fill_value}
        return {**super().get_config(), **fields}


def sample(maps, pose, size=None, inverse=False, fill_value=0.0):
    """The function of `SimilaritySampler`: (N, h, w, C) and poses (N, 4) -> (N, H', W', C)."""
    height, width, channels = (ops.shape(maps)[axis] for axis in (1, 2, 3))
    to_height, to_width = (height, width) if size is None else size
    x, y = _positions(ops.cast(pose, "float32"), inverse, (to_height, to_width))
    # Pixel positions in a frame of fill, one pixel wide: beyond it nothing else comes.
    high_x, high_y = ops.cast(width, "float32"), ops.cast(height, "float32")
    x = ops.clip(x * high_x + 0.5 * high_x + 0.5, 0.0, high_x + 1.0)
    y = ops.clip(y * high_x + 0.5 * high_y + 0.5, 0.0, high_y + 1.0)
    left, top = ops.minimum(ops.floor(x), high_x), ops.minimum(ops.floor(y), high_y)
    right, down = (ops.cast((part)[..., None], maps.dtype) for part in (x - left, y - top))
    framed = ops.pad(maps, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=fill_value)
    stride = width + 2
    count = ops.shape(maps)[0]
    rows = ops.reshape(framed, (-1, channels))
    first = ops.arange(count, dtype="int32")[:, None] * ((height + 2) * stride)
    corner = ops.cast(top, "int32") * stride + ops.cast(left, "int32") + first

    def at(offset):
        return ops.take(rows, corner + offset, axis=0)

    upper = at(0) * (1 - right) + at(1) * right
    lower = at(stride) * (1 - right) + at(stride + 1) * right
    return ops.reshape(upper * (1 - down) + lower * down, (-1, to_height, to_width, channels))


def _positions(pose, inverse, shape):
    """Where the pixels of the result lie on the maps: x, y (N, H' * W') in shares of the maps' width."""
    height, width = shape
    across = ops.cast(width, "float32")
    columns = (ops.arange(width, dtype="float32") + 0.5) / across - 0.5
    rows = (ops.arange(height, dtype="float32") + 0.5 - ops.cast(height, "float32") / 2) / across
    x = ops.reshape(columns[None, :] + ops.zeros_like(rows)[:, None], (1, -1))
    y = ops.reshape(rows[:, None] + ops.zeros_like(columns)[None, :], (1, -1))
    angle, scale = pose[:, 0:1], ops.exp(pose[:, 1:2])
    cos, sin, right, down = ops.cos(angle), ops.sin(angle), pose[:, 2:3], pose[:, 3:4]
    if inverse:
        x, y = x - right, y - down
        return (cos * x - sin * y) / scale, (sin * x + cos * y) / scale
    return scale * (cos * x + sin * y) + right, scale * (cos * y - sin * x) + down
