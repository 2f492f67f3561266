"""Multi-scale CAM: the exact identity with the logit, by hand and on DenseNet-121."""

import keras
import numpy as np
import pytest
from keras import layers

import kxray
from kxray import explain
from kxray.layers import LayerRelevance


def tiny(head="softmax", labels=3, constraint="softmax"):
    """Two stages of 8 x 8 and 4 x 4."""
    keras.utils.set_random_seed(5)
    film = keras.Input((16, 16, 1))
    one = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="one")(film)
    two = layers.Conv2D(7, 3, strides=2, padding="same", activation="relu", name="two")(one)
    votes = [
        layers.Dense(labels, name=f"logits_{name}", bias_initializer="random_normal")(
            layers.GlobalAveragePooling2D()(features)
        )
        for name, features in (("one", one), ("two", two))
    ]
    x = LayerRelevance(constraint, name="relevance")(votes)
    model = keras.Model(film, layers.Activation(head)(x))
    model.get_layer("relevance").scores.assign(np.random.default_rng(1).normal(size=(2, labels)))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((5, 16, 16, 1)).astype("float32")


def assert_identity(cams):
    """logit = sum over stages of weight times (mean of the stage's map + bias)."""
    means = np.stack([maps.mean(axis=(1, 2)) for maps in cams.stage_maps])
    rebuilt = (cams.weights[:, None] * (means + cams.biases[:, None])).sum(axis=0)
    np.testing.assert_allclose(rebuilt, cams.logits, atol=1e-5)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("constraint", ["softmax", "penalty"])
def test_the_maps_add_up_to_the_logit(images, head, constraint):
    cams = explain.multiscale_cams(tiny(head, constraint=constraint), images)
    assert_identity(cams)
    assert cams.stages == ("one", "two") and cams.maps.shape == (5, 8, 8, 3)
    assert [maps.shape for maps in cams.stage_maps] == [(5, 8, 8, 3), (5, 4, 4, 3)]


def test_the_maps_of_densenet_121_add_up_to_the_logit():
    keras.utils.set_random_seed(0)
    model = kxray.models.build("multiscale_densenet", num_labels=4, image_size=(64, 64))
    random = np.random.default_rng(2)
    model.get_layer("layer_relevance").scores.assign(random.normal(size=(3, 4)))
    for stage in ("block2", "block3", "block4"):
        model.get_layer(f"logits_{stage}").bias.assign(random.normal(size=4))
    films = random.random((2, 64, 64, 1)).astype("float32")
    cams = explain.multiscale_cams(model, films)
    assert_identity(cams)
    odds = np.exp(cams.logits)
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), model(films), atol=1e-5)
    assert cams.maps.shape == (2, 8, 8, 4)


def test_a_planted_square_is_where_the_map_peaks():
    film = keras.Input((16, 16, 1))
    features = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="copy")(film)
    vote = layers.Dense(2, kernel_initializer=lambda shape, dtype: [[1.0, -1.0]], name="logits_copy")
    x = LayerRelevance()([vote(layers.GlobalAveragePooling2D()(features))])
    model = keras.Model(film, layers.Softmax()(x))
    planted = np.zeros((1, 16, 16, 1), np.float32)
    planted[0, 3:5, 10:12] = 1
    for_it = explain.attribute(model, planted, 0, "multiscale_cam")
    np.testing.assert_array_equal(for_it[0, ..., 0] > 0, planted[0, ..., 0] > 0)
    np.testing.assert_array_equal(explain.attribute(model, planted, 1, "multiscale_cam"), -for_it)


def test_attribute_gives_the_asked_class_one_an_image(images):
    model = tiny()
    cams = explain.multiscale_cams(model, images)
    targets = np.array([0, 2, 1, 1, 0])
    maps = explain.attribute(model, images, targets, "multiscale_cam")
    np.testing.assert_allclose(maps[..., 0], cams.maps[np.arange(5), :, :, targets], atol=1e-6)
    assert explain.attribute(model, images, 1, "multiscale_cam", upsample=True).shape == (5, 16, 16, 1)


def test_details_share_the_forward_pass_and_add_up(images):
    model = tiny()
    details = explain.detailed_explainer(model, "multiscale_cam")
    answer = {name: value.numpy() for name, value in details(images, np.full(5, -1, np.int32)).items()}
    cams = explain.multiscale_cams(model, images)
    predicted = cams.logits.argmax(axis=1)
    np.testing.assert_allclose(answer["logits"], cams.logits, atol=1e-6)
    np.testing.assert_allclose(answer["relevance_weights"], cams.weights.T[predicted], atol=1e-6)
    rebuilt = (answer["relevance_weights"][..., None, None] * answer["stage_maps"]).sum(axis=1)
    np.testing.assert_allclose(rebuilt, answer["heatmap"][..., 0], atol=1e-6)
    assert answer["stage_names"].tolist() == [[b"one", b"two"]] * 5


def test_a_batch_of_five_equals_five_batches_of_one(images):
    model = tiny()
    together = explain.attribute(model, images, 2, "multiscale_cam")
    alone = [explain.attribute(model, images[[i]], 2, "multiscale_cam")[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_float32_maps_under_half_precision(images):
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = kxray.models.build("multiscale_densenet", image_size=(32, 32), taps=2)
    finally:
        keras.config.set_dtype_policy("float32")
    cams = explain.multiscale_cams(model, images.repeat(2, axis=1).repeat(2, axis=2))
    assert cams.maps.dtype == np.float32
    assert_identity(cams)


def test_models_without_stages_are_refused(images):
    view_cnn = kxray.models.build("view_cnn")
    with pytest.raises(ValueError, match="multiscale_cam needs one LayerRelevance layer, .* has 0"):
        explain.attribute(view_cnn, np.zeros((1, 64, 64, 1), np.float32), 0, "multiscale_cam")
    film = keras.Input((8, 8, 1))
    pooled = layers.GlobalMaxPooling2D(name="pool")(layers.Conv2D(2, 3)(film))
    x = LayerRelevance(name="relevance")([layers.Dense(2, name="vote")(pooled)])
    with pytest.raises(ValueError, match="'vote' must follow a GlobalAveragePooling2D, it follows 'pool'"):
        explain.explainer(keras.Model(film, x), "multiscale_cam")
    pooled = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(2, 3)(film))
    x = LayerRelevance(name="relevance")([pooled])
    with pytest.raises(ValueError, match="must combine linear Dense layers, 'pool' is none"):
        explain.explainer(keras.Model(film, x), "multiscale_cam")
