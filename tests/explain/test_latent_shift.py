"""Latent shifts with an autoencoder and a classifier that are both linear, so that lambda is known."""

import keras
import numpy as np
import pytest

from kxray import ModelSpec
from kxray.explain import encoder_decoder, latent_shift

SPEC = ModelSpec("toy", ("Effusion", "Mass"), "multilabel", (2, 2))
# A film of four pixels, each label one of them.
SLOPE = 4.0


def classifier():
    film = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(2, activation="sigmoid")
    model = keras.Model(film, dense(keras.layers.Flatten()(film)))
    kernel = np.zeros((4, 2))
    kernel[0, 0] = kernel[3, 1] = SLOPE
    dense.set_weights([kernel, np.full(2, -SLOPE / 2)])
    return model


def identity(scale=1.0):
    """An autoencoder whose code is `scale` times the film, and which gives films back as they are."""
    film = keras.Input((2, 2, 1))
    code = keras.layers.Rescaling(scale, name="latent")(film)
    return keras.Model(film, keras.layers.Rescaling(1 / scale, name="decoded")(code))


@pytest.fixture(scope="module")
def toy():
    return classifier()


@pytest.fixture(scope="module")
def films():
    films = np.full((2, 2, 2, 1), 0.4, "float32")
    films[:, 0, 0] = [[0.9], [0.7]]
    return films


@pytest.fixture(scope="module")
def found(toy, films):
    return latent_shift(toy, SPEC, identity(), films, "no Effusion")


def test_the_shift_ends_where_the_classifier_decides_otherwise(found, films):
    assert found.reached(SPEC).all() and (found.after[:, 0] > 0.48).all()
    # p = 1/2 at 0.5; the last halving leaves little of a step that is worth 0.25 of the logit.
    np.testing.assert_allclose(found.counterfactuals[:, 0, 0, 0], 0.5, atol=0.005)
    np.testing.assert_allclose(found.reference, films, atol=1e-6)
    np.testing.assert_allclose(found.before[:, 0], 1 / (1 + np.exp(-SLOPE * np.array([0.4, 0.2]))), atol=1e-5)


def test_nothing_else_moves_where_the_way_is_straight(found):
    others = np.abs(found.difference[..., 0])
    others[:, 0, 0] = 0
    assert others.max() < 1e-6 and (found.masks == 1).all()
    np.testing.assert_allclose(found.after[:, 1], found.before[:, 1], atol=1e-5)


def test_lambda_is_what_calculus_says(found):
    """The gradient of "no Effusion" is -SLOPE at one pixel, so that lambda = (x - 0.5) / SLOPE."""
    np.testing.assert_allclose(found.steps["lambdas"][:, -1], [0.4 / SLOPE, 0.2 / SLOPE], atol=0.002)
    assert found.steps["path"].shape == (2, 10, 2)
    assert (np.diff(found.steps["path"][:, :, 0], axis=1) < 0).all()


def test_the_units_of_the_code_do_not_matter(toy, films, found):
    wide = latent_shift(toy, SPEC, identity(50.0), films, "no Effusion")
    np.testing.assert_allclose(wide.counterfactuals, found.counterfactuals, atol=1e-4)


def test_a_finding_is_also_put_in(toy, films):
    made = latent_shift(toy, SPEC, identity(), films, "Mass")
    assert made.reached(SPEC).all() and (made.difference[:, 1, 1] > 0.09).all()


def there_and_back():
    """An autoencoder that gives a film back with a pixel of its own.

    As the first pixel falls from 0.9 to 0.5, that one rises from 0 to 1 and falls to 0 again.
    """

    def with_a_wave(code):
        wave = keras.ops.sin(np.pi * (0.9 - code[:, :1, :1]) / 0.4)
        above = keras.ops.concatenate([code[:, :1, :1], wave], axis=2)
        return keras.ops.concatenate([above, code[:, 1:]], axis=1)

    film = keras.Input((2, 2, 1))
    code = keras.layers.Rescaling(1.0, name="latent")(film)
    return keras.Model(film, keras.layers.Lambda(with_a_wave, name="decoded")(code))


@pytest.mark.parametrize(("mode", "largest"), [("max", 1.0), ("mean", 0.631), ("last", 0.0)])
def test_the_map_is_the_largest_of_the_way_and_not_its_end(toy, films, mode, largest):
    made = latent_shift(toy, SPEC, there_and_back(), films[:1], "no Effusion", mode=mode)
    assert made.reached(SPEC).all()
    assert made.maps[0, 0, 1] == pytest.approx(largest, abs=0.03)
    assert made.maps[0, 1].max() < 1e-6


def test_as_published_it_ends_after_a_rise_of_15_hundredths(toy, films):
    made = latent_shift(toy, SPEC, identity(), films, "no Effusion", stop="published")
    fallen = made.before[:, 0] - made.after[:, 0]
    assert (fallen >= 0.15).all() and (fallen < 0.17).all() and not made.reached(SPEC)[0]


def test_where_the_film_given_back_has_the_target_already_nothing_moves(toy, films):
    film = keras.Input((2, 2, 1))
    code = keras.layers.Rescaling(0.1, name="latent")(film)
    dark = keras.Model(film, keras.layers.Rescaling(1.0, name="decoded")(code))
    made = latent_shift(toy, SPEC, dark, films, "no Effusion")
    assert made.reached(SPEC).all() and (made.maps == 0).all() and (made.steps["lambdas"] == 0).all()
    assert (made.steps["reference"][:, 0] < 0.5).all() and (made.before[:, 0] > 0.5).all()


def test_a_dead_classifier_moves_nothing(films):
    model = classifier()
    model.set_weights([np.zeros((4, 2)), np.ones(2)])
    made = latent_shift(model, SPEC, identity(), films, "no Effusion")
    assert not made.reached(SPEC).any() and np.isfinite(made.counterfactuals).all()
    np.testing.assert_allclose(made.counterfactuals, films, atol=1e-6)


def test_two_at_a_time_are_as_one_by_one(toy, films, found):
    alone = latent_shift(toy, SPEC, identity(), films, "no Effusion", batch_size=1)
    np.testing.assert_allclose(alone.counterfactuals, found.counterfactuals, atol=1e-6)


def test_an_autoencoder_is_cut_in_two(films):
    encoder, decoder = encoder_decoder(identity(3.0))
    np.testing.assert_allclose(encoder(films), 3 * films, rtol=1e-6)
    np.testing.assert_allclose(decoder(encoder(films)), films, rtol=1e-6)


def test_what_is_no_autoencoder_is_told(toy, films):
    with pytest.raises(ValueError, match="has no layer 'latent'"):
        latent_shift(toy, SPEC, classifier(), films, 0)
    film = keras.Input((4, 4, 1))
    with pytest.raises(ValueError, match=r"takes films \(4, 4, 1\), the classifier \(2, 2, 1\)"):
        latent_shift(toy, SPEC, keras.Model(film, film), films, 0)
    with pytest.raises(ValueError, match="mode must be one of max, mean, last"):
        latent_shift(toy, SPEC, identity(), films, 0, mode="median")
