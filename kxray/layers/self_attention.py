"""Self-attention over the places of a feature map, let in gradually."""

import keras
from keras import layers, ops

TAU = ("schedule", "learned")


@keras.saving.register_keras_serializable("kxray")
class SelfAttention(layers.Layer):
    """y = tau * attention(x) + x: every place also sees what all other places hold (Zhang et al., 2019).

    Of places i and j of a map x with C channels, with the 1x1 projections f, g (C / 8 channels) and h (C):
    attention(x)_j = sum over i of softmax_i(f(x_i) . g(x_j)) h(x_i).

    Args:
        tau: "schedule": a number that is set from outside, as the training goes on, and not learned (Ann et
            al., 2020: 0 at first, 0.1 more every five epochs, at most 1); "learned": a weight that starts at
            0 (Zhang et al.).
        pool: side of the squares that f(x) and h(x) are max-pooled by, so that a place looks at 1 / pool^2 as
            many others; 1: none, the formula as it is. A map of 64 x 64 has 16.8 million pairs of places.

    Call arguments:
        x: float tensor (N, H, W, C), H and W multiples of `pool`.

    Returns:
        Tensor of the shape of `x`. With tau 0 it is x.

    Raises:
        ValueError: an unknown tau, or a pool below 1 or that does not divide the map's sides.
    """

    def __init__(self, tau="schedule", pool=1, **kwargs):
        super().__init__(**kwargs)
        if tau not in TAU:
            raise ValueError(f"tau must be {' or '.join(TAU)}, got {tau!r}")
        if pool < 1:
            raise ValueError(f"pool must be 1 or more, got {pool}")
        self.tau_rule = tau
        self.pool = pool

    def build(self, input_shape):
        height, width, channels = input_shape[1:]
        if height % self.pool or width % self.pool:
            raise ValueError(f"pool {self.pool} does not divide the sides of a map of {height} x {width}")
        self.f, self.g, self.h = (
            layers.Conv2D(count, 1, use_bias=False, dtype=self.dtype_policy, name=name)
            for name, count in (("f", max(1, channels // 8)), ("g", max(1, channels // 8)), ("h", channels))
        )
        for projection in (self.f, self.g, self.h):
            projection.build(input_shape)
        self.tau = self.add_weight(
            shape=(), initializer="zeros", trainable=self.tau_rule == "learned", name="tau"
        )
        self.built = True

    def call(self, x):
        height, width, channels = x.shape[1:]
        seen, offered = self.f(x), self.h(x)
        if self.pool > 1:
            seen, offered = (ops.max_pool(part, self.pool) for part in (seen, offered))
        places = height * width // self.pool**2
        keys = ops.reshape(seen, (-1, places, seen.shape[-1]))
        queries = ops.reshape(self.g(x), (-1, height * width, seen.shape[-1]))
        weights = ops.softmax(ops.matmul(queries, ops.transpose(keys, (0, 2, 1))), axis=-1)
        attended = ops.matmul(weights, ops.reshape(offered, (-1, places, channels)))
        return ops.cast(self.tau, x.dtype) * ops.reshape(attended, (-1, height, width, channels)) + x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "tau": self.tau_rule, "pool": self.pool}


def scheduled_tau(epoch, every=5, step=0.1):
    """The paper's schedule: tau in epoch 0, 1, ... starts at 0 and rises by `step` every `every` epochs to 1.

    Source: Ann et al. (2020), section III.3.
    """
    return min(1.0, round(step * (epoch // every), 10))
