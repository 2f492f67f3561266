"""One resampling, by hand on planted pixels; a function of its draws and of nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kxray.layers import RandomAffine

STILL = dict(rotation=0.0, width_shift=0.0, height_shift=0.0, shear=0.0, zoom=0.0, horizontal_flip=False)
# Columns of `draws`; one half is no motion, 1 the largest one way and 0 the largest the other way.
ROTATION, WIDTH, HEIGHT, SHEAR, ZOOM, FLIP = range(6)


def moved(image, draw=None, value=1.0, **ranges):
    """The (H, W) image after one motion at its extreme."""
    draws = np.full((1, 6), 0.5, np.float32)
    if draw is not None:
        draws[0, draw] = value
    layer = RandomAffine(**{**STILL, **ranges})
    return np.asarray(layer(np.float32(image)[None, :, :, None], draws=draws))[0, :, :, 0]


@pytest.fixture
def film():
    return np.random.default_rng(1).random((7, 7)).astype("float32")


@pytest.fixture
def films():
    return np.random.default_rng(2).random((5, 32, 24, 1)).astype("float32")


@pytest.fixture
def draws():
    return np.random.default_rng(3).random((5, 6)).astype("float32")


def test_zero_ranges_change_nothing(films, draws):
    np.testing.assert_allclose(RandomAffine(**STILL)(films, draws=draws), films, atol=1e-6)


def test_the_middle_of_every_range_changes_nothing(film):
    np.testing.assert_allclose(moved(film, rotation=45, width_shift=0.3, shear=20, zoom=0.5), film, atol=1e-6)


def test_a_quarter_turn(film):
    np.testing.assert_allclose(moved(film, ROTATION, 1, rotation=90), np.rot90(film), atol=1e-4)
    np.testing.assert_allclose(moved(film, ROTATION, 0, rotation=90), np.rot90(film, -1), atol=1e-4)


def test_a_half_turn_by_half_of_the_range(film):
    np.testing.assert_allclose(moved(film, ROTATION, 0.75, rotation=180), np.rot90(film), atol=1e-4)


def test_shifts_are_fractions_of_width_and_height():
    film = np.zeros((4, 8), "float32")
    film[1, 5] = 1
    left = moved(film, WIDTH, 1, width_shift=0.25)  # 0.25 x 8 = 2 columns
    assert left[1, 3] == 1 and left.sum() == 1
    right = moved(film, WIDTH, 0, width_shift=0.25)
    assert right[1, 7] == 1 and right.sum() == 1
    up = moved(film, HEIGHT, 1, height_shift=0.25)  # 0.25 x 4 = 1 row
    assert up[0, 5] == 1 and up.sum() == 1
    gone = moved(film, HEIGHT, 1, height_shift=0.5)
    assert gone.sum() == 0


def test_half_a_pixel_is_shared_between_two():
    film = np.zeros((4, 4), "float32")
    film[2, 2] = 1
    half = moved(film, WIDTH, 1, width_shift=0.125)
    np.testing.assert_allclose(half[2], [0, 0.5, 0.5, 0], atol=1e-6)


def test_the_flip_is_left_to_right_and_half_of_the_draws(film):
    np.testing.assert_allclose(moved(film, FLIP, 0.49, horizontal_flip=True), film[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(moved(film, FLIP, 0.51, horizontal_flip=True), film, atol=1e-5)


def test_a_shear_of_45_degrees_moves_each_row_by_its_height():
    film = np.zeros((5, 5), "float32")
    film[:, 2] = 1
    np.testing.assert_allclose(moved(film, SHEAR, 1, shear=45), np.eye(5)[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(moved(film, SHEAR, 0, shear=45), np.eye(5), atol=1e-5)


def test_zoom_is_about_the_centre():
    film = np.arange(25, dtype="float32").reshape(5, 5)
    half = moved(film, ZOOM, 0, zoom=0.5)
    np.testing.assert_allclose(half[1:4, 1:4], film[::2, ::2], atol=1e-5)
    assert half[0].max() == 0 and half[:, 4].max() == 0
    enlarged = moved(film, ZOOM, 1, zoom=0.5)  # output pixel (0, 0) is 2 / 1.5 from the centre
    assert enlarged[0, 0] == pytest.approx(12 - 2 / 1.5 * 6, abs=1e-4)


def test_outside_the_film_is_the_fill_value():
    half_gone = moved(np.ones((4, 4)), WIDTH, 1, width_shift=0.5, fill_value=0.25)
    assert half_gone[0].tolist() == [1, 1, 0.25, 0.25]


def test_a_planted_blob_keeps_its_mass_under_rotation_and_flip(films):
    yy, xx = np.mgrid[:64, :64]
    blob = np.exp(-((yy - 30) ** 2 + (xx - 36) ** 2) / 30).astype("float32")
    layer = RandomAffine(rotation=45, width_shift=0.1, height_shift=0.1, shear=0, zoom=0)
    draws = np.random.default_rng(0).random((20, 6)).astype("float32")
    result = np.asarray(layer(np.repeat(blob[None, ..., None], 20, 0), draws=draws))
    np.testing.assert_allclose(result.sum((1, 2, 3)), blob.sum(), rtol=1e-3)


def test_same_draws_same_films(films, draws):
    first, second = RandomAffine(seed=1), RandomAffine(seed=2)
    np.testing.assert_array_equal(first(films, draws=draws), second(films, draws=draws))


def test_own_draws_follow_the_seed(films):
    first, again, other = (np.asarray(RandomAffine(seed=seed)(films)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_batch_of_five_is_five_batches_of_one(films, draws):
    layer = RandomAffine()
    together = np.asarray(layer(films, draws=draws))
    apart = [np.asarray(layer(films[i : i + 1], draws=draws[i : i + 1])) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-6)


def test_nothing_happens_outside_training(films):
    np.testing.assert_array_equal(RandomAffine()(films, training=False), films)
    model = keras.Sequential([keras.Input(films.shape[1:]), RandomAffine()])
    np.testing.assert_array_equal(model.predict(films, verbose=0), films)


def test_eager_equals_tf_data(films, draws):
    layer = RandomAffine()
    dataset = tf.data.Dataset.from_tensor_slices((films, draws)).batch(5)
    (mapped,) = dataset.map(lambda pixels, draws: layer(pixels, draws=draws), num_parallel_calls=2)
    np.testing.assert_allclose(mapped, layer(films, draws=draws), atol=1e-6)
    assert mapped.shape == (5, 32, 24, 1)


def test_draws_are_made_inside_tf_data_too(films):
    dataset = tf.data.Dataset.from_tensors(films).repeat(2).map(RandomAffine(seed=1))
    first, second = (batch.numpy() for batch in dataset)
    assert np.abs(first - films).max() > 0.1 and np.abs(first - second).max() > 0.1


def test_it_is_serialised_with_every_field():
    fields = dict(rotation=3.0, width_shift=0.2, height_shift=0.3, shear=4.0, zoom=0.1, seed=9)
    fields["fill_value"] = 0.5
    layer = RandomAffine(**fields, horizontal_flip=False, name="augment", dtype="float32")
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == "kxray>RandomAffine"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    assert layer.get_config().items() >= {**fields, "horizontal_flip": False}.items()


def test_shape_and_dtype_are_those_of_the_images(films, draws):
    layer = RandomAffine(dtype="bfloat16")
    result = layer(films.astype("float32"), draws=draws)
    assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
    assert layer.compute_output_shape((None, 8, 8, 1)) == (None, 8, 8, 1)
    assert layer(keras.Input((8, 8, 3))).shape == (None, 8, 8, 3)


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [({"zoom": 1.0}, r"zoom must be in \[0, 1\), got 1.0"), ({"shear": 90}, r"shear must be in \[0, 90\)")],
)
def test_impossible_ranges_are_refused(ranges, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomAffine(**ranges)
