"""RAP against the oracle arrays, and what must hold on any net: the map's sum is the logit."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain, models
from kxray.explain.rap import rap
from kxray.layers.layer_relevance import LayerRelevance

NETS = runpy.run_path(str(Path(__file__).with_name("oracle_nets.py")))
# Name of an intermediate array -> the layer here whose output it belongs to.
PLACES = {
    "flat": {"in_fc2": "relu3", "in_relu3": "fc1", "in_fc1": "flatten", "in_flatten": "relu2"},
    "gap": {"in_fc": "gap", "in_flatten": "gap", "in_gap": "relu2"},
    "bn": {"in_fc": "gap", "in_flatten": "gap", "in_gap": "relu2", "in_relu2": "bn2", "in_bn2": "conv2"},
    "res": {"in_fc": "gap", "in_flatten": "gap", "in_gap": "b2_out", "in_block2": "b1_out"},
    "dense": {"in_fc": "gap", "cat3": "cat3", "t": "t", "cat2": "cat2", "cat1": "cat1", "x0": "pool"},
}
PLACES["flat"] |= {"in_relu2": "conv2", "in_conv2": "pool", "in_pool": "relu1", "in_relu1": "conv1"}
PLACES["gap"] |= {"in_relu2": "conv2", "in_conv2": "pool", "in_pool": "relu1", "in_relu1": "conv1"}
PLACES["bn"] |= {"in_conv2": "pool", "in_pool": "relu1", "in_relu1": "bn1", "in_bn1": "conv1"}
PLACES["res"] |= {"in_block1": "pool", "in_pool": "relu1", "in_relu1": "bn1", "in_bn1": "conv1"}
PLACES["dense"] |= {"in_bn0": "conv0"}
PLACES["gray"] = PLACES["gap"]


def oracle(net):
    return NETS["arrays"](f"oracle_rap_{net}")


def targets(arrays, low):
    return tf.constant(arrays["T_low"].argmax(axis=1) if low else arrays["target"], tf.int32)


def assert_close(found, expected, share):
    expected = NETS["channels_last"](expected)
    found = np.asarray(found).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("low", ["", "_low"])
@pytest.mark.parametrize("net", NETS["NAMES"])
def test_every_oracle_array_in_float64(net, low):
    arrays = oracle(net)
    model, images = NETS["build"](net, arrays), tf.constant(NETS["films"](arrays))
    cases = [
        # The authors' code takes a one-channel film for a hidden layer and doubles its relevance.
        (f"R{low}_authors_generic" if net == "gray" else f"R{low}", {"mode": "authors"}),
        (f"R_conserving{low}", {"commute": False}),
    ]
    if net == "dense":
        cases.append((f"R_conserving_commuted{low}", {}))
    if net == "gray":
        # z^B on the one channel: what the authors' code gives where a film is in three (see below).
        cases.append((f"R{low}", {}))
    for key, options in cases:
        assert_close(rap(model, **options)(images, targets(arrays, low))["heatmap"], arrays[key], 2e-9)


@pytest.mark.parametrize("net", NETS["NAMES"])
def test_the_relevance_of_every_layer(net):
    arrays = oracle(net)
    model, images = NETS["build"](net, arrays), tf.constant(NETS["films"](arrays))
    relevance = rap(model, "authors").of_layers(images, targets(arrays, ""))
    for place, layer in PLACES[net].items():
        expected = arrays[f"R_{place}"]
        if place == "in_fc1":
            # Flattened in torch's order.
            expected = expected.reshape(-1, 6, 6, 6)
        assert_close(relevance[layer], expected, 2e-9)


def float32_error(arrays):
    """How far the authors' code itself is off in float32: 2.3e-4 in `res`, whose first sum cancels."""
    return np.abs(arrays["R32"] - arrays["R"]).max() / np.abs(arrays["R"]).max() if "R32" in arrays else 0


@pytest.mark.parametrize("net", NETS["NAMES"])
def test_oracle_arrays_in_float32(net):
    arrays = oracle(net)
    model = NETS["build"](net, arrays, "float32", activation="sigmoid")
    images = NETS["films"](arrays, "float32")
    for key, options in (("R", {"mode": "authors"}), ("R_conserving", {"commute": False})):
        if (net, key) != ("gray", "R"):
            maps = explain.attribute(model, images, arrays["target"], "rap", **options)
            assert_close(maps, arrays[key], max(1e-4, 1.1 * float32_error(arrays)))
            assert maps.dtype == np.float32


def test_a_film_in_three_channels_is_the_film():
    """The authors' own rule for colours gives, added up, the one-channel map."""
    arrays = oracle("gray")
    gray = NETS["build"]("gray", arrays)
    film = keras.Input((12, 12, 1), dtype="float64")
    x = layers.Concatenate(dtype="float64")([film] * 3)
    x = layers.Conv2D(4, 3, padding="same", dtype="float64", name="colours")(x)
    for layer in gray.layers[2:]:
        x = layer(x)
    model = keras.Model(film, x)
    kernel, bias = gray.get_layer("conv1").get_weights()
    model.get_layer("colours").set_weights([np.repeat(kernel, 3, axis=2) / 3, bias])
    images = tf.constant(NETS["films"](arrays))
    for mode in ("authors", "conserving"):
        assert_close(rap(model, mode)(images, targets(arrays, ""))["heatmap"], arrays["R"], 1e-9)


def with_statistics(model, films):
    """Batch normalisation as after training: statistics of films, scales of both signs, offsets."""
    rng = np.random.default_rng(5)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.1
        norm.gamma.assign(
            rng.uniform(0.5, 1.5, norm.gamma.shape) * rng.choice([1, 1, 1, -1], norm.gamma.shape)
        )
        norm.beta.assign(rng.normal(0, 0.2, norm.beta.shape))
    for _ in range(3):
        model(films, training=True)
    return model


def view_cnn():
    return models.build("view_cnn")


def alexnet_like():
    film = keras.Input((64, 64, 1))
    x = layers.Concatenate()([film] * 3)
    x = layers.Rescaling([4.4, 4.5, 4.4], [-2.1, -2.0, -1.8])(x)
    x = layers.Conv2D(8, 11, strides=4, activation="relu")(layers.ZeroPadding2D(2)(x))
    x = layers.MaxPooling2D(3, 2)(x)
    x = layers.Conv2D(8, 5, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(3, 2)(x))
    x = layers.Dense(16, activation="relu")(layers.Dropout(0.5)(x))
    return keras.Model(film, layers.Dense(4, activation="softmax")(x))


def stem(film):
    x = layers.Rescaling(4.4, -2.0)(film)
    x = layers.Conv2D(8, 7, strides=2, use_bias=False)(layers.ZeroPadding2D(3)(x))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))


def dense_net():
    film = keras.Input((64, 64, 1))
    x = stem(film)
    for block in range(2):
        for _ in range(3):
            new = layers.Conv2D(16, 1, use_bias=False)(layers.ReLU()(layers.BatchNormalization()(x)))
            new = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(new)))
            x = layers.Concatenate()([x, new])
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.AveragePooling2D(2)(layers.Conv2D(10, 1, use_bias=False)(x)) if block == 0 else x
    return keras.Model(film, layers.Dense(4, "sigmoid")(layers.GlobalAveragePooling2D()(x)))


def res_net():
    film = keras.Input((64, 64, 1))
    x = stem(film)
    for filters in (8, 12):
        shortcut = layers.BatchNormalization()(layers.Conv2D(filters, 1, strides=2)(x))
        new = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 1, strides=2)(x)))
        new = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(new)))
        new = layers.BatchNormalization()(layers.Conv2D(filters, 1)(new))
        x = layers.ReLU()(layers.Add()([shortcut, new]))
    return keras.Model(film, layers.Dense(4, "sigmoid")(layers.GlobalAveragePooling2D()(x)))


def mobile_net():
    """Signed inputs, depthwise and separable convolutions, SiLU, a squeeze-and-excitation gate."""
    film = keras.Input((64, 64, 1))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, use_bias=False)(film))
    x = layers.Activation("silu")(x)
    new = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    gate = layers.Dense(8, "sigmoid")(layers.Dense(4, "relu")(layers.GlobalAveragePooling2D()(new)))
    new = layers.Multiply()([new, layers.Reshape((1, 1, 8))(gate)])
    x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(8, 1)(new))])
    x = layers.Activation("gelu")(layers.SeparableConv2D(6, 3)(x))
    x = layers.AveragePooling2D(2)(layers.LeakyReLU()(x))
    return keras.Model(film, layers.Dense(4, "sigmoid")(layers.GlobalMaxPooling2D()(x)))


def voting():
    film = keras.Input((64, 64, 1))
    shallow = stem(film)
    deep = layers.Conv2D(8, 3, activation="relu")(shallow)
    votes = [layers.Dense(3)(layers.GlobalAveragePooling2D()(x)) for x in (shallow, deep)]
    return keras.Model(film, layers.Activation("sigmoid")(LayerRelevance()(votes)))


@pytest.fixture(scope="module")
def films():
    films = np.random.default_rng(0).random((4, 64, 64, 1)).astype("float32")
    films[:, 50:] = 0
    films[1, :, 40:] = 1
    return films


@pytest.mark.parametrize(
    ("build", "sums"),
    [
        (view_cnn, "ratio"),
        (alexnet_like, "ratio"),
        (dense_net, "ratio"),
        (res_net, "ratio"),
        (res_net, "abs"),
        (mobile_net, "abs"),
        (voting, "ratio"),
    ],
)
def test_the_sum_of_a_map_is_its_logit(build, sums, films):
    keras.utils.set_random_seed(1)
    model = with_statistics(build(), films)
    explained = explain.detailed_explainer(model, "rap", sums=sums)
    for unit in range(model.outputs[0].shape[-1]):
        result = explained(films, np.int32([unit] * len(films)))
        totals = result["heatmap"].numpy().astype("float64").sum(axis=(1, 2, 3))
        logits = result["logits"].numpy()[:, unit]
        np.testing.assert_allclose(totals, logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [dense_net, mobile_net])
def test_a_film_of_one_grey_has_a_flat_map(build, films):
    keras.utils.set_random_seed(1)
    model = with_statistics(build(), films)
    constant = np.ones((3, 64, 64, 1), "float32") * np.float32([0, 0.4, 1]).reshape(3, 1, 1, 1)
    result = explain.detailed_explainer(model, "rap")(constant, np.int32([1, 1, 2]))
    for flat, logits, unit in zip(
        result["heatmap"].numpy(), result["logits"].numpy(), (1, 1, 2), strict=True
    ):
        assert np.ptp(flat) <= 1e-4 * np.abs(flat).max()
        np.testing.assert_allclose(flat.astype("float64").sum(), logits[unit], rtol=1e-4)


def one_hidden_layer():
    """Two hidden units, relu(a - b) and relu(a + b), both for the logit; films of one pixel (a, b)."""
    film = keras.Input((1, 1, 2), dtype="float64")
    x = layers.Dense(2, name="film_layer", dtype="float64")(layers.Flatten(dtype="float64")(film))
    x = layers.Dense(2, activation="relu", name="hidden", dtype="float64")(x)
    model = keras.Model(film, layers.Dense(1, name="logit", dtype="float64")(x))
    model.get_layer("film_layer").set_weights([np.eye(2), np.zeros(2)])
    model.get_layer("hidden").set_weights([np.array([[1.0, 1.0], [-1.0, 1.0]]), np.zeros(2)])
    model.get_layer("logit").set_weights([np.array([[1.0], [1.0]]), np.array([2.0])])
    return model


def test_the_steps_by_hand():
    """a = 3, b = 1: hidden units 2 and 4, logit 6 + 2, shared as 8/3 and 16/3.

    First unit: a raises it by 3, b lowers it by 1: a gets 8/3, b gets 1 * (8/3) / 4 = 2/3.
    Second unit: a gets 3/4 of 16/3 = 4, b 4/3. Contributions 20/3 and 2, 2/3 more than 8: each less 1/3.
    """
    images = tf.constant([[[[3.0, 1.0]]]], tf.float64)
    way = rap(one_hidden_layer())
    relevance = way.of_layers(images, tf.constant([0]))
    np.testing.assert_allclose(relevance["logit"], [[8.0]])
    np.testing.assert_allclose(relevance["hidden"], [[8 / 3, 16 / 3]])
    np.testing.assert_allclose(relevance["film_layer"], [[19 / 3, 5 / 3]])


def test_a_batch_is_its_films_and_every_film_has_its_target(films):
    keras.utils.set_random_seed(1)
    model = with_statistics(dense_net(), films)
    units = np.array([2, 0, 1, 1])
    together = explain.attribute(model, films, units, "rap")
    for index, unit in enumerate(units):
        alone = explain.attribute(model, films[index : index + 1], int(unit), "rap")
        np.testing.assert_allclose(together[index], alone[0], atol=1e-4 * np.abs(alone).max())


def test_traced_once_whatever_the_batch(films):
    traced = explain.explainer(view_cnn(), "rap")
    for count in (1, 4, 2):
        assert traced(films[:count], np.zeros(count, "int32")).shape == (count, 64, 64, 1)
    assert traced.experimental_get_tracing_count() == 1


def test_half_precision_models_have_float32_maps(films):
    keras.utils.set_random_seed(1)
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        model = with_statistics(res_net(), films)
    finally:
        keras.config.set_dtype_policy(policy)
    result = explain.detailed_explainer(model, "rap")(films, np.int32([0] * 4))
    assert result["heatmap"].dtype == tf.float32
    totals = result["heatmap"].numpy().sum(axis=(1, 2, 3))
    np.testing.assert_allclose(totals, result["logits"].numpy()[:, 0], rtol=0.02, atol=0.01)


LOADED_ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf
films, folder, found = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
loaded = tf.saved_model.load(folder)
target = tf.zeros([len(films)], tf.int32)
maps = {name: getattr(loaded, name)(tf.constant(films), target).numpy() for name in ("lrp", "rap")}
assert not {name for name in sys.modules if name.startswith("kxray")}
np.savez(found, **maps)
"""


def test_a_saved_explainer_needs_no_kxray(films, tmp_path):
    keras.utils.set_random_seed(1)
    model = with_statistics(voting(), films)
    holder = tf.Module()
    holder.lrp = explain.explainer(model, "lrp", canonize="fold")
    holder.rap = explain.explainer(model, "rap")
    holder.variables_kept = [weight.value for weight in model.weights]
    expected = {name: getattr(holder, name)(films, np.zeros(4, "int32")).numpy() for name in ("lrp", "rap")}
    tf.saved_model.save(holder, str(tmp_path / "saved"))
    np.save(tmp_path / "films.npy", films)
    script = tmp_path / "loaded_elsewhere.py"
    script.write_text(LOADED_ELSEWHERE)
    files = [str(tmp_path / name) for name in ("films.npy", "saved", "found.npz")]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, str(script), *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(files[2]) as found:
        for name, maps in expected.items():
            np.testing.assert_allclose(found[name], maps, rtol=0, atol=1e-5 * max(1, np.abs(maps).max()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "fair"}, "mode must be one of conserving, authors, got 'fair'"),
        ({"sums": "max"}, "sums must be one of ratio, abs, got 'max'"),
        ({"epsilon": 1}, "rap has no option 'epsilon'; its options are: mode, sums, commute, upsample"),
    ],
)
def test_other_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        explain.explainer(view_cnn(), "rap", **options)
