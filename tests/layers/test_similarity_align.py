"""The aligning layer: what an untrained one does, what its two witnesses say, saved and exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kxray.data import Similarity
from kxray.data.phantom import thorax
from kxray.layers import SimilarityAlign
from kxray.layers.similarity_align import contrast_normalised, small_copy

FILMS = np.stack([thorax(3, index, size=64, transform=(0, 1, (0, 0))).pixels for index in range(3)])[
    ..., None
]


def layer_for(films, **options):
    layer = SimilarityAlign(size=32, width=2, **options)
    layer.build(films.shape)
    return layer


def certain(layer):
    """Makes the learned judgement say chest to everything, so that the template alone decides."""
    layer.chest.bias.assign([20.0])
    return layer


def test_untrained_it_leaves_a_film_as_it_is():
    answer = SimilarityAlign(size=32, width=2)(FILMS)
    np.testing.assert_allclose(answer["aligned"], FILMS, atol=1e-5)
    np.testing.assert_allclose(answer["pose"], np.zeros((3, 4)))
    assert answer["confidence"].shape == (3,)


def test_the_motions_of_two_passes_add_up():
    layer = layer_for(FILMS)
    layer.motion.bias.assign([0.1, 0.0, 0.0, 0.0])
    once = 0.8 * np.tanh(0.1 / 0.8)
    pose, _ = layer.localise(FILMS)
    np.testing.assert_allclose(pose, [[2 * once, 0, 0, 0]] * 3, atol=1e-6)
    aligned = layer(FILMS)["aligned"].numpy()[0, ..., 0]
    wanted = Similarity(np.degrees(2 * once)).warp(FILMS[0, ..., 0])
    np.testing.assert_allclose(aligned, wanted, atol=1e-4)


def test_the_smaller_of_two_witnesses_decides():
    layer = layer_for(FILMS)
    layer.template.assign(small_copy(FILMS, 32)[0, ..., 0])
    layer.limits.assign([0.0, 0.3])
    # Its own template, but the network says neither yes nor no.
    assert float(layer.localise(FILMS)[1][0]) == pytest.approx(0.5)
    layer.chest.bias.assign([-20.0])
    assert float(layer.localise(FILMS)[1][0]) < 1e-6
    assert float(certain(layer).localise(FILMS)[1][0]) > 0.99


def test_the_template_refuses_what_is_unlike_it():
    layer = certain(layer_for(FILMS))
    layer.template.assign(small_copy(FILMS, 32)[0, ..., 0])
    layer.limits.assign([0.0, 0.3])
    lateral = thorax(3, 9, view="lateral", size=64).pixels
    noise = np.random.default_rng(0).random((64, 64))
    others = np.stack([1 - FILMS[0, ..., 0], lateral, noise, np.zeros((64, 64))])
    confidence = layer.localise(others[..., None].astype(np.float32))[1].numpy()
    assert (confidence < 0.5).all()
    assert (layer.localise(FILMS)[1].numpy() >= 0.5).all()


def test_exposure_does_not_matter():
    darker = np.clip(0.2 + 0.5 * FILMS, 0, 1).astype(np.float32)
    np.testing.assert_allclose(contrast_normalised(darker), contrast_normalised(FILMS), atol=0.02)
    grey = contrast_normalised(np.full((1, 64, 64, 1), 0.7, np.float32))
    np.testing.assert_allclose(grey, np.zeros((1, 64, 64, 2)), atol=1e-3)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (50, 100), (300, 200)])
def test_copies_keep_shares_of_the_width(shape):
    """A spot at x = 0.2, y = -0.1 of the width is there on the copy too."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = (columns - shape[1] / 2) / shape[1], (rows - shape[0] / 2) / shape[1]
    spot = np.exp(-((x - 0.2) ** 2 + (y + 0.1) ** 2) / 0.005)[None, ..., None].astype(np.float32)
    copy = np.asarray(small_copy(spot, 64))[0, ..., 0]
    rows, columns = np.mgrid[:64, :64] + 0.5
    centre = [(copy * axis).sum() / copy.sum() / 64 - 0.5 for axis in (columns, rows)]
    np.testing.assert_allclose(centre, [0.2, -0.1], atol=0.01)


def test_the_pose_learns_through_the_aligned_film():
    layer = layer_for(FILMS)
    layer.motion.kernel.assign(0.01 * np.random.default_rng(0).normal(size=layer.motion.kernel.shape))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(layer(FILMS)["aligned"] - FILMS[::-1]))
    found = tape.gradient(loss, layer.motion.trainable_variables)
    assert all(np.isfinite(part).all() and np.abs(part).max() > 0 for part in map(np.asarray, found))


def test_half_precision_stays_outside():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        answer = SimilarityAlign(size=32, width=2)(FILMS)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(value.dtype) for value in answer.values()} == {"<dtype: 'float32'>"}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"size": 40}, "size must be"), ({"size": 16}, "size must be"), ({"steps": 0}, "width and steps")],
)
def test_impossible_options(options, said):
    with pytest.raises(ValueError, match=said):
        SimilarityAlign(**options)


def test_films_of_unknown_size():
    with pytest.raises(ValueError, match="of known size"):
        SimilarityAlign()(keras.Input((None, None, 1)))
    with pytest.raises(ValueError, match="expected films"):
        SimilarityAlign()(keras.Input((64, 64, 3)))
