"""Brightness, contrast and blur by hand; pixels stay in [0, 1]."""

import numpy as np
import pytest
from scipy import ndimage

from kxray.layers import RandomExposure

STILL = dict(brightness=0.0, contrast=0.0, blur=0.0)


@pytest.fixture
def films():
    return (0.3 + 0.4 * np.random.default_rng(0).random((3, 20, 24, 1))).astype("float32")


def test_zero_ranges_and_middle_draws_change_nothing(films):
    anything = np.tile(np.float32([[0.9, 0.1, 0.9]]), (3, 1))
    np.testing.assert_allclose(RandomExposure(**STILL)(films, draws=anything), films, atol=1e-6)
    middle = np.tile(np.float32([[0.5, 0.5, 0.0]]), (3, 1))
    np.testing.assert_allclose(RandomExposure()(films, draws=middle), films, atol=1e-6)


def test_brightness_and_contrast_by_hand(films):
    layer = RandomExposure(brightness=0.1, contrast=0.2, blur=0.0)
    draws = np.float32([[1.0, 0.5, 0], [0.5, 1.0, 0], [0.5, 0.0, 0]])
    result = np.asarray(layer(films, draws=draws))
    mean = films.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(result[0], films[0] + 0.1, atol=1e-5)
    np.testing.assert_allclose(result[1], (mean + 1.2 * (films - mean))[1], atol=1e-5)
    np.testing.assert_allclose(result[2], (mean + 0.8 * (films - mean))[2], atol=1e-5)


def test_blur_is_a_gaussian(films):
    layer = RandomExposure(brightness=0.0, contrast=0.0, blur=0.8)
    draws = np.float32([[0.5, 0.5, 1.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
    result = np.asarray(layer(films, draws=draws))[..., 0]
    for film, got, sigma in zip(films[..., 0], result, (0.8, 0.4, 0.0), strict=True):
        wanted = ndimage.gaussian_filter(film, sigma, mode="reflect", radius=3) if sigma else film
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_pixels_stay_in_their_range():
    extremes = np.random.default_rng(1).integers(0, 2, (16, 12, 12, 1)).astype("float32")
    result = np.asarray(RandomExposure(0.5, 0.9, 1.0, seed=2)(extremes))
    assert result.min() >= 0 and result.max() <= 1 and result.dtype == np.float32


def test_untouched_outside_training(films):
    np.testing.assert_array_equal(RandomExposure()(films, training=False), films)


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"contrast": 1.0}, {"blur": -1.0}])
def test_ranges_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="must be 0 or more and contrast in"):
        RandomExposure(**wrong)
