"""A run of a counterfactual GAN, from the films of its classifier to its report."""

import dataclasses
import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from kxray.io.files import check_exportable, replacing, write_whole
from training import options, runs
from training.counterfactuals import (
    cf_epochs,
    cf_films,
    cf_options,
    cf_results,
    cf_scores,
    cf_targets,
    cf_told,
)
from training.counterfactuals.loaded import LoadedCounterfactual, classifier_digest
from training.generating import gan_films, gan_loop, gan_options
from training.generating.gan_job import exported_once

NAME = cf_results.NAME
_FILES = ("model.keras", "spec.json")
_LEAST_SIDE, _SIDE_STEP = 32, 8


def run(recipe, given) -> Path:
    """Runs the whole job, or goes on with it, and returns the run folder.

    Args:
        recipe: `training.recipes.counterfactual_gan.Recipe`.
        given: the options given at the shell.
    """
    console = Console(highlight=False, markup=False)
    recipe, given = _with_absolute_places(recipe, given)
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    else:
        cf_options.check(recipe)
        classifier = cf_films.ClassifierRun.read(recipe.classifier)
        side_of(classifier.spec)
        cf_targets.asked(recipe, classifier.spec)
        if recipe.export != "none":
            # Found out now, not after the training.
            check_exportable(recipe.export or recipe.out or "")
        if recipe.dry_run:
            return cf_told.dry_run(recipe, classifier, console)
        folder = runs.create(recipe.out or runs.default_folder(NAME, classifier.folder.name))
        runs.write_json(folder / "config.json", {"recipe": NAME, "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        cf_told.tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    def work(progress):
        return CounterfactualJob(recipe, folder, progress).run()

    cf_told.tell(console, folder, runs.carried_out(folder, recipe.resume, console, work))
    return folder


def side_of(spec) -> int:
    """The side of a classifier's films in pixels. ValueError where a GAN cannot make such films."""
    height, width = spec.image_size
    if height != width or height % _SIDE_STEP or height < _LEAST_SIDE:
        raise ValueError(
            f"the classifier takes films of {height}x{width} pixels; counterfactual_gan makes square ones "
            f"whose side is a multiple of {_SIDE_STEP} from {_LEAST_SIDE} on: train the classifier with such "
            "an --image-size"
        )
    return height


def _with_absolute_places(recipe, given):
    recipe, given = runs.with_absolute_places(recipe, given)
    if given.get("classifier"):
        place = {"classifier": str(Path(given["classifier"]).resolve())}
        return dataclasses.replace(recipe, **place), {**given, **place}
    return recipe, given


class CounterfactualJob:
    """One run. Every step leaves files that a resumed run picks up."""

    def __init__(self, recipe, folder, progress):
        self.recipe, self.folder, self.progress = recipe, folder, progress

    def run(self):
        from training import distribution

        recipe = self.recipe
        if recipe.export not in (None, "none"):
            Path(recipe.export).mkdir(parents=True, exist_ok=True)
        (self.scope, self.replicas), self.policy = distribution.set_up(recipe, recipe.seed)
        if recipe.batch_size % (self.replicas * recipe.accumulate):
            raise ValueError(
                f"--batch-size {recipe.batch_size} does not divide into --accumulate {recipe.accumulate} "
                f"parts on each of {self.replicas} devices"
            )
        if recipe.deterministic:
            gan_loop.keep_order()
        self.source = cf_films.ClassifierRun.read(recipe.classifier)
        self.side = side_of(self.source.spec)
        self.classifier = self.frozen_classifier()
        self.films = cf_films.load(recipe, self.source, self.folder, self.progress)
        self.scores = self.label_scores()
        self.learned = cf_targets.choose(
            recipe, self.source.spec, self.films.labels, self.films.rows("train"), self.scores
        )
        for note in self.learned.notes:
            self.progress.console.print(note, soft_wrap=True)
        self.steps = gan_options.steps_of(recipe, len(self.films.rows("train")))
        self.describe()
        self.epochs = cf_epochs.EpochFilms(self.films, self.learned, self.classifier, recipe, self.folder)
        gan = self.compiled()
        history, rows = self.train(gan)
        return self.finish(gan, history, rows)

    def frozen_classifier(self):
        """(model, spec) of the classifier, on every device of the run."""
        from training.explaining.film_explainer import load_checked

        with self.scope():
            model, spec = load_checked(self.source.folder)
        model.trainable = False
        self.digest = classifier_digest(model, spec)
        known = runs.read_config(self.folder).get("classifier", {}).get("digest", self.digest)
        if known != self.digest:
            raise ValueError(
                f"the classifier in {self.source.folder} is not the one this run was started with "
                f"({known[:12]}, now {self.digest[:12]}); restore it or start a new run"
            )
        return model, spec

    def label_scores(self):
        """How well the classifier tells each label, on films that it has not seen where there are any."""
        if self.source.folds and (found := cf_targets.out_of_fold_scores(self.source)) is not None:
            return found
        rows = self.films.rows("val")
        probabilities = np.zeros((0, self.source.spec.num_labels))
        if len(rows):
            from training import scoring

            model, spec = self.classifier
            probabilities = scoring.calibrated(scoring.logits_of(model, self.films.inputs, rows), spec)
        return cf_targets.label_scores(
            self.source.spec,
            self.films.labels[rows],
            probabilities,
            self.films.grouping.groups[rows],
            "validation films",
        )

    def describe(self):
        """Adds to config.json, writes split.csv and copies the classifier."""
        from kxray import data

        table, spec = self.films.table, self.source.spec
        fingerprint = data.fingerprint(table)
        config = gan_films.check_same(self.folder, fingerprint)
        notes = [*self.films.notes, *self.learned.notes]
        if not self.recipe.least_auroc:
            notes.append("--least-auroc 0: nobody asked whether the classifier tells its labels")
        self.config = config | {
            "versions": runs.versions(),
            "classifier": {
                "run": str(self.source.folder),
                "model": spec.name,
                "task": spec.task,
                "labels": list(spec.labels),
                "digest": self.digest,
                "scores": self.scores,
            },
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(table.assign(split=self.films.parts), self.folder / "split.csv"),
            "targets": list(self.learned.names),
            "films": {part: len(self.films.rows(part)) for part in cf_films.PARTS},
            "films_by_target": cf_films.described(self.films, self.learned.held, self.learned.names),
            "grouped_by": self.films.grouping.kind,
            "side": self.side,
            "steps_per_epoch": self.steps,
            "replicas": self.replicas,
            "dtype_policy": self.policy,
            "notes": notes,
        }
        copy = self.folder / "classifier"
        copy.mkdir(exist_ok=True)
        for name in _FILES:
            if not (copy / name).exists():
                with replacing(copy / name) as temporary:
                    shutil.copyfile(self.source.folder / name, temporary)
        runs.write_json(self.folder / "config.json", self.config)

    def compiled(self):
        """The GAN with its initial weights, ready to train."""
        import keras

        from kxray import models
        from kxray.explain.counterfactual_losses import CounterfactualLoss

        recipe = self.recipe
        # What Keras's initialisers draw their seeds from, whatever was built before.
        random.seed(recipe.seed)
        with self.scope():
            gan = models.build(
                NAME,
                num_targets=len(self.learned.targets),
                side=self.side,
                width=recipe.width,
                amplitude=recipe.amplitude,
                attention=recipe.attention,
                residual=recipe.residual,
                self_attention=recipe.self_attention,
                ema=recipe.ema_decay > 0,
            )
            optimizers = [
                keras.optimizers.Adam(rate, beta_1=recipe.beta_1)
                for rate in (recipe.generator_rate, recipe.discriminator_rate)
            ]
            gan.compile(
                *optimizers,
                loss=CounterfactualLoss(
                    *self.classifier, self.learned.targets, cf_options.weights_of(recipe)
                ),
                adversarial=recipe.adversarial,
                penalty=recipe.penalty,
                mismatched=recipe.mismatched,
                augment=gan_options.names(recipe.augment),
                ema_decay=recipe.ema_decay,
                accumulate=recipe.accumulate,
                generator_updates=recipe.generator_updates,
                discriminator_updates=recipe.discriminator_updates,
            )
        return gan

    def train(self, gan):
        """(history, rows of steps), with the weights to keep in the GAN."""
        import tensorflow as tf

        recipe, strategy = self.recipe, None
        if self.replicas > 1:
            with self.scope():
                strategy = tf.distribute.get_strategy()
        self.bar = self.progress.add_task("counterfactuals", total=recipe.epochs * self.steps, facts="")
        self.writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
        began = time.monotonic()
        try:
            with gan_loop.plain_errors("lower --batch-size or --width, or raise --accumulate"):
                history, rows = gan_loop.train(
                    gan,
                    self.batches_of(gan),
                    self.folder / "work" / "states",
                    epochs=recipe.epochs,
                    steps=self.steps,
                    # Its self-attention is let in as much as it learns to.
                    tau=lambda epoch: 0.0,
                    on_epoch=lambda *told: self.on_epoch(gan, *told),
                    on_look=self.on_look,
                    strategy=strategy,
                    keep=cf_options.kept_by(recipe),
                )
        finally:
            self.writer.close()
        if self.progress.disable:
            told = f"{len(history)} epochs, {time.monotonic() - began:.0f} s"
            self.progress.console.print(f"{NAME}: {told}", soft_wrap=True)
        return history, rows

    def batches_of(self, gan):
        """Function (first step) -> the batches from there on."""
        from kxray.data import counterfactual_batches

        recipe = self.recipe
        back = self.learned.back(self.films.labels) if recipe.cycle_weight else None
        return lambda first_step: counterfactual_batches(
            self.films.inputs,
            self.learned.held,
            self.films.rows("train"),
            batch_size=recipe.batch_size,
            updates=(recipe.generator_updates, recipe.discriminator_updates),
            num_draws=gan.num_draws,
            seed=recipe.seed,
            back=back,
            first_step=first_step,
        )

    def on_look(self, step, row):
        facts = f"G {row['generator_loss']:.3f}, D {row['discriminator_loss']:.3f}"
        self.progress.update(self.bar, completed=step, facts=facts)

    def on_epoch(self, gan, row, earlier, rows) -> dict:
        """What is added to an epoch's row; leaves history.csv, steps.csv and the sheet of samples."""
        import tensorflow as tf

        added = {"discriminator_updates": row["step"] * self.recipe.discriminator_updates}
        added |= self.epochs.look(gan, row["epoch"])
        history = [*earlier, {**row, **added}]
        runs.write_table(self.folder / "history.csv", history_table(history))
        runs.write_table(self.folder / "steps.csv", self.steps_table(rows))
        with self.writer.as_default(step=row["step"]):
            for name, value in history[-1].items():
                if isinstance(value, float) and np.isfinite(value):
                    tf.summary.scalar(name, value)
        self.writer.flush()
        for finding in self.watched(history[-1]):
            self.progress.console.print(f"watch: {finding['sentence']}", soft_wrap=True)
        if self.progress.disable:
            self.progress.console.print(cf_told.epoch_line(history[-1], self.recipe.epochs), soft_wrap=True)
        return added

    def watched(self, row):
        return cf_epochs.findings(row, cf_options.is_masked(self.recipe))

    def steps_table(self, rows):
        """One row every few steps, with the discriminator updates so far."""
        table = pd.DataFrame(rows)
        table.insert(1, "discriminator_updates", table["step"] * self.recipe.discriminator_updates)
        return table

    # What is left behind

    def finish(self, gan, history, rows):
        """Everything a run leaves; metrics.json last: a run that has it is complete."""
        from training.report.counterfactual import write_report

        folder, recipe = self.folder, self.recipe
        kept = next(row for row in history if row["kept"])
        loaded = LoadedCounterfactual(folder, gan, None, *self.classifier, self.learned.targets)
        judged, test = cf_results.judge(loaded, self.films, self.learned.held, recipe, self.progress)
        scores = {
            "epoch": kept["epoch"],
            "kept_by": cf_options.kept_by(recipe) or "last epoch",
            "validation": {
                name: kept[name] for name in (*cf_scores.NUMBERS, "val_objective") if name in kept
            },
            "validation_pairs": len(self.epochs.pairs),
            "test": test,
            "watch": [finding for row in history for finding in self.watched(row)],
            "minutes": round(history[-1]["seconds"] / 60, 2),
        }
        spec = cf_results.spec_of(loaded, self.config, scores)
        loaded = dataclasses.replace(loaded, spec=spec)
        history = history_table(history)
        runs.write_table(folder / "history.csv", history)
        runs.write_table(folder / "steps.csv", self.steps_table(rows))
        runs.write_table(folder / "pairs.csv", judged)
        write_whole(folder / "spec.json", spec.to_json())
        with replacing(folder / "model.keras") as temporary:
            gan.without_optimizers().save(temporary)
        examples = cf_results.examples(loaded, self.films, judged)
        write_report(folder, self.config, scores, history, self.steps_table(rows), examples)
        scores["saved_model"] = exported_once(recipe, folder, NAME)
        # Last: a run that has metrics.json is complete.
        runs.write_json(folder / "metrics.json", scores)
        shutil.rmtree(folder / "work" / "states", ignore_errors=True)
        return scores


def history_table(history) -> pd.DataFrame:
    """history.csv; the share of self-attention is learned and no number of an epoch."""
    return pd.DataFrame(history).drop(columns="tau")
