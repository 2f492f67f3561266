"""The one resize: by hand, and the same numbers eager, in tf.data and exported."""

import numpy as np
import pytest
import tensorflow as tf

from kxray.layers import film_input
from kxray.spec import ModelSpec


def layer(height, width):
    return film_input(ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (height, width)))


@pytest.fixture
def film():
    return np.random.default_rng(0).random((2, 150, 131, 1)).astype("float32")


def test_six_pixels_become_two_by_a_triangle_of_radius_three():
    # Weights of output 0 at pixels 0..3: 1 - |j + 0.5 - 1.5| / 3 = 2/3, 1, 2/3, 1/3, divided by their sum.
    first = np.array([0.25, 0.375, 0.25, 0.125, 0, 0])
    weights = np.stack([first, first[::-1]])
    film = np.random.default_rng(1).random((6, 6)).astype("float32")
    resized = np.asarray(layer(2, 2)(film[None, :, :, None]))[0, :, :, 0]
    np.testing.assert_allclose(resized, weights @ film @ weights.T, atol=1e-6)


def test_a_stored_ramp():
    film = (np.arange(48, dtype="float32") ** 2 / 47**2).reshape(6, 8)
    resized = np.asarray(layer(3, 4)(film[None, :, :, None]))[0, :, :, 0]
    np.testing.assert_allclose(resized, STORED, atol=1e-6)


# Two triangle filters of radius two, computed in double precision outside TensorFlow.
STORED = [
    [0.0331205, 0.0450753, 0.0617603, 0.0796002],
    [0.2161935, 0.2512449, 0.2937981, 0.3347345],
    [0.5689619, 0.6271099, 0.6955313, 0.7595643],
]


def test_enlarging_is_plain_bilinear():
    film = np.float32([[0, 1]])
    resized = np.asarray(layer(1, 4)(film[None, :, :, None]))[0, 0, :, 0]
    np.testing.assert_allclose(resized, [0, 0.25, 0.75, 1], atol=1e-6)


def test_fine_stripes_become_grey_not_an_alias():
    stripes = np.tile(np.float32([0, 1]), (256, 128))
    resized = np.asarray(layer(64, 64)(stripes[None, :, :, None]))
    np.testing.assert_allclose(resized[0, 4:-4, 4:-4], 0.5, atol=1e-6)


def test_range_dtype_and_shape_are_kept(film):
    resized = layer(64, 48)(film)
    assert resized.shape == (2, 64, 48, 1) and resized.dtype == tf.float32
    assert float(tf.reduce_min(resized)) >= 0 and float(tf.reduce_max(resized)) <= 1
    np.testing.assert_allclose(layer(8, 8)(np.ones((1, 33, 77, 1), "float32")), 1, atol=1e-6)


def test_eager_equals_tf_data_equals_exported(film, tmp_path):
    resize = layer(64, 64)
    eager = np.asarray(resize(film))
    (mapped,) = tf.data.Dataset.from_tensors(film).map(resize)
    signature = [tf.TensorSpec([None, None, None, 1], tf.float32)]
    module = tf.Module()
    module.resize = tf.function(resize, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path))
    exported = tf.saved_model.load(str(tmp_path)).resize(film)
    np.testing.assert_allclose(mapped, eager, atol=1e-6)
    np.testing.assert_allclose(exported, eager, atol=1e-6)


def test_one_film_at_a_time_is_the_batch(film):
    resize = layer(64, 64)
    apart = np.concatenate([resize(film[:1]), resize(film[1:])])
    np.testing.assert_allclose(resize(film), apart, atol=1e-6)
