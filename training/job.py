"""One classifier run, from its films to its report."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.io.files import replacing, write_whole
from training import films as film_tables
from training import finding_scores, findings, localising, runs, scoring, streaming
from training.evidence_maps import EVIDENCE
from training.fitting import Fitting

_PARTS = ("train", "val", "test")


class ClassifierJob:
    """One run, from its films to its report. Every step leaves files that a resumed run picks up."""

    def __init__(self, recipe, task, folder, progress):
        self.recipe = recipe
        self.task = task
        self.folder = folder
        self.progress = progress

    def run(self):
        from kxray import data
        from training import distribution

        recipe = self.recipe
        if recipe.export is not None:
            # Found out now, not after the training.
            Path(recipe.export).mkdir(parents=True, exist_ok=True)
        (self.scope, self.replicas), self.policy = distribution.set_up(recipe, recipe.seed)
        self.task, self.films = film_tables.load(recipe, self.task, self.folder, self.progress)
        self.spec = self.task.spec
        tested = self.films.tested
        thumbnails = self.films.thumbnails
        grouping = data.film_groups(
            tested, thumbnails=None if thumbnails is None else thumbnails[tested.index]
        )
        self.split = film_tables.split_films(recipe, self.task, tested, grouping)
        self.check()
        self.describe()
        self.fitting = Fitting(
            recipe, self.task, self.films, self.folder, self.progress, (self.scope, self.replicas)
        )
        if self.task.told is not None:
            self.progress.console.print(self.task.told(self.spec), soft_wrap=True)
        started = time.monotonic()
        predictions, model, history = self.folds() if recipe.folds else self.one_split()
        return self.finish(predictions, model, history, time.monotonic() - started)

    def check(self):
        """Finds what would end the run after its training: unreadable films, an aligner that is none."""
        recipe = self.recipe
        checked = streaming.without_unreadable(self.films, self.split, recipe, self.folder, self.progress)
        if checked is not None:
            self.films, self.split = checked
            film_tables.check_classes(self.task, self.films.tested, self.split.grouping)
        if self.task.masking is None:
            return
        parts, rows = self.split.parts, self.films.tested.index.to_numpy()
        if recipe.folds:
            values, counts = np.unique(parts, return_counts=True)
            rows = rows[parts != values[counts.argmax()]]
            rows = rows[: int(len(rows) * (1 - film_tables.VALIDATION_SHARE))]
        else:
            rows = rows[parts == "train"]
        self.task.masking.check(self.task, self.films, np.concatenate([rows, self.films.extra]))

    def describe(self):
        """Writes config.json and split.csv; a resumed run must find the films it was started on."""
        from kxray import data

        path = self.folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = streaming.fingerprint(self.films)
        known = config.get("data_fingerprint", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"the films are not those this run was started on ({known[:12]}, now {fingerprint[:12]}); "
                "restore them or start a new run"
            )
        tested = self.films.tested
        starting = runs.starting_notes(self.recipe, fingerprint, tested["path"])
        self.config = config | {
            "versions": runs.versions(),
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(tested.assign(split=self.split.parts), self.folder / "split.csv"),
            "split": self.split.facts(),
            "films": self.counted(tested),
            "training_only_films": len(self.films.extra),
            "replicas": self.replicas,
            "dtype_policy": self.policy,
            "notes": [*self.films.notes, *self.split.notes, *starting],
        }
        if self.task.masking is not None:
            self.config["notes"] += self.task.masking.notes()
        if self.task.multilabel:
            counts = findings.counted(tested, self.task.labels)
            self.config["findings"] = counts.to_dict("index")
        runs.write_json(path, self.config)

    def counted(self, tested) -> dict:
        """Films of each class, or with each finding."""
        if self.task.multilabel:
            return {name: int((tested[name] == 1).sum()) for name in self.task.labels}
        return {name: int((tested[self.task.label_column] == name).sum()) for name in self.task.labels}

    # Which films train, validate and test which model

    def one_split(self):
        """One model: trained, validated and tested on patients of its own part each."""
        rows = {part: self.films.tested.index[self.split.parts == part].to_numpy() for part in _PARTS}
        model, history = self.train("model", rows["train"], rows["val"], self.recipe.seed)
        self.localise(model, rows["val"], rows["test"], fold=0)
        return self.predictions(rows["val"], rows["test"], fold=0), model, history

    def folds(self):
        """K models that are each tested on one fold, then the model to keep, trained and validated on all."""
        tested = self.films.tested.index.to_numpy()
        tables = []
        for fold in range(self.recipe.folds):
            train, validation = self.validation_split(self.split.parts != fold, self.recipe.seed + fold)
            name = f"fold {fold + 1} of {self.recipe.folds}"
            kept = self.folder / "work" / f"fold-{fold}.csv"
            if not kept.exists():
                model, _ = self.train(name, train, validation, self.recipe.seed + fold)
                test = tested[self.split.parts == fold]
                self.localise(model, validation, test, fold)
                runs.write_table(kept, self.predictions(validation, test, fold))
            tables.append(runs.read_table(kept))
        train, validation = self.validation_split(np.ones(len(tested), bool), self.recipe.seed)
        model, history = self.train("final model", train, validation, self.recipe.seed)
        return pd.concat(tables, ignore_index=True), model, history

    def validation_split(self, members, seed):
        """Positions (train, validation) of some tested films, with whole patients."""
        return film_tables.validation_split(self.task, self.films, members, self.split.grouping, seed)

    # Training and predicting

    def train(self, name, train_rows, validation_rows, seed):
        folder = self.latest = Path("work") / name.replace(" ", "-")
        rows = np.concatenate([train_rows, self.films.extra])
        return self.fitting.train(folder, name, rows, validation_rows, seed)

    def localise(self, model, validation_rows, test_rows, fold):
        """Keeps where a model sees the findings of films with boxes, of a task that learns from boxes."""
        if self.task.masking is None:
            return
        judged = [
            localising.localise(model, self.task, self.films, rows, self.progress, boxes=self.boxes_of(rows))
            for rows in (validation_rows, test_rows)
        ]
        kept = self.folder / "work" / f"places-{fold}.csv"
        runs.write_table(kept, localising.cut_by(*judged).assign(fold=fold))

    def boxes_of(self, rows):
        return self.task.masking.boxed(self.task, self.films, rows)

    def localised(self):
        """What the boxes of all tested films say, one row a box and kind of map."""
        kept = sorted((self.folder / "work").glob("places-*.csv"))
        return localising.joined(localising.read_table(path) for path in kept)

    def predictions(self, validation_rows, test_rows, fold):
        """Predictions of the last model's validation and test films, calibrated on its validation films."""
        films = self.films
        logits = self.fitting.logits_of(validation_rows)
        temperature, thresholds = self.fit_calibration(logits, films.labels[validation_rows])
        groups = pd.Series(self.split.grouping.groups, index=films.tested.index)
        parts = []
        for part, rows in (("val", validation_rows), ("test", test_rows)):
            logits = self.fitting.logits_of(rows)
            facts = {"fold": fold, "part": part, "group": groups[rows].to_numpy()}
            if self.task.test_time_flips != "none":
                flipped = self.fitting.logits_of(rows, self.task.test_time_flips)
                chosen = scoring.probabilities_of(flipped, temperature).argmax(axis=1)
                facts["predicted_with_flips"] = [self.spec.labels[index] for index in chosen]
            made = (films.table, rows, films.labels, logits)
            parts.append(
                finding_scores.prediction_table(*made, (temperature, thresholds), self.spec, **facts)
                if self.task.multilabel
                else scoring.prediction_table(*made, temperature, self.spec, **facts)
            )
        return pd.concat(parts, ignore_index=True)

    def fit_calibration(self, logits, labels):
        """(temperature, thresholds by label) that were fitted on some films."""
        from kxray import metrics

        temperature = metrics.fit_temperature(logits, labels)
        if self.task.multilabel:
            spec = dataclasses.replace(self.spec, temperature=temperature)
            probabilities = scoring.calibrated(logits, spec)
            if self.task.sensitivity is None:
                return temperature, metrics.youden_thresholds(probabilities, labels, self.task.labels)
            return temperature, metrics.sensitivity_thresholds(
                probabilities, labels, self.task.labels, self.task.sensitivity
            )
        probabilities = scoring.probabilities_of(logits, temperature)
        return temperature, metrics.decision_thresholds(probabilities, labels, self.task.labels)

    # What is left behind

    def finish(self, predictions, model, history, seconds):
        import keras

        from kxray.data.audit import FEATURE_GROUPS
        from serving.export import export

        folder, seed = self.folder, self.recipe.seed
        scored = finding_scores if self.task.multilabel else scoring
        test = predictions[predictions["part"] == "test"]
        # With folds, the kept model is calibrated on predictions that no model made of films it had seen.
        calibration = test if self.recipe.folds else predictions[predictions["part"] == "val"]
        labels, logits = scored.columns_of(calibration, self.spec)[:2]
        temperature, thresholds = self.fit_calibration(logits, labels)
        scores = scored.scores_of(test, self.spec, seed, self.split.grouping.kind)
        measured = streaming.measured(self.films, test["position"].to_numpy(), seed, self.progress)
        scores["baseline"] = scored.baseline_scores(test, measured, self.spec, seed)
        scores["histogram_baseline"] = scored.baseline_scores(
            test, measured, self.spec, seed, FEATURE_GROUPS["histogram"]
        )
        if self.task.masking is not None:
            scores["localisation"] = localising.summary(self.localised(), seed)
        if self.task.test_time_flips != "none":
            scores["with_test_time_flips"] = scoring.accuracy_with_flips(test)
        scores["minutes"] = round(seconds / 60, 2)
        scores["calibration"] = {
            "temperature": temperature,
            "thresholds": thresholds,
            "fitted_on": "out-of-fold test films" if self.recipe.folds else "validation films",
            "sensitivity": self.task.sensitivity,
        }
        headline = "auroc" if self.task.multilabel else "balanced_accuracy"
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
                headline: scores[headline],
                "score_conditions": scores["conditions"],
            },
        )
        runs.write_table(folder / "predictions.csv", test.drop(columns=["part"]))
        runs.write_table(folder / "history.csv", history)
        write_whole(folder / "spec.json", spec.to_json())
        with replacing(folder / "model.keras") as temporary:
            # Without its optimizer, which is twice as large, and which nobody loads outside of training.
            keras.Model(model.input, model.output, name=model.name).save(temporary)
        self.report(model, spec, scores, predictions, history)
        to = self.recipe.export or folder / "saved_models" / self.task.name
        scores["saved_model"] = runs.exported_once(folder, to, export)
        # Last: a run that has metrics.json is complete.
        runs.write_json(folder / "metrics.json", scores)
        return scores

    def report(self, model, spec, scores, predictions, history):
        from training.report.classifier import write_report
        from training.report.explained import explain_films
        from training.report.findings import explain_findings, write_findings_report

        test, seen = predictions[predictions["part"] == "test"], bool(self.recipe.folds)
        if self.task.multilabel:
            explained = explain_findings(model, spec, self.films.inputs, test, seen)
            places = None if self.task.masking is None else self.places(model, scores, test)
            made = (self.config, scores, predictions, history, explained, places)
            write_findings_report(self.folder, spec, *made)
        else:
            explained = explain_films(model, spec, self.films.inputs, test, seen=seen)
            write_report(self.folder, spec, self.config, scores, predictions, history, explained=explained)

    def places(self, model, scores, test):
        """What the report says of where findings are looked for and seen; keeps the masks in RUN/masks."""
        from training.report import localisation

        boxes = self.boxes_of(test["position"])
        pairs = localisation.choose_examples(boxes, self.task.labels, self.recipe.seed)
        places = self.localised()
        cuts = places["fraction"][places["map"] == EVIDENCE]
        cut = float(cuts.median()) if len(cuts) else localising.USUAL_FRACTION
        examples = localisation.example_films(model, self.task, self.films, pairs, cut)
        return {
            "localisation": localisation.section(
                scores["localisation"], examples, seen=bool(self.recipe.folds)
            ),
            "masks": self.task.masking.keep_masks(self.folder / self.latest, self.folder),
        }
