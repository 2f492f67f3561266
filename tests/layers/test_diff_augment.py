"""Each change by hand; the same film at two resolutions is changed alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kxray.layers import DiffAugment

FILM = np.random.default_rng(0).random((1, 64, 64, 1)).astype("float32")
STILL = np.full((1, 6), 0.5, np.float32)


def changed(film, policy, **draws):
    names = ("brightness", "contrast", "right", "down", "left", "top")
    values = STILL.copy()
    for name, value in draws.items():
        values[0, names.index(name)] = value
    return keras.ops.convert_to_numpy(DiffAugment([policy])(film, values))


def test_brightness_and_contrast():
    np.testing.assert_allclose(changed(FILM, "brightness", brightness=1.0), FILM + 0.25, atol=1e-6)
    mean = FILM.mean()
    np.testing.assert_allclose(changed(FILM, "contrast", contrast=0.0), mean + (FILM - mean) / 2, atol=1e-6)
    np.testing.assert_allclose(changed(FILM, "contrast"), FILM, atol=1e-6)


def test_translation_moves_whole_pixels_and_repeats_edges():
    moved = changed(FILM, "translation", right=1.0, down=0.0)
    np.testing.assert_allclose(moved[:, :56, 8:], FILM[:, 8:, :56], atol=1e-6)
    np.testing.assert_allclose(moved[:, 56:, 8:], np.repeat(FILM[:, -1:, :56], 8, axis=1), atol=1e-6)
    np.testing.assert_allclose(moved[:, :56, :8], np.repeat(FILM[:, 8:, :1], 8, axis=2), atol=1e-6)


def test_cutout_blackens_a_square_of_half_the_side():
    cut = changed(FILM, "cutout", left=0.5, top=0.0)
    assert (cut[:, :16, 16:48] == 0).all()
    assert (cut == 0).sum() == 16 * 32


@pytest.mark.parametrize("policy", ["translation", "cutout", "brightness"])
def test_two_resolutions_change_alike(policy):
    large = np.repeat(np.repeat(FILM, 2, axis=1), 2, axis=2)
    draws = {"right": 0.8, "down": 0.3, "left": 0.7, "top": 0.2, "brightness": 0.9}
    small = changed(FILM, policy, **draws)
    np.testing.assert_allclose(
        changed(large, policy, **draws).reshape(1, 64, 2, 64, 2, 1).mean((2, 4)), small, atol=1e-6
    )


def test_gradients_pass_through():
    film = tf.Variable(FILM)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(DiffAugment()(film, STILL + 0.2))
    assert np.isfinite(tape.gradient(total, film)).all()


def test_unknown_policies_are_named():
    with pytest.raises(ValueError, match="policies must be among .*, got mirror"):
        DiffAugment(["mirror", "cutout"])
