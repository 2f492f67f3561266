"""The films that a counterfactual GAN learns from: those of its classifier's run, with the same parts."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from training import films as film_tables
from training import findings, runs
from training.generating import gan_films
from training.task import ClassifierTask

PARTS = ("train", "val", "test")
_SHARES = {"val": gan_films.VALIDATION_SHARE, "test": gan_films.TEST_SHARE}


@dataclasses.dataclass(frozen=True)
class ClassifierRun:
    """The run of a classifier, as far as it is there.

    Attributes:
        folder: of the run.
        spec: ModelSpec.
        config: what config.json holds, {} where there is none (a model that was brought from elsewhere).
    """

    folder: Path
    spec: object
    config: dict

    @classmethod
    def read(cls, folder) -> "ClassifierRun":
        """Raises ValueError for a run of anything but a classifier, or one that is not finished."""
        from kxray.spec import DECIDING_TASKS, ModelSpec

        folder = Path(folder)
        for name in ("spec.json", "model.keras"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"--classifier {folder}: no {name} in it; expected the run folder of a classifier (an "
                    "interrupted run is finished with --resume)"
                )
        spec = ModelSpec.read(folder / "spec.json")
        if spec.task not in DECIDING_TASKS:
            raise ValueError(
                f"--classifier {folder}: {spec.name!r} (task {spec.task}) classifies nothing; give a run "
                "of a classifier"
            )
        config = runs.read_config(folder) if (folder / "config.json").is_file() else {}
        return cls(folder, spec, config)

    @property
    def options(self) -> dict:
        return self.config.get("options", {})

    @property
    def folds(self) -> int:
        """Of how many cross-validated models the kept one is the successor: it was trained on all films."""
        return self.options.get("folds") or 0

    @property
    def source(self) -> str:
        """Where its films are."""
        source = self.options.get("data") or self.folder / "phantoms"
        if not self.config or not Path(source).exists():
            raise ValueError(
                f"{self.folder}: the films of this run are not at {source} any more; name them with --data"
            )
        return str(source)


@dataclasses.dataclass(frozen=True)
class ReadFilms:
    """Films that are known to be readable as rows, not yet as pictures.

    Attributes:
        table: one row a film of which a label is known; no synthetic ones.
        labels: of findings float (N, L): 1, 0 or NaN; else int (N,).
        parts: str (N,): those of the classifier's run, or None where there are no such.
        task: ClassifierTask, the classifier's question.
        problems: rows that were left out.
        notes: what a reader of the report should know.
    """

    table: pd.DataFrame
    labels: np.ndarray
    parts: np.ndarray | None
    task: ClassifierTask
    problems: pd.DataFrame
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CounterfactualFilms:
    """The films of a run.

    Attributes:
        table: one row a film.
        inputs: what the classifier sees of them, `NetworkInputs` or `SomeInputs`.
        labels: see `ReadFilms`.
        parts: str (N,): "train", "val" or "test".
        grouping: `kxray.data.Grouping`.
        notes: what a reader of the report should know.
    """

    table: pd.DataFrame
    inputs: object
    labels: np.ndarray
    parts: np.ndarray
    grouping: object
    notes: tuple[str, ...]

    def rows(self, part) -> np.ndarray:
        return np.flatnonzero(self.parts == part)

    def pixels(self, rows) -> np.ndarray:
        """Films as they are, float32 (len(rows), h, w, 1)."""
        films = list(self.inputs.batches(np.asarray(rows, int), 256))
        return np.concatenate(films) if films else np.zeros((0, *self.inputs.shape), np.float32)


def read(recipe, run) -> ReadFilms:
    """The rows of a recipe's source, with labels and, where they are the classifier's films, its parts.

    Args:
        recipe: its data and skip_bad.
        run: ClassifierRun.

    Raises:
        kxray.data.ManifestError: broken rows, unless they are skipped.
        ValueError: a source without the classifier's labels, or films that are not those of its run.
    """
    from kxray.data.held_out import synthetic_films

    source = recipe.data or run.source
    # What the classifier's own run left out is broken still.
    skip_bad = recipe.skip_bad or (recipe.data is None and bool(run.options.get("skip_bad")))
    task = _question(run, source)
    table, problems, notes = film_tables.read_labelled(source, task, skip_bad, every_class=False)
    _, table, own_notes = film_tables.settle(task, table)
    parts, split_notes = _known_parts(recipe, run, table)
    if parts is not None and len(parts) < len(table):
        table = table[_readable(run, table)]
    made = synthetic_films(table, True)
    notes = [*notes, *own_notes, *split_notes]
    if made.any():
        notes.append(f"{int(made.sum())} synthetic films are left out: counterfactuals are of real ones")
        table, parts = table[~made], None if parts is None else parts[~made]
    if recipe.data is None and run.options.get("data") is None:
        notes.append("the films are generated phantoms: figures say nothing about real films")
    return ReadFilms(table, labels_of(table, task), parts, task, problems, tuple(notes))


def labels_of(table, task) -> np.ndarray:
    """The true labels of films: of findings float (N, L): 1, 0 or NaN; else int (N,)."""
    if task.multilabel:
        return findings.truths_of(table, task.labels)
    return np.array([task.labels.index(label) for label in table[task.label_column]], int)


def load(recipe, run, folder, progress) -> CounterfactualFilms:
    """Reads the films of a recipe, decodes each once, and splits those that have no parts yet.

    Raises:
        kxray.data.ManifestError: broken rows or unreadable films, unless they are skipped.
        ValueError: see `read`; too few films for three parts.
    """
    from kxray import data

    folder, found = Path(folder), read(recipe, run)
    table, notes = found.table.reset_index(drop=True), [*found.notes]
    labels, parts = found.labels, found.parts
    inputs, thumbnails = gan_films.decoded(recipe, table, run.spec, folder, progress)
    numbers = dict(zip(found.table["path"], data.manifest.row_numbers(found.table), strict=True))
    unreadable = gan_films.unreadable_rows(table["path"], inputs, numbers)
    if len(unreadable) and not recipe.skip_bad:
        raise data.ManifestError(unreadable, recipe.data or run.source)
    problems = pd.concat([found.problems, unreadable], ignore_index=True)
    if len(problems):
        data.write_skipped(problems, folder / "skipped.csv")
        notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
    if inputs.errors:
        kept = np.setdiff1d(np.arange(len(table)), list(inputs.errors))
        table, labels = table.iloc[kept].reset_index(drop=True), labels[kept]
        thumbnails, inputs = thumbnails[kept], gan_films.SomeInputs(inputs, kept)
        parts = None if parts is None else parts[kept]
    grouping = data.film_groups(table, thumbnails=thumbnails)
    if parts is None:
        parts, split_notes = split(recipe, found.task, table, grouping)
        notes += split_notes
        if not run.folds:
            judged = table["path"][parts != "train"]
            notes += runs.seen_before(str(run.folder), "classifier", data.fingerprint(table), judged)
    return CounterfactualFilms(table, inputs, labels, parts, grouping, tuple(notes))


def split(recipe, task, table, grouping=None) -> tuple:
    """(part of every film, notes): the source's own split, or one by patients, even over labels."""
    from kxray import data
    from kxray.data.splits import has_split

    by = {"seed": recipe.seed, "grouping": grouping}
    if not has_split(table):
        made = data.patient_split(table, task.stratified_by, **_SHARES, **by)
        return made.parts.astype("U5"), list(made.notes)
    own = data.given_split(table, grouping=grouping)
    parts, notes = own.parts.astype("U5"), ["the source's own split", *own.notes]
    if "val" not in parts:
        train = parts == "train"
        by["grouping"] = own.grouping.take(train)
        inner = data.patient_split(table[train], task.stratified_by, val=_SHARES["val"], test=0.0, **by)
        parts[train] = inner.parts
        notes.append("the source has no validation part: one was cut out of its train part")
    return parts, notes


def described(films, held, targets) -> dict:
    """What config.json says of films: how many of each part have each target, have it not, or nobody knows.

    Args:
        films: CounterfactualFilms, or ReadFilms with parts.
        held: int8 (T, N) of `kxray.explain.targets.held`.
        targets: T names.
    """
    counts = {}
    for part in PARTS:
        own = films.parts == part
        counts[part] = {
            name: {"with": int((row[own] == 1).sum()), "without": int((row[own] == 0).sum())}
            for name, row in zip(targets, held, strict=True)
        }
    return counts


def _question(run, source):
    """The classifier's question, as `training.films` asks it of a source."""
    from kxray import data
    from training.auditing.run_films import truth_of

    spec, column = run.spec, run.options.get("label_column", "label")
    if spec.task != "multilabel":
        table = data.read_source(source, check=False)
        found, _ = truth_of(table, spec.labels)
        if found is None:
            raise ValueError(
                f"{source}: no film has a label that the classifier knows ({', '.join(spec.labels)}); give "
                "films with these labels"
            )
        column = column if column in table.columns and column == found else found
    return ClassifierTask(
        name=spec.name,
        model=spec.name,
        kind=spec.task,
        label_column=column,
        phantom_kind="thorax",
        image_size=spec.image_size,
        # Nothing is trained of it.
        build=None,
        optimizer=None,
        augment=None,
        labels=spec.labels,
    )


def _known_parts(recipe, run, table):
    """(parts of the classifier's own run or None, notes)."""
    from kxray import data

    place = run.folder / "split.csv"
    if run.folds:
        return None, [
            f"the classifier was kept after {run.folds} folds and has been trained on all of its films: they "
            "have a split of their own here, which holds nothing out from it, so that figures are too good; "
            "a classifier without --folds has films that it has not seen"
        ]
    if not place.is_file():
        return None, ["nobody knows which films the classifier was trained on: figures may be too good"]
    try:
        return data.load_split(place, table[_readable(run, table)]), []
    except data.SplitError as error:
        if recipe.data is None:
            raise ValueError(
                f"{run.folder}: its films have changed since it was trained ({error}); name them with --data"
            ) from None
    return None, ["the films are not those of the classifier's run: they have a split of their own"]


def _readable(run, table):
    """bool (N,): which films the classifier's run has not left out."""
    from kxray import data

    place = run.folder / "skipped.csv"
    if not place.is_file():
        return np.ones(len(table), bool)
    skipped = pd.read_csv(place, dtype={"path": str}, keep_default_na=False)
    return ~np.isin(np.array(data.manifest.row_numbers(table)), skipped["row"].to_numpy())
