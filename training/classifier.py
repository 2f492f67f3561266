"""The job of every classifier recipe: films in, a trained, measured, reported and exported model out."""

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from training import films as film_tables
from training import options, runs, scoring, shell
from training.films import DEFAULT_PHANTOMS
from training.options import option

VALIDATION_SHARE = 1 / 6
TEST_SHARE = 0.2
_PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    data: str | None = option(
        None,
        "Folder of films, or a manifest CSV. Left out, films are generated (see --phantoms).",
    )
    out: str | None = option(None, "Run folder; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted run in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    epochs: int = option(100, "Passes over the training films.", low=1)
    batch_size: int = option(32, "Films a step, over all devices.", low=1)
    learning_rate: float = option(1e-3, "RMSprop's rate.", low=1e-8, high=1.0)
    learning_rate_decay: str = option(
        "cosine", "cosine: falls to zero over the run; none: stays.", choices=("cosine", "none")
    )
    folds: int = option(
        0,
        "0: one split into train, validation and test. K: every film is tested once by a model that saw no "
        "film of its patient; then a final model is trained on all.",
        low=0,
        high=50,
    )
    seed: int = option(0, "Of the split, the weights, and the order and augmentation of films.", low=0)
    phantoms: int | None = option(
        None,
        f"Generated films: all there are without --data ({DEFAULT_PHANTOMS} by default), and with --data "
        "extra training films that are never tested on (0 by default).",
        low=0,
    )
    corrections: str | None = option(
        None, "CSV of corrected films from training.sort: extra training films that are never tested on."
    )
    rotation: float = option(45.0, "Augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.1, "Augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    shear: float = option(10.0, "Augmentation: largest shear, degrees.", low=0.0, high=80.0)
    zoom: float = option(0.2, "Augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    strategy: str = option(
        "auto",
        "Devices: one (none), all GPUs or logical CPUs (mirrored), or mirrored where there are several GPUs.",
        choices=("auto", "none", "mirrored"),
    )
    mixed_precision: bool = option(False, "Compute in half precision where it is safe.")
    deterministic: bool = option(False, "Bit-equal results on the same machine, a little slower.")
    cache: str = option(
        "memory",
        "Where network inputs are kept between epochs.",
        choices=("memory", "disk", "none"),
    )
    workers: int | None = option(None, "Decoding workers; one a core by default.", low=1)
    dicom_reader: str = option(
        "auto", "What decodes DICOM films.", choices=("auto", "pydicom", "tensorflow-io")
    )
    skip_bad: bool = option(
        False, "Leave out broken rows and unreadable films, and list them in skipped.csv."
    )
    export: str | None = option(
        None, "Folder for the SavedModel's next version; RUN/saved_models/NAME by default."
    )


def fit_classifier(recipe, given, task) -> Path:
    """Runs the whole job and returns the run folder."""
    console = Console(highlight=False)
    if recipe.resume:
        folder, recipe = _resumed(recipe, given)
    elif recipe.dry_run:
        return _dry_run(recipe, task, console)
    else:
        source = Path(recipe.data).resolve().name if recipe.data else f"{task.phantom_kind}-phantoms"
        folder = runs.create(recipe.out or runs.default_folder(task.name, source))
        runs.write_json(folder / "config.json", {"recipe": task.name, "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        _tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder
    shell.load_tensorflow()
    progress = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
        transient=False,
        disable=not console.is_terminal,
    )
    try:
        with progress:
            scores = _Job(recipe, task, folder, progress).run()
    except (ValueError, OSError):
        if not recipe.resume and "data_fingerprint" not in runs.read_config(folder):
            # Films or options will not do: the corrected command may use the same folder.
            runs.discard(folder)
        raise
    _tell(console, folder, scores)
    return folder


def _tell(console, folder, scores):
    def interval(score):
        value, low, high = (
            math.nan if score[key] is None else score[key] for key in ("value", "low", "high")
        )
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    baseline = scores["baseline"]["balanced_accuracy"]
    console.print(
        f"balanced accuracy {interval(scores['balanced_accuracy'])}, {scores['conditions']}\n"
        f"no-anatomy baseline (grey histogram, border, sharpness) {interval(baseline)} on the same films\n"
        f"SavedModel {scores['saved_model']}\n"
        f"report {(folder / 'report.html').resolve()}",
        soft_wrap=True,
    )


def _resumed(recipe, given):
    if not recipe.out:
        raise ValueError("--resume needs --out, the run folder to continue")
    config = runs.read_config(recipe.out)
    kept = {**config["options"], "resume": True, "out": recipe.out}
    names = {field.name for field in dataclasses.fields(recipe)}
    if not set(kept) <= names:
        raise ValueError(
            f"{recipe.out}: written by another version, with options {sorted(set(kept) - names)}"
        )
    for name, value in given.items():
        if value is not None and kept.get(name) != value:
            raise ValueError(
                f"the run in {recipe.out} was started with --{name.replace('_', '-')} {kept.get(name)}, "
                f"not {value}; resume it without that option, or start a new run"
            )
    return Path(recipe.out), dataclasses.replace(recipe, **kept)


def _dry_run(recipe, task, console):
    console.print_json(json.dumps({"recipe": task.name, "options": options.as_json(recipe)}))
    if recipe.data is None:
        console.print(f"would generate {recipe.phantoms or DEFAULT_PHANTOMS} {task.phantom_kind} phantoms")
        return None
    table, skipped, notes = film_tables.read_labelled(recipe.data, task, recipe.skip_bad)
    counts = table[task.label_column].value_counts()
    console.print(
        f"{len(table)} films: " + ", ".join(f"{name} {counts.get(name, 0)}" for name in task.labels)
    )
    for note in [
        *notes,
        *(f"would skip row {row}: {why}" for row, why in skipped[["row", "problem"]].values),
    ]:
        console.print(note)
    split = _split(recipe, task, table, None)
    console.print_json(json.dumps(split.facts()))
    return None


def _split(recipe, task, table, grouping):
    from kxray import data

    if recipe.folds == 1:
        raise ValueError("--folds 1 leaves nothing to train on; 0 makes one split, 2 and more make folds")
    if recipe.folds:
        return data.patient_folds(table, task.label_column, recipe.folds, recipe.seed, grouping=grouping)
    if "split" in table.columns and (table["split"] != "").all():
        return data.given_split(table, grouping=grouping)
    validation = VALIDATION_SHARE * (1 - TEST_SHARE)
    return data.patient_split(
        table, task.label_column, val=validation, test=TEST_SHARE, seed=recipe.seed, grouping=grouping
    )


class _Job:
    """One run, from its films to its report. Every step leaves files that a resumed run picks up."""

    def __init__(self, recipe, task, folder, progress):
        from kxray.spec import ModelSpec

        self.recipe = recipe
        self.task = task
        self.folder = folder
        self.progress = progress
        self.spec = ModelSpec(task.model, task.labels, "binary", task.image_size)

    def run(self):
        import keras
        import tensorflow as tf

        from kxray import data
        from training import distribution

        recipe = self.recipe
        if recipe.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.scope, self.replicas = distribution.strategy_scope(recipe.strategy, recipe.batch_size)
        self.policy = distribution.set_precision(recipe.mixed_precision)
        keras.utils.set_random_seed(recipe.seed)
        self.films = film_tables.load(recipe, self.task, self.spec, self.folder, self.progress)
        tested = self.films.tested
        grouping = data.film_groups(tested, thumbnails=self.films.thumbnails[tested.index])
        self.split = _split(recipe, self.task, tested, grouping)
        self.describe()
        started = time.monotonic()
        predictions, model, history = self.folds() if recipe.folds else self.one_split()
        return self.finish(predictions, model, history, time.monotonic() - started)

    def describe(self):
        """Writes config.json and split.csv; a resumed run must find the films it was started on."""
        from kxray import data

        path = self.folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = data.fingerprint(self.films.table.drop(columns="training_only"))
        known = config.get("data_fingerprint", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"the films are not those this run was started on ({known[:12]}, now {fingerprint[:12]}); "
                "restore them or start a new run"
            )
        tested = self.films.tested
        self.config = config | {
            "versions": runs.versions(),
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(tested.assign(split=self.split.parts), self.folder / "split.csv"),
            "split": self.split.facts(),
            "films": {name: int((tested[self.task.label_column] == name).sum()) for name in self.task.labels},
            "training_only_films": len(self.films.extra),
            "replicas": self.replicas,
            "dtype_policy": self.policy,
            "notes": [*self.films.notes, *self.split.notes],
        }
        runs.write_json(path, self.config)

    # Which films train, validate and test which model

    def one_split(self):
        """One model: trained, validated and tested on patients of its own part each."""
        rows = {part: self.films.tested.index[self.split.parts == part].to_numpy() for part in _PARTS}
        model, history = self.train("model", rows["train"], rows["val"], self.recipe.seed)
        return self.predictions(model, rows["val"], rows["test"], fold=0), model, history

    def folds(self):
        """K models that are each tested on one fold, then the model to keep, trained on all of them."""
        tested = self.films.tested.index.to_numpy()
        tables = []
        for fold in range(self.recipe.folds):
            train, validation = self.validation_split(self.split.parts != fold, self.recipe.seed + fold)
            name = f"fold {fold + 1} of {self.recipe.folds}"
            kept = self.folder / "work" / f"fold-{fold}.csv"
            if not kept.exists():
                model, _ = self.train(name, train, validation, self.recipe.seed + fold)
                test = tested[self.split.parts == fold]
                runs.write_table(kept, self.predictions(model, validation, test, fold))
            tables.append(pd.read_csv(kept, dtype={"patient_id": str}, keep_default_na=False))
        train, validation = self.validation_split(np.ones(len(tested), bool), self.recipe.seed)
        model, history = self.train("final model", train, validation, self.recipe.seed)
        return pd.concat(tables, ignore_index=True), model, history

    def validation_split(self, members, seed):
        """Positions (train, validation) of some tested films, with whole patients."""
        from kxray import data

        table = self.films.tested[members]
        split = data.patient_split(
            table,
            self.task.label_column,
            val=VALIDATION_SHARE,
            test=0.0,
            seed=seed,
            grouping=self.split.grouping.take(members),
        )
        rows = table.index.to_numpy()
        return rows[split.parts == "train"], rows[split.parts == "val"]

    # Training and predicting

    def train(self, name, train_rows, validation_rows, seed):
        import keras

        from kxray import models
        from kxray.data import pipeline
        from kxray.layers import RandomAffine
        from training.loop import train

        recipe, labels = self.recipe, self.films.labels
        train_rows = np.concatenate([train_rows, self.films.extra])
        steps = pipeline.steps_per_epoch(train_rows, recipe.batch_size)
        targets = labels[:, None]

        def balanced(rows):
            counts = np.maximum(np.bincount(labels[rows], minlength=len(self.task.labels)), 1)
            return (len(rows) / (len(counts) * counts))[labels]

        def build():
            keras.utils.set_random_seed(seed)
            rate = recipe.learning_rate
            if recipe.learning_rate_decay == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(rate, recipe.epochs * steps)
            with self.scope():
                model = models.build(self.task.model)
                model.compile(keras.optimizers.RMSprop(rate), "binary_crossentropy", metrics=["accuracy"])
            return model

        def batches(first_epoch):
            return pipeline.training_batches(
                self.films.inputs,
                targets,
                balanced(train_rows),
                train_rows,
                batch_size=recipe.batch_size,
                seed=seed,
                augment=RandomAffine(
                    recipe.rotation, recipe.shift, recipe.shift, recipe.shear, recipe.zoom, dtype="float32"
                ),
                first_epoch=first_epoch,
                replicas=self.replicas,
            )

        validation = pipeline.evaluation_batches(
            self.films.inputs, targets, balanced(validation_rows), validation_rows, replicas=self.replicas
        )
        bar = self.progress.add_task(name, total=recipe.epochs, facts="")

        def on_epoch(done, logs):
            facts = f"validation loss {logs['val_loss']:.4f}" if logs else ""
            self.progress.update(bar, completed=done, facts=facts)

        began = time.monotonic()
        model, history = train(
            self.folder / "work" / name.replace(" ", "-"),
            build,
            batches,
            validation,
            epochs=recipe.epochs,
            steps=steps,
            log_dir=str(self.folder / "tensorboard" / name.replace(" ", "-")),
            on_epoch=on_epoch,
        )
        best = history.loc[history["val_loss"].idxmin()]
        facts = f"validation loss {best['val_loss']:.4f} in epoch {best['epoch']:.0f}"
        self.progress.update(bar, completed=recipe.epochs, facts=facts)
        if self.progress.disable:
            self.progress.console.print(f"{name}: {facts}, {time.monotonic() - began:.0f} s", soft_wrap=True)
        return model, history

    def predictions(self, model, validation_rows, test_rows, fold):
        """Predictions of a model's validation and test films, calibrated on its validation films."""
        from kxray.metrics import fit_temperature

        films = self.films
        logits = scoring.logits_of(model, films.inputs, validation_rows)
        temperature = fit_temperature(logits, films.labels[validation_rows])
        parts = []
        for part, rows in (("val", validation_rows), ("test", test_rows)):
            logits = scoring.logits_of(model, films.inputs, rows)
            facts = {"fold": fold, "part": part}
            parts.append(
                scoring.prediction_table(
                    films.table, rows, films.labels, logits, temperature, self.spec, **facts
                )
            )
        return pd.concat(parts, ignore_index=True)

    # What is left behind

    def finish(self, predictions, model, history, seconds):
        from kxray import metrics
        from serving.export import export
        from training.report.classifier import write_report

        folder = self.folder
        test = predictions[predictions["part"] == "test"]
        # With folds, the kept model is calibrated on predictions that no model made of films it had seen.
        calibration = test if self.recipe.folds else predictions[predictions["part"] == "val"]
        labels, logits, _ = scoring.columns_of(calibration, self.spec)
        temperature = metrics.fit_temperature(logits, labels)
        thresholds = metrics.decision_thresholds(
            scoring.probabilities_of(logits, temperature), labels, self.task.labels
        )
        scores = scoring.scores_of(test, self.spec, self.recipe.seed)
        scores["baseline"] = scoring.baseline_scores(test, self.films, self.spec, self.recipe.seed)
        scores["minutes"] = round(seconds / 60, 2)
        scores["calibration"] = {
            "temperature": temperature,
            "thresholds": thresholds,
            "fitted_on": "out-of-fold test films" if self.recipe.folds else "validation films",
        }
        spec = dataclasses.replace(
            self.spec,
            temperature=temperature,
            thresholds=thresholds,
            provenance={
                "recipe": self.task.name,
                "trained": time.strftime("%Y-%m-%d"),
                "data_fingerprint": self.config["data_fingerprint"],
                "split_hash": self.config["split_hash"],
                "films": self.config["films"],
                "training_only_films": self.config["training_only_films"],
                "kxray": self.config["versions"]["kxray"],
                "keras": self.config["versions"]["keras"],
                "calibration_fitted_on": scores["calibration"]["fitted_on"],
                "balanced_accuracy": scores["balanced_accuracy"],
                "score_conditions": scores["conditions"],
            },
        )
        runs.write_table(folder / "predictions.csv", test.drop(columns=["part"]))
        runs.write_table(folder / "history.csv", history)
        runs.write_text(folder / "spec.json", spec.to_json())
        with runs.replacing(folder / "model.keras") as temporary:
            model.save(temporary)
        write_report(folder, spec, self.config, scores, predictions, history)
        to = self.recipe.export or folder / "saved_models" / self.task.name
        scores["saved_model"] = str(export(folder, to))
        # Last: a run that has metrics.json is complete.
        runs.write_json(folder / "metrics.json", scores)
        return scores
