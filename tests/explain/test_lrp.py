"""LRP against the oracle arrays and against numbers worked out by hand."""

import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain
from kxray.explain.lrp import COMPOSITES, alpha_beta, epsilon, flat, gamma, lrp, z_box, zplus

NETS = runpy.run_path(str(Path(__file__).with_name("oracle_nets.py")))
EVERYWHERE = layers.Layer
# Rule set of the oracle files -> options here. The pools and sums of `epsilon_0.25` have 1e-6 there too.
RULE_SETS = {
    "epsilon_1e-6": {"composite": "epsilon"},
    "epsilon_0.25": {"composite": "epsilon", "epsilon": 0.25},
    "alpha2beta1": {"composite": "alpha2_beta1"},
    "alpha1beta0": {"composite": "zplus"},
    "zplus": {"rules": {EVERYWHERE: "zplus"}},
    "gamma_0.25": {"composite": "gamma"},
    "epsilon_zero_bias": {"rules": {EVERYWHERE: epsilon(zero_bias=True)}},
    "zplus_zero_bias": {"composite": "excitation"},
    "EpsilonPlus": {},
    "EpsilonPlusFlat": {"composite": "epsilon_plus_flat"},
    "EpsilonAlpha2Beta1Flat": {"composite": "epsilon_alpha2_beta1_flat"},
    "EpsilonGammaBox_m4_p4": {"composite": "epsilon_gamma_box", "low": -4.0, "high": 4.0},
    "EpsilonPlus_WSquareFirst": {"rules": {"conv1": "w_square"}},
}
PREFIXES = {"": None, "canon_": "fold", "thresh_": "thresh"}
# Name of an intermediate array -> the layer here whose output it belongs to.
PLACES = {
    "in_pool": "relu1",
    "in_conv2": "pool",
    "in_gap": "relu2",
    "in_fc": "gap",
    "in_fc1": "flatten",
    "in_fc2": "relu3",
    "in_flatten": "relu2",
    "in_block1": "pool",
    "in_block2": "b1_out",
    "x0": "pool",
    "cat2": "cat2",
    "t": "t",
    "cat3": "cat3",
}


def options_of(net, rule_set):
    options = dict(RULE_SETS[rule_set])
    if net == "dense" and options.get("rules") == {"conv1": "w_square"}:
        options["rules"] = {"conv0": "w_square"}
    return options


def oracle(net):
    return NETS["arrays"](f"oracle_lrp_{net}")


def assert_close(found, expected, share):
    expected = NETS["channels_last"](expected)
    found = np.asarray(found).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("canonized", PREFIXES)
@pytest.mark.parametrize("net", NETS["NAMES"])
def test_every_oracle_array_in_float64(net, canonized):
    arrays = oracle(net)
    model, images = NETS["build"](net, arrays), tf.constant(NETS["films"](arrays))
    target = tf.constant(arrays["target"], tf.int32)
    rule_sets = [name for name in RULE_SETS if f"R_{canonized}{name}" in arrays]
    met = 0
    for name in rule_sets:
        way = lrp(model, canonize=PREFIXES[canonized], **options_of(net, name))
        result = way(images, target)
        assert_close(result["heatmap"], arrays[f"R_{canonized}{name}"], 1e-9)
        relevance = way.of_layers(images, target)
        for key in arrays:
            place = key.removeprefix(f"R_{canonized}{name}__")
            if place != key:
                layer = "gap" if net == "res" and place == "in_fc" else PLACES[place]
                layer = "b2_out" if net == "res" and place == "in_gap" else layer
                layer = "relu5" if net == "dense" and place == "in_gap" else layer
                expected = arrays[key]
                if place == "in_fc1":
                    # Flattened in torch's order.
                    expected = expected.reshape(-1, 6, 6, 6)
                assert_close(relevance[layer], expected, 1e-9)
                met += 1
        met += 1
    stored = [key for key in arrays if key.startswith("R_") and key.startswith(f"R_{canonized}")]
    stored = [key for key in stored if canonized or not key.startswith(("R_canon_", "R_thresh_"))]
    assert met == len(stored)


@pytest.mark.parametrize("net", NETS["NAMES"])
def test_oracle_arrays_in_float32(net):
    arrays = oracle(net)
    model = NETS["build"](net, arrays, "float32", activation="softmax")
    images = NETS["films"](arrays, "float32")
    canonized = {"dense": "thresh_", "bn": "canon_", "res": "canon_"}.get(net, "")
    for name in ("EpsilonPlus", "EpsilonGammaBox_m4_p4"):
        options = {"canonize": PREFIXES[canonized], **options_of(net, name)}
        maps = explain.attribute(model, images, arrays["target"], "lrp", **options)
        assert maps.dtype == np.float32
        assert_close(maps, arrays[f"R_{canonized}{name}"], 1e-4)


def two_inputs(bias=0.0):
    """One unit: 2 a - 1 b + bias of a film of two channels and one pixel."""
    film = keras.Input((1, 1, 2))
    out = layers.Dense(1, name="unit")(layers.Flatten()(film))
    model = keras.Model(film, out)
    model.get_layer("unit").set_weights([np.float32([[2], [-1]]), np.float32([bias])])
    return model


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # a = 3 adds 6, b = 2 takes 2: the logit is 4.
        (epsilon(0), [6.0, -2.0]),
        (epsilon(4.0), [3.0, -1.0]),
        (zplus(), [4.0, 0.0]),
        (alpha_beta(2, 1), [8.0, -4.0]),
        (gamma(1.0), [4.8, -0.8]),
        (flat(), [2.0, 2.0]),
        ("w_square", [3.2, 0.8]),
        # low 0, high 4: 3 * 2 - 0 and -2 + 4.
        (z_box(), [3.0, 1.0]),
    ],
)
def test_one_unit_by_hand(rule, expected):
    film = np.float32([3, 2]).reshape(1, 1, 1, 2)
    maps = explain.attribute(two_inputs(), film, 0, "lrp", rules={"unit": rule}, high=4.0)
    np.testing.assert_allclose(maps.ravel(), expected, rtol=1e-5)


def test_the_bias_takes_its_share():
    film = np.float32([3, 2]).reshape(1, 1, 1, 2)
    with_bias = explain.attribute(two_inputs(4.0), film, 0, "lrp", composite="epsilon")
    without = explain.attribute(two_inputs(4.0), film, 0, "lrp", rules={"unit": epsilon(zero_bias=True)})
    np.testing.assert_allclose(with_bias.ravel(), [6.0, -2.0], rtol=1e-5)
    np.testing.assert_allclose(without.ravel(), [12.0, -4.0], rtol=1e-5)


def small(channels=1, dtype=None, units=3):
    """A film rescaled, repeated in three channels and padded, as backbones of ImageNet take it."""
    keras.utils.set_random_seed(3)
    film = keras.Input((16, 16, channels), name="film")
    x = layers.Concatenate(dtype=dtype)([film] * 3) if channels == 1 else film
    x = layers.Rescaling([2.0, 3.0, 1.0], [-1.0, 0.0, -0.5], dtype=dtype)(x)
    x = layers.ZeroPadding2D(1, dtype=dtype)(x)
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="one", dtype=dtype)(x)
    x = layers.MaxPooling2D(2, dtype=dtype)(layers.ZeroPadding2D(1, dtype=dtype)(x))
    x = layers.BatchNormalization(dtype=dtype)(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="two", dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(film, layers.Dense(units, activation="sigmoid", dtype="float32", name="head")(x))


@pytest.fixture
def films():
    return np.random.default_rng(0).random((4, 16, 16, 1)).astype("float32")


def logits_of(model, films):
    return explain.detailed_explainer(model, "lrp")(films, np.int32([-1] * len(films)))["logits"].numpy()


@pytest.mark.parametrize("composite", COMPOSITES)
def test_maps_are_of_the_film(films, composite):
    maps = explain.attribute(small(), films, [0, 1, 2, 0], "lrp", composite=composite)
    assert maps.shape == films.shape and np.all(np.isfinite(maps)) and np.ptp(maps) > 0


def test_box_bounds_go_through_preprocessing_and_padding(films):
    """Nothing is lost in the first layer, whatever its preprocessing: z^B knows no bias."""
    maps = explain.attribute(small(), films, 1, "lrp", rules={"one": "z_box", EVERYWHERE: epsilon(0, True)})
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), logits_of(small(), films)[:, 1], rtol=1e-3)


@pytest.mark.parametrize("rule", [flat(), "w_square"])
def test_rules_that_do_not_look_give_none_to_padding(films, rule):
    model = small()
    model.get_layer("one").bias.assign(np.zeros(6))
    options = {"rules": {"one": rule, EVERYWHERE: epsilon(0, True)}}
    maps = explain.attribute(model, films, 1, "lrp", **options)
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), logits_of(model, films)[:, 1], rtol=1e-3)


def test_a_batch_is_its_films_and_every_film_has_its_target(films):
    model = small()
    targets = np.array([2, 0, 1, 1])
    together = explain.attribute(model, films, targets, "lrp")
    for index, target in enumerate(targets):
        alone = explain.attribute(model, films[index : index + 1], int(target), "lrp")
        np.testing.assert_allclose(together[index], alone[0], atol=1e-6 * np.abs(alone).max())


def test_the_predicted_unit(films):
    model = small()
    best = logits_of(model, films).argmax(axis=1)
    traced = explain.explainer(model, "lrp")
    predicted = traced(films, np.int32([explain.PREDICTED] * 4)).numpy()
    np.testing.assert_array_equal(predicted, traced(films, best.astype("int32")).numpy())


def test_half_precision_models_have_float32_maps(films):
    whole, half = small(), small(dtype="mixed_bfloat16")
    half.set_weights(whole.get_weights())
    maps = explain.attribute(half, films, 0, "lrp")
    assert maps.dtype == np.float32
    expected = explain.attribute(whole, films, 0, "lrp")
    # The relevance of one logit is that logit in bfloat16; the way back is float32.
    np.testing.assert_allclose(maps, expected, atol=0.02 * np.abs(expected).max())
    answer = explain.detailed_explainer(half, "lrp")(films, np.int32([0] * 4))["logits"].numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-answer)), half(films).numpy(), atol=1e-5)


def test_no_second_trace_and_no_second_explainer(films):
    model = small()
    traced = explain.explainer(model, "lrp")
    for count in (1, 4, 2):
        traced(films[:count], np.zeros(count, "int32"))
    assert traced.experimental_get_tracing_count() == 1
    for _ in range(2):
        explain.attribute(model, films, 0, "lrp", rules={layers.Conv2D: gamma(0.1), "head": "epsilon"})
    assert len(model.__dict__["_kxray_explainers"]) == 1


def test_rules_by_name_and_by_class(films):
    model = small()
    by_class = explain.attribute(model, films, 0, "lrp", rules={layers.Conv2D: "gamma"})
    by_name = explain.attribute(model, films, 0, "lrp", rules={"one": gamma(), "two": gamma(0.25)})
    name_first = explain.attribute(
        model,
        films,
        0,
        "lrp",
        composite="gamma",
        rules={layers.Layer: flat(), "one": gamma(), "two": gamma()},
    )
    np.testing.assert_array_equal(by_class, by_name)
    assert np.abs(name_first - by_class).max() > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"composite": "epsilon_minus"},
            "unknown composite 'epsilon_minus'; the known ones are: epsilon, zplus",
        ),
        ({"canonize": "bend"}, "canonize must be None, 'fold' or 'thresh', got 'bend'"),
        ({"rules": {"conv9": "flat"}}, "has no linear layer 'conv9'; it has: head, one, two"),
        ({"rules": {"one": "round"}}, "a rule must be made by kxray.explain.lrp or be one of epsilon"),
        ({"rules": {3: "flat"}}, "rules are given by a layer's name or class, got 3"),
        ({"rules": {"two": "z_box"}}, "z_box is for layers that see the film, 'two' does not"),
        ({"epsilon": -1.0}, "epsilon must be a number of at least 0, got -1.0"),
        ({"low": 1.0}, "low must be below high, got low=1.0, high=1.0"),
    ],
)
def test_other_options(options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        explain.explainer(small(), "lrp", **options)


def test_rules_with_wrong_numbers():
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        alpha_beta(2, 2)
    with pytest.raises(ValueError, match="gamma must be a number of at least 0"):
        gamma(-0.1)
