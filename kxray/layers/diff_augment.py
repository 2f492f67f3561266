"""Random changes that gradients pass through, for discriminators of few films."""

import keras
from keras import ops

POLICIES = ("brightness", "contrast", "translation", "cutout")


@keras.saving.register_keras_serializable("kxray")
class DiffAugment(keras.layers.Layer):
    """Changes real and generated films alike before a discriminator sees them (Zhao et al., 2020).

    A discriminator of a few hundred films soon knows them by heart; one that only ever sees changed films
    does not, and as the changes are differentiable the generator learns films, not changed films. Films are
    never mirrored: a heart has a side.

    Args:
        policies: of "brightness" (a shift by up to a quarter of the range), "contrast" (times 0.5 to 1.5
            about the film's mean), "translation" (by up to an eighth of the side, in steps of 1/64; edges
            are repeated), "cutout" (a square of half the side goes to 0).

    Call arguments:
        films: float tensor (N, s, s, C) in [0, 1].
        draws: float tensor (N, 6) in [0, 1), one row a film. The same draws change copies of a film at other
            resolutions alike.

    Returns:
        Tensor of the shape of `films`; brightness and contrast may leave [0, 1].
    """

    num_draws = 6

    def __init__(self, policies=POLICIES, **kwargs):
        super().__init__(**kwargs)
        unknown = [policy for policy in policies if policy not in POLICIES]
        if unknown:
            raise ValueError(f"policies must be among {', '.join(POLICIES)}, got {', '.join(unknown)}")
        self.policies = tuple(policies)
        self.built = True

    def call(self, films, draws):
        side = films.shape[1]
        brightness, contrast, right, down, left, top = (
            ops.cast(draws[:, column], films.dtype) for column in range(self.num_draws)
        )
        if "brightness" in self.policies:
            films = films + _column(brightness - 0.5) * 0.5
        if "contrast" in self.policies:
            mean = ops.mean(films, axis=(1, 2, 3), keepdims=True)
            films = mean + (films - mean) * _column(contrast + 0.5)
        if "translation" in self.policies:
            films = ops.einsum("nij,njkc->nikc", _shift(down, side), films)
            films = ops.einsum("nij,nkjc->nkic", _shift(right, side), films)
        if "cutout" in self.policies:
            cut = _inside(top, side)[:, :, None] * _inside(left, side)[:, None, :]
            films = films * (1.0 - cut[..., None])
        return films

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "policies": list(self.policies)}


def _column(values):
    return ops.reshape(values, (-1, 1, 1, 1))


def _shift(draw, side):
    """(N, side, side): the matrices that move rows by up to an eighth of the side either way."""
    pixels = ops.round((2.0 * draw - 1.0) * 8.0) * (side / 64)
    # What comes in is the film's edge: black margins would soon be generated, too.
    source = ops.clip(ops.arange(side, dtype=draw.dtype)[None, :] - pixels[:, None], 0.0, side - 1.0)
    # Bilinear: at resolutions below 64 pixels a step is part of a pixel.
    return ops.relu(1.0 - ops.abs(source[:, :, None] - ops.arange(side, dtype=draw.dtype)[None, None, :]))


def _inside(draw, side):
    """(N, side): 1 on the half of the side whose middle is drawn."""
    centre = ops.floor(draw * 64.0) / 64.0
    places = (ops.arange(side, dtype=draw.dtype) + 0.5) / side
    return ops.cast(ops.abs(places[None, :] - centre[:, None]) < 0.25, draw.dtype)
