"""Sorts an archive of films by view: `python -m training.sort --model MODEL --input DIR --out sorted.csv`."""

import concurrent.futures
import os
from pathlib import Path

import click

from training import shell
from training.shell import program
from training.sorted_table import SortedTable, enter_corrections, read_rows

BATCH = 128


@click.command(context_settings={"max_content_width": 100})
@click.option(
    "--model", help="Run folder of training.fit, or a SavedModel such as saved_models/view_classifier/1."
)
@click.option("--input", "source", help="Folder of films, in any mix of formats, searched recursively.")
@click.option("--out", default="sorted.csv", show_default=True, help="The table to write.")
@click.option("--link-into", help="Also link every film into DIR/frontal, DIR/lateral, DIR/unsure.")
@click.option(
    "--review",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Films on the page of the least certain, OUT with the ending .review.html; 0 writes none.",
)
@click.option("--corrections", help="CSV of corrected films (path, view) to enter into OUT.")
@click.option("--workers", type=click.IntRange(1), help="Decoding workers; one a core by default.")
@click.option(
    "--dicom-reader",
    type=click.Choice(["auto", "pydicom", "tensorflow-io"]),
    default="auto",
    show_default=True,
)
@program
def main(model, source, out, link_into, review, corrections, workers, dicom_reader):
    """Label a few hundred films, train, and let the model sort the rest.

    OUT gets one row a file: path (relative to OUT), view (the likelier one), probability, decision (the view,
    or unsure below the model's threshold), reason (why a file could not be read; its other cells are empty).

    \b
    1. python -m training.sort --model saved_models/view_classifier/1 --input DIR --out sorted.csv
       Run it again after an interruption, or when films were added: only missing films are read.
    2. Open sorted.review.html, correct the least certain films, save corrected.csv from that page.
    3. python -m training.sort --out sorted.csv --corrections corrected.csv
    4. python -m training.fit view_classifier --data DIR --corrections corrected.csv
    """
    if source is None and corrections is None:
        raise ValueError(
            "nothing to do: give --model and --input to sort films, or --corrections to enter them"
        )
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out names the CSV to write, for example {out / 'sorted.csv'}")
    if source is not None:
        if model is None:
            raise ValueError("--input needs --model, a run folder or a SavedModel")
        if not Path(source).is_dir():
            raise ValueError(f"{source}: no such folder of films")
        shell.load_tensorflow()
        leave_out = [] if link_into is None else [link_into]
        sort(model, source, out, workers=workers, dicom_reader=dicom_reader, leave_out=leave_out)
    if corrections is not None:
        number = enter_corrections(out, corrections)
        click.echo(f"{number} corrected films entered into {out}")
        click.echo(
            f"train on them: python -m training.fit view_classifier --data DIR --corrections {corrections}"
        )
    if link_into is not None:
        links = link_films(out, link_into)
        click.echo(f"{links} films linked into {link_into}")
    if source is not None and review:
        from training.report.review import write_review

        click.echo(f"least certain films: {write_review(out, review)}")


def sort(model, source, out, *, workers=None, dicom_reader="auto", leave_out=()) -> Path:
    """Sorts every file below a folder that `out` does not list yet.

    Rows are appended to `out` with the ending .part, batch by batch, and that file takes its final name when
    all films are in it; so a killed run is continued with no row lost or doubled.

    Args:
        model: run folder, .keras file or SavedModel.
        source: folder of films.
        out: CSV to write.
        workers, dicom_reader: as in `kxray.io.read_films`.
        leave_out: folders below `source` that are not searched.

    Returns:
        `out`. Raises ValueError if `out` was begun with another model.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from training.predictor import Predictor

    predictor = Predictor(model)
    if predictor.spec.task == "multilabel":
        raise ValueError(f"{model}: sorting needs labels that exclude each other, got a multi-label model")
    table = SortedTable(out, predictor)
    paths = [path for path in find_files(source, leave_out) if path not in table]
    console = Console(highlight=False, markup=False)
    columns = (TextColumn("sorting films"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with table, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(paths))
        for rows in predict_rows(predictor, paths, workers=workers, dicom_reader=dicom_reader):
            table.append(rows)
            progress.update(bar, advance=len(rows))
    counts = table.finish()
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    console.print(f"{out}: {sum(counts.values())} files: {told or 'none'}", soft_wrap=True)
    return Path(out)


def find_files(source, leave_out=()) -> list[str]:
    """Every file below a folder, hidden ones left out, in an order that does not change."""
    leave_out = {os.path.realpath(folder) for folder in leave_out}
    found = []
    for folder, subfolders, names in os.walk(source):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in leave_out
        )
        paths = [os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")]
        found += [path for path in paths if not _links_inside(path, source)]
    return found


def _links_inside(path, source):
    """Whether a file is a link to another file that the search finds by itself, as --link-into makes them."""
    if not os.path.islink(path):
        return False
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(source))
    return not any(part.startswith(".") for part in Path(inside).parts)


def predict_rows(predictor, paths, *, workers=None, dicom_reader="auto"):
    """Streams films through a model: yields lists of rows (path, view, probability, decision, reason).

    One batch is predicted while the next is being read.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="kxray-predict") as executor:
        predicting = None
        for batch in _batches(paths, predictor.spec, workers, dicom_reader):
            before, predicting = predicting, executor.submit(_predicted, predictor, batch)
            if before is not None:
                yield before.result()
        if predicting is not None:
            yield predicting.result()


def _batches(paths, spec, workers, dicom_reader):
    """Lists of up to BATCH pairs (path, network input or FilmError)."""
    from kxray.data.pipeline import stream_inputs

    batch = []
    for index, result in stream_inputs(paths, spec, workers=workers, dicom_reader=dicom_reader):
        batch.append((paths[index], result))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _predicted(predictor, batch):
    from kxray.io import FilmError

    pixels = [result for _, result in batch if not isinstance(result, FilmError)]
    answers = iter(predictor(pixels)) if pixels else iter(())
    return [
        (path, "", "", "", str(result))
        if isinstance(result, FilmError)
        else _row(path, next(answers), predictor.spec)
        for path, result in batch
    ]


def _row(path, probabilities, spec):
    best = int(probabilities.argmax())
    return path, spec.labels[best], f"{probabilities[best]:.6f}", spec.decide(probabilities.tolist()), ""


def _taken(link, target, targets):
    """Whether the name holds something that is neither our link to this film nor one we are about to move."""
    if not os.path.lexists(link):
        return False
    return not (os.path.islink(link) and (os.readlink(link) == target or os.readlink(link) in targets))


def link_films(out, folder) -> int:
    """Links every film of a sorted table into a subfolder named by its decision; films keep their names.

    Links to films of this table that have been decided otherwise since are removed; nothing else in the
    folder is touched. Where two films have one name, the later one's link gets a number.

    Returns:
        The number of films linked.
    """
    out, folder = Path(out), Path(folder)
    wanted, targets = {}, set()
    for path, _, _, decision, _ in read_rows(out):
        target = os.path.abspath(out.parent / path)
        targets.add(target)
        if not decision:
            continue
        link, number = folder / decision / Path(path).name, 1
        while link in wanted or _taken(link, target, targets):
            number += 1
            link = link.with_name(f"{Path(path).stem}-{number}{Path(path).suffix}")
        wanted[link] = target
    for old in folder.glob("*/*"):
        if old.is_symlink() and os.readlink(old) in targets and wanted.get(old) != os.readlink(old):
            old.unlink()
    for link, target in wanted.items():
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    return len(wanted)


if __name__ == "__main__":
    main(prog_name="python -m training.sort")
