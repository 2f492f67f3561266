"""Collections whose films are not decoded before they are trained on: `--cache stream`."""

import concurrent.futures
import dataclasses
import hashlib
import os

import numpy as np
import pandas as pd

from kxray.io.headers import film_problem
from kxray.io.parallel import available_cores

# Films that the no-anatomy baseline is grown on.
MOST_BASELINE_FILMS = 4000
_FILES_AT_ONCE = 128


def unread(recipe, task, table) -> tuple:
    """What a run needs of films that nobody has looked at.

    Args:
        recipe: its workers and dicom_reader.
        task: ClassifierTask with its labels.
        table: of films, with the column training_only.

    Returns:
        (the table without extra training films of tested patients, `kxray.data.pipeline.NetworkInputs` of the
        whole table, notes).

    Raises:
        ValueError: a film without a patient id.
    """
    from kxray.data import pipeline

    unknown = int((table["patient_id"] == "").sum())
    if unknown:
        raise ValueError(
            f"--cache stream decodes no film before it is trained on, and only that would tell which of "
            f"{unknown} films without a patient_id show the same patient; give each one, or use --cache disk"
        )
    notes = ["films are streamed: nobody looked for copies that are filed under two patients"]
    tested = set(table["patient_id"][~table["training_only"]])
    leaks = table["training_only"] & table["patient_id"].isin(tested)
    if leaks.any():
        notes.append(f"{int(leaks.sum())} extra training films were left out: they show tested patients")
    inputs = pipeline.unread_inputs(
        table["path"],
        task.spec,
        workers=recipe.workers,
        dicom_reader=recipe.dicom_reader,
        min_side=task.min_side,
    )
    return table[~leaks], inputs, notes


def without_unreadable(films, split, recipe, folder, progress):
    """Looks at the files of films that are not decoded before the training is over: those of its other parts.

    Args:
        films: RunFilms.
        split: `kxray.data.Split` of the tested films.
        recipe: its folds, skip_bad and data.
        folder: of the run; with `skip_bad` skipped.csv lists what was left out.
        progress: rich progress with a `facts` field.

    Returns:
        (films, split) without the unreadable ones; None where nothing was left out, or films are not
        streamed.

    Raises:
        kxray.data.ManifestError: unreadable films, unless the recipe skips them.
    """
    from kxray import data

    if films.features is not None:
        return None
    tested = films.tested
    judged = np.ones(len(tested), bool) if recipe.folds else np.isin(split.parts, ("val", "test"))
    paths, least = tested["path"][judged].tolist(), films.inputs.stream.get("min_side", 1)
    bar, found = progress.add_task("checking files", total=len(paths), facts=""), []
    places = range(0, len(paths), _FILES_AT_ONCE)

    def problems_from(start):
        return [film_problem(path, least) for path in paths[start : start + _FILES_AT_ONCE]]

    with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        for start, problems in zip(places, pool.map(problems_from, places), strict=True):
            numbered = enumerate(problems, start)
            found += [(tested.index[judged][at], problem) for at, problem in numbered if problem is not None]
            progress.update(bar, completed=start + len(problems))
    if not found:
        return None
    positions = [position for position, _ in found]
    numbers = films.row_numbers
    bad = pd.DataFrame(
        {
            "row": [numbers[position] if position < len(numbers) else -1 for position in positions],
            "path": tested["path"][positions].tolist(),
            "column": "path",
            "problem": [f"unreadable film: {problem}" for _, problem in found],
        }
    )
    if not recipe.skip_bad:
        raise data.ManifestError(bad, recipe.data)
    skipped = folder / "skipped.csv"
    listed = pd.concat([pd.read_csv(skipped), bad]).drop_duplicates() if skipped.exists() else bad
    data.write_skipped(listed, skipped)
    kept = ~tested.index.isin(positions)
    note = f"{len(bad)} unreadable films to validate and test on were left out; skipped.csv lists them"
    return (
        dataclasses.replace(films, table=films.table.drop(index=positions), notes=(*films.notes, note)),
        dataclasses.replace(split, parts=split.parts[kept], grouping=split.grouping.take(kept)),
    )


def measured(films, tested_rows, seed, progress):
    """Streamed films as the no-anatomy baseline needs them: the tested ones, and some that it is grown on.

    Args:
        films: RunFilms.
        tested_rows: positions of the films that are scored; the others are sampled.
        seed: of the sample.
        progress: rich progress with a `facts` field.

    Returns:
        RunFilms with features; its table holds the measured films alone. Films of a run that measured them
        all come back as they are.
    """
    if films.features is not None:
        return films
    from kxray.data import audit, pipeline

    others = np.setdiff1d(films.tested.index.to_numpy(), tested_rows)
    few = np.random.default_rng([seed, 7]).permutation(others)[:MOST_BASELINE_FILMS]
    rows = np.sort(np.concatenate([np.asarray(tested_rows, int), few]))
    features = np.zeros((len(films.inputs), len(audit.FEATURE_NAMES)), np.float32)
    inputs = films.inputs
    bar = progress.add_task("films without anatomy", total=len(rows), facts="")
    paths = [inputs.paths[row] for row in rows]
    stream = pipeline.stream_inputs(paths, inputs.spec, measure=audit.no_anatomy_features, **inputs.stream)
    for index, result in stream:
        if isinstance(result, ValueError):
            raise result
        features[rows[index]] = result[1]
        progress.update(bar, completed=index + 1)
    return dataclasses.replace(films, table=films.table.loc[rows], features=features)


def fingerprint(films) -> str:
    """`kxray.data.fingerprint`; of streamed films, names and sizes of the files stand for their bytes."""
    from kxray import data

    table = films.table.drop(columns="training_only")
    if films.features is not None:
        return data.fingerprint(table)
    labels = (*data.finding_columns(table), "label", "view", "boxes")
    known = [name for name in labels if name in table.columns]
    digest = hashlib.sha256()
    sizes = [os.stat(path).st_size for path in table["path"]]
    names = [os.path.basename(path) for path in table["path"]]
    columns = [table[name].astype(str) for name in dict.fromkeys(known)]
    for line in sorted("\t".join(map(str, row)) for row in zip(names, sizes, *columns, strict=True)):
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
