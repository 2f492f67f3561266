"""A finished run, which films of a table are its own, and on which its kept model can be asked honestly."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from training import runs
from training.predictor import check_classifier

MOST_FILMS = 2000
FEWEST_NEW_FILMS = 20


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a finished run folder holds, as `read_finished` found it."""

    folder: Path
    spec: object
    config: dict
    scores: dict
    predictions: pd.DataFrame


def read_finished(folder) -> FinishedRun:
    """Opens a run folder. Raises ValueError unless it is a finished run whose labels exclude each other."""
    from kxray.spec import ModelSpec

    if (folder / "spec.json").is_file():
        check_classifier(ModelSpec.read(folder / "spec.json"), folder)
    for name in ("config.json", "spec.json", "model.keras", "predictions.csv", "metrics.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: no {name} in it; expected a finished classifier run of training.fit "
                "(an interrupted one is continued with --resume)"
            )
    spec = ModelSpec.read(folder / "spec.json")
    if spec.task == "multilabel":
        raise ValueError(f"{folder}: expected a run whose labels exclude each other, got a multi-label one")
    predictions = runs.read_table(folder / "predictions.csv")
    wanted = ["path", "label", "predicted", *(f"probability_{label}" for label in spec.labels)]
    missing = [name for name in wanted if name not in predictions.columns]
    if missing or not len(predictions):
        what = f"no column {missing[0]}" if missing else "no film"
        raise ValueError(f"{folder / 'predictions.csv'}: {what}; expected what training.fit wrote")
    config = runs.read_config(folder)
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return FinishedRun(folder, spec, {"recipe": spec.name, **config}, scores, predictions)


def truth_of(table, labels):
    """(name of the column that holds a run's labels, its values as text); (None, empty texts) without one."""
    best, most = None, 0
    for name in dict.fromkeys(("label", "view", *table.columns)):
        if name in table.columns and name not in ("path", "patient_id"):
            hits = sum(isinstance(value, str) and value in labels for value in table[name])
            best, most = (name, hits) if hits > most else (best, most)
    if best is None:
        return None, np.full(len(table), "", dtype=object)
    known = [value if isinstance(value, str) and value in labels else "" for value in table[best]]
    return best, np.array(known, dtype=object)


def match_films(predictions, table, truth):
    """Finds the films of a run among those of a table.

    Args:
        predictions: prediction table of a run; its paths are those of the time of training.
        table: films, with absolute paths.
        truth: their labels as the run names them, "" where unknown.

    Returns:
        (int (len(predictions),): position in `table`, -1 where there is none; how many were found by "path",
        by "content" (the old file is still there) and by "name" with label, the data having moved).
    """
    from kxray.data.audit import file_digests

    rows = np.full(len(predictions), -1)
    paths, old = table["path"].tolist(), predictions["path"].tolist()
    found_by = {}

    def take(how, keys, old_keys):
        """Joins what is left by keys; a key that several films have on either side joins nothing."""
        taken = set(rows[rows >= 0].tolist())
        here = _unique((keys(row), row) for row in range(len(paths)) if row not in taken)
        mine = _unique((old_keys(index), index) for index in np.flatnonzero(rows < 0).tolist())
        for key in here.keys() & mine.keys():
            rows[mine[key]] = here[key]
        found_by[how] = int((rows >= 0).sum()) - sum(found_by.values()) + found_by.get(how, 0)

    for place in (os.path.abspath, os.path.realpath):
        if (rows < 0).any():
            take("path", lambda row, at=place: at(paths[row]), lambda index, at=place: at(old[index]))
    still_there = [index for index in np.flatnonzero(rows < 0).tolist() if os.path.isfile(old[index])]
    left = [row for row in sorted(set(range(len(paths))) - set(rows.tolist())) if os.path.isfile(paths[row])]
    if still_there and left:
        digests = dict(zip(left, file_digests([paths[row] for row in left]), strict=True))
        olds = dict(zip(still_there, file_digests([old[index] for index in still_there]), strict=True))
        take("content", digests.get, lambda index: olds.get(index, index))
    labels = predictions["label"].tolist()
    deepest = max((len(Path(path).parts) for path in old), default=0)
    for depth in range(1, deepest):
        if (rows < 0).any():
            take(
                "name",
                lambda row, depth=depth: (Path(paths[row]).parts[-depth:], truth[row]),
                lambda index, depth=depth: (Path(old[index]).parts[-depth:], labels[index]),
            )
    return rows, {how: count for how, count in found_by.items() if count}


def _unique(pairs):
    """key -> value, of the keys that occur once."""
    found, doubled = {}, set()
    for key, value in pairs:
        if key in found:
            doubled.add(key)
        found[key] = value
    return {key: value for key, value in found.items() if key not in doubled}


def groups_of(predictions):
    """What the run kept together: its groups; patients in runs of older versions; else every film its own."""
    named = next((name for name in ("group", "patient_id") if name in predictions.columns), None)
    names = [""] * len(predictions) if named is None else predictions[named].astype(str)
    return np.array([name or f"film {index}" for index, name in enumerate(names)])


def matching_notes(finished, num_known, found_by, relabelled):
    notes = []
    num_tested = len(finished.predictions)
    if num_known < num_tested:
        notes.append(f"{num_tested - num_known} of the run's {num_tested} tested films are not in the data")
    for how, words in (("content", "by their content"), ("name", "by file name and label")):
        if how in found_by:
            notes.append(f"the films have moved since the run: {found_by[how]} were found {words}")
    if relabelled:
        notes.append(f"{relabelled} films have another label now than in the run, whose label counts here")
    return notes + [
        note for note in finished.config.get("notes", []) if note.startswith("the starting weights")
    ]


def conditions_of(finished, scores):
    if scores["films"] == len(finished.predictions) and "conditions" in finished.scores:
        return finished.scores["conditions"]
    return f"{scores['films']} of the run's {len(finished.predictions)} tested films"


# The films that the kept model looks at


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """The films that the kept model looks at.

    Attributes:
        paths: M files; labels: int (M,), indices into the spec's; groups: (M,).
        of_run: whether they are the films that the run was tested on.
        seen: whether the kept model was trained on them.
        told: the same in words.
    """

    paths: list
    labels: np.ndarray
    groups: np.ndarray
    of_run: bool
    seen: bool
    told: str


def films_to_ask(finished, known, known_rows, table, truth, thumbnails=None) -> LookedAt:
    """Films that the kept model was not trained on, where there are enough; else those of the run's folds.

    Args:
        finished: FinishedRun.
        known: its prediction table, of the films that are in `table`, at positions `known_rows`.
        table, truth: as in `match_films`.
        thumbnails: uint8 (len(table), 32, 32), by which other copies of a film are known; by default only by
            their bytes.
    """
    spec, paths = finished.spec, table["path"].to_numpy()
    labels = np.array([spec.labels.index(label) for label in known["label"]])
    groups = groups_of(known)
    of_run = LookedAt(paths[known_rows].tolist(), labels, groups, True, False, "")
    if not finished.config["options"].get("folds"):
        told = f"the {len(known)} test films of the run, which the kept model was not trained on"
        return _thinned(dataclasses.replace(of_run, told=told))
    new = np.flatnonzero(_not_trained_on(finished, known_rows, table, thumbnails) & (truth != ""))
    if len(new) >= FEWEST_NEW_FILMS and len(set(truth[new])) == spec.num_labels:
        patients = table["patient_id"].astype(str).to_numpy()[new]
        return _thinned(
            LookedAt(
                paths[new].tolist(),
                np.array([spec.labels.index(label) for label in truth[new]]),
                np.array([patient or f"film {row}" for patient, row in zip(patients, new, strict=True)]),
                False,
                False,
                f"the {len(new)} films of the data that are not in the run, of other patients",
            )
        )
    told = f"all {len(known)} films of the run's folds: the kept model has seen these films"
    return _thinned(dataclasses.replace(of_run, seen=True, told=told))


def _not_trained_on(finished, known_rows, table, thumbnails):
    """Which films are not in a run with folds or its corrections, nor copies of those, nor of their patients.

    None, where a film that it was trained on is not known: any film may be that one.
    """
    from kxray.data import audit, read_manifest

    nothing = np.zeros(len(table), bool)
    if len(known_rows) < len(finished.predictions):
        return nothing
    patients = table["patient_id"].astype(str).to_numpy()
    digests = np.array(audit.file_digests(table["path"]))
    trained, trained_patients = set(digests[known_rows]), set()
    if "patient_id" in finished.predictions.columns:
        trained_patients |= set(finished.predictions["patient_id"].astype(str))
    corrections = finished.config["options"].get("corrections")
    if corrections:
        if not os.path.isfile(corrections):
            return nothing
        corrected = read_manifest(corrections, check=False)
        if not all(os.path.isfile(path) for path in corrected["path"]):
            return nothing
        trained |= set(audit.file_digests(corrected["path"]))
        trained_patients |= set(corrected["patient_id"].astype(str))
    used = np.isin(digests, list(trained))
    if thumbnails is not None:
        pictures = audit.near_duplicate_groups(thumbnails)
        used |= np.isin(pictures, pictures[used])
    trained_patients |= set(patients[used])
    return ~used & ~np.isin(patients, list(trained_patients - {""}))


def _thinned(looked_at):
    count = len(looked_at.paths)
    if count <= MOST_FILMS:
        return looked_at
    kept = np.linspace(0, count - 1, MOST_FILMS).round().astype(int)
    return dataclasses.replace(
        looked_at,
        paths=[looked_at.paths[index] for index in kept],
        labels=looked_at.labels[kept],
        groups=looked_at.groups[kept],
        told=f"{MOST_FILMS} of {looked_at.told}",
    )
