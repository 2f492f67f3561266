"""Where films are decoded and inside exported graphs, one rule brings a film to the network's size."""

import numpy as np
import pytest

from kxray import ModelSpec
from kxray.io.resize import resize


def in_graph(pixels, size):
    from kxray.layers import film_input

    spec = ModelSpec("view_cnn", ("frontal", "lateral"), "binary", size)
    return np.asarray(film_input(spec)(pixels[None, :, :, None]))[0, :, :, 0]


@pytest.mark.parametrize(
    "shape", [(384, 330), (64, 64), (2140, 1760), (100, 999), (65, 63), (40, 30), (16, 500), (1, 7)]
)
@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_equals_the_layer_that_is_exported(shape, size):
    pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
    np.testing.assert_allclose(resize(pixels, size), in_graph(pixels, size), atol=1e-5)


def test_halving_is_the_triangle_filter():
    # Shrinking by two, each output is a triangle of width four: weights 1, 3, 3, 1 over 8.
    row = np.float32([[0, 0, 0, 8, 0, 0, 0, 0]])
    np.testing.assert_allclose(resize(row, (1, 4)), [[0, 3, 1, 0]], atol=1e-6)


def test_a_checkerboard_too_fine_for_the_network_turns_grey_instead_of_into_a_pattern():
    fine = (np.indices((512, 512)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(resize(fine, (64, 64))[2:-2, 2:-2], 0.5, atol=1e-6)


def test_non_contiguous_pixels():
    pixels = np.random.default_rng(0).random((50, 80), dtype=np.float32)
    np.testing.assert_array_equal(resize(pixels.T[::2], (64, 64)), resize(pixels.T[::2].copy(), (64, 64)))
