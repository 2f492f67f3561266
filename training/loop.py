"""One training, from its first batch or from where it was killed, to its best weights."""

import json
import math
import re
import shutil
import time
from pathlib import Path

import keras
import pandas as pd

from training import runs


def steps_per_execution(steps, most=16) -> int:
    """How many steps to run between two looks from Python: the largest divisor of `steps` up to `most`.

    A divisor, because Keras runs a started execution to its end: any other number would carry steps of one
    epoch into the next, and a resumed run would see other batches.
    """
    return max(number for number in range(1, most + 1) if steps % number == 0)


def train(
    folder,
    build,
    batches,
    validation,
    *,
    epochs,
    steps,
    patience=0,
    log_dir=None,
    on_epoch=None,
    save_every=10.0,
):
    """Trains a compiled model and keeps the weights of its lowest validation loss.

    Everything is under `folder`, so that the same call after a kill goes on where the last checkpoint was
    and ends with what an uninterrupted call would have given.

    Args:
        folder: this training's own folder.
        build: function () -> compiled keras.Model with its initial weights.
        batches: function (first_epoch) -> endless dataset from the start of that epoch.
        validation: dataset.
        epochs: number of epochs in all.
        steps: batches an epoch.
        patience: stop after so many epochs without a lower validation loss; 0 never stops early.
        log_dir: TensorBoard folder, or None.
        on_epoch: called with (epochs done, logs) after every epoch and once at the start.
        save_every: seconds between checkpoints; 0 saves after every epoch.

    Returns:
        (model with its best weights, history table with one row an epoch); `history.attrs["seconds"]` is the
        time from the first batch to the last, over interruptions.

    Raises:
        ValueError: the loss is not a number; the message names the epoch and step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = build()
    with model.distribute_strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    finished = folder / "history.csv"
    if not finished.exists():
        checkpoint = _Checkpoint(folder, save_every, epochs, patience)
        first_epoch = checkpoint.restore(model)
        if on_epoch is not None:
            on_epoch(first_epoch, {})
        callbacks = [_StopAtNan(), checkpoint]
        if log_dir is not None:
            callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False))
        if on_epoch is not None:
            callbacks.append(
                keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, logs))
            )
        if first_epoch < epochs and not checkpoint.is_exhausted():
            model.fit(
                batches(first_epoch),
                epochs=epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=steps,
                validation_data=validation,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        # The history is written last: where it is, the best weights are too.
        shutil.copyfile(checkpoint.latest() / "best.weights.h5", folder / "best.weights.h5")
        seconds = json.loads((checkpoint.latest() / "state.json").read_text())["seconds"]
        (folder / "seconds.json").write_text(json.dumps(seconds))
        runs.write_table(finished, pd.DataFrame(checkpoint.history))
        checkpoint.clear()
    elif on_epoch is not None:
        on_epoch(epochs, {})
    model.load_weights(folder / "best.weights.h5")
    history = pd.read_csv(finished)
    history.attrs["seconds"] = json.loads((folder / "seconds.json").read_text())
    return model, history


class _StopAtNan(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"the training loss became {loss} in epoch {self.epoch + 1} by step {batch + 1}; "
                "lower --learning-rate, or train without --mixed-precision"
            )


class _Checkpoint(keras.callbacks.Callback):
    """Folders `state-<epochs done>`, each complete before it gets its name, the newest two kept."""

    def __init__(self, folder, save_every, epochs, patience):
        super().__init__()
        self.folder = folder
        self.save_every = save_every
        self.epochs = epochs
        self.patience = patience
        self.history = []
        self.best = math.inf
        self.best_weights = None
        self.saved_at = self.began = time.monotonic()

    def states(self):
        found = [
            (int(match[1]), path) for path in self.folder.iterdir() if (match := _STATE.match(path.name))
        ]
        return [path for _, path in sorted(found)]

    def latest(self):
        return self.states()[-1]

    def restore(self, model):
        for leftover in self.folder.glob(".state-*"):
            shutil.rmtree(leftover)
        if not self.states():
            return 0
        state = json.loads((self.latest() / "state.json").read_text())
        model.load_weights(self.latest() / "best.weights.h5")
        self.best_weights = model.get_weights()
        model.load_weights(self.latest() / "latest.weights.h5")
        self.history, self.best = state["history"], state["best"]
        self.began = time.monotonic() - state.get("seconds", 0.0)
        return len(self.history)

    def is_exhausted(self) -> bool:
        """Whether the last `patience` epochs brought no lower validation loss."""
        losses = [epoch["val_loss"] for epoch in self.history]
        return bool(self.patience and losses and len(losses) - 1 - losses.index(min(losses)) >= self.patience)

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        if logs["val_loss"] < self.best or self.best_weights is None:
            self.best = float(logs["val_loss"])
            self.best_weights = self.model.get_weights()
        if self.is_exhausted():
            self.model.stop_training = True
        if (
            epoch + 1 == self.epochs
            or self.is_exhausted()
            or time.monotonic() - self.saved_at >= self.save_every
        ):
            self.save()

    def save(self):
        done = len(self.history)
        unfinished = self.folder / f".state-{done}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        self.model.save_weights(unfinished / "latest.weights.h5")
        newest = self.model.get_weights()
        self.model.set_weights(self.best_weights)
        self.model.save_weights(unfinished / "best.weights.h5")
        self.model.set_weights(newest)
        seconds = time.monotonic() - self.began
        state = {"best": self.best, "history": self.history, "seconds": seconds}
        (unfinished / "state.json").write_text(json.dumps(state))
        unfinished.rename(self.folder / f"state-{done}")
        for old in self.states()[:-2]:
            shutil.rmtree(old)
        self.saved_at = time.monotonic()

    def clear(self):
        for state in self.states():
            shutil.rmtree(state)


_STATE = re.compile(r"state-(\d+)$")
