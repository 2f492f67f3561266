"""Batches of a GAN: a function of seed and step, every film once a pass, classes as asked for."""

import numpy as np
import pytest

from kxray.data import gan_batches
from kxray.data.pipeline import ArrayInputs

# A film's grey value tells which it is.
FILMS = np.repeat(np.arange(10, dtype=np.float32) / 10, 4).reshape(10, 2, 2, 1)
CLASSES = np.array([0] * 7 + [1] * 2 + [2])


def drawn(count, rows=range(10), **options):
    options = {"updates": (1, 2), "batch_size": 2, "seed": 3, **options}
    batches = gan_batches(ArrayInputs(FILMS), CLASSES, rows, num_classes=3, latent=4, num_draws=6, **options)
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches.take(count)]


def same(one, other):
    return all((one[name] == other[name]).all() for name in one)


def numbers(batches):
    return np.concatenate([np.round(10 * batch["films"][..., 0, 0, 0]).ravel() for batch in batches]).astype(
        int
    )


def test_shapes_and_what_belongs_together():
    (batch,) = drawn(1)
    assert {name: value.shape for name, value in batch.items()} == {
        "films": (2, 2, 2, 2, 1),
        "classes": (2, 2),
        "other_classes": (2, 2),
        "z": (2, 3, 4),
        "fake_classes": (2, 3),
        "draws": (2, 3, 2, 6),
    }
    np.testing.assert_array_equal(CLASSES[numbers([batch])], batch["classes"].ravel())
    assert (batch["classes"] != batch["other_classes"]).all()


def test_a_batch_is_a_function_of_seed_and_step():
    first = drawn(8)
    assert all(same(*pair) for pair in zip(first, drawn(8), strict=True))
    assert all(same(*pair) for pair in zip(first[5:], drawn(3, first_step=5), strict=True))
    assert not same(first[0], drawn(1, seed=4)[0])
    assert not same(first[0], first[1])


def test_every_film_comes_once_a_pass():
    passes = numbers(drawn(5)).reshape(2, 10)
    assert [sorted(films) for films in passes] == [list(range(10))] * 2
    assert (passes[0] != passes[1]).any()
    assert set(numbers(drawn(10, rows=[1, 8]))) == {1, 8}


def test_generated_films_have_the_classes_of_the_real_ones():
    fakes = np.concatenate([batch["fake_classes"].ravel() for batch in drawn(300)])
    np.testing.assert_allclose(np.bincount(fakes) / len(fakes), [0.7, 0.2, 0.1], atol=0.05)


def test_balanced_classes_come_equally_often():
    batches = drawn(300, balanced=True)
    for name in ("classes", "fake_classes"):
        counts = np.bincount(np.concatenate([batch[name].ravel() for batch in batches]))
        np.testing.assert_allclose(counts / counts.sum(), [1 / 3] * 3, atol=0.05)
    assert set(numbers(batches)) == set(range(10))


def test_no_films_are_told():
    with pytest.raises(ValueError, match="no films to train on"):
        drawn(1, rows=np.array([], int))
