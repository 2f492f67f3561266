"""Brings chest films upright, to one place and size: python -m training.align --data DIR --by classical"""

import json
import os
import time
from pathlib import Path

import click

from training.shell import program

HELP = """
Aligns the films of a folder: finds how each chest is rotated, scaled and shifted, and writes the films with
that undone. Films that are no upright frontal chests are refused and listed with the reason.

OUT is a new folder, read by every program that takes --data: films/ (16-bit PNG), masks/ where the source has
any, manifest.csv (the source's columns, boxes and masks moved, and rotation, scale, shift_x, shift_y,
confidence), refused.csv and before_after.png. The source stays as it is. A run that was interrupted continues
when the same command is given again.

\b
Examples
  by registration to the mean of the films themselves; the mean is kept in OUT/template.npz:
    python -m training.align --data films --by classical --out films-aligned
  by registration to a mean that was made before:
    python -m training.align --data others --by films-aligned/template.npz --out others-aligned
  by a network of `python -m training.fit align`:
    python -m training.align --data films --by runs/align-1 --out films-aligned

Films are stretched to a square first, as networks see them; a pose is a similarity of that square.
"""
# Films that the template is made of, at most: more only make the mean of more films.
TEMPLATE_FILMS = 300
TEMPLATE_SIDE = 96


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of films, or its CSV.")
@click.option(
    "--by", required=True, help="classical, a template.npz, or an aligner: a run of training.fit align."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: DATA-aligned]")
@click.option(
    "--size",
    default=256,
    show_default=True,
    type=click.IntRange(32, 4096),
    help="Side of the aligned films in pixels.",
)
@click.option(
    "--confidence",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Films below are refused. Lateral films always are, and by registration those that lie turned.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of the films that a template is made of.",
)
@click.option("--workers", type=click.IntRange(1), help="Films read at a time.  [default: the cores]")
@program
def main(data, by, out, size, confidence, seed, workers):
    from kxray.data.align import align_folder, check_out, read_films_table

    source = Path(os.path.abspath(data))
    if out is None:
        folder = source.parent if source.is_file() else source
        out = folder.with_name(f"{folder.name}-aligned")
    _check_apart(Path(out), source)
    check_out(out)
    if by == "classical":
        aligner = None
    elif Path(by).suffix == ".npz":
        aligner = _load_template(by)
    else:
        aligner = _load_aligner(by)
    table = read_films_table(data)
    for note in table.attrs.get("notes", []):
        click.echo(f"note: {note}")
    with _bars() as bars:
        if aligner is None:
            aligner = _own_template(table, Path(out), seed, workers, bars)
        bar, begun = bars.add_task("aligning films", total=len(table)), []

        def told(done, total):
            begun.append((time.perf_counter(), done))
            bars.update(bar, completed=done)

        told(0, len(table))
        counts = align_folder(
            table, out, aligner, size=size, least_confidence=confidence, progress=told, workers=workers
        )
    seconds = begun[-1][0] - begun[0][0]
    click.echo(
        f"{out}: {counts['aligned']} films aligned, {counts['refused']} refused, "
        f"{len(table) / max(seconds, 1e-3):.0f} films/s"
    )
    if counts["boxes_left_out"]:
        click.echo(f"boxes left out, as they lie outside of the aligned films: {counts['boxes_left_out']}")
    if counts["refused"]:
        click.echo(f"why films were refused: {out / 'refused.csv'}")
    if (out / "before_after.png").is_file():
        click.echo(f"look at {out / 'before_after.png'}")


def _check_apart(out, source):
    folder = source.parent if source.is_file() else source
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise ValueError(
            f"--out {out} is in the folder of the films, which stays as it is; choose another folder"
        )


def _load_template(path):
    from kxray.data import Template

    if not Path(path).is_file():
        raise ValueError(f"--by {path}: no such file; expected classical, a template.npz or a run folder")
    return Template.load(path)


def _load_aligner(path):
    if not Path(path).exists():
        raise ValueError(f"--by {path}: no such run; expected classical, a template.npz or a run folder")
    from training import shell

    shell.load_tensorflow()
    from kxray import models

    return models.load_aligner(path)


def _own_template(table, out, seed, workers, bars):
    """The mean of the films themselves; that of an interrupted run is used again.

    Beside it template.json says of which films it is.
    """
    from kxray.data import Template, build_template
    from kxray.data.align import table_digest
    from kxray.io.files import write_whole

    kept, note = out / "template.npz", out / "template.json"
    digest = table_digest(table)
    made_of = {name: digest[name] for name in ("films", "paths", "views", "files")} | {"seed": seed}
    if kept.is_file():
        if _read_note(note) != made_of:
            raise ValueError(
                f"{kept} is a template of other films, or of another --seed; give it with --by to align with "
                "it, or choose another --out"
            )
        return Template.load(kept)
    films = _template_films(table, seed, workers, bars)
    bar = bars.add_task("making the template", total=None)
    template = build_template(
        films,
        seed=seed,
        workers=workers,
        progress=lambda done, total: bars.update(bar, completed=done, total=total),
    )
    out.mkdir(parents=True, exist_ok=True)
    # First: a template without its note would be taken for that of other films.
    write_whole(note, json.dumps(made_of, indent=2) + "\n")
    template.save(kept)
    return template


def _read_note(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _template_films(table, seed, workers, bars):
    import functools

    import numpy as np

    from kxray.data.align import frame
    from kxray.io import FilmError, read_films

    frontal = table[table["view"] != "lateral"] if "view" in table.columns else table
    picked = np.sort(np.random.default_rng(seed).permutation(len(frontal))[:TEMPLATE_FILMS])
    small = functools.partial(frame, size=TEMPLATE_SIDE, small=(TEMPLATE_SIDE, TEMPLATE_SIDE))
    paths, films = [frontal["path"].iloc[k] for k in picked], []
    bar = bars.add_task("reading films", total=len(paths))
    for _, kept in read_films(paths, transform=small, workers=workers):
        if not isinstance(kept, (str, FilmError)):
            films.append(kept[0])
        bars.update(bar, advance=1)
    if len(films) < 2:
        raise ValueError(
            f"a template needs 2 readable films and more, got {len(films)}; give one with --by template.npz"
        )
    return np.stack(films)


def _bars():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(highlight=False, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    main(prog_name="python -m training.align")
