"""Explains a folder of films: `python -m training.explain --run RUN --data DIR --out DIR`.

`python -m training.explain evaluate` compares the methods on films whose findings are known.
"""

import hashlib
import io
import os
import re
import sys
from pathlib import Path

import click

from training import shell
from training.shell import program

MOST_SHOWN = 200
_LEFTOVER = re.compile(r"\..+-\w{8}\.(png|npz)")


class _WithEvaluate(click.Command):
    """The command itself; `evaluate` as its first word is another one, with options of its own."""

    def main(self, args=None, prog_name=None, **extra):
        args = [*(sys.argv[1:] if args is None else args)]
        if args[:1] == ["evaluate"]:
            from training.explaining.evaluating import main as evaluate

            return evaluate.main(args[1:], f"{prog_name or 'explain'} evaluate", **extra)
        return super().main(args, prog_name, **extra)


@click.command(cls=_WithEvaluate, context_settings={"max_content_width": 100})
@click.option("--run", required=True, help="Run folder of training.fit, or its model.keras.")
@click.option("--data", required=True, help="Folder of films of any formats, or a manifest CSV.")
@click.option("--out", required=True, help="Folder to write to.")
@click.option(
    "--method",
    help="multiscale_cam, grad_cam, lrp, rap, ...  [default: multiscale_cam where the model has stages that "
    "vote, else grad_cam]",
)
@click.option(
    "--target",
    default="predicted",
    show_default=True,
    help="Whose map: a label of the model, predicted, or true (the film's own label where DATA has it).",
)
@click.option("--workers", type=click.IntRange(1), help="Decoding workers; one a core by default.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Films a batch.")
@click.option("--skip-bad", is_flag=True, help="Leave out films that cannot be read instead of stopping.")
@program
def main(run, data, out, method, target, workers, batch_size, skip_bad):
    """See why a model decided: a map over every film of a folder, and the numbers behind it.

    \b
    OUT/overlays/NAME.png  the film in its own resolution; red speaks for the label, blue against it
    OUT/maps/NAME.npz      heatmap (h, w) signed and raw, label, probabilities, labels, and what the method
                           adds: stage_maps (S, h, w), relevance_weights (S,), stage_names (S,)
    OUT/maps/NAME.png      heatmap as 16-bit PNG: value = offset + scale * grey; both are in its text chunks
    OUT/explained.csv      one row a film: answer, probabilities, explained label, files, range of the map
    OUT/index.html         the least certain films to look through
    OUT/scores.json        where DATA is a manifest with masks or boxes: do the maps point there?

    \b
    python -m training.explain --run runs/00003 --data films --out explained
      Run it again after an interruption, or when films were added: only missing films are explained.
    python -m training.phantom --kind fillet --count 400 --out fillets
    python -m training.explain --run runs/00003 --data fillets --target true --out scored
      Maps of each film's true label, scored against the bones that are known to be there.
    python -m training.explain evaluate --run runs/00003 --data fillets
      All methods on the same films in one table; see its --help.
    """
    check_places(run, data, out)
    shell.load_tensorflow()

    from training.explaining.film_explainer import FilmExplainer

    explainer = FilmExplainer(run, method, target)
    films = find(data, explainer.spec, out, skip_bad)
    told = explain(
        explainer, films, out, explainer.method, workers=workers, batch_size=batch_size, skip_bad=skip_bad
    )
    click.echo(told)


def check_places(run, data, out):
    """Raises ValueError for a run or data that are not there, or an --out that is a file."""
    for folder, name in ((Path(data), "--data"), (Path(run), "--run")):
        if not folder.exists():
            raise ValueError(f"{folder}: no such file or folder ({name})")
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")


def find(data, spec, out, skip_bad=False):
    """The films to explain, with what is known of them.

    Args:
        data: a folder of films in any order, one with a manifest.csv or NIH's table, or a manifest CSV.
        spec: whose labels are looked for.
        out: folder whose files are no films.
        skip_bad: leave broken rows of a manifest out.

    Returns:
        Table with the columns path (absolute), patient_id, label ("" where unknown), where the source has
        them masks and boxes, and the attribute `attrs["folder"]`, below which films are named.

    Raises:
        kxray.data.ManifestError: broken rows, unless `skip_bad`.
        ValueError: no film.
    """
    import numpy as np
    import pandas as pd

    from kxray import data as films
    from kxray.data import sources

    data = Path(data)
    manifests = [data] if data.is_file() else [*data.glob("manifest.csv")] or [*data.glob("*/manifest.csv")]
    if len(manifests) == 1:
        table = films.read_source(manifests[0], check=False)
    elif any(data.glob("Data_Entry_2017*.csv")):
        table = films.read_source(data, check=False)
    else:
        # A folder of films need not say more of them; where it does, the class is the name of their folder.
        paths = [path.absolute() for path in sources.find_films(data)]
        folders = [path.parent.name if path.parent.name in spec.labels else "" for path in paths]
        columns = {"path": [*map(str, paths)], "patient_id": [""] * len(paths), "label": folders}
        table = pd.DataFrame(columns, dtype=str)
    if os.path.realpath(data).startswith(os.path.realpath(out) + os.sep):
        raise ValueError(f"the films of {data} lie in --out {out}; choose a folder that does not hold them")
    # Neither this run's overlays nor those of an earlier one are films.
    own = [out, *(note.parent for note in data.rglob("explained.json"))]
    own = tuple(os.path.realpath(folder) + os.sep for folder in own)
    mine = np.array([os.path.realpath(path).startswith(own) for path in table["path"]], bool)
    table = table.loc[~mine]
    if not len(table):
        raise ValueError(f"{data}: no films in it")
    problems = films.check_manifest(table)
    if len(problems) and not skip_bad:
        raise films.ManifestError(problems, data)
    table = films.drop_problems(table, problems)
    if not len(table):
        raise ValueError(f"{data}: no films in it")
    table["label"] = _known_labels(table, spec)
    table.attrs["folder"] = str(manifests[0].parent if len(manifests) == 1 else data)
    table.attrs["data"] = os.path.realpath(data)
    return table.reset_index(drop=True)


def _known_labels(table, spec):
    """The column that holds this model's labels, as text; empty where the table has none."""
    if spec.task == "multilabel":
        from training import findings

        return findings.names_of(table, spec.labels)
    for name in ("label", "view", *table.columns):
        if name in table.columns:
            known = [value for value in table[name] if not isinstance(value, str) or value]
            if known and all(isinstance(value, str) and value in spec.labels for value in known):
                return table[name]
    return ""


def explain(explainer, films, out, method, *, workers=None, batch_size=16, skip_bad=False) -> str:
    """Explains every film that OUT does not have yet.

    Every file is written whole or not at all, and its film's row after it: a killed run is continued, and
    leaves what an uninterrupted one leaves. Memory holds one batch of films, whatever their number.

    Args:
        explainer: FilmExplainer.
        films: table of `find`.
        out: folder.
        method: its name, for the table and the pages.
        workers, batch_size, skip_bad: options of the program.

    Returns:
        One sentence that says what was done.

    Raises:
        kxray.io.FilmError: an unreadable film, unless `skip_bad`.
        ValueError: OUT was begun with another model, method, target or folder.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from training import runs
    from training.explaining.explained_table import ExplainedTable
    from training.explaining.map_scores import summary
    from training.report.gallery import write_gallery

    out = Path(out)
    for folder in (out / "overlays", out / "maps"):
        folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "model": explainer.digest,
        "method": method,
        "target": explainer.target,
        "data": films.attrs["data"],
    }
    table = ExplainedTable(out, explainer.spec.labels, facts, batch_size)
    _remove_leftovers(out)
    todo = films[[path not in table for path in films["path"]]]
    folder = films.attrs["folder"]
    console = Console(highlight=False, markup=False)
    columns = (TextColumn("explaining films"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with table, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(films), completed=len(films) - len(todo))
        for batch in _batches(todo, explainer.spec, workers, batch_size, skip_bad):
            table.append(_explained(explainer, batch, out, folder, table.relative))
            progress.update(bar, advance=len(batch))
    rows = table.finish(films["path"])
    scores = summary(rows, method, explainer.target)
    if scores is not None:
        runs.write_json(out / "scores.json", scores)
    write_gallery(out, rows, method, MOST_SHOWN)
    bad = sum(bool(row["reason"]) for row in rows)
    told = f"{out}: {len(rows) - bad} films explained with {method}"
    told += f", {bad} could not be read" if bad else ""
    if scores is not None:
        told += "\n" + scores["told"]
    return f"{told}\nlook at {out / 'index.html'}"


def _remove_leftovers(out):
    """Removes the temporary files that a killed run has left; nothing of ours is hidden otherwise."""
    for folder in (out / "overlays", out / "maps"):
        for leftover in folder.rglob(".*"):
            if _LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()
    for leftover in out.glob(".*"):
        if leftover.name.startswith((".explained", ".index", ".scores")):
            leftover.unlink()


def _batches(films, spec, workers, batch_size, skip_bad):
    """Lists of up to `batch_size` pairs (row of the films, (network input, 8-bit film) or FilmError)."""
    from kxray.data.pipeline import stream_inputs
    from kxray.io import FilmError

    rows, batch = films.to_dict("records"), []
    paths = [row["path"] for row in rows]
    for index, result in stream_inputs(paths, spec, measure=_eight_bits, workers=workers):
        if isinstance(result, FilmError) and not skip_bad:
            remedy = f"{result.remedy}; --skip-bad leaves such films out" if result.remedy else ""
            raise FilmError(result.name, result.problem, remedy or "--skip-bad leaves such films out")
        batch.append((rows[index], result))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _eight_bits(pixels):
    """A film as an overlay needs it, in a quarter of the memory."""
    import numpy as np

    return np.round(pixels * 255).astype(np.uint8)


def _explained(explainer, batch, out, folder, relative):
    """Writes the files of a batch and returns its rows."""
    import numpy as np

    from kxray.io import FilmError

    read = [(row, *result) for row, result in batch if not isinstance(result, FilmError)]
    explanations = iter(())
    if read:
        inputs = np.stack([pixels for _, pixels, _ in read])
        explanations = iter(explainer(inputs, [row["label"] for row, _, _ in read]))
    made = []
    for row, result in batch:
        facts = {"path": relative(row["path"]), "patient_id": row["patient_id"], "label": row["label"]}
        if isinstance(result, FilmError):
            made.append({**facts, "reason": str(result)})
        else:
            name = _name(relative(row["path"]), row["path"], folder)
            explanation, film = next(explanations), result[1]
            cells = _written(explanation, explainer.spec, film, out, name)
            made.append({**facts, **cells, **_scores(row, explanation, film, explainer.spec)})
    return made


def _name(relative, path, folder):
    """The name of a film's files: its path below the folder, so that equal names do not collide.

    A film outside the folder, or a hidden one, is named by a hash of its whole path.
    """
    inside = Path(os.path.relpath(path, os.path.abspath(folder)))
    if any(part.startswith(".") for part in inside.parts):
        digest = hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]
        return f"elsewhere/{digest}-{inside.name.lstrip('.')}"
    return inside.as_posix()


def _written(explanation, spec, film, out, name):
    """Writes one film's overlay and maps; returns its cells of the table."""
    import numpy as np
    from PIL import Image

    from kxray.io.files import write_whole
    from kxray.io.map_png import encode_map_png16, map_coding
    from kxray.io.overlay import overlay

    heatmap, labels = explanation.heatmap, spec.labels
    overlaid, arrays = io.BytesIO(), io.BytesIO()
    Image.fromarray(overlay(film / np.float32(255), heatmap)).save(overlaid, "PNG", compress_level=4)
    np.savez(
        arrays,
        heatmap=heatmap,
        label=np.array(labels[explanation.label]),
        labels=np.array(labels),
        probabilities=explanation.probabilities,
        **explanation.details,
    )
    files = {
        "overlay": (f"overlays/{name}.png", overlaid.getvalue()),
        "arrays": (f"maps/{name}.npz", arrays.getvalue()),
        "map_png": (f"maps/{name}.png", encode_map_png16(heatmap)),
    }
    for path, content in files.values():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / path, content)
    scale, offset = map_coding(heatmap)
    probabilities = explanation.probabilities.tolist()
    decision = spec.decide(probabilities)
    return {
        "predicted": labels[int(np.argmax(probabilities))],
        "decision": decision if isinstance(decision, str) else "|".join(decision),
        **{
            f"probability_{label}": f"{value:.9g}" for label, value in zip(labels, probabilities, strict=True)
        },
        "explained_label": labels[explanation.label],
        **{column: path for column, (path, _) in files.items()},
        "map_min": f"{heatmap.min():.9g}",
        "map_max": f"{heatmap.max():.9g}",
        "png_scale": repr(scale),
        "png_offset": repr(offset),
    }


def _scores(row, explanation, film, spec):
    """Scores of a film's map against what its row says is there; empty where it says nothing."""
    from kxray.data.truth import truth_mask
    from training.explaining.map_scores import score

    label = spec.labels[explanation.label]
    mask = truth_mask(row, film.shape, label, spec.labels)
    return {} if mask is None else score(explanation.heatmap, mask)


if __name__ == "__main__":
    main(prog_name="python -m training.explain")
