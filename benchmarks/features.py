"""Training a head on kept features against training the frozen network as it stands: the same batches.

    python -m benchmarks.features
    python -m benchmarks.features --backbone xception --weights FILE.weights.h5 --side 160

Both are `training.fitting.Fitting`, each in its own process, on the same batches, validation after every
epoch included. Without augmentation both end at the same head, which is checked.

naive       the whole network in every epoch, its backbone frozen
cached      features computed once, then the head alone
found       the same again: the features are on disk

Expected: at 300 films and 40 epochs cached at least 20 times faster than naive, computing the features
included, wherever a pass over the films takes seconds; building the network, which both do alike, is shown
apart. The bound is the number of epochs: computing features is one of the passes that naive makes.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np


@click.command(help=__doc__)
@click.option("--backbone", default="densenet121", show_default=True)
@click.option("--weights", default="none", show_default=True, help="As of training.fit transfer.")
@click.option("--side", default=96, show_default=True, help="Of the network's input, pixels.")
@click.option("--films", default=300, show_default=True, help="Generated films; a sixth validates.")
@click.option("--epochs", default=40, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--way", default=None, hidden=True)
@click.option("--folder", default=None, hidden=True)
def main(way, folder, **options):
    if way is not None:
        click.echo(json.dumps(_trained(way, Path(folder), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        from kxray.data.phantom import Mix, write_phantoms

        count = options["films"]
        write_phantoms(Path(folder) / "films", "fillet", count, 0, mix=Mix(size=options["side"]))
        told = f"{options['backbone']}, {count} films of {options['side']} px, {options['epochs']} epochs"
        click.echo(f"{told}, {os.cpu_count()} cores")
        done = {name: _run(name, folder, options) for name in ("cached", "found", "naive")}
    click.echo(f"{'':<8}{'building':>10}{'features':>10}{'training':>10}{'in all':>10}  seconds")
    for name, its in done.items():
        building = its["seconds"] - its["features"] - its["training"]
        parts = (building, its["features"], its["training"], its["seconds"])
        click.echo(f"{name:<8}" + "".join(f"{part:10.1f}" for part in parts))
    naive, cached, found = (done[name] for name in ("naive", "cached", "found"))
    ratio = naive["training"] / (cached["features"] + cached["training"])
    click.echo(f"naive / cached, features and training: {ratio:.1f} (expected at least 20)")
    click.echo(f"naive / found, training: {naive['training'] / found['training']:.1f}")
    click.echo(f"naive / cached, with building the network: {naive['seconds'] / cached['seconds']:.1f}")
    apart = np.abs(np.array(naive["head"]) - np.array(cached["head"])).max()
    click.echo(f"on disk: {cached['bytes']:,} bytes; heads differ by at most {apart:.1e}")
    for name, its in done.items():
        click.echo(f"training loss, {name}: {its['losses'][0]:.4f} to {its['losses'][1]:.4f}")


def _run(way, folder, options):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.features", f"--way={way}", f"--folder={folder}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _trained(way, folder, options):
    import dataclasses

    import pandas as pd
    from rich.console import Console

    from kxray import data
    from kxray.data import pipeline
    from training import shell
    from training.films import RunFilms
    from training.fitting import Fitting
    from training.recipes import transfer

    shell.load_tensorflow()
    recipe = transfer.Recipe(
        backbone=options["backbone"],
        weights=options["weights"],
        image_size=options["side"],
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        standardize=False,
    )
    table = data.read_source(folder / "films")
    labels = tuple(sorted(set(table["label"])))
    task = dataclasses.replace(transfer.task_of(recipe), labels=labels)
    if way == "naive":
        task = dataclasses.replace(task, frozen_features=False, augment=tuple)
    inputs = pipeline.load_inputs(table["path"], task.spec)
    nothing = np.zeros((len(table), 0))
    positions = np.array([labels.index(label) for label in table["label"]])
    films = RunFilms(
        pd.DataFrame({"training_only": False}, table.index), inputs, positions, nothing, nothing, ()
    )
    progress = shell.progress_bars(Console(file=io.StringIO()))
    devices = (contextlib.nullcontext, 1)
    fitting = Fitting(recipe, task, films, folder / way, progress, devices, folder / "features")
    validation = np.arange(0, len(table), 6)
    began = time.perf_counter()
    model, history = fitting.train(
        "work/model", way, np.setdiff1d(np.arange(len(table)), validation), validation, 0
    )
    return {
        "seconds": time.perf_counter() - began,
        "features": fitting.feature_seconds,
        "training": history.attrs["seconds"],
        "losses": [history["loss"].iloc[0], history["loss"].iloc[-1]],
        "bytes": fitting.feature_bytes,
        "head": [*map(float, np.concatenate([part.ravel() for part in model.layers[-2].get_weights()]))],
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.features")
