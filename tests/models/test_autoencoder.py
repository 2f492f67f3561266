"""The autoencoder: its shapes, its two halves before and after loading, and what it refuses."""

import keras
import numpy as np
import pytest

from kxray import models
from kxray.explain import encoder_decoder


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.build("autoencoder", side=(32, 16), width=4, latent=3, depth=2)


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).random((2, 32, 16, 1)).astype("float32")


def test_films_go_through_a_code(model, films):
    given_back = model(films)
    assert given_back.shape == films.shape and given_back.dtype == "float32"
    assert 0 <= np.min(given_back) and np.max(given_back) <= 1
    assert model.get_layer("latent").output.shape == (None, 8, 4, 3)


def test_no_connection_leads_past_the_code(model, films):
    encoder, decoder = encoder_decoder(model)
    np.testing.assert_allclose(decoder(encoder(films)), model(films), atol=1e-6)
    assert decoder.input.shape == (None, 8, 4, 3)


def test_it_is_cut_after_loading_too(model, films, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    encoder, decoder = encoder_decoder(loaded)
    np.testing.assert_allclose(decoder(encoder(films)), model(films), atol=1e-6)


def test_one_number_is_a_square_film():
    assert models.build("autoencoder", side=16, width=2, depth=1).input.shape == (None, 16, 16, 1)


def test_it_computes_in_half_precision_and_ends_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.build("autoencoder", side=16, width=2, depth=1)
    finally:
        keras.config.set_dtype_policy("float32")
    encoder, decoder = encoder_decoder(model)
    film = np.zeros((1, 16, 16, 1), "float32")
    assert encoder(film).dtype == decoder(encoder(film)).dtype == "float32"
    assert model.get_layer("encode1_conv1").compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"side": 36}, "of 3 stages takes films of multiples of 8 pixels"),
        ({"side": (64, 12), "depth": 3}, r"multiples of 8 pixels, got \(64, 12\)"),
        ({"depth": 0}, "must be at least 1, got 0"),
        ({"sides": 64}, "has no option 'sides'"),
    ],
)
def test_what_cannot_be_built_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        models.build("autoencoder", **options)
