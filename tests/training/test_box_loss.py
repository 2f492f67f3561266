"""The loss of boxes: coverage and shares by hand; evidence moves into the box; no box, no loss."""

import keras
import numpy as np
import pytest

from training import box_loss, finding_loss

NONE = [np.nan] * 4


def share_of(evidence, box, truth=1.0):
    """exp(-loss) of one film with one finding, in (0, 1]."""
    evidence = np.asarray(evidence, np.float32)[None, :, :, None]
    boxes = np.array([[box]], np.float32)
    return np.exp(-float(box_loss.evidence_outside(evidence, boxes, np.array([[truth]], np.float32))[0]))


def test_coverage_of_cells_by_hand():
    box = np.array([[[0.25, 0.5, 0.5, 0.25], NONE]], np.float32)
    covered = keras.ops.convert_to_numpy(box_loss.coverage(box, 2, 2))
    # The box spans x 0.25 to 0.75 and y 0.5 to 0.75: half of each lower cell across, half of it down.
    np.testing.assert_allclose(covered[0, :, :, 0], [[0, 0], [0.25, 0.25]])
    assert not covered[0, :, :, 1].any()


def test_a_box_off_the_film_covers_only_what_is_on_it():
    box = np.array([[[-0.25, -0.25, 1.0, 1.0]], [[1.5, 0.0, 0.5, 0.5]]], np.float32)
    covered = keras.ops.convert_to_numpy(box_loss.coverage(box, 4, 4))[..., 0]
    assert covered[0].sum() == 9 and covered[0, :3, :3].all()
    assert not covered[1].any()


def test_a_box_that_is_mostly_off_the_film_asks_for_nothing():
    half, less = [-0.25, 0.0, 0.5, 0.5], [-0.3, 0.0, 0.5, 0.5]
    covered = keras.ops.convert_to_numpy(box_loss.coverage(np.array([[half, less]], np.float32), 4, 4))
    assert covered[0, ..., 0].sum() == 2 and not covered[0, ..., 1].any()
    assert share_of(np.zeros((4, 4)), half) == pytest.approx(2 / 16, rel=1e-5)
    assert share_of(np.zeros((4, 4)), less) == 1


def test_even_evidence_is_as_far_as_the_box_is_small():
    # Even over 16 cells, asked for 4 of them: log 4.
    assert share_of(np.zeros((4, 4)), [0.0, 0.0, 0.5, 0.5]) == pytest.approx(0.25, rel=1e-5)
    assert share_of(np.full((4, 4), -3.0), [0.0, 0.0, 0.5, 0.5]) == pytest.approx(0.25, rel=1e-5)


def test_evidence_that_fills_the_box_costs_nothing_and_beside_it_or_in_a_corner_of_it_much():
    filling, corner, beside = (np.full((4, 4), -20.0) for _ in range(3))
    filling[1:3, 1:3], corner[1, 1], beside[3, 3] = 20, 20, 20
    box = [0.25, 0.25, 0.5, 0.5]
    assert share_of(filling, box) == pytest.approx(1, abs=1e-4)
    assert share_of(beside, box) < share_of(corner, box) < 1e-4


def test_a_box_smaller_than_a_cell_asks_for_that_cell():
    evidence = np.full((4, 4), -20.0)
    evidence[1, 1] = 20
    assert share_of(evidence, [0.3, 0.3, 0.05, 0.05]) == pytest.approx(1, abs=1e-4)


def test_cells_count_by_how_much_of_them_is_covered():
    """A box of one and a half cells in a row of evidence 2 to 1: t is (2/3, 1/3), and so is q."""
    evidence = np.full((1, 4), -60.0)
    evidence[0, 0], evidence[0, 1] = 20.0, 10.0
    assert share_of(evidence, [0.0, 0.0, 0.375, 1.0]) == pytest.approx(1, abs=1e-4)
    assert share_of(evidence, [0.0, 0.0, 0.5, 1.0]) == pytest.approx(np.sqrt(8 / 9), abs=1e-4)


@pytest.mark.parametrize("box, truth", [(NONE, 1.0), ([0.2, 0.2, 0.2, 0.2], 0.0), ([2, 2, 0.1, 0.1], 1.0)])
def test_without_a_box_of_what_is_there_no_loss_and_no_gradient(box, truth):
    import tensorflow as tf

    evidence = tf.Variable(tf.random.normal((1, 3, 3, 1), seed=1))
    with tf.GradientTape() as tape:
        loss = box_loss.evidence_outside(
            evidence, np.array([[box]], np.float32), np.array([[truth]], "float32")
        )
    assert float(loss[0]) == 0
    assert not tape.gradient(loss, evidence).numpy().any()


def test_both_terms_and_targets_without_boxes():
    random = np.random.default_rng(0)
    truths = np.array([[1.0, np.nan], [0.0, 1.0]])
    targets = finding_loss.weighted_targets(truths, np.array([3.0, 1.0]))
    probabilities = random.uniform(0.1, 0.9, (2, 2)).astype("float32")
    evidence = random.normal(size=(2, 3, 4, 2)).astype("float32")
    packed = np.concatenate([probabilities, evidence.reshape(2, -1)], axis=1)
    boxes = np.array([[[0.0, 0.0, 0.5, 0.5], NONE], [NONE, [0.5, 0.5, 0.5, 0.5]]], np.float32)
    loss = box_loss.FindingsAndBoxes(2, (3, 4), 0.5)
    plain = finding_loss.FindingsCrossentropy()(targets, probabilities)
    assert float(loss(targets, packed)) == pytest.approx(float(plain), rel=1e-6)
    outside = box_loss.evidence_outside(evidence, boxes, np.nan_to_num(truths).astype("float32"))
    both = loss(np.concatenate([targets, boxes.reshape(2, -1)], axis=1), packed)
    expected = float(plain) + 0.5 * float(keras.ops.mean(outside))
    assert float(both) == pytest.approx(expected, rel=1e-5)
    # Of one film with a box among two, the second term is that film's, not half of it.
    boxes[1] = NONE
    one = loss(np.concatenate([targets, boxes.reshape(2, -1)], axis=1), packed)
    assert float(one) == pytest.approx(float(plain) + 0.5 * float(outside[0]), rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(targets, packed)) == pytest.approx(float(plain), rel=1e-6)


def test_trainings_with_and_without_boxes_share_one_compiled_network():
    from kxray import models

    random = np.random.default_rng(0)
    films = random.uniform(0, 1, (8, 32, 32, 1)).astype("float32")
    targets = finding_loss.weighted_targets((np.arange(8) % 2 == 0)[:, None].astype(float), np.ones(1))
    model = models.build(
        "masked_densenet",
        num_labels=1,
        image_size=(32, 32),
        backbone="small_densenet",
        masking="none",
        align=False,
    )
    trained, size = box_loss.with_packed_evidence(model)
    trained.compile("sgd", box_loss.FindingsAndBoxes(1, size, 1.0))
    for box in ([0.2, 0.2, 0.5, 0.5], NONE):
        boxes = np.tile(np.float32(box), (8, 1))
        history = trained.fit(films, np.concatenate([targets, boxes], axis=1), batch_size=4, verbose=0)
        assert np.isfinite(history.history["loss"]).all()


def test_training_moves_evidence_into_the_boxes():
    """A planted square is right of the middle in half of the films: boxes teach to look at it."""
    from kxray import models

    random = np.random.default_rng(3)
    films = random.uniform(0, 0.2, (16, 32, 32, 1)).astype("float32")
    boxes = np.full((16, 1, 4), np.nan, np.float32)
    for index in range(0, 16, 2):
        x, y = random.integers(0, 3, 2) * 8
        films[index, y : y + 8, x : x + 8] += 0.7
        boxes[index] = [x / 32, y / 32, 0.25, 0.25]
    targets = finding_loss.weighted_targets((np.arange(16) % 2 == 0)[:, None].astype(float), np.ones(1))
    targets = np.concatenate([targets, boxes.reshape(16, 4)], axis=1)
    keras.utils.set_random_seed(0)
    model = models.build(
        "masked_densenet",
        num_labels=1,
        image_size=(32, 32),
        backbone="small_densenet",
        masking="uniform",
        align=False,
        taps=("block2",),
    )
    trained, size = box_loss.with_packed_evidence(model)
    trained.compile(keras.optimizers.Adam(1e-2), box_loss.FindingsAndBoxes(1, size, 1.0))

    def outside():
        evidence = models.with_evidence(model).predict(films, verbose=0)["evidence"]
        return float(keras.ops.mean(box_loss.evidence_outside(evidence, boxes, targets[:, :1])))

    trained.fit(films, targets, epochs=1, batch_size=8, verbose=0)
    before = outside()
    trained.fit(films, targets, epochs=12, batch_size=8, verbose=0)
    assert outside() < 0.5 * before
