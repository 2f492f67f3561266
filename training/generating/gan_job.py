"""A run of a conditional GAN, from its films to its report: the job of attention_cgan and cdcgan."""

import dataclasses
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from kxray.io.files import check_exportable, replacing, write_whole
from training import options, runs
from training.generating import gan_films, gan_loop, gan_options, gan_told


@dataclasses.dataclass(frozen=True)
class GanTask:
    """What tells one GAN recipe from another.

    Args:
        name: of the recipe and of the model.
        side: of the largest films, pixels.
        build: function (recipe, number of classes) -> the GAN, uncompiled.
        tau: function (epoch, from 0) -> how much self-attention the generator lets in.
    """

    name: str
    side: int
    build: Callable
    tau: Callable


def run(recipe, given, task_of) -> Path:
    """Runs the whole job, or goes on with it, and returns the run folder.

    Args:
        recipe: `training.generating.gan_options.GanOptions`.
        given: the options given at the shell.
        task_of: function of a recipe: its GanTask.
    """
    console = Console(highlight=False, markup=False)
    recipe, given = _with_absolute_places(recipe, given)
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    else:
        gan_options.check(recipe)
        task = task_of(recipe)
        if recipe.export != "none":
            # Found out now, not after the training.
            check_exportable(recipe.export or recipe.out or "")
        if recipe.dry_run:
            return gan_told.dry_run(recipe, task, console)
        source = Path(recipe.data).resolve().name if recipe.data else "thorax-phantoms"
        folder = runs.create(recipe.out or runs.default_folder(task.name, source))
        runs.write_json(folder / "config.json", {"recipe": task.name, "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        gan_told.tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    def work(progress):
        return GanJob(recipe, task_of(recipe), folder, progress).run()

    gan_told.tell(console, folder, runs.carried_out(folder, recipe.resume, console, work))
    return folder


def _with_absolute_places(recipe, given):
    recipe, given = runs.with_absolute_places(recipe, given)
    if given.get("features") and given["features"] not in ("auto", "none"):
        place = {"features": str(Path(given["features"]).resolve())}
        return dataclasses.replace(recipe, **place), {**given, **place}
    return recipe, given


def exported_once(recipe, folder, name) -> str | None:
    """Exports the run of a GAN, unless it is not to be served.

    Args:
        recipe: its `export`.
        folder: of the run.
        name: of the model.
    """
    if recipe.export == "none":
        return None
    from serving.export import export

    return runs.exported_once(folder, recipe.export or folder / "saved_models" / name, export)


class GanJob:
    """One run. Every step leaves files that a resumed run picks up."""

    def __init__(self, recipe, task, folder, progress):
        self.recipe, self.task, self.folder, self.progress = recipe, task, folder, progress

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
        self.films = gan_films.load(recipe, self.task.side, self.folder, self.progress)
        self.labels = self.films.conditions.labels
        self.train_rows = self.films.rows("train")
        self.steps = gan_options.steps_of(recipe, len(self.train_rows))
        self.describe()
        self.epochs = self.looked_at()
        gan = self.compiled()
        history, rows = self.train(gan)
        return self.finish(gan, history, rows)

    def describe(self):
        """Adds to config.json and writes split.csv."""
        from kxray import data

        table = self.films.conditions.table
        fingerprint = data.fingerprint(table)
        config = gan_films.check_same(self.folder, fingerprint)
        self.config = config | {
            "versions": runs.versions(),
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(table.assign(split=self.films.parts), self.folder / "split.csv"),
            "labels": list(self.labels),
            "conditions_from": gan_films.FINDINGS if self.films.conditions.findings else gan_films.LABEL,
            "films": gan_films.described(self.films),
            "grouped_by": self.films.grouping.kind,
            "side": self.task.side,
            "steps_per_epoch": self.steps,
            "replicas": self.replicas,
            "dtype_policy": self.policy,
            "notes": [*self.films.notes, *self._feature_notes(fingerprint, table)],
        }
        runs.write_json(self.folder / "config.json", self.config)

    def _feature_notes(self, fingerprint, table):
        """Whether the feature model of an earlier run has seen films that it is to judge by."""
        if self.recipe.features in ("auto", "none"):
            return []
        judged = self.films.parts != "train"
        return runs.seen_before(self.recipe.features, "feature model", fingerprint, table["path"][judged])

    def looked_at(self):
        """`EpochFilms`, with the classifier whose features films are compared by."""
        from training.generating.gan_epochs import EpochFilms

        return EpochFilms(self.films, self.recipe, self.folder, self.feature_model())

    def feature_model(self):
        """The classifier of --features; of "auto" it learns from the training films (RUN/features)."""
        recipe = self.recipe
        if recipe.features == "none":
            return None
        import keras

        from training.generating.feature_model import FeatureModel, train_feature_model

        if recipe.features != "auto":
            return FeatureModel.load(recipe.features, self.labels)
        # What films are measured by is no place to save digits.
        keras.config.set_dtype_policy("float32")
        try:
            return train_feature_model(
                self.films.conditions,
                self.films.inputs,
                self.train_rows,
                self.films.rows("val"),
                self.folder / "features",
                backbone=recipe.feature_backbone,
                epochs=recipe.feature_epochs,
                seed=recipe.seed,
                progress=self.progress,
            )
        finally:
            keras.config.set_dtype_policy(self.policy)

    def compiled(self):
        """The GAN with its initial weights, ready to train."""
        import keras

        recipe = self.recipe
        # What Keras's initialisers draw their seeds from, whatever was built before.
        random.seed(recipe.seed)
        with self.scope():
            gan = self.task.build(recipe, len(self.labels))
            optimizers = [
                keras.optimizers.Adam(rate, beta_1=recipe.beta_1)
                for rate in (recipe.generator_rate, recipe.discriminator_rate)
            ]
            gan.compile(
                *optimizers,
                augment=gan_options.names(recipe.augment),
                ema_decay=recipe.ema_decay,
                r1=recipe.r1,
                mismatched=getattr(recipe, "mismatched", 0.0),
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
        self.bar = self.progress.add_task("generator", total=recipe.epochs * self.steps, facts="")
        self.writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
        began = time.monotonic()
        remedy = "lower --batch-size or --width, or raise --attention-pool or --accumulate"
        try:
            with gan_loop.plain_errors(remedy):
                history, rows = gan_loop.train(
                    gan,
                    self.batches_of(gan),
                    self.folder / "work" / "states",
                    epochs=recipe.epochs,
                    steps=self.steps,
                    tau=self.task.tau,
                    on_epoch=lambda *told: self.on_epoch(gan, *told),
                    on_look=self.on_look,
                    strategy=strategy,
                    keep=gan_options.kept_by(recipe),
                )
        finally:
            self.writer.close()
        if self.progress.disable:
            told = f"{len(history)} epochs, {time.monotonic() - began:.0f} s"
            self.progress.console.print(f"{self.task.name}: {told}", soft_wrap=True)
        return history, rows

    def batches_of(self, gan):
        """Function (first step) -> the batches from there on."""
        from kxray.data import gan_batches

        recipe = self.recipe
        return lambda first_step: gan_batches(
            self.films.inputs,
            self.films.conditions.classes,
            self.train_rows,
            num_classes=len(self.labels),
            latent=recipe.latent,
            num_draws=gan.num_draws,
            batch_size=recipe.batch_size,
            updates=(recipe.generator_updates, recipe.discriminator_updates),
            seed=recipe.seed,
            first_step=first_step,
            balanced=recipe.balanced,
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
        runs.write_table(self.folder / "history.csv", pd.DataFrame(history))
        runs.write_table(self.folder / "steps.csv", self.steps_table(rows))
        with self.writer.as_default(step=row["step"]):
            for name, value in history[-1].items():
                if isinstance(value, float) and np.isfinite(value):
                    tf.summary.scalar(name, value)
        self.writer.flush()
        found = self.epochs.watch.findings(history)
        if found and self.recipe.watch == "stop":
            raise ValueError(found[0]["sentence"])
        for finding in found:
            self.progress.console.print(f"watch: {finding['sentence']}", soft_wrap=True)
        if self.progress.disable:
            self.progress.console.print(gan_told.epoch_line(history[-1], self.recipe.epochs), soft_wrap=True)
        return added

    def steps_table(self, rows):
        """One row every few steps, with the discriminator updates so far: the paper's Figure 2."""
        table = pd.DataFrame(rows)
        table.insert(1, "discriminator_updates", table["step"] * self.recipe.discriminator_updates)
        return table

    # What is left behind

    def finish(self, gan, history, rows):
        """Everything a run leaves; metrics.json last: a run that has it is complete."""
        from training.report.gan import write_report

        folder, recipe = self.folder, self.recipe
        kept = next(row for row in history if row["kept"])
        found = [
            finding
            for count in range(1, len(history) + 1)
            for finding in self.epochs.watch.findings(history[:count])
        ]
        scores = {
            "epoch": kept["epoch"],
            "kept_by": gan_options.kept_by(recipe) or "last epoch",
            **{name: kept[name] for name in ("fdd", "kid") if name in kept},
            **{name: kept[name] for name in ("diversity", "diversity_lowest", "nearest", "copies")},
            "first_epoch": {name: history[0][name] for name in ("fdd", "kid") if name in kept},
            "fdd_of_real_films": self.epochs.real_against_real(),
            "validation": self.epochs.judge(gan),
            "compared_films": int(self.epochs.compared.sum()),
            "discriminator_updates": history[-1]["discriminator_updates"],
            "watch": found,
            "minutes": round(history[-1]["seconds"] / 60, 2),
        }
        spec = self.spec(gan, scores)
        history = pd.DataFrame(history)
        runs.write_table(folder / "history.csv", history)
        runs.write_table(folder / "steps.csv", self.steps_table(rows))
        write_whole(folder / "spec.json", spec.to_json())
        with replacing(folder / "model.keras") as temporary:
            gan.without_optimizers().save(temporary)
        shown = {"samples": self.epochs.samples(gan), "real": self.real_examples()}
        write_report(folder, self.config, scores, history, self.steps_table(rows), shown)
        scores["saved_model"] = exported_once(recipe, folder, self.task.name)
        # Last: a run that has metrics.json is complete.
        runs.write_json(folder / "metrics.json", scores)
        shutil.rmtree(folder / "work" / "states", ignore_errors=True)
        return scores

    def spec(self, gan, scores):
        from kxray.spec import ModelSpec

        return ModelSpec(
            self.task.name,
            self.labels,
            "generator",
            (self.task.side, self.task.side),
            provenance={
                "recipe": self.task.name,
                "trained": time.strftime("%Y-%m-%d"),
                "data_fingerprint": self.config["data_fingerprint"],
                "split_hash": self.config["split_hash"],
                "films": self.config["films"],
                "conditions_from": self.config["conditions_from"],
                "kxray": self.config["versions"]["kxray"],
                "keras": self.config["versions"]["keras"],
                "latent": self.recipe.latent,
                "sides": list(gan.sides),
                "epoch": scores["epoch"],
                "fdd": scores.get("fdd"),
                "kid": scores.get("kid"),
                "synthetic": "films of this model are made up; they are not for diagnosis",
            },
        )

    def real_examples(self) -> np.ndarray:
        """Training films as the sheet of samples has generated ones, float32 (classes x samples, s, s)."""
        classes, count = self.films.conditions.classes, self.recipe.samples
        chosen = []
        for number in range(len(self.labels)):
            own = self.train_rows[classes[self.train_rows] == number]
            chosen.append(own[np.arange(count) % len(own)])
        return self.films.pixels(np.concatenate(chosen))[..., 0]
