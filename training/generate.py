"""Makes synthetic films: `python -m training.generate --run RUN --class Nodule --count 500 --out DIR`.

`python -m training.generate sheets` shows what a generator has learned, `python -m training.generate
evaluate` compares its films with real ones.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path

import click

from training import shell
from training.shell import program

_LEFTOVER = re.compile(r"\..+-\w{8}\.(png|dcm|csv|json)")
_ABANDONED_SECONDS = 60
ALL = "all"
FORMATS = ("png", "dicom")


class _WithOthers(click.Command):
    """The command itself; `evaluate` or `sheets` as its first word are others, with options of their own."""

    def main(self, args=None, prog_name=None, **extra):
        args = [*(sys.argv[1:] if args is None else args)]
        if args[:1] == ["evaluate"]:
            from training.generating.evaluated import main as other
        elif args[:1] == ["sheets"]:
            from training.generating.sheets import main as other
        else:
            return super().main(args, prog_name, **extra)
        return other.main(args[1:], f"{prog_name or 'generate'} {args[0]}", **extra)


@click.command(cls=_WithOthers, context_settings={"max_content_width": 100})
@click.option("--run", required=True, help="Run folder of training.fit attention_cgan or cdcgan.")
@click.option("--class", "label", required=True, help="Of what: a class of the run, or all.")
@click.option(
    "--count", type=click.IntRange(1), default=100, show_default=True, help="Films, of all: of each class."
)
@click.option("--out", required=True, help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the films.")
@click.option(
    "--truncation",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Below 1 films are more typical and less varied.",
)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="png", show_default=True, help="Of files."
)
@click.option(
    "--side", type=click.IntRange(1), help="Of the films, pixels; the largest of the run by default."
)
@click.option(
    "--neighbours",
    is_flag=False,
    flag_value="copies",
    type=click.Choice(("copies", "features")),
    help="Also find each film's nearest training films, by copies of 32 pixels (the default where the option "
    "is given alone) or by features of the run's classifier.",
)
@click.option("--data", "source", help="--neighbours: the run's films, if they have been moved.")
@click.option(
    "--workers", type=click.IntRange(1), help="--neighbours: decoding workers; one a core by default."
)
@program
def main(run, label, count, out, seed, truncation, kind, side, neighbours, source, workers):
    """Make synthetic films of a class.

    \b
    OUT/films/Nodule/seed0-000017.png  film 17 of that class and seed, 16 bits; always the same
    OUT/manifest.csv                   path, patient_id (one a film), findings or label, synthetic (1),
                                       condition, seed, number; --neighbours: nearest_film (relative
                                       to OUT), nearest_distance
    OUT/neighbours/Nodule-seed0.png    with --neighbours: films beside their nearest training films

    \b
    python -m training.generate --run runs/00007 --class Nodule --count 500 --out nodules
      Run it again after an interruption, or with a larger --count: only missing films are made. Other classes
      and seeds of the same run may be added to the same folder.
    python -m training.generate --run runs/00007 --class all --count 100 --neighbours --out made
    python -m training.generate sheets --run runs/00007 --out sheets
    python -m training.generate evaluate --run runs/00007 --against runs/00008 --out judged

    The films show no patient. Every file says that it is synthetic, by which model it was made, and of what.
    They are for training only: no split of kxray lets them into validation or test. Classifiers of
    training.fit take them with --corrections OUT.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    shell.load_tensorflow()
    from rich.console import Console

    from training.generating.generator import load_generator

    if source and not neighbours:
        raise ValueError("--data belongs to --neighbours: films are made without others")
    generator = load_generator(run, truncation)
    labels = generator.spec.labels if label == ALL else (label,)
    for name in labels:
        generator.index(name)
    asked = Asked(labels, count, seed, truncation, kind, generator.side if side is None else side)
    console = Console(highlight=False, markup=False)
    if neighbours:
        from training.generating.neighbours import Neighbourhood

        # Found out now, not after all films are made.
        neighbours = Neighbourhood.of(generator, neighbours, source)
    with shell.progress_bars(console) as progress:
        written = make(generator, asked, out, progress)
        told = add_nearest(generator, asked, out, neighbours, workers, progress) if neighbours else []
    click.echo("\n".join([_summary(asked, out, written), *told]))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        labels: classes.
        count: films of each.
        seed: of the films.
        truncation: in (0, 1].
        format: "png" or "dicom".
        side: of the films, pixels.
    """

    labels: tuple[str, ...]
    count: int
    seed: int
    truncation: float
    format: str
    side: int


def make(generator, asked, out, progress) -> int:
    """Makes every film that OUT does not have yet, and writes their manifest: the films asked
    for, and those that it listed before.

    Every file is written whole or not at all: a killed run is continued, and leaves what an uninterrupted one
    leaves.

    Args:
        generator: `training.generating.generator.Generator`.
        asked: Asked.
        out: folder.
        progress: rich progress with a `facts` field.

    Returns:
        The number of films that were made now.

    Raises:
        ValueError: a side that the generator does not make; OUT holds other films, or those of another run.
    """
    from kxray.data import synthetic
    from kxray.io.files import write_whole

    out = Path(out)
    if asked.side not in generator.gan.sides:
        sides = ", ".join(map(str, generator.gan.sides))
        raise ValueError(f"--side {asked.side}: {generator.run} makes films of {sides} pixels")
    _claim(out, generator, asked)
    _remove_leftovers(out)
    written = 0
    for label in asked.labels:
        files = [out / synthetic.film_name(label, asked.seed, k, asked.format) for k in range(asked.count)]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        bar = progress.add_task(f"making {label}", total=asked.count, facts="")
        wanted = _missing(files)
        for start, films in generator.chunks(label, asked.seed, asked.count, asked.truncation, wanted):
            made = () if films is None else films[asked.side][..., 0]
            for number, pixels in enumerate(made, start=start):
                if not files[number].is_file():
                    content = synthetic.encode_synthetic(
                        pixels, label, asked.seed, number, generator.facts, asked.format
                    )
                    write_whole(files[number], content)
                    written += 1
            progress.update(bar, completed=start + len(made))
        progress.update(bar, completed=asked.count)
    _write_manifest(generator, asked, out)
    return written


def _missing(files):
    return lambda start, stop: not all(path.is_file() for path in files[start:stop])


def _claim(out, generator, asked):
    """Makes the folder this generator's own, or says why it cannot be."""
    from kxray.io.files import write_whole

    note = out / "generated.json"
    options = {
        "model": generator.spec.name,
        "run": generator.facts.run,
        "classes": list(generator.spec.labels),
        "truncation": asked.truncation,
        "format": asked.format,
        "side": asked.side,
    }
    if note.exists():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{note}: not readable; choose another --out") from None
        changed = [
            f"{name} {before.get(name)}, now {value}"
            for name, value in options.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(f"{out} holds films of another {changed[0]}; choose another --out")
        return
    if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise ValueError(f"{out} holds other files; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(options, indent=2) + "\n")


def _remove_leftovers(out):
    """Removes the temporary files that a killed run has left; another process may be writing younger ones."""
    for leftover in [*out.glob(".*"), *(out / "films").rglob(".*"), *(out / "neighbours").glob(".*")]:
        with contextlib.suppress(FileNotFoundError):
            old = time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS
            if old and _LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()


def _write_manifest(generator, asked, out):
    """The manifest of the films asked for and of those that it listed before."""
    import pandas as pd

    from kxray import data
    from kxray.data import synthetic

    rows = [
        synthetic.synthetic_row(
            (out / synthetic.film_name(label, asked.seed, number, asked.format)).absolute(),
            label,
            asked.seed,
            number,
            generator.facts,
        )
        for label in asked.labels
        for number in range(asked.count)
    ]
    table = pd.DataFrame(rows)
    if (out / "manifest.csv").is_file():
        before = data.read_manifest(out / "manifest.csv", check=False)
        before = before[[Path(path).is_file() for path in before["path"]]]
        # What was found out of a film earlier stays.
        known = before.set_index("path").reindex(table["path"])
        for name in ("nearest_film", "nearest_distance"):
            if name in known.columns:
                table[name] = known[name].to_numpy()
        table = pd.concat([before[~before["path"].isin(table["path"])], table], ignore_index=True)
    place = table["condition"].map(generator.spec.labels.index)
    table = table.assign(_place=place).sort_values(["_place", "seed", "number"], kind="stable")
    data.write_manifest(table.drop(columns="_place").reset_index(drop=True), out / "manifest.csv")


def add_nearest(generator, asked, out, neighbourhood, workers, progress) -> list[str]:
    """Finds the nearest training films of the films asked for; writes sheets and columns. Gives sentences."""
    from kxray import data
    from kxray.io.marks import class_folder
    from training.generating import neighbours

    out, bar = Path(out), progress.add_task("reading training films", total=None, facts="")
    training = neighbours.training_films(
        neighbourhood,
        workers=workers,
        progress=lambda done, total: progress.update(bar, completed=done, total=total),
    )
    table = data.read_manifest(out / "manifest.csv", check=False)
    told = []
    for label in asked.labels:
        own = (table["condition"] == label) & (table["seed"] == asked.seed) & (table["number"] < asked.count)
        found, distances, places = neighbours.add_neighbours(
            table[own], training, generator.spec, workers=workers
        )
        found["nearest_film"] = [
            Path(os.path.relpath(path, out)).as_posix() for path in found["nearest_film"]
        ]
        for name in ("nearest_film", "nearest_distance"):
            if name not in table.columns:
                table[name] = "" if name == "nearest_film" else float("nan")
            table[name] = table[name].astype(object if name == "nearest_film" else float)
            table.loc[own, name] = found[name]
        sheet = out / "neighbours" / f"{class_folder(label)}-seed{asked.seed}.png"
        neighbours.write_sheet(sheet, found, training, distances, places)
        told.append(f"{label}: {neighbours.told(distances, training)} ({sheet})")
    data.write_manifest(table, out / "manifest.csv")
    return told


def _summary(asked, out, written):
    films = asked.count * len(asked.labels)
    kind = "16-bit PNG" if asked.format == "png" else "12-bit DICOM"
    names = ", ".join(asked.labels)
    told = f"{out}: {films} synthetic films ({names}; {asked.side} px, {kind}, seed {asked.seed}"
    told += f", truncation {asked.truncation:g})" if asked.truncation != 1 else ")"
    if written < films:
        told += f", {films - written} of them were there already"
    return f"{told}\nfor training only: no split of kxray lets them into validation or test"


if __name__ == "__main__":
    main(prog_name="python -m training.generate")
