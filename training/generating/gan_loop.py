"""One training of a conditional GAN, from its first step or from where it was killed."""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np

from kxray.io.files import replacing
from training.generating.gan_watch import check_losses

# Steps between two looks from Python: fetching a loss waits for the device.
LOOK = 10


def train(
    gan,
    batches,
    folder,
    *,
    epochs,
    steps,
    tau,
    on_epoch,
    strategy=None,
    on_look=None,
    keep="",
    save_every=60.0,
):
    """Trains a compiled GAN; the same call after a kill goes on at its last state and ends alike.

    Args:
        gan: `kxray.models.build("attention_cgan" | "cdcgan", ...)`, compiled. Its weights are set.
        batches: function (first step) -> endless dataset whose elements are a function of the step alone.
        folder: of the states: each complete before it gets its name, the newest two kept.
        epochs: number of epochs in all.
        steps: steps an epoch.
        tau: function (epoch, from 0) -> tau of that epoch.
        on_epoch: called after every epoch with (row of the epoch: epoch, step, tau, seconds, mean losses and
            scores; the rows of epochs before; the rows of steps); gives what is added to the row. A
            ValueError ends the training.
        strategy: tf.distribute.Strategy that the GAN was built under, or None.
        on_look: called with (steps done, losses and scores) every few steps.
        keep: name of a row's value; the weights of the epoch where it is lowest are those left in the GAN.
            "": those of the last epoch.
        save_every: seconds between states within an epoch.

    Returns:
        (history, steps): lists of rows, one an epoch and one every few steps; history rows hold `kept`, True
        for the epoch whose weights the GAN has now.

    Raises:
        ValueError: a loss is not a number; the message names the step.
    """
    states = _States(Path(folder), gan)
    state = states.restore()
    run, look = _traced(gan, strategy), min(LOOK, steps)
    dataset = batches(state["step"])
    if strategy is not None:
        dataset = strategy.experimental_distribute_dataset(dataset)
    iterator, began, saved_at = iter(dataset), time.monotonic() - state["seconds"], time.monotonic()
    while len(state["history"]) < epochs:
        epoch = len(state["history"])
        gan.set_tau(tau(epoch))
        end, logs = (epoch + 1) * steps, []
        while state["step"] < end:
            logs.append(run(next(iterator)))
            state["step"] += 1
            if (state["step"] - epoch * steps) % look and state["step"] < end:
                continue
            _take(state, logs)
            logs = []
            if on_look is not None:
                on_look(state["step"], state["rows"][-1])
            if time.monotonic() - saved_at >= save_every:
                state["seconds"] = time.monotonic() - began
                states.save(state)
                saved_at = time.monotonic()
        state["seconds"] = time.monotonic() - began
        row = {"epoch": epoch + 1, "step": state["step"], "tau": gan.tau}
        row |= {name: total / steps for name, total in state["sums"].items()}
        row |= on_epoch({**row, "seconds": round(state["seconds"], 1)}, state["history"], state["rows"])
        row["seconds"] = round(state["seconds"], 1)
        state["history"].append(row)
        state["sums"] = {}
        _keep_best(state, states, keep)
        state["seconds"] = time.monotonic() - began
        states.save(state)
        saved_at = time.monotonic()
    states.load_kept(state)
    kept = state["kept"] or epochs
    return [{**row, "kept": row["epoch"] == kept} for row in state["history"]], state["rows"]


def keep_order() -> None:
    """Makes sums of gradients bit-equal from run to run, beside `enable_op_determinism`; process-wide.

    Where memory is tight, TensorFlow's graph optimizer turns a sum of three and more tensors, such as the
    gradients that meet before self-attention, into additions in the order in which they happen to be ready.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@contextlib.contextmanager
def plain_errors(remedy):
    """Says in one line what TensorFlow says in many: memory that ran out, a film that cannot be read.

    Args:
        remedy: what to do about memory.

    Raises:
        ValueError: instead of TensorFlow's error, where it is one of these.
    """
    import tensorflow as tf

    from kxray.data import pipeline

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise ValueError(f"out of memory: {error.message.splitlines()[0][:200]}; {remedy}") from None
    except tf.errors.OpError as error:
        raise pipeline.film_error(error) or error from None


def _traced(gan, strategy):
    import tensorflow as tf

    # Nothing in a step depends on values: traced as it is, twice as quickly.
    if strategy is None:
        return tf.function(gan.train_step, jit_compile=False, autograph=False)

    @tf.function(jit_compile=False, autograph=False)
    def step(batch):
        logs = strategy.run(gan.train_step, args=(batch,))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    return step


def _take(state, logs):
    """Fetches what some steps said, looks for what is no number, and adds it to the sums and rows."""
    values = {name: np.array([float(log[name]) for log in logs]) for name in sorted(logs[0])}
    check_losses(values, state["step"] - len(logs) + 1)
    for name, series in values.items():
        state["sums"][name] = state["sums"].get(name, 0.0) + float(series.sum())
    means = {name: float(series.mean()) for name, series in values.items()}
    state["rows"].append({"step": state["step"], **means})


def _keep_best(state, states, keep):
    """Keeps the weights of the epoch that was just appended to the history, if they are the best so far."""
    history = state["history"]
    if not keep:
        return
    scored = [row for row in history if row.get(keep) is not None and np.isfinite(row[keep])]
    if scored and min(scored, key=lambda row: row[keep]) is history[-1]:
        state["kept"] = history[-1]["epoch"]
        states.keep(state["kept"])


class _States:
    """Folders `state-<step>-<epochs>` of variables.npz and state.json, and weights `kept-<epoch>.npz`."""

    def __init__(self, folder, gan):
        self.folder, self.gan = folder, gan
        folder.mkdir(parents=True, exist_ok=True)

    def found(self):
        places = [
            (int(match[1]), int(match[2]), path)
            for path in self.folder.iterdir()
            if (match := _STATE.match(path.name))
        ]
        return [path for *_, path in sorted(places)]

    def restore(self) -> dict:
        """Sets the GAN to the newest state and gives what else is in it."""
        for leftover in self.folder.glob(".state-*"):
            shutil.rmtree(leftover)
        for leftover in self.folder.glob(".kept-*"):
            leftover.unlink()
        if not self.found():
            return {"step": 0, "history": [], "rows": [], "sums": {}, "seconds": 0.0, "kept": None}
        newest = self.found()[-1]
        _set(_all_variables(self.gan), newest / "variables.npz")
        return self._read(newest)

    @staticmethod
    def _read(path):
        return json.loads((path / "state.json").read_text(encoding="utf-8"))

    def save(self, state):
        # An epoch's last step may be saved twice: before what its films are worth is known, and after.
        name = f"state-{state['step']:08d}-{len(state['history'])}"
        unfinished = self.folder / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _write(_all_variables(self.gan), unfinished / "variables.npz")
        (unfinished / "state.json").write_text(json.dumps(state), encoding="utf-8")
        unfinished.rename(self.folder / name)
        for old in self.found()[:-2]:
            shutil.rmtree(old)
        needed = {self._read(path)["kept"] for path in self.found()}
        for path in self.folder.glob("kept-*.npz"):
            if int(path.stem.partition("-")[2]) not in needed:
                path.unlink()

    def keep(self, epoch):
        with replacing(self.folder / f"kept-{epoch}.npz") as temporary:
            _write(self.gan.variables, temporary)

    def load_kept(self, state):
        if state["kept"] is not None:
            _set(self.gan.variables, self.folder / f"kept-{state['kept']}.npz")


def _all_variables(gan):
    """Weights, moving averages and tau, and what both optimizers hold."""
    both = (gan.generator_optimizer, gan.discriminator_optimizer)
    return [*gan.variables, *(variable for optimizer in both for variable in optimizer.variables)]


def _write(variables, path):
    values = {f"{place:05d}": variable.numpy() for place, variable in enumerate(variables)}
    with open(path, "wb") as file:
        np.savez(file, **values)


def _set(variables, path):
    with np.load(path, allow_pickle=False) as kept:
        shapes = [kept[name].shape for name in sorted(kept.files)]
        if shapes != [tuple(variable.shape) for variable in variables]:
            raise ValueError(f"{path}: the state of another network; start a new run")
        for variable, name in zip(variables, sorted(kept.files), strict=True):
            variable.assign(kept[name])


_STATE = re.compile(r"state-(\d+)-(\d+)$")
