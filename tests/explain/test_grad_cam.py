"""Grad-CAM against numbers worked out by hand on nets small enough for it."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain

POSITIVE_WEIGHT, NEGATIVE_WEIGHT = 2.0, -3.0


def tiny(activation, bias=0.0, separate=False):
    """One unit: logit = 2 mean(relu(x)) - 3 mean(relu(-x)) + bias."""
    film = keras.Input((4, 4, 1))
    features = layers.Conv2D(2, 1, activation="relu", use_bias=False, name="features")(film)
    pooled = layers.GlobalAveragePooling2D()(features)
    if separate:
        out = layers.Activation(activation)(layers.Dense(1, name="score")(pooled))
    else:
        out = layers.Dense(1, activation=activation, name="score")(pooled)
    model = keras.Model(film, out, name="tiny")
    model.get_layer("features").set_weights([np.float32([1, -1]).reshape(1, 1, 1, 2)])
    model.get_layer("score").set_weights(
        [np.float32([[POSITIVE_WEIGHT], [NEGATIVE_WEIGHT]]), np.float32([bias])]
    )
    return model


def by_hand(images):
    """Each weight is d logit / d feature, averaged: w / 16. Map: the weighted sum of the features."""
    return (POSITIVE_WEIGHT * np.maximum(images, 0) + NEGATIVE_WEIGHT * np.maximum(-images, 0)) / 16


def softmax_net(last="softmax"):
    """Three classes, each looking at its own feature: dark, bright, very bright."""
    keras.utils.set_random_seed(0)
    film = keras.Input((8, 8, 1))
    features = layers.Conv2D(3, 3, padding="same", activation="relu", name="features")(film)
    pooled = layers.GlobalAveragePooling2D()(features)
    dense = layers.Dense(3, name="score", activation=last if isinstance(last, str) else None)(pooled)
    return keras.Model(film, dense if isinstance(last, str) else last(dense))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype("float32")


@pytest.fixture
def films():
    return np.random.default_rng(1).random((4, 8, 8, 1)).astype("float32")


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
@pytest.mark.parametrize("separate", [False, True])
def test_the_hand_computed_map(images, activation, separate):
    maps = explain.attribute(tiny(activation, separate=separate), images, 0, "grad_cam")
    assert maps.shape == (5, 4, 4, 1) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, by_hand(images), atol=1e-6)


@pytest.mark.parametrize("bias", [-200.0, 200.0])
@pytest.mark.parametrize("separate", [False, True])
def test_a_saturated_sigmoid_changes_nothing(images, bias, separate):
    model = tiny("sigmoid", bias, separate)
    assert set(np.unique(model(images))) <= {0.0, 1.0}
    maps = explain.attribute(model, images, 0, "grad_cam")
    np.testing.assert_allclose(maps, by_hand(images), atol=1e-6)


def test_an_activation_written_as_a_function_is_seen_through(images):
    inner = tiny("linear", bias=200.0)
    model = keras.Model(inner.input, keras.ops.sigmoid(inner.output))
    np.testing.assert_allclose(explain.attribute(model, images, 0, "grad_cam"), by_hand(images), atol=1e-6)


def test_the_sign_is_kept(images):
    maps = explain.attribute(tiny("sigmoid"), images, 0, "grad_cam")
    np.testing.assert_array_equal(np.sign(maps), np.sign(images))


@pytest.mark.parametrize(
    "last", ["softmax", layers.Softmax(), layers.Activation("softmax"), keras.ops.softmax]
)
def test_softmax_heads_are_explained_before_the_softmax(films, last):
    keras.utils.set_random_seed(0)
    model = softmax_net(last)
    weights = model.get_layer("score").get_weights()[0]
    features = keras.Model(model.input, model.get_layer("features").output).predict(films, verbose=0)
    targets = [0, 1, 2, 1]
    expected = np.einsum("nhwk,kn->nhw", features, weights[:, targets]) / 64
    maps = explain.attribute(model, films, targets, "grad_cam")
    np.testing.assert_allclose(maps[..., 0], expected, atol=1e-6)


def test_one_target_for_all_or_one_an_image(films):
    model = softmax_net()
    apart = [explain.attribute(model, films, target, "grad_cam") for target in (0, 1, 2)]
    mixed = explain.attribute(model, films, np.array([2, 0, 1, 1]), "grad_cam")
    np.testing.assert_allclose(mixed, [apart[2][0], apart[0][1], apart[1][2], apart[1][3]], atol=1e-7)


def test_the_map_peaks_where_the_square_was_planted():
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer="ones"),
            layers.MaxPooling2D(2),
            layers.Conv2D(1, 3, padding="same", activation="relu", kernel_initializer="ones"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid", kernel_initializer="ones"),
        ]
    )
    corners = [(2, 3), (18, 8), (9, 22)]
    films = np.zeros((3, 32, 32, 1), "float32")
    for film, (top, left) in zip(films, corners, strict=True):
        film[top : top + 6, left : left + 6] = 1
    maps = explain.attribute(model, films, 0, "grad_cam", upsample=True)
    assert maps.shape == (3, 32, 32, 1)
    for heat, (top, left) in zip(maps, corners, strict=True):
        row, column = np.unravel_index(heat.argmax(), (32, 32))
        assert top <= row < top + 6 and left <= column < left + 6
    small = explain.attribute(model, films, 0, "grad_cam")
    assert small.shape == (3, 16, 16, 1), "the last feature map before pooling"
    np.testing.assert_allclose(maps, tf.image.resize(small, (32, 32)), atol=1e-6)


def test_a_batch_of_five_is_five_batches_of_one(images):
    model = tiny("sigmoid")
    together = explain.attribute(model, images, 0, "grad_cam")
    apart = [explain.attribute(model, images[i : i + 1], 0, "grad_cam") for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-7)


def test_any_named_layer_can_be_mapped(films):
    model = softmax_net()
    assert explain.attribute(model, films, 0, "grad_cam", layer="features").shape == (4, 8, 8, 1)
    assert explain.attribute(model, films, 0, "grad_cam", layer=model.layers[0].name).shape == (4, 8, 8, 1)


def test_maps_follow_the_weights(images):
    model = tiny("sigmoid")
    before = explain.attribute(model, images, 0, "grad_cam")
    model.get_layer("score").kernel.assign(2 * model.get_layer("score").kernel)
    np.testing.assert_allclose(explain.attribute(model, images, 0, "grad_cam"), 2 * before, atol=1e-6)


def test_traced_once_over_two_hundred_calls(images):
    explained = explain.explainer(tiny("sigmoid"), "grad_cam")
    for call in range(200):
        batch = images[: 1 + call % 5]
        explained(batch, np.zeros(len(batch), "int32"))
    assert explained.experimental_get_tracing_count() == 1


def test_attribute_remembers_its_explainer_for_as_long_as_the_model_lives(images, monkeypatch):
    built = []
    monkeypatch.setattr(
        "kxray.explain.attribution.explainer",
        lambda *arguments, real=explain.explainer, **options: built.append(1) or real(*arguments, **options),
    )
    model = tiny("sigmoid")
    for count in (1, 2, 3, 4, 5) * 4:
        explain.attribute(model, images[:count], 0, "grad_cam")
    explain.attribute(model, images, 0, "grad_cam", upsample=True)
    assert len(built) == 2
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_an_explained_model_is_still_saved_and_cloned(images, tmp_path):
    model = tiny("sigmoid")
    explain.attribute(model, images, 0, "grad_cam")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(explain.attribute(again, images, 0, "grad_cam"), by_hand(images), atol=1e-6)
    assert keras.models.clone_model(model).count_params() == model.count_params()


def test_plain_ops_export(images, tmp_path):
    module = tf.Module()
    module.model = tiny("sigmoid")
    module.explain = explain.explainer(module.model, "grad_cam")
    tf.saved_model.save(module, str(tmp_path))
    exported = tf.saved_model.load(str(tmp_path))
    maps = exported.explain(images, np.zeros(5, "int32"))
    np.testing.assert_allclose(maps, by_hand(images), atol=1e-6)


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_float32_maps_under_mixed_precision(images, half_precision):
    model = tiny("sigmoid", bias=200.0)
    maps = explain.attribute(model, images, 0, "grad_cam")
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, by_hand(images), rtol=0.02, atol=1e-3)
