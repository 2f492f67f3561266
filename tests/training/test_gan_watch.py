"""What stops a GAN's training: planted collapses, copies and broken losses; and the loop that obeys."""

import math

import numpy as np
import pytest

from training.generating import gan_watch
from training.generating.gan_watch import Watch


def films(count, seed, side=64):
    """Smooth random films, each unlike the others."""
    coarse = np.random.default_rng(seed).random((count, 8, 8))
    return coarse.repeat(side // 8, 1).repeat(side // 8, 2)[..., None].astype(np.float32)


TRAIN, HELD_OUT = films(60, 0), films(30, 1)
CLASSES = np.arange(60) % 2


def watch(epochs=20):
    copies = gan_watch.small_copies(TRAIN), CLASSES, gan_watch.small_copies(HELD_OUT)
    return Watch.of(("Mass", "Nodule"), epochs, *copies)


def row(epoch, made, classes, watch):
    measured = watch.measure(gan_watch.small_copies(made), classes)
    return {"epoch": epoch, "step": 10 * epoch, **measured}


def test_small_copies_are_means_of_squares():
    film = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64, 1)
    copies = gan_watch.small_copies(film)
    assert copies.shape == (1, 1024) and copies[0, 0] == (0 + 1 + 64 + 65) / 4
    with pytest.raises(ValueError, match=r"multiple of 32 wide, got \(1, 48, 48, 1\)"):
        gan_watch.small_copies(np.zeros((1, 48, 48, 1)))


def test_deviation_of_all_and_of_each_class():
    copies = np.array([[0.0], [2.0], [0.0], [2.0], [1.0], [1.0], [1.0], [1.0]])
    overall, by_class = gan_watch.deviation(copies, np.repeat([0, 1], 4), 3)
    assert overall == pytest.approx(np.std([0, 2, 0, 2, 1, 1, 1, 1], ddof=1))
    np.testing.assert_allclose(by_class, [np.std([0, 2, 0, 2], ddof=1), 0, math.nan])


def test_the_nearest_film_is_found_and_a_copy_is_at_zero():
    references = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    distances, places = gan_watch.nearest(np.array([[1.0, 1.0], [0.3, -0.4]], np.float32), references)
    assert places.tolist() == [[1], [0]]
    np.testing.assert_allclose(distances, [[0], [math.sqrt((0.09 + 0.16) / 2)]], rtol=1e-6)


def test_other_real_films_are_as_far_and_as_different_as_real_films():
    measured = watch().measure(gan_watch.small_copies(films(60, 2)), CLASSES)
    for name in ("diversity", "diversity_lowest", "nearest"):
        assert measured[name] == pytest.approx(1, abs=0.1), name
    assert measured["copies"] == 0


def test_one_film_for_all_is_a_collapse_once_the_grace_is_over():
    own, one = watch(), films(1, 3).repeat(60, 0)
    rows = [row(epoch, one, CLASSES, own) for epoch in range(1, 8)]
    assert gan_watch.grace_epochs(20) == 5 and gan_watch.grace_epochs(4) == 3
    assert own.findings(rows[:5]) == []
    (found,) = own.findings(rows[:6])
    assert found["kind"] == "collapse" and found["epoch"] == 6 and found["step"] == 60
    assert "collapsed by step 60 (epoch 6)" in found["sentence"]
    for told in ("0.000 of what real ones do", "limit is 0.1", "--augment", "--watch warn"):
        assert told in found["sentence"], told


def test_one_bad_epoch_is_no_collapse():
    own = watch()
    good, bad = (row(7, made, CLASSES, own) for made in (films(60, 2), films(1, 3).repeat(60, 0)))
    bad["epoch"] = 8
    assert own.findings([good, bad]) == []
    assert own.findings([good, bad, {**bad, "epoch": 9}])[0]["epoch"] == 9


def test_one_film_a_class_is_a_collapse_of_that_class():
    own, made = watch(), films(60, 2)
    made[CLASSES == 1] = made[1]
    rows = [row(epoch, made, CLASSES, own) for epoch in (7, 8)]
    assert rows[0]["diversity"] > 0.5 and rows[0]["lowest_class"] == "Nodule"
    assert "films of class Nodule deviate by 0.000" in own.findings(rows)[0]["sentence"]


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_training_films_with_noise_are_copies(noise):
    own = watch()
    made = TRAIN + np.random.default_rng(5).normal(0, noise, TRAIN.shape).astype(np.float32)
    rows = [row(6, made, CLASSES, own)]
    (found,) = own.findings(rows)
    assert found["kind"] == "memorisation" and "repeats training films by step 60" in found["sentence"]
    assert "the limit is 0.4" in found["sentence"] and rows[0]["copies"] == 1


def test_a_mean_film_or_averages_are_no_copies():
    own, random = watch(), np.random.default_rng(4)
    mixed = np.stack([TRAIN[random.integers(0, 60, 2)].mean(axis=0) for _ in range(60)])
    for made in (TRAIN.mean(axis=0, keepdims=True).repeat(60, 0), mixed):
        assert "memorisation" not in [
            found["kind"] for found in own.findings([row(6, made, CLASSES, own)] * 2)
        ]


def test_without_held_out_films_nothing_is_said_of_copies():
    copies = gan_watch.small_copies(TRAIN)
    own = Watch.of(("Mass", "Nodule"), 20, copies, CLASSES, copies[:0])
    measured = row(6, TRAIN, CLASSES, own)
    assert math.isnan(measured["nearest"]) and own.findings([measured] * 2) == []


def test_a_loss_that_is_no_number_is_named_with_its_step():
    fine = {"generator_loss": np.ones(3), "discriminator_loss": np.ones(3)}
    gan_watch.check_losses(fine, 11)
    for value in (math.nan, math.inf):
        broken = {**fine, "generator_loss": np.array([1.0, value, 1.0])}
        with pytest.raises(ValueError, match=f"generator_loss became {value} in step 12 .*--generator-rate"):
            gan_watch.check_losses(broken, 11)
