"""One training that can be interrupted anywhere and ends as if it had not been."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from training.loop import train

EPOCHS, STEPS = 6, 4


def build():
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(6, activation="tanh"), layers.Dense(1)])
    rate = keras.optimizers.schedules.CosineDecay(0.02, EPOCHS * STEPS)
    model.compile(keras.optimizers.RMSprop(rate, momentum=0.5), "mse", metrics=["mae"])
    return model


def examples(count, seed):
    inputs = np.random.default_rng(seed).normal(size=(count, 5)).astype("float32")
    return inputs, (inputs[:, :1] * 2 - inputs[:, 1:2]).astype("float32")


def batches(first_epoch):
    """A function of the step alone, as `kxray.data.pipeline.training_batches` is."""

    def one(step):
        inputs = tf.random.stateless_normal((8, 5), seed=tf.stack([tf.constant(1, tf.int64), step]))
        return inputs, inputs[:, :1] * 2 - inputs[:, 1:2]

    return tf.data.Dataset.range(first_epoch * STEPS, np.iinfo(np.int64).max).map(one)


@pytest.fixture(scope="module")
def validation():
    return tf.data.Dataset.from_tensors(examples(16, 1))


def run(folder, validation, **options):
    options = {"epochs": EPOCHS, "steps": STEPS, "save_every": 0, **options}
    return train(folder, options.pop("build", build), options.pop("batches", batches), validation, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder, validation):
    return run(folder, validation)


class Killed(Exception):
    pass


def kill_after(epoch):
    def on_epoch(done, logs):
        if logs and done == epoch:
            raise Killed

    return on_epoch


def killed_in_step(number):
    """Batches that end the process's patience in the middle of an epoch."""

    def interrupted(first_epoch):
        def check(step):
            if first_epoch * STEPS <= step == number:
                raise Killed
            return step

        def one(inputs, targets, step):
            tf.numpy_function(check, [step], tf.int64)
            return inputs, targets

        steps = tf.data.Dataset.range(first_epoch * STEPS, np.iinfo(np.int64).max)
        return tf.data.Dataset.zip(batches(first_epoch), steps).map(lambda pair, step: one(*pair, step))

    return interrupted


def assert_same(first, second):
    (model, history), (again, history_again) = first, second
    pd.testing.assert_frame_equal(history, history_again, check_exact=True)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_whole_training(whole, folder):
    model, history = whole
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(history.columns) == {"epoch", "loss", "mae", "val_loss", "val_mae"}
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.weights.h5",
        "history.csv",
        "seconds.json",
    ]


def test_the_best_epoch_is_kept(whole, validation):
    model, history = whole
    loss = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(history["val_loss"].min(), rel=1e-6)


def test_the_best_epoch_may_be_an_early_one(tmp_path, validation):
    def worse_and_worse():
        model = build()
        model.compile(keras.optimizers.SGD(3.0, clipnorm=1.0), "mse", metrics=["mae"])
        return model

    model, history = run(tmp_path, validation, build=worse_and_worse)
    assert history["val_loss"].idxmin() < EPOCHS - 1
    assert model.evaluate(validation, verbose=0)[0] == pytest.approx(history["val_loss"].min(), rel=1e-6)


@pytest.mark.parametrize("epochs", [(1,), (5,), (6,), (2, 3, 5)])
def test_a_run_interrupted_after_epochs_is_the_uninterrupted_one(tmp_path, validation, whole, epochs):
    for epoch in epochs:
        with pytest.raises(Killed):
            run(tmp_path / "cut", validation, on_epoch=kill_after(epoch))
        keras.utils.set_random_seed(999)  # nothing that other code draws may matter
    assert_same(run(tmp_path / "cut", validation), whole)


def test_a_run_interrupted_between_checkpoints_is_the_uninterrupted_one(tmp_path, validation, whole):
    with pytest.raises(Killed):
        run(tmp_path / "cut", validation, on_epoch=kill_after(4), save_every=1e9)
    assert not list((tmp_path / "cut").glob("state-*")), "nothing was saved, so it starts again"
    assert_same(run(tmp_path / "cut", validation), whole)


def test_a_run_interrupted_within_an_epoch_is_the_uninterrupted_one(tmp_path, validation, whole):
    with pytest.raises(Exception, match="Killed"):
        run(tmp_path / "cut", validation, batches=killed_in_step(2 * STEPS + 3))
    assert [path.name for path in (tmp_path / "cut").glob("state-*")]
    assert_same(run(tmp_path / "cut", validation), whole)


def test_a_half_written_checkpoint_is_ignored(tmp_path, validation, whole):
    with pytest.raises(Killed):
        run(tmp_path / "cut", validation, on_epoch=kill_after(3))
    unfinished = tmp_path / "cut" / ".state-4"
    unfinished.mkdir()
    (unfinished / "latest.weights.h5").write_bytes(b"cut off")
    assert_same(run(tmp_path / "cut", validation), whole)
    assert not list((tmp_path / "cut").glob(".state-*"))


def test_two_checkpoints_are_kept_at_most(tmp_path, validation):
    with pytest.raises(Killed):
        run(tmp_path, validation, on_epoch=kill_after(5))
    assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-4", "state-5"]


def test_a_finished_training_is_not_repeated(folder, validation, whole):
    def never(first_epoch):
        raise AssertionError("it trains again")

    told = []
    again = run(folder, validation, batches=never, on_epoch=lambda *seen: told.append(seen))
    assert_same(again, whole)
    assert told == [(EPOCHS, {})]


def test_progress_is_told_from_where_it_starts(tmp_path, validation):
    with pytest.raises(Killed):
        run(tmp_path, validation, on_epoch=kill_after(2))
    told = []
    run(tmp_path, validation, on_epoch=lambda done, logs: told.append((done, "val_loss" in logs)))
    assert told == [(2, False), (3, True), (4, True), (5, True), (6, True)]


def test_tensorboard_logs_appear(tmp_path, validation):
    run(tmp_path / "run", validation, epochs=1, log_dir=str(tmp_path / "logs"))
    assert list((tmp_path / "logs" / "train").glob("events*"))
    assert list((tmp_path / "logs" / "validation").glob("events*"))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_a_number_is_named_at_once(tmp_path, validation, broken):
    def breaking(first_epoch):
        def one(step, batch):
            inputs, targets = batch
            return tf.where(step == STEPS + 2, tf.constant(broken, tf.float32), inputs), targets

        return tf.data.Dataset.zip(tf.data.Dataset.range(10**6), batches(first_epoch)).map(one)

    with pytest.raises(ValueError, match=r"the training loss became (nan|inf) in epoch 2 by step 3; lower"):
        run(tmp_path, validation, batches=breaking)
