"""A matrix run: every backbone in every mode on the same splits, cell by cell, then scores and report."""

import dataclasses
import gc
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from training import chosen_labels, memory, runs, scoring
from training import films as film_tables
from training.comparing import compared_films, matrix_advice, matrix_scores
from training.comparing.matrix_scores import ALL_FILMS, FROZEN
from training.fitting import Fitting
from training.recipes import transfer


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: a row of the matrix with a seed, a fold, and films a class (0: all)."""

    row: object
    films_per_class: int
    seed: int
    fold: int

    @property
    def name(self) -> str:
        size = f"-{self.films_per_class}" if self.films_per_class else ""
        return f"{self.row.name}{size}-seed-{self.seed}-fold-{self.fold}"


class Matrix:
    """Every finished training leaves a file in work/cells, which a resumed matrix run picks up.

    Attributes:
        task, films: ClassifierTask with its labels, and RunFilms.
        grouping: which films are kept together.
        splits: seed -> its `training.comparing.compared_films.Fold`s.
        parts: (seed, fold) -> positions (training films, validation films).
    """

    def __init__(self, recipe, folder, progress, rows):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.rows = rows

    def run(self):
        from kxray import data
        from training import distribution
        from training.report.matrix import write_report

        recipe = self.recipe
        devices, policy = distribution.set_up(recipe, 0)
        self.check_networks()
        source = self.find_source()
        asked = dataclasses.replace(self.rows[0].recipe, data=str(source), phantoms=None)
        self.task, self.films = film_tables.load(
            asked, transfer.task_of(asked), self.folder / "work" / "films", self.progress
        )
        tested = self.films.tested
        self.grouping = data.film_groups(tested, thumbnails=self.films.thumbnails[tested.index])
        if recipe.split is None:
            compared_films.check_independent(self.task, tested, self.grouping, recipe.folds)
        self.splits = {
            seed: compared_films.folds_of(recipe, self.task, self.films, self.grouping, seed)
            for seed in range(recipe.seeds)
        }
        self.parts = {
            (seed, number): compared_films.training_rows(
                fold, self.task, self.films, self.grouping, 100 * seed + number
            )
            for seed, folds in self.splits.items()
            for number, fold in enumerate(folds)
        }
        compared_films.check_every_class(self.task, self.films, self.splits, self.parts)
        self.fit_sizes()
        config = self.describe(tested, devices, policy)
        for line in self.split_told():
            self.progress.console.print(line, soft_wrap=True)
        baseline_cells = self.baseline_cells()
        results = matrix_scores.Results(
            rows=self.rows,
            cells=pd.concat([self.row_cells(row, devices) for row in self.rows], ignore_index=True),
            baselines=baseline_cells,
            labels=list(self.task.labels),
            smallest_class=float(np.median([self.smallest_class(train) for train, _ in self.parts.values()])),
        )
        metrics = matrix_scores.scores_of(results)
        metrics["source"] = str(source)
        metrics["next"] = self.next_command(metrics, source)
        histories = self.histories()
        runs.write_table(self.folder / "cells.csv", results.cells)
        runs.write_table(self.folder / "histories.csv", histories)
        runs.write_table(self.folder / "table.csv", matrix_advice.table_of(metrics))
        write_report(self.folder, config, metrics, histories)
        # Last: a run that has metrics.json is complete.
        runs.write_json(self.folder / "metrics.json", metrics)

    # Films

    def find_source(self):
        """The films with the labels asked for: the source itself, a manifest of chosen ones, or phantoms."""
        from kxray import data

        recipe = self.recipe
        self.notes = []
        if recipe.data is None:
            count = film_tables.DEFAULT_PHANTOMS if recipe.phantoms is None else recipe.phantoms
            task = transfer.task_of(self.rows[0].recipe)
            film_tables.generate_phantoms(self.folder / "phantoms", task, count, 0)
            self.notes = ["the films are generated phantoms: scores say nothing about real films"]
            return self.folder / "phantoms"
        if recipe.labels is None:
            return Path(recipe.data)
        # Written anew by a resumed run: other films or labels must not go unnoticed.
        table, self.notes = chosen_labels.read(recipe)
        manifest = self.folder / "films" / "manifest.csv"
        manifest.parent.mkdir(exist_ok=True)
        data.write_manifest(table, manifest)
        return manifest

    def fit_sizes(self):
        """Leaves out the sizes of learning curves that no training part has films for."""
        most = min(self.smallest_class(train) for train, _ in self.parts.values())
        beyond = sorted({size for row in self.rows for size in row.sizes if size >= most})
        if not beyond:
            return
        self.notes.append(
            f"learning curve: {', '.join(map(str, beyond))} films a class are not fewer than the smallest "
            f"training part's {most}; its last point is all films"
        )
        self.rows = [
            dataclasses.replace(row, sizes=tuple(size for size in row.sizes if size < most))
            for row in self.rows
        ]

    def smallest_class(self, rows) -> int:
        """How many films the class has that has fewest, among those at some positions."""
        return int(np.bincount(self.films.labels[rows], minlength=len(self.task.labels)).min())

    def describe(self, tested, devices, policy) -> dict:
        """Writes config.json; a resumed run must find the films and labels it was started on."""
        config = compared_films.check_unchanged(self.folder, self.films, (self.task.label_column,))
        started = [
            note
            for recipe in {row.recipe.weights: row.recipe for row in self.rows}.values()
            for note in runs.starting_notes(recipe, config["films_fingerprint"], tested["path"])
        ]
        made = compared_films.synthetic_note(tested)
        config |= {
            "versions": runs.versions(),
            "films": tested[self.task.label_column].value_counts().to_dict(),
            "grouped_by": self.grouping.kind,
            "groups": self.grouping.count,
            "weights": {row.backbone: row.recipe.weights for row in self.rows},
            "weights_digests": self.digests,
            "parts": self.split_told(),
            "replicas": devices[1],
            "dtype_policy": policy,
            "notes": list(dict.fromkeys([*self.films.notes, *self.notes, *made, *started])),
        }
        runs.write_json(self.folder / "config.json", config)
        return config

    def split_told(self) -> list[str]:
        """How many films of each class train, validate and test, in the first training of each seed."""
        lines = []
        for seed, folds in self.splits.items():
            train, validation = self.parts[seed, 0]
            sizes = "/".join(str(len(rows)) for rows in (train, validation, folds[0].test))
            counts = ", ".join(
                f"{label} "
                + "/".join(
                    str(int((self.films.labels[rows] == index).sum()))
                    for rows in (train, validation, folds[0].test)
                )
                for index, label in enumerate(self.task.labels)
            )
            which = f"seed {seed}" + (f", fold 1 of {len(folds)}" if len(folds) > 1 else "")
            lines.append(f"{which}: {sizes} films to train, validate and test ({counts})")
        return lines

    def check_networks(self):
        """Builds every network once: what does not fit is found before films are read.

        A resumed run must find the starting weights that it was started with, be they a file, a run or those
        of ImageNet.
        """
        from kxray import models

        known, self.digests = runs.read_config(self.folder).get("weights_digests", {}), {}
        # Of two modes fine-tuning, which goes last: its options may not fit the network's stages.
        rows = sorted(self.rows, key=lambda row: row.mode != FROZEN)
        for row in {row.backbone: row for row in rows}.values():
            task = dataclasses.replace(transfer.task_of(row.recipe), labels=("a", "b"))
            model = task.build(task.spec)
            if row.recipe.weights == "none":
                continue
            self.digests[row.backbone] = models.weights_digest(model)
            if known.get(row.backbone) not in (None, self.digests[row.backbone]):
                raise ValueError(
                    f"--weights {row.recipe.weights}: not the weights of {row.backbone} that this comparison "
                    "was started with; restore them, or start a new one"
                )

    # Trainings

    def cells_of(self, row) -> list[Cell]:
        # All films first: they compute the features that the smaller sizes share.
        return [
            Cell(row, size, seed, fold)
            for size in (ALL_FILMS, *row.sizes)
            for seed, folds in self.splits.items()
            for fold in range(len(folds))
        ]

    def row_cells(self, row, devices):
        """The predictions of one network, of every size, seed and fold."""
        folder = self.folder / "work" / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        paths = {cell: folder / f"{cell.name}.csv" for cell in self.cells_of(row)}
        if not all(path.exists() for path in paths.values()):
            task = dataclasses.replace(transfer.task_of(row.recipe), labels=self.task.labels)
            task = dataclasses.replace(task, label_column=self.task.label_column)
            fitting = Fitting(row.recipe, task, self.films, self.folder, self.progress, devices)
            for cell, path in paths.items():
                if not path.exists():
                    trained = self.folder / "work" / "trainings" / cell.name
                    runs.write_table(path, self.train(fitting, cell, trained))
                    shutil.rmtree(trained, ignore_errors=True)
            # The next network needs the memory.
            del fitting
            gc.collect()
        return pd.concat([runs.read_table(path) for path in paths.values()], ignore_index=True)

    def train(self, fitting, cell, folder):
        """One training, in a folder: the predictions of its validation and test films, and what it cost."""
        from kxray.metrics import fit_temperature

        films, seed = fitting.films, 100 * cell.seed + cell.fold
        train, validation = self.parts[cell.seed, cell.fold]
        test = self.splits[cell.seed][cell.fold].test
        if cell.films_per_class:
            train, distinct = self.fewer(train, cell.films_per_class, seed)
        else:
            distinct = len(train)
        name = f"{cell.row.name} seed {cell.seed} fold {cell.fold + 1}"
        if cell.films_per_class:
            name += f", {cell.films_per_class} a class"
        features_before = fitting.feature_seconds
        watched = memory.reset_peak()
        model, history = fitting.train(folder.relative_to(self.folder), name, train, validation, seed)
        peak = memory.peak_mb() if watched else None
        rows = np.concatenate([validation, test])
        logits = fitting.logits_of(rows)
        temperature = fit_temperature(logits[: len(validation)], films.labels[validation])
        groups = pd.Series(self.grouping.groups, index=films.tested.index)
        table = scoring.prediction_table(
            films.table,
            rows,
            films.labels,
            logits,
            temperature,
            fitting.task.spec,
            row=cell.row.name,
            films_per_class=cell.films_per_class,
            seed=cell.seed,
            fold=cell.fold,
            part=np.where(np.arange(len(rows)) < len(validation), "val", "test"),
            group=groups[rows].to_numpy(),
            training_films=distinct,
            training_seconds=history.attrs["seconds"],
            feature_seconds=fitting.feature_seconds - features_before,
            feature_bytes=fitting.feature_bytes,
            epochs=len(history),
            parameters=model.count_params(),
            trained_parameters=sum(int(np.prod(weight.shape)) for weight in model.trainable_weights),
            peak_memory_mb="" if peak is None else round(peak, 1),
        )
        kept = self.folder / "work" / "histories" / f"{cell.name}.csv"
        kept.parent.mkdir(exist_ok=True)
        facts = {"row": cell.row.name, "films_per_class": cell.films_per_class}
        runs.write_table(kept, history.assign(**facts, seed=cell.seed, fold=cell.fold))
        return table

    def fewer(self, train, films_per_class, seed):
        """(positions of so many films of every class, as often as there were films; how many are distinct).

        Repeated, so that every size trains for as many steps: a curve over films, not over steps. The films
        of a size are among those of every larger one.
        """
        random = np.random.default_rng(seed)
        labels, chosen = self.films.labels, []
        for label in range(len(self.task.labels)):
            own = random.permutation(np.sort(train[labels[train] == label]))
            chosen.append(np.resize(own[:films_per_class], len(own)))
        return np.concatenate(chosen), films_per_class * len(chosen)

    def histories(self):
        folder = self.folder / "work" / "histories"
        names = [f"{cell.name}.csv" for row in self.rows for cell in self.cells_of(row)]
        return pd.concat([runs.read_table(folder / name) for name in names], ignore_index=True)

    # Baselines and what comes after

    def baseline_cells(self):
        """Test predictions of the classical and the no-anatomy baseline, on the same splits."""
        finished = self.folder / "work" / "baselines.csv"
        if not finished.exists():
            runs.write_table(finished, self.baselines())
        return runs.read_table(finished)

    def baselines(self):
        films, tested = self.films, self.films.tested
        kept = self.folder / "work" / "texture.npy"
        features = {
            "texture": compared_films.texture_of(films, kept, self.recipe.workers, self.progress),
            "no-anatomy": films.features[tested.index],
        }
        labels, names, tables = films.labels[tested.index], np.array(self.task.labels), []
        groups = self.grouping.groups
        for seed, folds in self.splits.items():
            fold_of, outputs = compared_films.baseline_outputs(features, labels, folds, films, groups, seed)
            scored = fold_of >= 0
            for baseline, output in outputs.items():
                tables.append(
                    pd.DataFrame(
                        {
                            "row": baseline,
                            "path": tested["path"][scored],
                            "group": groups[scored].astype(str),
                            "seed": seed,
                            "fold": fold_of[scored],
                            "label": names[labels[scored]],
                            "predicted": names[output[scored].argmax(axis=1)],
                        }
                    )
                )
        return pd.concat(tables, ignore_index=True)

    def next_command(self, metrics, source) -> str:
        """How the chosen network is trained on its own, to be kept and served."""
        row = next(row for row in self.rows if row.name == metrics["chosen"])
        changed = {
            field.name: getattr(row.recipe, field.name)
            for field in dataclasses.fields(transfer.Recipe)
            if getattr(row.recipe, field.name) != field.default
            and field.name not in ("data", "out", "resume", "dry_run", "folds", "preset", "phantoms")
        }
        changed |= {"backbone": row.backbone, "mode": row.mode, "weights": row.recipe.weights}
        given = []
        for name, value in changed.items():
            if isinstance(value, bool):
                given.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
            elif value is not None:
                given += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
        return f"python -m training.fit transfer --data {shlex.quote(str(source))} {' '.join(given)}"
