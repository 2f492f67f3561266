"""What comparisons share: the splits of their films, the baselines' answers, and that both stay the same."""

import hashlib
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from training import films as film_tables
from training import findings, runs
from training.comparing import baselines

# A split whose numbers add up to more than this names films, not parts.
_MOST_PARTS = 100


class Fold(NamedTuple):
    """One training and its test.

    Args:
        members: bool (number of tested films,), the films to train and validate on.
        test: positions of the test films.
        validation: positions of the validation films, or None where they are still to be cut out.
    """

    members: np.ndarray
    test: np.ndarray
    validation: np.ndarray | None


def shares(text) -> list[float]:
    """The shares of training, validation and test that "7:1:2" or "486/44/132" asks for; they add up to 1."""
    numbers = _numbers(text)
    return [number / sum(numbers) for number in numbers]


def counts(text) -> list[int] | None:
    """The films of training, validation and test that "486/44/132" asks for; None where it names parts.

    Numbers that add up to more than 100 are counts of films.
    """
    numbers = _numbers(text)
    if sum(numbers) <= _MOST_PARTS:
        return None
    if any(number != round(number) for number in numbers):
        raise ValueError(f"--split {text}: more than {_MOST_PARTS} in all are counts of films, whole numbers")
    return [round(number) for number in numbers]


def _numbers(text):
    try:
        numbers = [float(number) for number in re.split("[:/]", text)]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(
            f"--split takes three parts, training, validation and test, as 7:1:2 or 486/44/132; got {text!r}"
        )
    return numbers


def check_source(recipe) -> None:
    """Raises ValueError where the options that say what films a comparison is of will not do."""
    if recipe.cache == "stream":
        raise ValueError("--cache stream: a comparison reads its films first; give memory, disk or none")
    if recipe.data is not None and recipe.phantoms:
        raise ValueError("--phantoms generates the films to compare on; with --data there are films")


def check_options(recipe, given) -> None:
    """Raises ValueError where the options of a comparison contradict each other.

    Args:
        recipe: its options.
        given: those that were given at the shell.
    """
    if recipe.split is None and recipe.folds < 2:
        raise ValueError(f"give --folds 2 or more, or --split such as 7:1:2; got --folds {recipe.folds}")
    if recipe.split is not None:
        counts(recipe.split)
        if given.get("folds"):
            raise ValueError("--split and --folds exclude each other: give one of them")
    check_source(recipe)


def check_counts(text, films) -> None:
    """Raises ValueError where a split asks for more real films than there are."""
    wanted = counts(text)
    if wanted and sum(wanted) > films:
        raise ValueError(f"--split {text} asks for {sum(wanted)} films; there are {films}")


def check_independent(task, table, grouping, folds) -> None:
    """Raises ValueError where a class has fewer groups of films than there are folds."""
    film_tables.check_classes(task, table, grouping)
    table, grouping = findings.real_films(table, grouping)
    groups = pd.Series(grouping.groups, index=table.index).groupby(table[task.label_column]).nunique()
    for label in task.labels:
        if groups[label] < folds:
            raise ValueError(
                f"label {label!r} has {groups[label]} independent films, too few for --folds {folds}; give "
                f"at most --folds {groups[label]}, or --split"
            )


def folds_of(recipe, task, films, grouping, seed) -> list[Fold]:
    """The folds of one seed, or the one split of `recipe.split`.

    A split is of the real films; synthetic ones are trained on beside them.

    Args:
        recipe: its split and folds.
        task, films: ClassifierTask and RunFilms.
        grouping: `kxray.data.Grouping` of all tested films, which stay together.
        seed: of the split.
    """
    from kxray import data
    from kxray.data import held_out

    tested, column = films.tested, task.label_column
    film_tables.check_classes(task, tested, grouping)
    rows = tested.index.to_numpy()
    if recipe.split is None:
        parts = data.patient_folds(tested, column, recipe.folds, seed, grouping=grouping).parts
        return [Fold(parts != fold, rows[parts == fold], None) for fold in range(recipe.folds)]
    real = int((~held_out.synthetic_films(tested)).sum())
    check_counts(recipe.split, real)
    wanted = counts(recipe.split)
    used = np.ones(len(rows), bool)
    if wanted and sum(wanted) < real:
        left = 1 - sum(wanted) / real
        used = data.patient_split(tested, column, val=0, test=left, seed=seed, grouping=grouping).parts
        used = used == "train"
    _, val, test = shares(recipe.split)
    parts = np.full(len(rows), "none ")
    parts[used] = data.patient_split(
        tested[used], column, val=val, test=test, seed=seed, grouping=grouping.take(used)
    ).parts
    members = (parts == "train") | (parts == "val")
    return [Fold(members, rows[parts == "test"], rows[parts == "val"])]


def synthetic_note(table) -> list[str]:
    """What to say of the synthetic films among some films, if there are any."""
    made = len(table) - len(findings.real_films(table)[0])
    told = f"{made} synthetic films are trained on beside the real ones, which the split is of"
    return [told] if made else []


def check_every_class(task, films, splits, parts) -> None:
    """Raises ValueError where no training, validation or test film of a seed shows a class.

    Args:
        task, films: ClassifierTask and RunFilms.
        splits: seed -> its `Fold`s.
        parts: (seed, number of the fold) -> positions (training films, validation films).
    """
    for seed, folds in splits.items():
        trained, validated = zip(*(parts[seed, number] for number in range(len(folds))), strict=True)
        used = {"train": trained, "validate": validated, "test": [fold.test for fold in folds]}
        for what, rows in used.items():
            shown = np.bincount(films.labels[np.concatenate(rows)], minlength=len(task.labels))
            if not shown.all():
                raise ValueError(
                    f"label {task.labels[int(shown.argmin())]!r} has no film to {what} on in the split of "
                    f"seed {seed}; give that part a larger share, or --folds, or leave the label out"
                )


def training_rows(fold, task, films, grouping, seed):
    """Positions (training films, validation films) of a fold; `seed` cuts out the validation films."""
    if fold.validation is None:
        return film_tables.validation_split(task, films, fold.members, grouping, seed)
    rows = films.tested.index.to_numpy()[fold.members]
    return np.setdiff1d(rows, fold.validation), fold.validation


def check_unchanged(folder, films, columns) -> dict:
    """The config of a comparison with its fingerprint of the films and of their labels in some columns.

    Raises:
        ValueError: a resumed comparison whose films or labels are others than when it was started.
    """
    from kxray import data

    tested = films.tested
    labels = {path: labels for path, *labels in tested[["path", *columns]].values}
    of_films = data.fingerprint(films.table.drop(columns="training_only"))
    fingerprint = hashlib.sha256(repr((of_films, labels)).encode()).hexdigest()
    config = runs.read_config(folder)
    if config.get("data_fingerprint", fingerprint) != fingerprint:
        raise ValueError(
            "the films or their labels are not those this comparison was started on; restore them, or "
            "start a new one"
        )
    return config | {"data_fingerprint": fingerprint, "films_fingerprint": of_films}


# Baselines


def texture_of(films, kept, workers, progress) -> np.ndarray:
    """Texture features of the tested films, in their order; read once and kept in the file `kept`."""
    from kxray.io import FilmError, read_films

    if not kept.exists():
        paths = list(films.table["path"])
        bar = progress.add_task("texture features", total=len(paths), facts="")
        rows = [None] * len(paths)
        for done, (index, result) in enumerate(
            read_films(paths, transform=_texture, workers=workers), start=1
        ):
            if isinstance(result, FilmError):
                raise result
            rows[index] = result
            progress.update(bar, completed=done)
        with runs.replacing(kept) as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(rows))
    return np.load(kept)[~films.table["training_only"].to_numpy()]


def _texture(film):
    return baselines.texture_features(film.pixels)


def baseline_outputs(features, labels, folds, films, groups, seed):
    """Scores of a baseline on the test films of every fold, grown on the fold's other films.

    Args:
        features: dict of "texture" and "no-anatomy" to float (number of tested films, F).
        labels: int (number of tested films,).
        folds: of one seed.
        films: RunFilms.
        groups: of the tested films.
        seed: of the baselines.

    Returns:
        (number of the fold of each tested film, -1 where it is not tested; dict of each baseline's name to
        its scores (number of tested films, classes), NaN where a film is not tested).
    """
    from kxray.data import no_anatomy_baseline

    positions = films.tested.index.to_numpy()
    fold_of = np.full(len(positions), -1)
    for number, fold in enumerate(folds):
        fold_of[np.isin(positions, fold.test)] = number
    # A split by counts leaves films out; the others are all trained on where they are not tested.
    used = (fold_of >= 0) | np.any([fold.members for fold in folds], axis=0)
    outputs = {}
    for name, values in features.items():
        output = (
            baselines.texture_scores(values[used], labels[used], fold_of[used], groups[used], seed)
            if name == "texture"
            else no_anatomy_baseline(values[used], labels[used], fold_of[used], seed=seed)
        )
        outputs[name] = np.full((len(positions), output.shape[1]), np.nan)
        outputs[name][used] = output
    return fold_of, outputs
