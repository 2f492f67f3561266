"""Splits a class by the size of its defect: python -m training.relabel --data DIR --by width --classes 3"""

import os
import shutil
import tempfile
from pathlib import Path

import click

from training.shell import program

HELP = """
Splits one class into several by the size of the defect, as "bone" into bone_scale1 (the smallest),
bone_scale2 and bone_scale3, so that a network can learn what a hair-thin rib and what a vertebra looks like.

Sizes are pixels of the film. --by width takes the calibre: of the masks where there are any, else of the
strongest bright ridge of the film (within its boxes where there are any). --by area counts the pixels of the
masks, or of the largest box; --by boxes takes the root of the largest box's area.

OUT is a new folder and the films stay where they are: manifest.csv (for every program that takes --data; the
old label is its column coarse_label), sizes.csv, histogram.png, a sheet-LABEL.png a size class in order of
size, and index.html, a page on which classes can be corrected.

\b
Examples
  three classes of about equally many films:
    python -m training.relabel --data fillets --by width --classes 3 --out fillets-by-width
  cut at 3 and 8 pixels:
    python -m training.relabel --data fillets --thresholds 3,8 --out fillets-by-width
  open fillets-by-width/index.html, correct films, save corrected.csv from that page, and enter it:
    python -m training.relabel --out fillets-by-width --corrections corrected.csv
  or edit the column label of a copy of sizes.csv, and enter that.
"""


def _pixels(context, parameter, value):
    if value is None:
        return None
    try:
        return tuple(float(cell) for cell in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"expected pixels with commas between them, such as 3,8, got {value!r}"
        ) from None


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data", type=click.Path(path_type=Path), help="Folder of films, or its CSV.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: DATA-by-width, ...]"
)
@click.option("--by", default="width", show_default=True, help="width, area or boxes.")
@click.option("--classes", type=int, help="Size classes a label.  [default: 3, or what --thresholds says]")
@click.option(
    "--thresholds",
    callback=_pixels,
    help="Pixels between classes, as 3,8.  [default: equal numbers of films]",
)
@click.option(
    "--keep",
    multiple=True,
    help="Label without defects, not split; may be repeated.  [default: no_bone, normal, No Finding, ...]",
)
@click.option("--corrections", type=click.Path(path_type=Path), help="CSV of films (path, label) to enter.")
@click.option("--skip-bad", is_flag=True, help="Leave broken rows and films out; skipped.csv lists them.")
@click.option("--workers", type=click.IntRange(1), help="Films read at a time.  [default: the cores]")
@program
def main(data, out, by, classes, thresholds, keep, corrections, skip_bad, workers):
    from kxray.data import relabel as sizes

    if data is None and corrections is None:
        raise ValueError(
            "nothing to do: give --data to split a class, or --out and --corrections to correct one"
        )
    if by not in sizes.MEASURES:
        raise ValueError(f"--by must be {', '.join(sizes.MEASURES)}, got {by!r}")
    if classes is None:
        classes = 3 if thresholds is None else len(thresholds) + 1
    if classes < 2:
        raise ValueError(f"--classes must be at least 2, got {classes}")
    if thresholds is not None:
        thresholds = sizes.check_thresholds(thresholds, classes)
    if out is None:
        if data is None:
            raise ValueError("--corrections needs --out, the folder to correct")
        source = Path(os.path.abspath(data))
        source = source.parent if source.is_file() else source
        out = source.with_name(f"{source.name}-by-{by}")
    finished = (out / "sizes.csv").is_file() and (out / "manifest.csv").is_file()
    if corrections is not None and (finished or data is None):
        # The films of a finished folder are not measured again.
        click.echo(f"{enter_corrections(out, corrections)} corrected films entered into {out}")
        return
    _check_free(out, data)
    told = split(data, out, by, classes, thresholds, keep=keep, skip_bad=skip_bad, workers=workers)
    for line in told:
        click.echo(line)
    if corrections is not None:
        click.echo(f"{enter_corrections(out, corrections)} corrected films entered into {out}")
    click.echo(f"look at them and correct them: {out / 'index.html'}")


def _check_free(out, data):
    source = Path(data).resolve()
    source = source.parent if source.is_file() else source
    if out.resolve() == source or source in out.resolve().parents:
        raise ValueError(
            f"--out {out} is in the folder of the films, which stays as it is; choose another folder"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} is there already; choose another --out, delete it, or correct it with --corrections"
        )


def split(data, out, by, classes, thresholds=None, *, keep=(), skip_bad=False, workers=None) -> list[str]:
    """Measures the films of a source and writes OUT, whole or not at all.

    Args:
        data: source of films, as `kxray.data.read_source` takes it.
        out: folder to write, absent or empty.
        by, workers: as in `kxray.data.measure_sizes`.
        classes: size classes a label.
        thresholds: pixels between the classes; by default about equally many films in each, label by label.
        keep: labels that are not split; by default those that say that there is no defect.
        skip_bad: leave out broken rows and unreadable films.

    Returns:
        Lines that tell what came out.

    Raises:
        kxray.data.ManifestError: broken rows or films, unless `skip_bad`.
        ValueError: no label to split or to keep, or too few distinct sizes.
    """
    import pandas as pd

    from kxray import data as films
    from kxray.data import relabel as sizes
    from kxray.data.manifest import row_numbers

    table = films.read_source(data, check=False)
    notes = list(table.attrs.get("notes", []))
    problems = films.check_manifest(table)
    table, problems = _without(table, problems, skip_bad, data)
    split_labels = _labels_to_split(table, keep, data, classes)
    here = table["label"].isin(split_labels)
    measured = _measure(table[here], by, workers)
    broken = measured[measured["problem"] != ""]
    rows = dict(zip(table.index, row_numbers(table), strict=True))
    unread = pd.DataFrame(
        [(rows[i], table["path"][i], "path", problem) for i, problem in broken["problem"].items()],
        columns=problems.columns,
    )
    table, unread = _without(table, unread, skip_bad, data)
    problems = pd.concat([problems, unread], ignore_index=True)
    measured = measured[measured.index.isin(table.index)]
    cuts = {}
    for label in split_labels:
        of_label = measured["size_px"][table["label"].reindex(measured.index) == label]
        try:
            cuts[label] = thresholds or sizes.size_thresholds(of_label, classes)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    result = films.relabel_by_size(table, measured["size_px"], cuts)
    sheet = measured.drop(columns="problem").assign(
        path=result["path"], coarse_label=result["coarse_label"], label=result["label"]
    )
    labels = [sizes.size_label(label, k) for label in split_labels for k in range(1, classes + 1)]
    labels += sorted(set(table["label"]) - set(split_labels))
    parent = Path(os.path.abspath(out)).parent
    parent.mkdir(parents=True, exist_ok=True)
    # A sibling of OUT, so that paths relative to it stay right when it takes its name.
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=parent))
    try:
        temporary.chmod(0o755)
        facts = {"by": by, "thresholds": cuts, "labels": labels}
        _write(temporary, result, sheet, facts, out.name)
        if len(problems):
            films.write_skipped(problems, temporary / "skipped.csv")
            notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    nameless = result["path"][measured.index[measured["size_px"].isna()]]
    if len(nameless):
        shown = ", ".join(Path(path).name for path in nameless[:3]) + (", ..." if len(nameless) > 3 else "")
        notes.append(f"{len(nameless)} films without a measurable size are in the smallest class: {shown}")
    return [*(f"note: {note}" for note in notes), *_summary(result, measured, cuts, out)]


def _without(table, problems, skip_bad, source):
    from kxray import data as films

    if len(problems) and not skip_bad:
        raise films.ManifestError(problems, source)
    attrs = table.attrs
    table = films.drop_problems(table, problems) if len(problems) else table
    table.attrs = attrs
    return table, problems


def _labels_to_split(table, keep, source, classes):
    from kxray.data import kept_labels

    if "label" not in table.columns:
        raise ValueError(
            f"{source}: expected a column 'label' or a folder a class, got columns {', '.join(table.columns)}"
        )
    if "coarse_label" in table.columns:
        raise ValueError(f"{source}: is relabelled already (column coarse_label); start from its source")
    counts = table["label"].value_counts()
    if "" in counts:
        raise ValueError(f"{source}: {counts['']} films have no label; give them one, or remove their rows")
    labels = ", ".join(sorted(counts.index))
    unknown = sorted(set(keep) - set(counts.index))
    if unknown:
        raise ValueError(f"--keep {', '.join(unknown)}: no film has this label; labels: {labels}")
    keep = list(keep) or kept_labels(counts.index)
    if not keep:
        raise ValueError(f"which label has no defects? Give it as --keep LABEL; labels: {labels}")
    found = [label for label in sorted(counts.index) if label not in keep]
    if not found:
        raise ValueError(
            f"no label is left to split: {labels} stay as they are; give the one that stays as --keep"
        )
    for label in found:
        if counts[label] < classes:
            raise ValueError(f"{label}: {counts[label]} films cannot make {classes} size classes")
    return found


def _measure(table, by, workers):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kxray.data import measure_sizes

    console = Console(highlight=False, markup=False)
    columns = (TextColumn("measuring films"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(table))
        return measure_sizes(
            table, by, workers=workers, progress=lambda done: progress.update(bar, completed=done)
        )


def _summary(result, measured, cuts, out):
    yield f"{out}: {len(result)} films"
    kept = sorted(set(result["label"][result["label"] == result["coarse_label"]]))
    yield f"kept as they are: {', '.join(kept)}"
    for label, thresholds in cuts.items():
        told = ", ".join(f"{value:.2f}" for value in thresholds)
        yield f"{label} is cut at {told} pixels"
        of_label = result["coarse_label"] == label
        for name, some in result[of_label].groupby("label"):
            span = f"{some['size_px'].min():.2f} to {some['size_px'].max():.2f} pixels"
            sources = measured["measured_from"].reindex(some.index).replace("", "nothing").value_counts()
            yield f"  {name}: {len(some)} films, {span}, from {', '.join(sources.index)}"


def _write(folder, table, sheet, facts, name):
    """Writes everything of OUT into `folder`; the manifest comes last."""
    import json

    from kxray.data.manifest import write_manifest, write_text
    from training.report import sizes as report

    report.write_pages(folder, sheet, facts, name)
    cells = sheet[
        ["path", "coarse_label", "size_px", "measured_from", "label", "x1", "y1", "x2", "y2"]
    ].copy()
    cells["path"] = [Path(os.path.relpath(path, folder)).as_posix() for path in cells["path"]]
    cells = cells.sort_values(["coarse_label", "size_px"], kind="stable").round(3)
    write_text(folder / "sizes.csv", cells.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "relabel.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_manifest(table, folder / "manifest.csv")


def enter_corrections(out, corrections) -> int:
    """Writes the size classes that a person gave into OUT, and draws its sheets and page anew.

    Args:
        out: folder of training.relabel.
        corrections: CSV with the columns path (relative to itself, or absolute) and label; rows without a
            label are passed over. It may be an edited sizes.csv.

    Returns:
        The number of films whose label changed.

    Raises:
        ValueError: films or labels that OUT does not have.
    """
    import json

    from kxray import data as films

    out = Path(out)
    try:
        facts = json.loads((out / "relabel.json").read_text(encoding="utf-8"))
        labels = list(facts["labels"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{out}: no readable relabel.json; expected a folder of training.relabel") from None
    corrected = films.read_manifest(corrections)
    if "label" not in corrected.columns:
        raise ValueError(
            f"{corrections}: expected the columns path and label, got {', '.join(corrected.columns)}"
        )
    corrected = corrected[corrected["label"] != ""]
    unknown = sorted(set(corrected["label"]) - set(labels))
    if unknown:
        raise ValueError(f"{corrections}: unknown label {', '.join(unknown)}; expected {', '.join(labels)}")
    table = films.read_manifest(out / "manifest.csv")
    places = {os.path.realpath(path): i for i, path in table["path"].items()}
    given = {os.path.realpath(path): label for path, label in corrected[["path", "label"]].values}
    foreign = sorted(set(given) - set(places))
    if foreign:
        raise ValueError(
            f"{corrections}: {len(foreign)} films are not in {out}, the first of them: {foreign[0]}"
        )
    changed = {places[path]: label for path, label in given.items() if table["label"][places[path]] != label}
    for i, label in changed.items():
        table.loc[i, "label"] = label
        table.loc[i, "coarse_label"] = _coarse(label, facts)
    measured = films.read_manifest(out / "sizes.csv")
    measured["measured_from"] = measured["measured_from"].replace(float("nan"), "").astype(str)
    measured = measured.set_index("path", drop=False)
    now = table.set_index("path")
    # A film that becomes one of a size class was not measured; it is shown last.
    sized = now.index[now["label"] != now["coarse_label"]].union(measured.index, sort=False)
    sheet = measured.reindex(sized).assign(path=sized)
    sheet["measured_from"] = sheet["measured_from"].fillna("")
    sheet = sheet.assign(label=now["label"].reindex(sized), coarse_label=now["coarse_label"].reindex(sized))
    _write(out, table, sheet, facts, out.resolve().name)
    return len(changed)


def _coarse(label, facts):
    from kxray.data import size_label

    for coarse, thresholds in facts["thresholds"].items():
        if label in [size_label(coarse, k + 1) for k in range(len(thresholds) + 1)]:
            return coarse
    return label


if __name__ == "__main__":
    main(prog_name="python -m training.relabel")
