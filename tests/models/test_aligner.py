"""The aligner as a model: saved, exported, read back, and copied into another network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kxray import models
from kxray.layers import SimilarityAlign

SMALL = {"size": 32, "width": 2, "steps": 2}


@pytest.fixture(scope="module")
def aligner():
    """An aligner with some motion of its own."""
    model, rng = models.build("aligner", image_size=(48, 48), **SMALL), np.random.default_rng(0)
    align = model.get_layer("align")
    align.set_weights([rng.normal(0, 0.1, weight.shape) for weight in align.get_weights()])
    return model


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(1).random((3, 48, 48, 1), np.float32)


def same(first, second, tolerance):
    assert set(first) == set(second) == {"aligned", "pose", "confidence"}
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=tolerance)


def test_saved_and_loaded(aligner, films, tmp_path):
    assert np.abs(aligner(films)["pose"]).max() > 0.01
    aligner.save(tmp_path / "model.keras")
    for place in (tmp_path, tmp_path / "model.keras"):
        same(models.load_aligner(place)(films), aligner(films), 1e-6)


def test_exported(aligner, films, tmp_path):
    archive = keras.export.ExportArchive()
    archive.track(aligner)
    archive.add_endpoint("serve", aligner.call, input_signature=[tf.TensorSpec((None, 48, 48, 1))])
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    same(saved.serve(tf.constant(films)), aligner(films), 1e-5)
    same(saved.serve(tf.constant(films[:1])), aligner(films[:1]), 1e-5)


def test_copied_into_a_network_of_another_film_size(aligner):
    film = keras.Input((64, 96, 1))
    aligned = SimilarityAlign(**SMALL, name="align")(film)["aligned"]
    network = keras.Model(film, keras.layers.GlobalAveragePooling2D()(aligned))
    models.copy_aligner(aligner, network)
    for here, there in zip(
        aligner.get_layer("align").get_weights(), network.get_layer("align").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(here, there)


def test_what_lies_outside_is_copied_too(films):
    light, dark = (
        models.build("aligner", image_size=(48, 48), fill_value=fill, **SMALL) for fill in (1.0, 0.0)
    )
    light.get_layer("align").motion.bias.assign([0.0, 0.0, 0.3, 0.0])
    models.copy_aligner(light, dark)
    np.testing.assert_array_equal(light(films)["aligned"], dark(films)["aligned"])
    assert dark(films)["aligned"].numpy()[:, :, -2:].min() == 1


def test_layers_that_do_not_fit(aligner):
    with pytest.raises(ValueError, match="has steps=2, the model's layer 'align' 1"):
        models.copy_aligner(aligner, models.build("aligner", image_size=(48, 48), **{**SMALL, "steps": 1}))
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="the model: not an aligner"):
        models.copy_aligner(aligner, other)


def test_places_without_an_aligner(tmp_path):
    with pytest.raises(FileNotFoundError, match="no aligner there"):
        models.load_aligner(tmp_path / "nothing")
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a readable .keras file"):
        models.load_aligner(tmp_path)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="not an aligner"):
        models.load_aligner(tmp_path / "other.keras")


def test_impossible_sizes():
    with pytest.raises(ValueError, match="image_size must be"):
        models.build("aligner", image_size=256)
