"""Convex by construction or by penalty, and a weighted sum by hand."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kxray.layers import LayerRelevance

SCORES = np.array([[0.0, np.log(3)], [0.0, 0.0]], np.float32)
LOGITS = [np.array([[1.0, 10.0]], np.float32), np.array([[3.0, 20.0]], np.float32)]


def built(stages=2, classes=2, **options):
    layer = LayerRelevance(**options)
    layer.build([(None, classes)] * stages)
    return layer


def test_a_weighted_sum_by_hand():
    layer = built()
    layer.scores.assign(SCORES)
    # softmax over the stages: class 0 has 1/2 and 1/2, class 1 has 3/4 and 1/4.
    np.testing.assert_allclose(layer.relevance(), [[0.5, 0.75], [0.5, 0.25]], atol=1e-6)
    np.testing.assert_allclose(layer(LOGITS), [[2.0, 12.5]], atol=1e-5)


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_softmax_weights_are_convex_whatever_their_scores(scores):
    layer = built(len(scores), 3)
    layer.scores.assign(np.float32(scores))
    weights = np.asarray(layer.relevance())
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-5)
    assert layer.distance_from_convex() < 1e-5


def test_equal_stages_are_not_changed_by_any_convex_weights():
    layer = built(3)
    layer.scores.assign(np.random.default_rng(0).normal(size=(3, 2)))
    same = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)
    np.testing.assert_allclose(layer([same] * 3), same, atol=1e-6)


def test_the_penalty_by_hand():
    layer = built(constraint="penalty", penalty=2.0)
    layer.scores.assign([[0.5, -0.25], [0.5, 0.75]])
    np.testing.assert_allclose(layer(LOGITS), [[2.0, 12.5]], atol=1e-5)
    # Class 1 sums to 0.5 and holds -0.25: 2 * (0.5 ** 2 + 0.25 ** 2).
    np.testing.assert_allclose(layer.losses[0], 0.625, atol=1e-6)
    assert layer.distance_from_convex() == pytest.approx(0.5)


def test_a_penalty_pulls_the_weights_towards_convex():
    keras.utils.set_random_seed(0)
    stages = [keras.Input((2,)), keras.Input((2,))]
    layer = LayerRelevance("penalty", penalty=10.0)
    model = keras.Model(stages, layer(stages))
    layer.scores.assign([[2.0, -1.0], [0.3, 0.1]])
    before = layer.distance_from_convex()
    model.compile(keras.optimizers.Adam(0.05), "mse")
    zeros = np.zeros((8, 2), np.float32)
    model.fit([zeros, zeros], zeros, epochs=200, verbose=0)
    assert before > 1 and layer.distance_from_convex() < 0.02


def test_one_stage_has_the_whole_say():
    layer = built(1, 3)
    assert not layer.trainable_variables
    np.testing.assert_array_equal(layer.relevance(), np.ones((1, 3)))


def test_it_is_saved_with_its_options(tmp_path):
    stages = [keras.Input((2,)), keras.Input((2,))]
    model = keras.Model(stages, LayerRelevance("penalty", 0.5, name="relevance")(stages))
    model.get_layer("relevance").scores.assign(SCORES)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("relevance").get_config()["penalty"] == 0.5
    np.testing.assert_array_equal(loaded(LOGITS), model(LOGITS))


def test_float32_under_half_precision():
    layer = LayerRelevance(dtype="mixed_bfloat16")
    assert layer([logits.astype("float32") for logits in LOGITS]).dtype == "bfloat16"
    assert layer.scores.dtype == "float32"


@pytest.mark.parametrize(
    ("options", "shapes", "words"),
    [
        ({"constraint": "clip"}, None, "softmax, penalty, got 'clip'"),
        ({"penalty": -1.0}, None, "0 or more, got -1.0"),
        ({}, [(None, 2), (None, 3)], "one shape"),
        ({}, (None, 2), "a list of stage logits"),
    ],
)
def test_wrong_use_is_named(options, shapes, words):
    with pytest.raises(ValueError, match=words):
        layer = LayerRelevance(**options)
        layer.build(shapes)
