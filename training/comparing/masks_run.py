"""A comparison of masks, from its films to its table: every network on the same splits, one after another."""

import dataclasses
import gc
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from training import films as film_tables
from training import finding_scores, findings, localising, runs, scoring
from training.comparing import compared_films, comparison_run, masks_scores
from training.comparing.masks_scores import BASE, FULL, NO_ANATOMY
from training.fitting import Fitting
from training.masking import Masking
from training.recipes import masked_densenet


def run(recipe, given, rows_of) -> Path | None:
    """Runs or resumes a comparison and returns its folder."""
    recipe, given = runs.with_absolute_places(recipe, given)

    def work(recipe, folder, progress):
        MaskComparison(recipe, folder, progress, rows_of(recipe)).run()

    def plan(console):
        _plan(recipe, rows_of, console)

    return comparison_run.run("masks", recipe, given, plan, work, masks_scores.told, "thorax-phantoms")


def _plan(recipe, rows_of, console):
    compared_films.check_source(recipe)
    if recipe.align == "none":
        raise ValueError(
            "--align none: alignment is what is compared; give auto or a run of the recipe align"
        )
    if recipe.folds == 1:
        raise ValueError("--folds 1 leaves nothing to train on; 0 makes one split, 2 and more make folds")
    rows = rows_of(recipe)
    for row in rows:
        masked_densenet.task_of(row.recipe)
    if not recipe.dry_run:
        return
    for row in rows:
        times = recipe.seeds * max(1, recipe.folds)
        console.print(f"would train {row.name}: {row.network}, {times} times", soft_wrap=True)
    task = masked_densenet.task_of(rows[0].recipe)
    if recipe.data is None:
        console.print(f"would generate {_count(recipe)} {recipe.poses} thorax phantoms")
        return
    task, table, notes = film_tables.settle(
        task, film_tables.read_labelled(recipe.data, task, recipe.skip_bad)[0]
    )
    boxed = int(table["boxes"].map(bool).sum()) if "boxes" in table.columns else 0
    console.print(f"{len(table)} films, {boxed} with boxes: {', '.join(task.labels)}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)


def _count(recipe):
    return film_tables.DEFAULT_PHANTOMS if recipe.phantoms is None else recipe.phantoms


class MaskComparison:
    """Every finished training leaves files in work/cells and work/boxes, which a resumed comparison picks up.

    Attributes:
        task, films: ClassifierTask with its findings, and RunFilms.
        grouping: which films are kept together.
        parts: (seed, fold) -> positions (training, validation, test films).
        boxes: of all films, see `training.localising.boxed_findings`.
    """

    def __init__(self, recipe, folder, progress, rows):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.rows = rows
        self.masking = Masking(recipe)

    def run(self):
        from kxray import data
        from training import distribution
        from training.report.masks import write_report

        recipe = self.recipe
        devices, policy = distribution.set_up(recipe, 0)
        asked = dataclasses.replace(self.rows[0].recipe, data=str(self.find_source()), phantoms=None)
        self.task, self.films = film_tables.load(
            asked, masked_densenet.task_of(asked), self.folder / "work" / "films", self.progress
        )
        tested = self.films.tested
        self.grouping = data.film_groups(tested, thumbnails=self.films.thumbnails[tested.index])
        self.groups = pd.Series(self.grouping.groups, index=tested.index).astype(str)
        self.boxes = localising.boxed_findings(self.task, self.films, tested.index)
        self.parts = dict(self.find_parts())
        fewest = min((train for train, _, _ in self.parts.values()), key=len)
        # Networks that are not aligned need no film to align by.
        align = self.recipe.align if any(row.aligned for row in self.rows) else "none"
        Masking(dataclasses.replace(self.recipe, align=align)).check(self.task, self.films, fewest)
        config = self.describe(tested, devices, policy)
        baseline = runs.kept_table(self.folder / "work" / "baseline.csv", self.baseline_cells)
        cells, boxes = zip(*(self.row_results(row, devices) for row in self.rows), strict=True)
        cells, boxes = (localising.joined(tables) for tables in (cells, boxes))
        metrics = masks_scores.scores_of(
            masks_scores.Results(self.rows, cells, boxes, baseline, list(self.task.labels))
        )
        runs.write_table(self.folder / "cells.csv", cells)
        runs.write_table(self.folder / "boxes.csv", boxes)
        runs.write_table(self.folder / "table.csv", masks_scores.table_of(metrics))
        write_report(self.folder, config, metrics, self.examples())
        # Last: a comparison that has metrics.json is complete.
        runs.write_json(self.folder / "metrics.json", metrics)

    # Films and their splits

    def find_source(self):
        """The films: the source itself, or phantoms as large as the network's input."""
        from kxray.data.phantom import write_phantoms

        if self.recipe.data is not None:
            return Path(self.recipe.data)
        task = masked_densenet.task_of(self.rows[0].recipe)
        mix = dataclasses.replace(findings.phantom_mix(task), size=self.recipe.image_size)
        bar = self.progress.add_task("phantom films", total=_count(self.recipe), facts="")
        write_phantoms(
            self.folder / "phantoms",
            "thorax",
            _count(self.recipe),
            0,
            mix=mix,
            progress=lambda done: self.progress.update(bar, completed=done),
        )
        return self.folder / "phantoms"

    def find_parts(self):
        """Yields ((seed, fold), (training, validation, test positions)); the same for every network."""
        tested = self.films.tested
        rows = tested.index.to_numpy()
        for seed in range(self.recipe.seeds):
            asked = dataclasses.replace(self.recipe, seed=seed)
            parts = film_tables.split_films(asked, self.task, tested, self.grouping).parts
            for fold in range(max(1, self.recipe.folds)):
                if self.recipe.folds:
                    train, validation = film_tables.validation_split(
                        self.task, self.films, parts != fold, self.grouping, 100 * seed + fold
                    )
                    yield (seed, fold), (train, validation, rows[parts == fold])
                else:
                    yield (seed, fold), tuple(rows[parts == part] for part in ("train", "val", "test"))

    def describe(self, tested, devices, policy) -> dict:
        """Writes config.json; a resumed comparison must find the films, labels and boxes of its start."""
        columns = [*self.task.labels, *(["boxes"] if "boxes" in tested.columns else [])]
        config = compared_films.check_unchanged(self.folder, self.films, columns)
        generated = ["the films are generated phantoms: scores say nothing about real films"]
        config |= {
            "versions": runs.versions(),
            "films": {name: int((tested[name] == 1).sum()) for name in self.task.labels},
            "boxes": {name: int((self.boxes["finding"] == name).sum()) for name in self.task.labels},
            "grouped_by": self.grouping.kind,
            "parts": [
                f"seed {seed}"
                + (f", fold {fold + 1}" if self.recipe.folds else "")
                + f": {len(train)}/{len(validation)}/{len(test)} films to train, validate and test, "
                + "/".join(str(len(self.boxes_of(rows))) for rows in (train, validation, test))
                + " boxes"
                for (seed, fold), (train, validation, test) in self.parts.items()
            ],
            "replicas": devices[1],
            "dtype_policy": policy,
            "notes": [
                *self.films.notes,
                *(generated if self.recipe.data is None else []),
                *self.masking.notes(),
                *runs.starting_notes(self.recipe, config["films_fingerprint"], tested["path"]),
            ],
        }
        runs.write_json(self.folder / "config.json", config)
        for line in config["parts"]:
            self.progress.console.print(line, soft_wrap=True)
        return config

    def boxes_of(self, rows):
        return self.boxes[self.boxes["position"].isin(rows)]

    # Trainings

    def row_results(self, row, devices):
        """(predictions, judged boxes) of one network, of the test films of every seed and fold."""
        names = {part: f"{row.name}-seed-{part[0]}-fold-{part[1]}" for part in self.parts}
        done = {part: self.folder / "work" / "cells" / f"{name}.csv" for part, name in names.items()}
        judged = {part: self.folder / "work" / "boxes" / f"{name}.csv" for part, name in names.items()}
        if not all(path.exists() for path in done.values()):
            task = dataclasses.replace(masked_densenet.task_of(row.recipe), labels=self.task.labels)
            fitting = Fitting(row.recipe, task, self.films, self.folder, self.progress, devices)
            for part, path in done.items():
                if not path.exists():
                    folder = self.folder / "work" / "trainings" / names[part]
                    cells, boxes = self.train(row, fitting, part, folder)
                    judged[part].parent.mkdir(parents=True, exist_ok=True)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    runs.write_table(judged[part], boxes)
                    # Last: it says that the training is finished.
                    runs.write_table(path, cells)
                    shutil.rmtree(folder, ignore_errors=True)
            # The next network needs the memory.
            del fitting
            gc.collect()
        return (
            localising.joined(runs.read_table(path) for path in done.values()),
            localising.joined(localising.read_table(path) for path in judged.values()),
        )

    def train(self, row, fitting, part, folder):
        """One training, in a folder: the predictions of its test films, and what its maps hit."""
        from kxray import metrics

        (seed, fold), (train, validation, test) = part, self.parts[part]
        films, task = self.films, fitting.task
        if row.aligned:
            task.masking.recipe = dataclasses.replace(row.recipe, align=str(self.aligner(part)))
        name = f"{row.name} seed {seed}" + (f" fold {fold + 1}" if self.recipe.folds else "")
        model, history = fitting.train(
            folder.relative_to(self.folder), name, train, validation, 100 * seed + fold
        )
        logits = fitting.logits_of(validation)
        temperature = metrics.fit_temperature(logits, films.labels[validation])
        probabilities = scoring.calibrated(logits, dataclasses.replace(task.spec, temperature=temperature))
        thresholds = metrics.youden_thresholds(probabilities, films.labels[validation], task.labels)
        facts = {"row": row.name, "seed": seed, "fold": fold}
        cells = finding_scores.prediction_table(
            films.table,
            test,
            films.labels,
            fitting.logits_of(test),
            (temperature, thresholds),
            task.spec,
            **facts,
            group=self.groups[test].to_numpy(),
            training_seconds=history.attrs["seconds"],
            epochs=len(history),
            parameters=model.count_params(),
        )
        judged = [
            localising.localise(model, task, films, rows, self.progress, boxes=self.boxes_of(rows))
            for rows in (validation, test)
        ]
        boxes = localising.cut_by(*judged).assign(**facts)
        boxes["group"] = self.groups.reindex(boxes["position"]).to_numpy()
        if part == next(iter(self.parts)) and row.name in (FULL, BASE):
            self.keep_examples(row, model, task, localising.choose_fractions(judged[0]))
        return cells, boxes

    def aligner(self, part) -> Path:
        """The aligner of a seed and fold: made of its training films, and shared by the rows."""
        seed, fold = part
        folder = self.folder / "work" / "aligners" / f"seed-{seed}-fold-{fold}"
        of_films = (self.task, self.films, self.parts[part][0])
        return self.masking.aligner(*of_films, 100 * seed + fold, folder, self.progress)

    # Baseline and examples

    def baseline_cells(self):
        """Test predictions of the baseline that sees no anatomy, on the same splits."""
        films, tested = self.films, self.films.tested
        rows, truths = tested.index.to_numpy(), self.films.labels[tested.index]
        features, tables = {NO_ANATOMY: films.features[tested.index]}, []
        for seed in range(self.recipe.seeds):
            folds = [
                compared_films.Fold(~np.isin(rows, test), test, validation)
                for (owner, _), (_, validation, test) in self.parts.items()
                if owner == seed
            ]
            fold_of, outputs = compared_films.baseline_outputs(
                features, truths, folds, films, self.grouping.groups, seed
            )
            scored = fold_of >= 0
            known = {f"truth_{name}": truths[scored, place] for place, name in enumerate(self.task.labels)}
            stated = {
                f"probability_{name}": outputs[NO_ANATOMY][scored, place]
                for place, name in enumerate(self.task.labels)
            }
            facts = {"row": NO_ANATOMY, "seed": seed, "path": tested["path"][scored]}
            groups = self.grouping.groups[scored].astype(str)
            tables.append(
                pd.DataFrame({**facts, "group": groups, "fold": fold_of[scored], **known, **stated})
            )
        return pd.concat(tables, ignore_index=True)

    def keep_examples(self, row, model, task, fractions):
        """What the report shows of a network on films of the first test part."""
        from training.evidence_maps import EVIDENCE
        from training.report import localisation

        pairs = localisation.choose_examples(
            self.boxes_of(self.parts[next(iter(self.parts))][2]), task.labels
        )
        examples = localisation.example_films(model, task, self.films, pairs, fractions[EVIDENCE])
        localisation.save_examples(self.folder / "work" / "examples" / f"{row.name}.npz", examples)

    def examples(self):
        """Those of the full network, with the maps of the plain one beside its own."""
        from training.report import localisation

        paths = [self.folder / "work" / "examples" / f"{name}.npz" for name in (FULL, BASE)]
        if not all(path.exists() for path in paths):
            return []
        whole, plain = (localisation.load_examples(path) for path in paths)
        return [
            dataclasses.replace(one, plain=other.evidence) for one, other in zip(whole, plain, strict=True)
        ]
