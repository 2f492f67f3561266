"""The sampler: equal to numpy, back where it came from, and with the right gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kxray.data import Similarity
from kxray.layers import SimilaritySampler
from kxray.layers.similarity_align import carry, compose, invert

POSES = np.stack(
    [Similarity(17, 1.2, (0.08, -0.06)).pose, Similarity(-130, 0.7, (0.2, 0.1)).pose, Similarity().pose]
)
poses = st.tuples(st.floats(-3.1, 3.1), st.floats(-0.7, 0.7), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)).map(
    lambda pose: np.array([pose], np.float32)
)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [None, (31, 47), (64, 20)])
def test_equals_numpy(inverse, size):
    maps = np.random.default_rng(0).random((3, 40, 56, 2), np.float32)
    got = SimilaritySampler(inverse=inverse, size=size, fill_value=0.3)([maps, POSES]).numpy()
    assert got.shape == (3, *(size or (40, 56)), 2)
    for film, pose, shown in zip(maps, POSES, got, strict=True):
        for channel in range(2):
            wanted = Similarity.from_pose(pose).warp(film[..., channel], size, inverse, 0.3)
            np.testing.assert_allclose(shown[..., channel], wanted, atol=1e-4)


def test_a_shift_of_whole_pixels():
    film = np.arange(20, dtype=np.float32).reshape(1, 4, 5, 1)
    pose = np.array([[0, 0, 1 / 5, 2 / 5]], np.float32)
    shown = SimilaritySampler(fill_value=-1.0)([film, pose]).numpy()[0, ..., 0]
    np.testing.assert_allclose(
        shown, [[11, 12, 13, 14, -1], [16, 17, 18, 19, -1], [-1] * 5, [-1] * 5], atol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(poses, poses)
def test_poses_compose_as_similarities(first, second):
    both = compose(tf.constant(first), tf.constant(second)).numpy()[0]
    wanted = Similarity.from_pose(first[0]).then(Similarity.from_pose(second[0])).pose
    np.testing.assert_allclose(both, wanted, atol=1e-5)
    np.testing.assert_allclose(
        invert(tf.constant(first)).numpy()[0], Similarity.from_pose(first[0]).inverse().pose, atol=1e-5
    )
    where = np.array([[0.1, -0.4], [0.5, 0.2]], np.float32)
    np.testing.assert_allclose(
        carry(tf.constant(first), tf.constant(where)).numpy()[0],
        Similarity.from_pose(first[0]).apply(where),
        atol=1e-5,
    )


@settings(max_examples=15, deadline=None)
@given(st.floats(-0.4, 0.4), st.floats(-0.25, 0.25), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_a_spot_comes_back_to_half_a_pixel(rotation, log_scale, right, down):
    """Aligned and brought back, a bright spot lies where it lay."""
    pose = np.array([[rotation, log_scale, right, down]], np.float32)
    rows, columns = np.mgrid[:64, :64] + 0.5
    spot = np.exp(-((columns - 39) ** 2 + (rows - 27) ** 2) / 18)[None, ..., None].astype(np.float32)
    back = SimilaritySampler(inverse=True)([SimilaritySampler()([spot, pose]), pose]).numpy()[0, ..., 0]
    centre = [(back * axis).sum() / back.sum() for axis in (columns, rows)]
    np.testing.assert_allclose(centre, [39, 27], atol=0.5)


def test_gradients_of_the_pose_and_of_the_maps():
    rows, columns = np.mgrid[:24, :24] / 24.0
    smooth = (np.sin(5 * columns) + np.cos(4 * rows + columns))[None, ..., None].astype(np.float64)
    maps, pose = tf.constant(smooth, tf.float32), tf.constant([[0.2, -0.1, 0.03, -0.05]])
    weights = np.exp(-((rows - 0.5) ** 2 + (columns - 0.5) ** 2) / 0.02)[None, ..., None].astype(np.float32)
    sampler = SimilaritySampler()

    def score(maps, pose):
        return tf.reduce_sum(weights * sampler([maps, pose]))

    with tf.GradientTape() as tape:
        tape.watch([maps, pose])
        value = score(maps, pose)
    by_maps, by_pose = tape.gradient(value, [maps, pose])
    step = 4e-3
    for axis in range(4):
        change = np.zeros((1, 4), np.float32)
        change[0, axis] = step
        numeric = (score(maps, pose + change) - score(maps, pose - change)).numpy() / (2 * step)
        assert by_pose.numpy()[0, axis] == pytest.approx(numeric, rel=0.03, abs=0.1)
    # Linear in the maps: the gradient is the adjoint.
    assert float(tf.reduce_sum(by_maps * maps)) == pytest.approx(float(value), rel=1e-4)
    far = tf.constant([[0.0, 0.0, 5.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(far)
        value = score(maps, far)
    assert np.isfinite(tape.gradient(value, far).numpy()).all()


def test_save_and_export(tmp_path):
    maps, pose = keras.Input((16, 20, 2)), keras.Input((4,))
    model = keras.Model([maps, pose], SimilaritySampler(inverse=True, size=(8, 9), name="s")([maps, pose]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    given = [np.random.default_rng(1).random((3, 16, 20, 2), np.float32), POSES]
    np.testing.assert_allclose(loaded(given), model(given), atol=1e-6)
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((None, 16, 20, 2)), tf.TensorSpec((None, 4))]
    archive.add_endpoint("serve", lambda maps, pose: model([maps, pose]), input_signature=signature)
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(*map(tf.constant, given)), model(given), atol=1e-5)


def test_an_impossible_size():
    with pytest.raises(ValueError, match="size must be"):
        SimilaritySampler(size=(0, 4))
