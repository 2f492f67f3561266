"""Score-CAM and activation maximisation where tf-keras-vis is installed; a sentence where it is not."""

import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain

NETS = runpy.run_path(str(Path(__file__).with_name("oracle_nets.py")))


def model_of(units, last):
    keras.utils.set_random_seed(0)
    film = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, padding="same", activation="relu", name="features")(film)
    return keras.Model(film, layers.Dense(units, activation=last)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture
def films():
    return np.random.default_rng(0).random((3, 8, 8, 1)).astype("float32")


def by_hand(model, film, unit):
    """Score-CAM of one film from its definition; features are as large as the film, none is resized."""
    features = keras.Model(model.input, model.get_layer("features").output)(film[None])[0].numpy()
    low, high = features.min(axis=(0, 1)), features.max(axis=(0, 1))
    masks = (features - low) / (high - low)
    dense = model.layers[-1]
    logits = []
    for k in range(features.shape[-1]):
        masked = keras.Model(model.input, model.layers[-2].output)(film[None] * masks[None, ..., k : k + 1])
        logits.append((masked @ dense.kernel + dense.bias)[0, unit])
    return features @ tf.nn.softmax(logits).numpy()


@pytest.mark.parametrize(("units", "last"), [(1, "sigmoid"), (3, "sigmoid"), (3, "softmax"), (3, "linear")])
def test_score_cam_by_hand(films, units, last):
    pytest.importorskip("tf_keras_vis")
    model = model_of(units, last)
    targets = np.array([0, units - 1, 0])
    maps = explain.score_cam(model, films, targets, batch_size=2)
    wanted = [by_hand(model, film, unit) for film, unit in zip(films, targets, strict=True)]
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[..., 0], wanted, rtol=1e-4, atol=1e-6)


def test_score_cam_meets_the_reference_numbers():
    pytest.importorskip("tf_keras_vis")
    oracle = NETS["arrays"]("oracle_gradcam_gap")
    model, films = NETS["build"]("gap", oracle, dtype="float32"), NETS["films"](oracle, "float32")
    maps = explain.score_cam(model, films, oracle["target"])
    wanted = oracle["scorecam_raw"]
    np.testing.assert_allclose(maps[..., 0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert explain.score_cam(model, films, 0, upsample=True).shape == (2, 12, 12, 1)


def test_maximised_films_are_more_like_their_class_and_repeat():
    pytest.importorskip("tf_keras_vis")
    model = model_of(3, "softmax")
    found = explain.activation_maximisation(model, 1, films=2, steps=20, smoothness=0.0)
    assert found.shape == (2, 8, 8, 1) and found.min() >= 0 and found.max() <= 1
    noise = explain.activation_maximisation(model, 1, films=2, steps=1, step_size=1e-9)
    assert (model(found)[:, 1].numpy() > model(noise)[:, 1].numpy()).all()
    again = explain.activation_maximisation(model, 1, films=2, steps=20, smoothness=0.0)
    np.testing.assert_array_equal(found, again)


def test_wrong_targets(films):
    with pytest.raises(ValueError, match=r"target must be in 0\.\.2"):
        explain.activation_maximisation(model_of(3, "softmax"), 3)
    with pytest.raises(ValueError, match=r"target must be in 0\.\.2"):
        explain.score_cam(model_of(3, "softmax"), films, 3)


def test_without_tf_keras_vis_a_sentence(films, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tf_keras_vis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tf_keras_vis", None)
    with pytest.raises(ImportError, match=r'need tf-keras-vis .*; pip install "kxray\[vis\]"') as error:
        explain.score_cam(model_of(1, "sigmoid"), films, 0)
    assert "\n" not in str(error.value)
