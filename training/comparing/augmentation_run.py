"""A comparison of augmentation, from a generator's run to a table: one classifier, the films of each row."""

import dataclasses
import gc
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from training import runs
from training.comparing import (
    augmentation_films,
    augmentation_pools,
    augmentation_scores,
    augmentation_verdict,
    compared_films,
    comparison_run,
)
from training.comparing.augmentation_fitting import STRONG, Trainer, Training, check_network, task_spec
from training.comparing.augmentation_verdict import NO_ANATOMY, REAL

FEWEST_STEPS = 40


def run(recipe, given, rows_of) -> Path | None:
    """Runs or resumes a comparison and returns its folder."""
    recipe, given = runs.with_absolute_places(recipe, given)
    if recipe.run is not None:
        place = str(Path(recipe.run).resolve())
        recipe, given = dataclasses.replace(recipe, run=place), {**given, "run": place}

    def work(recipe, folder, progress):
        AugmentationComparison(recipe, folder, progress, rows_of(recipe)).run()

    return comparison_run.run(
        "augmentation",
        recipe,
        given,
        lambda console: _plan(recipe, rows_of, console),
        work,
        augmentation_verdict.told,
        Path(recipe.run or "run").name,
    )


def _plan(recipe, rows_of, console):
    """Checks what is cheap; of a dry run tells what would be trained."""
    rows = rows_of(recipe)
    run = augmentation_films.read_run(recipe.run)
    side = recipe.image_size or run.side
    check_network(recipe, side)
    if not recipe.dry_run:
        return
    chosen = augmentation_films.choose_films(recipe, run)
    counts = chosen.counts("train")
    for row in rows:
        made = augmentation_pools.missing([row], counts)
        console.print(
            f"would train {row.name}: {row.told}, {recipe.seeds} times; {int(made.sum())} synthetic films",
            soft_wrap=True,
        )
    console.print(
        f"{steps_of(recipe, sum(counts))} steps {recipe.epochs} times, {recipe.batch_size} films a step, "
        f"{recipe.backbone} at {side} px",
        soft_wrap=True,
    )
    for line in chosen.told():
        console.print(line, soft_wrap=True)


def steps_of(recipe, train) -> int:
    """Steps between two looks at the validation films, the same in every row.

    Those asked for; else one pass over so many real training films, at least 40, and a multiple of 8 (few
    looks from Python, see `training.loop.steps_per_execution`).
    """
    if recipe.steps is not None:
        return recipe.steps
    return 8 * -(-max(FEWEST_STEPS, -(-train // recipe.batch_size)) // 8)


class AugmentationComparison:
    """Every finished training leaves files in work/cells, which a resumed comparison picks up.

    Attributes:
        side: of the network's input.
        data: `training.comparing.augmentation_films.ComparedFilms`: real films, their classes and parts.
        train, validation, test: positions.
    """

    def __init__(self, recipe, folder, progress, rows):
        self.recipe = recipe
        self.folder = Path(folder)
        self.progress = progress
        self.rows = rows

    def run(self):
        from training import distribution
        from training.report.augmentation import write_report

        recipe = self.recipe
        devices, policy = distribution.set_up(recipe, 0)
        self.source = augmentation_films.read_run(recipe.run)
        self.side = recipe.image_size or self.source.side
        self.data = augmentation_films.load(recipe, self.source, self.side, self.folder, self.progress)
        self.train, self.validation, self.test = (self.data.rows(part) for part in ("train", "val", "test"))
        self.steps = steps_of(recipe, len(self.train))
        counts = np.bincount(self.data.classes[self.train], minlength=len(self.data.labels))
        self.needed = augmentation_pools.missing(self.rows, counts)
        self.rare = augmentation_pools.rare_classes(self.data.labels, counts, self.data.rare)
        config = self.describe(devices, policy)
        baseline = runs.kept_table(self.folder / "work" / "baseline.csv", self.baseline_cells)
        cells, facts = self.trainings(devices)
        results = augmentation_scores.Results(
            rows=self.rows,
            cells=cells,
            facts=facts,
            baseline=baseline,
            labels=self.data.labels,
            rare=self.rare,
            counts=self.data.counts_by_part(),
            holds_for=self.holds_for(),
        )
        metrics = augmentation_scores.scores_of(results)
        runs.write_table(self.folder / "cells.csv", cells)
        runs.write_table(self.folder / "table.csv", augmentation_scores.table_of(metrics))
        write_report(self.folder, config, metrics, self.histories(), self.examples())
        # Last: a comparison that has metrics.json is complete.
        runs.write_json(self.folder / "metrics.json", metrics)

    def describe(self, devices, policy) -> dict:
        """Writes config.json; a resumed comparison must find the films and the generator of its start."""
        config = compared_films.check_unchanged(self.folder, self.data.films, ("label", "split"))
        digest = self.source.digest()
        if config.get("generator", digest) != digest:
            raise ValueError(
                f"{self.recipe.run}: not the generator that this comparison was started with; restore it, or "
                "start a new comparison"
            )
        recipe = self.recipe
        mild = ", ".join(f"{name} {getattr(recipe, name):g}" for name in STRONG)
        strong = ", ".join(f"{name} {max(value, getattr(recipe, name)):g}" for name, value in STRONG.items())
        config |= {
            "versions": runs.versions(),
            "generator": digest,
            "films": {
                label: "/".join(map(str, parts.values()))
                for label, parts in self.data.counts_by_part().items()
            },
            "rare": list(self.rare),
            "same_in_every_row": [
                f"{recipe.epochs} x {self.steps} steps of {recipe.batch_size} films, looked at on the "
                f"validation films after every {self.steps}",
                f"mild augmentation: flips {recipe.flips}, {mild}; in oversampled alone: flips "
                f"{recipe.flips}, {strong}",
                "the starting weights of each seed",
                "the real validation and test films; validation films are weighted to the classes' shares in "
                "each row's own loss, which chooses its epoch",
            ],
            "grouped_by": self.data.grouping.kind,
            "replicas": devices[1],
            "dtype_policy": policy,
            "notes": list(self.data.films.notes),
        }
        runs.write_json(self.folder / "config.json", config)
        return config

    def holds_for(self) -> str:
        """What the scores are of, in words."""
        recipe, counts = self.recipe, self.data.counts_by_part()
        rare = ", ".join(f"{label} {counts[label]['train']} + {counts[label]['test']}" for label in self.rare)
        return (
            f"the films of {self.source.name} ({len(self.train)} training films; training + test films of "
            f"the rare classes: {rare}){self.data.generated}, {recipe.backbone} from random weights at "
            f"{self.side} px, {recipe.epochs * self.steps} steps of {recipe.batch_size} films, and this "
            "generator"
        )

    # Trainings

    def names(self) -> dict:
        """(seed, row) -> the name of its training, row by row."""
        return {
            (seed, row): f"{row.name}-seed-{seed}" for row in self.rows for seed in range(self.recipe.seeds)
        }

    def trainings(self, devices):
        """(predictions, facts) of every row and seed."""
        names = self.names()
        done = {cell: self.folder / "work" / "cells" / f"{name}.csv" for cell, name in names.items()}
        spec = task_spec(self.recipe, self.data.labels, self.side)
        trainer = Trainer(self.recipe, spec, self.steps, self.folder, self.progress, devices)
        for seed in range(self.recipe.seeds):
            waiting = [cell for cell, path in done.items() if cell[0] == seed and not path.exists()]
            if not waiting:
                continue
            made, films = self.synthetic(seed)
            pixels = np.concatenate([np.asarray(self.data.films.inputs.pixels), films])
            for _, row in waiting:
                cells, facts = self.train_row(trainer, row, seed, pixels, made, names[seed, row])
                done[seed, row].parent.mkdir(parents=True, exist_ok=True)
                runs.write_json(done[seed, row].with_suffix(".json"), facts)
                # Last: it says that the training is finished.
                runs.write_table(done[seed, row], cells)
                shutil.rmtree(self.folder / "work" / "trainings" / names[seed, row], ignore_errors=True)
        return (
            pd.concat([runs.read_table(path) for path in done.values()], ignore_index=True),
            [augmentation_films.read_json(path.with_suffix(".json")) for path in done.values()],
        )

    def train_row(self, trainer, row, seed, pixels, made, name):
        """One training: the predictions of its validation and test films, and the facts of it."""
        from kxray.data.pipeline import ArrayInputs
        from training import scoring

        labels, classes = self.data.labels, np.concatenate([self.data.classes, made])
        pool = augmentation_pools.pool_of(row, self.data.classes, self.train, made, seed)
        told = f"{row.name} seed {seed}"
        training = Training(told, pool, pixels, classes, self.validation, row.strong, seed)
        model, history = trainer.train(training, Path("work") / "trainings" / name)
        inputs, rows = ArrayInputs(pixels), np.concatenate([self.validation, self.test])
        logits = scoring.logits_of(model, inputs, rows)
        table = self.data.films.table
        probabilities = scoring.probabilities_of(logits, 1.0)
        stated = {f"probability_{label}": probabilities[:, place] for place, label in enumerate(labels)}
        cells = pd.DataFrame(
            {
                "row": row.name,
                "seed": seed,
                "part": np.where(np.arange(len(rows)) < len(self.validation), "val", "test"),
                "path": table.loc[rows, "path"].to_numpy(),
                "group": self.data.groups[rows],
                "label": table.loc[rows, "label"].to_numpy(),
                **stated,
            }
        )
        facts = {
            "row": row.name,
            "seed": seed,
            "real": dict(zip(labels, pool.real.tolist(), strict=True)),
            "synthetic": dict(zip(labels, pool.synthetic.tolist(), strict=True)),
            "mix": pool.mix.tolist(),
            "seconds": history.attrs["seconds"],
            "epochs": len(history),
            "best_epoch": int(history.loc[history["val_loss"].idxmin(), "epoch"]),
            "parameters": model.count_params(),
        }
        if row.name == REAL and len(made):
            own = len(self.data.classes) + np.arange(len(made))
            said = scoring.probabilities_of(scoring.logits_of(model, inputs, own), 1.0) / pool.mix
            facts["recognised"] = recognised(said / said.sum(axis=1, keepdims=True), made, labels)
        kept = self.folder / "work" / "histories" / f"{name}.csv"
        kept.parent.mkdir(parents=True, exist_ok=True)
        runs.write_table(kept, history.assign(row=row.name, seed=seed))
        return cells, facts

    def synthetic(self, seed):
        """(classes int (M,), float32 (M, h, w, 1)) of the synthetic films of a seed, made once."""
        path = self.folder / "work" / "synthetic" / f"seed-{seed}.npz"
        made = np.repeat(np.arange(len(self.needed)), self.needed)
        if not path.exists():
            bar = self.progress.add_task(f"synthetic films seed {seed}", total=len(made), facts="")
            films = self.source.make_films(made, seed, self.recipe.truncation, self.side)
            path.parent.mkdir(parents=True, exist_ok=True)
            with runs.replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, films=np.rint(films * 65535).astype(np.uint16), classes=made)
            self.progress.update(bar, completed=len(made))
            gc.collect()
        with np.load(path) as kept:
            return kept["classes"], kept["films"].astype(np.float32) / 65535

    # Baseline, curves and examples

    def baseline_cells(self):
        """Test predictions of a random forest that sees no anatomy, grown on the real training films."""
        from kxray.data import no_anatomy_baseline

        rows, tables = np.concatenate([self.train, self.test]), []
        fold_of = np.where(np.arange(len(rows)) < len(self.train), -1, 0)
        table = self.data.films.table.loc[self.test]
        for seed in range(self.recipe.seeds):
            said = no_anatomy_baseline(
                self.data.films.features[rows], self.data.classes[rows], fold_of, seed=seed
            )
            # Classes that only test films show would have no column; every class has training films.
            stated = {
                f"probability_{label}": said[len(self.train) :, place]
                for place, label in enumerate(self.data.labels)
            }
            facts = {"row": NO_ANATOMY, "seed": seed, "part": "test"}
            told = {"path": table["path"], "group": self.data.groups[self.test], "label": table["label"]}
            tables.append(pd.DataFrame({**facts, **told, **stated}))
        return pd.concat(tables, ignore_index=True)

    def histories(self):
        folder = self.folder / "work" / "histories"
        tables = [runs.read_table(folder / f"{name}.csv") for name in self.names().values()]
        return pd.concat(tables, ignore_index=True)

    def examples(self, number=5):
        """[(class, its first real training films, its first synthetic ones)] of every rare class."""
        made, films = self.synthetic(0)
        found = []
        for label in self.rare:
            place = self.data.labels.index(label)
            own = self.train[self.data.classes[self.train] == place][:number]
            real = np.asarray(self.data.films.inputs.pixels)[own, ..., 0]
            found.append((label, real, films[made == place][:number, ..., 0]))
        return found


def recognised(probabilities, classes, labels) -> dict:
    """Label -> AUROC against the rest of what a classifier says of films, where it is defined."""
    from kxray.metrics import auroc

    told = {}
    for place, label in enumerate(labels):
        own = (classes == place).astype(int)
        if 0 < own.sum() < len(own):
            said = probabilities[:, place]
            told[label] = float(auroc(own, np.stack([-said, said], axis=1), 2))
    return told
