"""The films of a run: read, checked, decoded once, and joined by those that are only trained on."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training import findings, streaming
from training.task import SMALLEST_CLASS, ClassifierTask

DEFAULT_PHANTOMS = 400
TEST_SHARE = 0.2
VALIDATION_SHARE = 1 / 6


@dataclasses.dataclass(frozen=True)
class RunFilms:
    """The films of a run.

    Args:
        table: one row a readable film; its index is the film's position in everything below. The column
            `training_only` marks films that are never validated or tested on.
        inputs: `kxray.data.pipeline.NetworkInputs` of all films.
        labels: int (N,), positions in the task's labels; of findings float (N, L): 1, 0 or NaN (unknown).
        features: float32 (N, F), what the no-anatomy baseline sees; None where films are streamed, see
            `training.streaming.measured`.
        thumbnails: uint8 (N, 32, 32); None where films are streamed.
        notes: what a reader of the report should know.
        row_numbers: of the source's films, as a spreadsheet of its manifest numbers them, by position.
    """

    table: pd.DataFrame
    inputs: object
    labels: np.ndarray
    features: np.ndarray | None
    thumbnails: np.ndarray | None
    notes: tuple[str, ...]
    row_numbers: tuple[int, ...] = ()

    @property
    def tested(self) -> pd.DataFrame:
        return self.table[~self.table["training_only"]]

    @property
    def extra(self) -> np.ndarray:
        """Positions of the films that are only trained on."""
        return self.table.index[self.table["training_only"]].to_numpy()


def read_labelled(source, task, skip_bad, every_class=True):
    """Reads a source whose films all have one of the task's labels; `every_class` wants films of each label.

    Returns:
        (table, problems of the rows that were skipped, notes)

    Raises:
        kxray.data.ManifestError: broken rows, all listed, unless `skip_bad`.
        ValueError: a source without the label, or without any film of one of the labels.
    """
    from kxray import data

    if task.multilabel:
        return findings.read(source, task, skip_bad, every_class)
    table = data.read_source(source, check=False)
    notes = list(table.attrs.get("notes", []))
    column = task.label_column
    if column not in table.columns or (table[column] == "").all():
        if "label" not in table.columns:
            folders = f"folders named {', '.join(task.labels)}" if task.labels else "one folder a class"
            columns = ", ".join(map(str, table.columns))
            raise ValueError(f"{source}: expected a column {column!r} or {folders}, got columns {columns}")
        table[column] = table["label"]
    allowed = {"views" if column == "view" else "labels": task.labels} if task.labels else {}
    problems = data.check_manifest(table, **allowed)
    if not task.labels:
        problems = pd.concat([problems, _unlabelled(table, column, problems)], ignore_index=True)
    if len(problems) and not skip_bad:
        raise data.ManifestError(problems, source)
    table = data.drop_problems(table, problems)
    missing = sorted(set(task.labels) - set(table[column]))
    if missing and every_class:
        raise ValueError(f"{source}: no film is labelled {' or '.join(missing)}; every class needs films")
    return table, problems, notes


def _unlabelled(table, column, known):
    """The rows without a label, as problems, where any label is allowed."""
    from kxray import data

    numbers = np.array(data.manifest.row_numbers(table))
    empty = (table[column] == "").to_numpy() & ~np.isin(numbers, known["row"])
    return pd.DataFrame(
        {
            "row": numbers[empty],
            "path": table["path"][empty],
            "column": column,
            "problem": "no label",
        }
    )


def generate_phantoms(folder, task, count, seed, progress=None) -> pd.DataFrame:
    """Writes phantom films below `folder`, or finishes writing them, and returns their table."""
    from kxray import data
    from kxray.data.phantom import write_phantoms

    mix = findings.phantom_mix(task) if task.multilabel else None
    manifest = write_phantoms(folder, task.phantom_kind, count, seed, mix=mix, progress=progress)
    return data.read_manifest(manifest)


def settle(task, table) -> tuple:
    """(the task with its labels, the films that it is trained and tested on, notes) for a table of films."""
    if task.multilabel:
        return findings.settle(task, table)
    return task.for_films(table), table, []


def load(recipe, task, folder, progress) -> tuple[ClassifierTask, RunFilms]:
    """Gathers the films of a recipe, decodes each once, and lists what is wrong with them.

    Returns:
        (the task with its labels, the films)

    Raises:
        kxray.data.ManifestError: broken rows or unreadable films, unless the recipe skips them.
        ValueError: a source that does not answer the task's question.
    """
    from kxray import data
    from kxray.data import audit, pipeline

    folder = Path(folder)
    table, problems, notes = _main_table(recipe, task, folder, progress)
    task, table, own_notes = settle(task, table)
    notes += own_notes
    for note in own_notes:
        progress.console.print(note, soft_wrap=True)
    extras = _training_only(recipe, task, folder, progress)
    for extra in extras:
        foreign = () if task.multilabel else sorted(set(extra[task.label_column]) - set(task.labels))
        if foreign:
            raise ValueError(
                f"extra training films are labelled {', '.join(foreign)}; those of {recipe.data} "
                f"{', '.join(task.labels)}"
            )
    table = table.assign(training_only=False)
    row_numbers = data.manifest.row_numbers(table)
    table = pd.concat([table, *(extra.assign(training_only=True) for extra in extras)], ignore_index=True)

    if recipe.cache == "stream":
        if len(problems):
            data.write_skipped(problems, folder / "skipped.csv")
            notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
        table, inputs, own_notes = streaming.unread(recipe, task, table)
        labels, notes = _labels_of(task, table, len(inputs)), (*notes, *own_notes)
        return task, RunFilms(table, inputs, labels, None, None, notes, tuple(row_numbers))

    measured_path = folder / "work" / "measured.npz"
    measured = _Measurements(len(table))
    bar = progress.add_task("reading films", total=len(table), facts="")

    def on_film(index, result):
        measured.keep(index, result)
        progress.update(bar, completed=index + 1)

    measured_path.parent.mkdir(parents=True, exist_ok=True)
    if not measured_path.exists():
        # Killed between the two: a cache alone would spare the reading that measures.
        shutil.rmtree(folder / "work" / "cache", ignore_errors=True)
    inputs = pipeline.load_inputs(
        table["path"],
        task.spec,
        cache=recipe.cache,
        cache_dir=folder / "work" / "cache",
        measure=_measure,
        on_film=on_film,
        workers=recipe.workers,
        dicom_reader=recipe.dicom_reader,
        min_side=task.min_side,
    )
    progress.update(bar, completed=len(table))
    if measured.count:
        measured.save(measured_path)
    else:
        measured.read(measured_path)

    unreadable = pd.DataFrame(
        [
            (
                row_numbers[index] if index < len(row_numbers) else -1,
                table["path"][index],
                "path",
                f"unreadable film: {error}",
            )
            for index, error in inputs.errors.items()
        ],
        columns=["row", "path", "column", "problem"],
    )
    if len(unreadable) and not recipe.skip_bad:
        raise data.ManifestError(unreadable, recipe.data)
    problems = pd.concat([problems, unreadable], ignore_index=True)
    if len(problems):
        data.write_skipped(problems, folder / "skipped.csv")
        notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
    table = table.drop(index=list(inputs.errors))
    table, dropped = _without_leaks(table, measured.thumbnails, audit)
    if dropped:
        notes.append(
            f"{dropped} extra training films were left out: they show tested patients or copy tested films"
        )
    unknown = int((table["training_only"] & (table["patient_id"] == "")).sum())
    if unknown:
        notes.append(f"{unknown} extra training films have no patient id: they may show tested patients")
    return task, RunFilms(
        table,
        inputs,
        _labels_of(task, table, len(inputs)),
        measured.features,
        measured.thumbnails,
        tuple(notes),
    )


def _labels_of(task, table, count):
    if task.multilabel:
        labels = np.full((count, len(task.labels)), np.nan)
        labels[table.index] = findings.truths_of(table, task.labels)
    else:
        labels = np.zeros(count, int)
        labels[table.index] = [task.labels.index(label) for label in table[task.label_column]]
    return labels


def _main_table(recipe, task, folder, progress):
    if recipe.data is not None:
        return read_labelled(recipe.data, task, recipe.skip_bad)
    count = DEFAULT_PHANTOMS if recipe.phantoms is None else recipe.phantoms
    table = generate_phantoms(
        folder / "phantoms", task, count, recipe.seed, _bar(progress, "phantom films", count)
    )
    return table, pd.DataFrame(), ["the films are generated phantoms: scores say nothing about real films"]


def _training_only(recipe, task, folder, progress):
    extras = []
    if recipe.data is not None and recipe.phantoms:
        bar = _bar(progress, "phantom films", recipe.phantoms)
        extras.append(generate_phantoms(folder / "phantoms", task, recipe.phantoms, recipe.seed, bar))
    if recipe.corrections is not None:
        table, _, _ = read_labelled(recipe.corrections, task, skip_bad=False, every_class=False)
        extras.append(table)
    return extras


def _bar(progress, name, total):
    bar = progress.add_task(name, total=total, facts="")
    return lambda done: progress.update(bar, completed=done)


def _measure(pixels):
    from kxray.data import audit

    return audit.thumbnail(pixels), audit.no_anatomy_features(pixels)


class _Measurements:
    """What is measured on full films; kept on disk, because a disk cache spares reading them again."""

    def __init__(self, count):
        from kxray.data import audit

        self.thumbnails = np.zeros((count, audit.THUMBNAIL_SIDE, audit.THUMBNAIL_SIDE), np.uint8)
        self.features = np.zeros((count, len(audit.FEATURE_NAMES)), np.float32)
        self.count = 0

    def keep(self, index, result):
        if result is not None:
            self.thumbnails[index], self.features[index] = result
        self.count += 1

    def save(self, path):
        with replacing(path) as temporary:
            np.savez(temporary, thumbnails=self.thumbnails, features=self.features)

    def read(self, path):
        with np.load(path) as kept:
            self.thumbnails, self.features = kept["thumbnails"], kept["features"]


def _without_leaks(table, thumbnails, audit):
    """Leaves out extra films of tested patients and copies of tested films: they would leak into training."""
    if not table["training_only"].any():
        return table, 0
    positions = table.index.to_numpy()
    tested = set(table["patient_id"][~table["training_only"]]) - {""}
    of_tested = (table["training_only"] & table["patient_id"].isin(tested)).to_numpy()
    pairs, _ = audit.near_duplicate_pairs(thumbnails[positions])
    extra = table["training_only"].to_numpy()
    crossing = pairs[extra[pairs].sum(axis=1) == 1] if len(pairs) else np.empty((0, 2), int)
    copies = np.unique(crossing[extra[crossing]]) if len(crossing) else []
    leaks = np.union1d(copies, np.flatnonzero(of_tested)).astype(int)
    return table.drop(index=positions[leaks]), len(leaks)


def _given_split(recipe, task, table, grouping):
    """The parts that the source prescribes; validation films come out of train where it names none."""
    from kxray import data

    split = data.given_split(table, grouping=grouping)
    missing = [part for part in ("train", "test") if part not in split.parts]
    if missing:
        raise ValueError(
            f"the source's split has no {' and no '.join(missing)} films, only "
            f"{', '.join(sorted(set(split.parts)))}; name both parts, or use --folds"
        )
    if "val" in split.parts:
        return split
    train = split.parts == "train"
    inner = data.patient_split(
        table[train],
        task.stratified_by,
        val=VALIDATION_SHARE,
        test=0.0,
        seed=recipe.seed,
        grouping=split.grouping.take(train),
    )
    parts = split.parts.astype("U5")
    parts[train] = inner.parts
    note = "the source has no validation part: one was cut out of its train part"
    return dataclasses.replace(split, parts=parts, notes=(*split.notes, note))


def validation_split(task, films, members, grouping, seed):
    """Cuts the validation films of one training out of some tested films, with whole patients.

    Args:
        task, films: the ClassifierTask and RunFilms.
        members: bool (number of tested films,).
        grouping: `kxray.data.Grouping` of all tested films.
        seed: of the split.

    Returns:
        Positions (train, validation).
    """
    from kxray import data

    table = films.tested[members]
    split = data.patient_split(
        table,
        task.stratified_by,
        val=VALIDATION_SHARE,
        test=0.0,
        seed=seed,
        grouping=grouping.take(members),
    )
    rows = table.index.to_numpy()
    return rows[split.parts == "train"], rows[split.parts == "val"]


def check_classes(task, table, grouping=None) -> None:
    """Raises ValueError where a class has too few real films to be in every part.

    With a `kxray.data.Grouping`, films that are kept together count once.
    """
    if task.multilabel:
        return findings.check(task, table, grouping)
    table, grouping = findings.real_films(table, grouping)
    if grouping is None:
        counts = table[task.label_column].value_counts()
    else:
        groups = pd.Series(grouping.groups, index=table.index)
        counts = groups.groupby(table[task.label_column]).nunique()
    kind = "film" if grouping is None else "independent film"
    for label in task.labels:
        count = counts.get(label, 0)
        if count < SMALLEST_CLASS:
            raise ValueError(
                f"label {label!r} has {count} {kind}{'' if count == 1 else 's'}; to train, validate and "
                f"test, a class needs at least {SMALLEST_CLASS}: collect more, or join it with another class"
            )


def split_films(recipe, task, table, grouping):
    """The `kxray.data.Split` of the tested films: K folds, the source's own parts, or one split."""
    from kxray import data
    from kxray.data.splits import has_split

    if recipe.folds == 1:
        raise ValueError("--folds 1 leaves nothing to train on; 0 makes one split, 2 and more make folds")
    check_classes(task, table, grouping)
    if recipe.folds:
        return data.patient_folds(table, task.stratified_by, recipe.folds, recipe.seed, grouping=grouping)
    if has_split(table):
        return _given_split(recipe, task, table, grouping)
    validation = VALIDATION_SHARE * (1 - TEST_SHARE)
    return data.patient_split(
        table, task.stratified_by, val=validation, test=TEST_SHARE, seed=recipe.seed, grouping=grouping
    )
