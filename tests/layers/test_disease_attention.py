"""Attention guided by masks: by hand, conserving, blind nowhere, and silent where masks say nothing."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kxray.layers import DiseaseAttention

FEATURES = np.float32([[[[1.0], [3.0]], [[0.0], [2.0]]]])


def built(features=FEATURES, masks=None, num_labels=1, **options):
    layer = DiseaseAttention(num_labels, mask_size=features.shape[1], **options)
    layer.build((None, *features.shape[1:]))
    if masks is not None:
        layer.set_masks(np.float32(masks))
    return layer


def numbers(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def test_evidence_and_logit_by_hand():
    layer = built(masks=[[[1, 0], [0, 0]]])
    layer.projection.assign([[2.0]])
    layer.bias.assign([0.5])
    answer = numbers(layer(FEATURES))
    # Soft masks 1, 0.1, 0.1, 0.1 share out 4 places: 40 / 13, 4 / 13 ...; times 2 * (1, 3, 0, 2).
    expected = np.float32([[80, 24], [0, 16]]) / 13
    np.testing.assert_allclose(answer["evidence"][0, ..., 0], expected, rtol=1e-6)
    np.testing.assert_allclose(answer["logits"], [[120 / 13 / 4 + 0.5]], rtol=1e-6)


def test_learned_attention_multiplies_the_mask_by_hand():
    layer = built(masks=[[[1, 0], [0, 0]]])
    layer.projection.assign([[1.0]])
    layer.attention.assign([[np.log(2.0)]])
    # 2 ^ feature times the soft mask: 2, 0.8, 0.1, 0.4 of 3.3.
    expected = 4 * np.float32([[2 * 1, 0.8 * 3], [0, 0.4 * 2]]) / 3.3
    np.testing.assert_allclose(layer(FEATURES)["evidence"][0, ..., 0], expected, rtol=1e-5)


def test_gamma_says_how_sharply_the_mask_counts():
    layer = built(masks=[[[1, 0.25], [0, 1]]], gamma=0.5, floor=0.2)
    np.testing.assert_allclose(layer.exponents(), [0.5], rtol=1e-6)
    np.testing.assert_allclose(layer.soft_masks((2, 2))[..., 0], [[1, 0.6], [0.2, 1]], rtol=1e-6)
    layer.gamma_scores.assign([-30.0])
    assert layer.exponents().numpy()[0] > 0
    assert built().exponents().numpy()[0] == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_the_evidence_always_accounts_for_the_logit(seed, floor, gamma):
    random = np.random.default_rng(seed)
    features = random.normal(size=(2, 5, 4, 3)).astype("float32")
    layer = DiseaseAttention(6, floor=floor, gamma=gamma, mask_size=7)
    layer.build(features.shape)
    layer.set_masks(random.random((6, 9, 9)) * (random.random((6, 9, 9)) > 0.5))
    for weight in (layer.projection, layer.attention, layer.bias):
        weight.assign(random.normal(size=weight.shape))
    answer = numbers(layer(features))
    whole = answer["evidence"].mean(axis=(1, 2)) + layer.bias.numpy()
    np.testing.assert_allclose(whole, answer["logits"], atol=1e-4)


def test_masks_of_one_value_have_no_part():
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 6, 6, 4)).astype("float32")
    kernel = random.normal(size=(4, 2))
    answers = []
    for value in (1.0, 0.3, 0.0):
        layer = built(features, np.full((2, 6, 6), value), num_labels=2)
        layer.projection.assign(kernel)
        # Without attention learned it is global average pooling and a dense layer.
        np.testing.assert_allclose(layer(features)["logits"], features.mean(axis=(1, 2)) @ kernel, atol=1e-5)
        layer.attention.assign(kernel[::-1])
        answers.append(layer(features)["evidence"].numpy())
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-5)


def test_the_floor_leaves_no_place_out_of_sight():
    left = np.zeros((1, 4, 4))
    left[:, :, :2] = 1
    features = np.zeros((1, 4, 4, 1), np.float32)
    features[0, 1, 3] = 1
    layer = built(features, left)
    layer.projection.assign([[1.0]])
    answer = numbers(layer(features))
    # Of 16 places 8 weigh 1 and 8 weigh a tenth: 0.1 / 8.8 of the sum.
    assert answer["evidence"][0, 1, 3, 0] == pytest.approx(16 * 0.1 / 8.8, rel=1e-5)
    assert answer["logits"][0, 0] == pytest.approx(0.1 / 8.8, rel=1e-5)


def test_what_one_sees_left_and_the_other_right_is_told_apart_by_masks_alone():
    """The same spot is disease 0 on the left and disease 1 on the right; features do not know the side."""
    random = np.random.default_rng(1)
    films = np.zeros((64, 4, 4, 1), np.float32)
    rows, columns = random.integers(0, 4, 64), random.integers(0, 4, 64)
    films[np.arange(64), rows, columns] = 1
    truth = np.stack([columns < 2, columns >= 2], axis=1).astype("float32")
    masks = np.zeros((2, 4, 4))
    masks[0, :, :2] = masks[1, :, 2:] = 1
    shares = {}
    for name, maps in (("masks", masks), ("uniform", np.ones((2, 4, 4)))):
        film = keras.Input((4, 4, 1))
        layer = DiseaseAttention(2, mask_size=4)
        model = keras.Model(film, layer(film)["logits"])
        layer.set_masks(maps)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.3), loss)
        model.fit(films, truth, batch_size=64, epochs=100, verbose=0)
        logits = model.predict(films, verbose=0)
        shares[name] = ((logits > 0) == truth).mean()
    assert shares["masks"] == 1 and shares["uniform"] < 0.7


def test_slopes_are_numbers_where_masks_are_0():
    import tensorflow as tf

    layer = built(masks=[[[0, 0.5], [1, 0]]])
    with tf.GradientTape() as tape:
        score = tf.reduce_sum(layer(FEATURES)["logits"] ** 2)
    slopes = tape.gradient(score, layer.trainable_variables)
    assert len(slopes) == 4 and all(np.isfinite(slope).all() for slope in slopes)
    names = [weight.name for weight in layer.trainable_variables]
    assert np.abs(slopes[names.index("gamma_scores")]).max() > 0


def test_masks_are_resized_and_kept_in_range():
    layer = DiseaseAttention(1, mask_size=8)
    layer.build((None, 4, 2, 3))
    half = np.zeros((1, 16, 16))
    half[:, :, 8:] = 1
    layer.set_masks(half)
    kept = layer.masks.numpy()[..., 0]
    assert kept.shape == (8, 8) and kept[:, :3].max() < 1e-6 and kept[:, 5:].min() > 1 - 1e-6
    soft = layer.soft_masks((4, 2)).numpy()[..., 0]
    assert soft.shape == (4, 2) and soft[:, 0].max() < 0.35 and soft[:, 1].min() > 0.75
    assert soft.max() <= 1 and soft.min() >= 0.1


def test_it_is_saved_with_its_masks(tmp_path):
    film = keras.Input((2, 2, 1))
    layer = DiseaseAttention(1, floor=0.2, mask_size=2, name="attend")
    model = keras.Model(film, layer(film))
    layer.set_masks(np.float32([[[1, 0], [0.5, 0]]]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("attend").get_config()["floor"] == 0.2
    np.testing.assert_array_equal(loaded.get_layer("attend").masks, layer.masks)
    for name, value in model(FEATURES).items():
        np.testing.assert_array_equal(loaded(FEATURES)[name], value)


def test_float32_weights_and_half_precision_answers():
    layer = DiseaseAttention(2, dtype="mixed_bfloat16")
    assert {value.dtype.name for value in layer(FEATURES).values()} == {"bfloat16"}
    assert layer.projection.dtype == "float32" and layer.masks.dtype == "float32"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": 0.0}, "floor must be above 0 and at most 1, got 0.0"),
        ({"floor": 1.5}, "floor must be above 0 and at most 1, got 1.5"),
        ({"gamma": 0.0}, "gamma must be above 0, got 0.0"),
        ({"mask_size": 0}, "at least 1 label and 1 pixel of mask, got 2, 0"),
    ],
)
def test_wrong_numbers_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        DiseaseAttention(2, **options)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        (np.ones((3, 4, 4)), r"expected 2 masks \(labels, m, m\), got an array \(3, 4, 4\)"),
        (np.ones((4, 4)), "got an array"),
        (np.full((2, 4, 4), 1.5), r"masks must be finite and in \[0, 1\]"),
        (np.full((2, 4, 4), np.nan), r"masks must be finite and in \[0, 1\]"),
    ],
)
def test_wrong_masks_are_refused(maps, words):
    layer = DiseaseAttention(2)
    layer.build((None, 4, 4, 1))
    with pytest.raises(ValueError, match=words):
        layer.set_masks(maps)


def test_features_of_unknown_size_are_refused():
    with pytest.raises(ValueError, match=r"expected features \(N, h, w, K\) of known size"):
        DiseaseAttention(2)(keras.Input((None, None, 3)))
