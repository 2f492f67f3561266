"""Films of a counterfactual GAN's steps: those without a target, those that have it."""

import numpy as np
import pytest

from kxray.data import counterfactual_batches, drawable_targets
from kxray.data.pipeline import ArrayInputs

# Targets "no A", "A", "no B", "B" of eight films; all of them have B, of the last A is unknown.
A = np.array([0, 0, 0, 0, 0, 1, 1, -1])
HELD = np.stack([np.where(A < 0, -1, 1 - A), A, np.zeros(8, int), np.ones(8, int)]).astype(np.int8)
FILMS = (np.arange(8, dtype=np.float32)[:, None, None, None] / 8) * np.ones((1, 4, 4, 1), np.float32)
EVERY = np.arange(8)


def batches(count, rows=EVERY, **options):
    options = {"batch_size": 4, "updates": (1, 2), "num_draws": 3, "seed": 5, **options}
    dataset = counterfactual_batches(ArrayInputs(FILMS), HELD, rows, **options)
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset.take(count)]


def test_only_targets_that_some_films_have_and_some_have_not_are_learned():
    assert drawable_targets(HELD, EVERY).tolist() == [0, 1]
    assert drawable_targets(HELD, [0, 1, 2]).tolist() == []


def test_films_have_not_the_target_and_real_ones_have_it():
    for batch in batches(20):
        films, real = (np.rint(batch[name][..., 0, 0, 0] * 8).astype(int) for name in ("films", "real"))
        assert batch["films"].shape == (4, 3, 4, 4, 1) and batch["draws"].shape == (4, 3, 2, 3)
        assert (HELD[batch["targets"], films] == 0).all()
        assert (HELD[batch["targets"], real] == 1).all()
        assert (batch["back"] == -1).all()


def test_targets_come_equally_often_and_films_in_whole_passes():
    found = batches(10)
    targets = np.concatenate([batch["targets"].ravel() for batch in found])
    assert np.bincount(targets).tolist() == [60, 60]
    films = np.concatenate([np.rint(batch["films"][..., 0, 0, 0].ravel() * 8).astype(int) for batch in found])
    # 60 films of five that show no A: 12 passes; of two that show it: 30.
    assert np.bincount(films[targets == 1], minlength=5).tolist() == [12] * 5
    assert np.bincount(films[targets == 0], minlength=7)[5:].tolist() == [30, 30]


def test_a_step_depends_on_seed_and_number_alone():
    later = batches(1, first_step=3)[0]
    fourth = batches(4)[3]
    other = batches(4, seed=6)[3]
    for name, value in later.items():
        np.testing.assert_array_equal(value, fourth[name])
    assert (other["draws"] != fourth["draws"]).any()


def test_the_way_back_is_that_of_the_film():
    back = np.tile(np.arange(8), (4, 1)) + 100 * np.arange(4)[:, None]
    for batch in batches(5, back=back):
        films = np.rint(batch["films"][..., 0, 0, 0] * 8).astype(int)
        np.testing.assert_array_equal(batch["back"], back[batch["targets"], films])


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="no target to learn"):
        batches(1, rows=np.array([0, 1]))
