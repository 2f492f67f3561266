"""A collection that fits nowhere: how long until the first batch, how much memory, how many films a second.

    python -m benchmarks.streaming

Generated chest films (2,000 of 64 x 64 pixels by default) are written once, and linked under 100,000 names of
as many patients as it takes; their manifest is the collection. Then a fresh process does what
`training.fit masked_densenet --cache stream` does before its first step: imports TensorFlow, reads and checks
the manifest, groups patients, splits, checks the files of validation and test films, takes the fingerprint,
writes split.csv, reads the headers of films with boxes (half of them), weighs findings, and starts batches
(16 films, 64 x 64, augmented, with boxes). Seconds count from the start of that process, imports and all.
Then the batches run on, without a network: resident memory is told as they pass. Films are not aligned
(--align none): how long an aligner and the network's training take comes on top, and is not measured here.

Expected, 2 cores that others keep busy (load 6): the first batch after 12.5 s, 11 s of a core (a limit of
30 s is what counts), 1,010 MB at the first batch and after 1,500 more, 1,600 films a second. `--keep FOLDER`
leaves the films for another round.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


@click.command(help=__doc__)
@click.option("--films", default=2000, show_default=True, help="Distinct films.")
@click.option("--rows", default=100_000, show_default=True, help="Rows of the manifest.")
@click.option("--batches", default=1500, show_default=True, help="Batches of 16 after the first.")
@click.option("--keep", default=None, help="Folder of the films; a temporary one by default.")
@click.option("--run", default=None, hidden=True)
def main(films, rows, batches, keep, run):
    if run is not None:
        return measure(Path(run), batches)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        collection(folder, films, rows)
        began = time.time()
        command = [
            sys.executable,
            "-m",
            "benchmarks.streaming",
            "--run",
            str(folder),
            "--batches",
            str(batches),
        ]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "STREAMING_BEGAN": repr(began)}
        subprocess.run(command, check=True, env=environment)


def collection(folder, films, rows):
    """Writes `films` phantoms and a manifest of `rows` names that are linked to them."""
    import pandas as pd

    from kxray.data.phantom import Mix, write_phantoms

    if (folder / "manifest.csv").exists():
        return
    made = write_phantoms(folder / "made", "thorax", films, 0, mix=Mix(size=64, views=("frontal",)))
    table = pd.read_csv(made, dtype={"patient_id": str})
    (folder / "films").mkdir(exist_ok=True)
    parts = []
    for copy in range(-(-rows // films)):
        names = [f"films/{copy:03}_{Path(path).name}" for path in table["path"]]
        for source, name in zip(table["path"], names, strict=True):
            link = folder / name
            if not link.exists():
                os.link(folder / "made" / source, link)
        parts.append(table.assign(path=names, patient_id=[f"{copy}-{name}" for name in table["patient_id"]]))
    whole = pd.concat(parts, ignore_index=True).head(rows).drop(columns="masks", errors="ignore")
    whole.to_csv(folder / "manifest.csv", index=False)


def measure(folder, batches):
    """What `training.fit` does until its first batch, and the batches after it."""
    began = float(os.environ["STREAMING_BEGAN"])
    told, last = [], (began, 0.0)

    def tell(what):
        nonlocal last
        now = (time.time(), time.process_time())
        told.append((what, now[0] - last[0], now[1] - last[1]))
        last = now

    import numpy as np
    import tensorflow as tf  # noqa: F401
    from rich.console import Console

    from kxray import data
    from kxray.data import pipeline
    from training import films as film_tables
    from training import finding_loss, shell, streaming
    from training.recipes.masked_densenet import Recipe, task_of

    tell("imports")
    start_mb = resident_mb()
    recipe = Recipe(
        data=str(folder),
        cache="stream",
        image_size=64,
        backbone="small_densenet",
        align="none",
        batch_size=16,
    )
    progress = shell.progress_bars(Console(quiet=True))
    with tempfile.TemporaryDirectory() as run:
        task, films = film_tables.load(recipe, task_of(recipe), run, progress)
        tell("manifest read and checked")
        grouping = data.film_groups(films.tested)
        split = film_tables.split_films(recipe, task, films.tested, grouping)
        tell("patients grouped and split")
        found = streaming.without_unreadable(films, split, recipe, Path(run), progress)
        if found is not None:
            raise ValueError(f"{folder}: not the films that this benchmark wrote; give another --keep")
        tell("files of validation and test")
        streaming.fingerprint(films)
        data.save_split(films.tested.assign(split=split.parts), Path(run) / "split.csv")
        tell("fingerprint, split.csv")
        rows = films.tested.index[split.parts == "train"].to_numpy()
        boxes = task.masking.boxes(task, films, rows, 0)
        tell(f"boxes of {int(films.table['boxes'].map(bool).sum()):,} films")
        weights = finding_loss.positive_weights(films.labels[rows])
        stream = pipeline.training_batches(
            films.inputs,
            finding_loss.weighted_targets(films.labels, weights),
            np.ones(len(films.inputs)),
            rows,
            batch_size=recipe.batch_size,
            seed=0,
            augment=task.augment(),
            boxes=boxes,
        )
        tell("targets")
        ready = iter(stream)
        next(ready)
        tell("first batch")
        click.echo(f"{len(films.table):,} films, {len(rows):,} to train on, {grouping.count:,} patients")
        for what, seconds, busy in told:
            click.echo(f"  {what:<32} {seconds:6.1f} s, {busy:5.1f} s of a core")
        waited = last[0] - began
        click.echo(
            f"first batch after {waited:.1f} s ({last[1]:.1f} s of a core, load {os.getloadavg()[0]:.1f}); "
            f"resident memory {start_mb:.0f} MB after imports, ",
            nl=False,
        )
        click.echo(f"{resident_mb():.0f} MB at the first batch")
        marks = {}
        began_batches = time.time()
        for count in range(1, batches + 1):
            next(ready)
            if count % max(1, batches // 5) == 0:
                marks[count] = resident_mb()
        seconds = time.time() - began_batches
        click.echo("  ".join(f"{count} batches {mb:.0f} MB" for count, mb in marks.items()))
        rate = recipe.batch_size * batches / seconds
        click.echo(f"{rate:.0f} films/s ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})")
        click.echo(json.dumps({"first_batch_s": round(waited, 2), "resident_mb": marks}))


def resident_mb() -> float:
    """Resident memory of this process, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:")), 0.0)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.streaming")
