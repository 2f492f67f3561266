"""A comparison, from its films to its table: every network on the same splits, one training after another."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from training import films as film_tables
from training import runs, scoring
from training.comparing import compared_films, comparison_run, multiscale_scores
from training.fitting import Fitting
from training.recipes import multiscale_cam

COARSE, FINE = "coarse_label", "label"
_PHANTOM_CLASSES = ("label", "calibre")
_SIZE_CLASS = re.compile(r"_scale\d+$")


def run(recipe, given, rows_of) -> Path | None:
    """Runs or resumes a comparison and returns its folder."""
    recipe, given = runs.with_absolute_places(recipe, given)

    def work(recipe, folder, progress):
        Comparison(recipe, folder, progress, rows_of).run()

    return comparison_run.run(
        "multiscale",
        recipe,
        given,
        lambda console: _plan(recipe, given, rows_of, console),
        work,
        multiscale_scores.told,
    )


def _plan(recipe, given, rows_of, console):
    if recipe.classes == 1:
        raise ValueError("--classes 1 splits nothing; give 2 or more, or 0 to compare without size classes")
    compared_films.check_options(recipe, given)
    rows = rows_of(recipe, bool(recipe.classes))
    for row in rows:
        multiscale_cam.task_of(row.recipe)
    if recipe.dry_run:
        _tell(recipe, rows, console)


def _tell(recipe, rows, console):
    """What a run would train."""
    for row in rows:
        console.print(f"would train {row.name}: {row.network}, {_trainings(recipe)} times")
    if recipe.data is not None:
        from kxray import data

        table = data.read_source(recipe.data, check=not recipe.skip_bad)
        console.print(f"{len(table)} films")


def _trainings(recipe):
    return recipe.seeds * (1 if recipe.split else recipe.folds)


@dataclasses.dataclass(frozen=True)
class _Question:
    """Films with one of two sets of labels."""

    task: film_tables.ClassifierTask
    films: film_tables.RunFilms


class Comparison:
    """Every finished training leaves a file in work/cells, which a resumed comparison picks up.

    Attributes:
        source: folder or CSV of the films, relabelled or generated where need be.
        coarse, fine: their columns of the coarse labels and of the size classes (None without).
        films: RunFilms with the finest labels; all that follows goes by its positions.
        grouping: which films are kept together.
        coarse_of: size class -> coarse label.
        splits: seed -> its `training.comparing.compared_films.Fold`s.
    """

    def __init__(self, recipe, folder, progress, rows_of):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.rows_of = rows_of

    def run(self):
        from kxray import data
        from training import distribution
        from training.report.comparison import write_report

        recipe = self.recipe
        devices, policy = distribution.set_up(recipe, 0)
        self.source, (self.coarse, self.fine) = self.find_source()
        rows = self.rows_of(recipe, self.fine is not None)
        self.films = None
        question = self.question(rows[0], self.fine is not None)
        self.films = question.films
        tested = self.films.tested
        self.grouping = data.film_groups(tested, thumbnails=self.films.thumbnails[tested.index])
        self.coarse_of = self.coarse_labels(tested)
        self.splits = {
            seed: compared_films.folds_of(recipe, question.task, question.films, self.grouping, seed)
            for seed in range(recipe.seeds)
        }
        config = self.describe(tested, devices, policy)
        multiscale_scores.check_masks(self.films)
        baseline_cells = self.baseline_cells(question)
        self.check_networks(rows)
        results = multiscale_scores.Results(
            rows=rows,
            cells=pd.concat([self.row_cells(row, devices) for row in rows], ignore_index=True),
            baselines=baseline_cells,
            coarse_labels=sorted(set(self.coarse_of.values())),
        )
        metrics = multiscale_scores.scores_of(results)
        runs.write_table(self.folder / "cells.csv", results.cells)
        runs.write_table(self.folder / "table.csv", multiscale_scores.table_of(metrics))
        write_report(self.folder, config, metrics)
        # Last: a comparison that has metrics.json is complete.
        runs.write_json(self.folder / "metrics.json", metrics)

    def describe(self, tested, devices, policy) -> dict:
        """Writes config.json; a resumed comparison must find the films and labels it was started on."""
        config = compared_films.check_unchanged(
            self.folder, self.films, (self.coarse, self.fine or self.coarse)
        )
        config |= {
            "versions": runs.versions(),
            "films": tested[self.fine or self.coarse].value_counts().to_dict(),
            "grouped_by": self.grouping.kind,
            "replicas": devices[1],
            "dtype_policy": policy,
            "notes": [
                *self.films.notes,
                *compared_films.synthetic_note(tested),
                *runs.starting_notes(self.recipe, config["films_fingerprint"], tested["path"]),
            ],
        }
        runs.write_json(self.folder / "config.json", config)
        return config

    def check_networks(self, rows):
        """Builds every network once, so that starting weights that do not fit are found now."""
        for row in {row.recipe: row for row in rows}.values():
            if row.recipe.init is not None:
                task = dataclasses.replace(multiscale_cam.task_of(row.recipe), labels=("a", "b"))
                task.build(task.spec)

    # Films and their two questions

    def find_source(self):
        """(source of films, (column of the coarse labels, column of the size classes or None))."""
        from kxray import data
        from training.relabel import split

        recipe = self.recipe
        if recipe.data is None:
            count = film_tables.DEFAULT_PHANTOMS if recipe.phantoms is None else recipe.phantoms
            task = multiscale_cam.task_of(multiscale_cam.Recipe())
            film_tables.generate_phantoms(self.folder / "phantoms", task, count, 0)
            columns = _PHANTOM_CLASSES if recipe.classes else (_PHANTOM_CLASSES[0], None)
            return self.folder / "phantoms", columns
        table = data.read_source(recipe.data, check=False)
        if COARSE in table.columns:
            return Path(recipe.data), (COARSE, FINE if recipe.classes else None)
        if not recipe.classes:
            return Path(recipe.data), (FINE, None)
        relabelled = self.folder / "relabelled"
        if not relabelled.exists():
            known = sorted(set(map(str, table.get("label", ()))))
            sized = [label for label in known if _SIZE_CLASS.search(label)]
            if sized:
                raise ValueError(
                    f"{recipe.data}: labels such as {sized[0]} name size classes, but no column {COARSE!r} "
                    "says of what; give the folder that training.relabel wrote, or --classes 0"
                )
            keep = [label.strip() for label in (recipe.keep or "").split(",") if label.strip()]
            told = split(
                recipe.data,
                relabelled,
                recipe.by,
                recipe.classes,
                keep=keep,
                skip_bad=recipe.skip_bad,
                workers=recipe.workers,
            )
            for line in told:
                self.progress.console.print(line, soft_wrap=True)
        return relabelled, (COARSE, FINE)

    def question(self, row, fine) -> _Question:
        """The films at a network's input size, with the coarse labels or the size classes."""
        side = row.recipe.image_size
        recipe = dataclasses.replace(
            row.recipe, data=str(self.source), label_column=self.fine if fine else self.coarse, phantoms=None
        )
        task, films = film_tables.load(
            recipe, multiscale_cam.task_of(recipe), self.folder / "work" / f"films-{side}", self.progress
        )
        if self.films is not None and list(films.tested["path"]) != list(self.films.tested["path"]):
            raise ValueError(
                f"{self.source}: some films have only one of {self.coarse!r} and {self.fine!r}; give every "
                "film both, or leave it out"
            )
        return _Question(task, films)

    def coarse_labels(self, tested) -> dict:
        """Size class -> the coarse label it belongs to; the coarse labels themselves where there are none."""
        pairs = tested[[self.fine or self.coarse, self.coarse]].drop_duplicates()
        coarse_of = dict(pairs.to_numpy())
        if len(coarse_of) != len(pairs):
            raise ValueError(
                f"{self.source}: a class of column {self.fine!r} has films of several {self.coarse!r}; every "
                "size class belongs to one coarse label"
            )
        return coarse_of

    # Trainings

    def row_cells(self, row, devices):
        """The predictions of one network, of every seed and fold."""
        folder = self.folder / "work" / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        names = {
            (seed, fold): folder / f"{row.name}-seed-{seed}-fold-{fold}.csv"
            for seed, folds in self.splits.items()
            for fold in range(len(folds))
        }
        if not all(path.exists() for path in names.values()):
            question = self.question(row, row.fine)
            fitting = Fitting(row.recipe, question.task, question.films, self.folder, self.progress, devices)
            for (seed, fold), path in names.items():
                if not path.exists():
                    trained = self.folder / "work" / "trainings" / f"{row.name}-{seed}-{fold}"
                    runs.write_table(path, self.train(row, fitting, seed, fold, trained))
                    shutil.rmtree(trained)
        return pd.concat(
            [runs.read_table(path).assign(row=row.name) for path in names.values()], ignore_index=True
        )

    def train(self, row, fitting, seed, fold, folder):
        """One training, in a folder: the predictions of its validation and test films."""
        films, task, part = fitting.films, fitting.task, self.splits[seed][fold]
        train, validation = compared_films.training_rows(part, task, films, self.grouping, 100 * seed + fold)
        name = f"{row.name} seed {seed} fold {fold + 1}"
        model, history = fitting.train(
            folder.relative_to(self.folder), name, train, validation, 100 * seed + fold
        )
        rows = np.concatenate([validation, part.test])
        groups = pd.Series(self.grouping.groups, index=films.tested.index)
        logits = fitting.logits_of(rows)
        flipped = fitting.logits_of(rows, row.recipe.flips)
        table = scoring.prediction_table(
            films.table,
            rows,
            films.labels,
            logits,
            1.0,
            task.spec,
            seed=seed,
            fold=fold,
            part=np.where(np.arange(len(rows)) < len(validation), "val", "test"),
            group=groups[rows].to_numpy(),
            coarse=films.table.loc[rows, self.coarse].to_numpy(),
            training_seconds=history.attrs["seconds"],
            epochs=len(history),
            parameters=model.count_params(),
        )
        table = table.drop(columns=[name for name in table.columns if name.startswith(("logit_", "temper"))])
        for suffix, values in (("", logits), ("_flips", flipped)):
            table = self.with_coarse(table, task.spec, scoring.probabilities_of(values, 1.0), suffix)
        return multiscale_scores.with_maps(table, row, model, films)

    def with_coarse(self, table, spec, probabilities, suffix):
        """Adds the coarse prediction: the probabilities of a coarse label's classes added up."""
        names = sorted(set(self.coarse_of.values()))
        coarse = [self.coarse_of.get(label, label) for label in spec.labels]
        sums = np.stack(
            [probabilities[:, [owner == name for owner in coarse]].sum(axis=1) for name in names], axis=1
        )
        added = {f"coarse_probability_{name}{suffix}": sums[:, index] for index, name in enumerate(names)}
        chosen = [names[index] for index in sums.argmax(axis=1)]
        return table.assign(**added, **{f"coarse_predicted{suffix}": chosen})

    # Baselines

    def baseline_cells(self, question):
        """Test predictions of the classical and the no-anatomy baseline, on the same splits."""
        films, tested = question.films, question.films.tested
        kept = self.folder / "work" / "texture.npy"
        features = {
            "texture": compared_films.texture_of(films, kept, self.recipe.workers, self.progress),
            "no-anatomy": films.features[tested.index],
        }
        coarse_names = sorted(set(self.coarse_of.values()))
        coarse = np.array([coarse_names.index(name) for name in tested[self.coarse]])
        questions = {"coarse": (coarse, coarse_names)}
        if self.fine is not None:
            questions["fine"] = (films.labels[tested.index], list(question.task.labels))
        tables = []
        for seed, folds in self.splits.items():
            for name, (labels, names) in questions.items():
                asked = features if name == "coarse" else {"texture": features["texture"]}
                fold_of, outputs = compared_films.baseline_outputs(
                    asked, labels, folds, films, self.grouping.groups, seed
                )
                scored = fold_of >= 0
                for baseline, output in outputs.items():
                    chosen = [names[index] for index in output[scored].argmax(axis=1)]
                    tables.append(
                        pd.DataFrame(
                            {
                                "row": f"{baseline}-{name}",
                                "path": tested["path"][scored],
                                "group": self.grouping.groups[scored].astype(str),
                                "seed": seed,
                                "fold": fold_of[scored],
                                "label": [names[index] for index in labels[scored]],
                                "predicted": chosen,
                                "coarse": tested[self.coarse][scored],
                                "coarse_predicted": [self.coarse_of.get(label, label) for label in chosen],
                            }
                        )
                    )
        return pd.concat(tables, ignore_index=True)
