"""A run of the recipe autoencoder: films in, an autoencoder out that was measured on films of others."""

import json
import random
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from kxray.io.files import replacing, write_whole
from training import options, runs
from training.autoencoding import ae_films
from training.generating import gan_films

NAME = "autoencoder"
BATCH = 64
_SHOWN = 12
# Below this share of films of which the classifier still says the same, a shift explains little.
_LITTLE_KEPT = 0.9


def run(recipe, given) -> Path:
    """Runs the whole job, or goes on with it, and returns the run folder."""
    import dataclasses

    console = Console(highlight=False, markup=False)
    recipe, given = runs.with_absolute_places(recipe, given)
    if given.get("classifier"):
        place = {"classifier": str(Path(given["classifier"]).resolve())}
        recipe, given = dataclasses.replace(recipe, **place), {**given, **place}
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    else:
        classifier = ae_films.classifier_of(recipe)
        size = ae_films.image_size(recipe, classifier)
        if recipe.dry_run:
            return _dry_run(recipe, classifier, size, console)
        folder = runs.create(recipe.out or runs.default_folder(NAME, _source_name(recipe)))
        runs.write_json(folder / "config.json", {"recipe": NAME, "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        _tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    def work(progress):
        return AutoencoderJob(recipe, folder, progress).run()

    _tell(console, folder, runs.carried_out(folder, recipe.resume, console, work))
    return folder


class AutoencoderJob:
    """One run. Every step leaves files that a resumed run picks up."""

    def __init__(self, recipe, folder, progress):
        self.recipe, self.folder, self.progress = recipe, folder, progress

    def run(self):
        from training import distribution

        recipe = self.recipe
        (self.scope, self.replicas), self.policy = distribution.set_up(recipe, recipe.seed)
        self.classifier = ae_films.classifier_of(recipe)
        self.size = ae_films.image_size(recipe, self.classifier)
        self.films = ae_films.load(recipe, self.classifier, self.size, self.folder, self.progress)
        self.describe()
        model, history = self.train()
        return self.finish(model, history)

    def describe(self):
        """Adds to config.json and writes split.csv; a resumed run must find the films it was started on."""
        from kxray import data

        films = self.films
        fingerprint = data.fingerprint(films.table)
        config = gan_films.check_same(self.folder, fingerprint)
        self.config = config | {
            "versions": runs.versions(),
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(films.table.assign(split=films.parts), self.folder / "split.csv"),
            "films": {part: len(films.rows(part)) for part in ("train", "val", "test")},
            "grouped_by": films.grouping.kind,
            "image_size": list(self.size),
            "replicas": self.replicas,
            "dtype_policy": self.policy,
            "notes": list(films.notes),
        }
        runs.write_json(self.folder / "config.json", self.config)

    def train(self):
        """(the autoencoder with the weights of its lowest validation loss, history)."""
        from kxray.data import pipeline
        from training import augmentation, loop

        recipe, films = self.recipe, self.films
        rows, validation_rows = films.rows("train"), films.rows("val")
        steps = pipeline.steps_per_epoch(rows, recipe.batch_size)
        # No label is used; what films are compared with is themselves.
        labels, weights = np.zeros((len(films.inputs), 1)), np.ones(len(films.inputs))
        layers = augmentation.film_layers(recipe)

        def batches(first_epoch):
            batched = pipeline.training_batches(
                films.inputs,
                labels,
                weights,
                rows,
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                augment=layers,
                first_epoch=first_epoch,
                replicas=self.replicas,
            )
            return batched.map(_themselves)

        validation = pipeline.evaluation_batches(
            films.inputs, labels, weights, validation_rows, replicas=self.replicas
        ).map(_themselves)
        bar = self.progress.add_task("autoencoder", total=recipe.epochs, facts="")

        def on_epoch(done, logs):
            facts = f"validation loss {logs['val_loss']:.4f}" if logs else ""
            self.progress.update(bar, completed=done, facts=facts)

        model, history = loop.train(
            self.folder / "work" / "model",
            lambda: self.compiled(steps),
            batches,
            validation,
            epochs=recipe.epochs,
            steps=steps,
            patience=recipe.patience,
            log_dir=str(self.folder / "tensorboard"),
            on_epoch=on_epoch,
        )
        self.progress.update(bar, completed=recipe.epochs)
        return model, history

    def compiled(self, steps):
        """The autoencoder with its initial weights, ready to train."""
        from kxray import models
        from training import loop
        from training.autoencoding.ae_loss import LOSSES
        from training.optimizer import warm_adamw

        recipe = self.recipe
        # What Keras's initialisers draw their seeds from, whatever was built before.
        random.seed(recipe.seed)
        with self.scope():
            model = models.build(
                NAME, side=self.size, width=recipe.width, latent=recipe.latent, depth=recipe.depth
            )
            model.compile(
                warm_adamw(recipe, steps),
                LOSSES[recipe.loss],
                # Keras's loop over several steps does not run under MirroredStrategy.
                steps_per_execution=loop.steps_per_execution(steps) if self.replicas == 1 else 1,
            )
        return model

    def finish(self, model, history):
        """Everything a run leaves; metrics.json last: a run that has it is complete."""
        import keras

        from training.report.autoencoder import write_report

        folder = self.folder
        scores, shown = self.measure(model)
        scores["epoch"] = int(history["epoch"][history["val_loss"].idxmin()])
        scores["minutes"] = round(history.attrs["seconds"] / 60, 2)
        runs.write_table(folder / "history.csv", history)
        write_whole(folder / "spec.json", self.spec(scores).to_json())
        with replacing(folder / "model.keras") as temporary:
            # Without its optimizer, which is twice as large.
            keras.Model(model.input, model.output, name=model.name).save(temporary)
        write_report(folder, self.config, scores, history, shown)
        runs.write_json(folder / "metrics.json", scores)
        return scores

    def measure(self, model):
        """(what metrics.json holds, films to show) of test films, which nothing was learned from."""
        from kxray.metrics import summarise

        rows = self.films.rows("test")
        films = self.films.pixels(rows)
        given_back = model.predict(films, batch_size=BATCH, verbose=0)
        patients = self.films.grouping.groups[rows]
        scores = {
            name: summarise(values, patients, seed=self.recipe.seed)
            for name, values in reconstruction(films, given_back).items()
        }
        code = int(np.prod(model.get_layer("latent").output.shape[1:]))
        scores["code"] = {"numbers": code, "share_of_pixels": code / int(np.prod(self.size))}
        scores["conditions"] = (
            f"{len(rows)} test films, {len(np.unique(patients))} groups kept together by "
            f"{self.films.grouping.kind}, seed {self.recipe.seed}"
        )
        if self.classifier is not None:
            scores["classifier"] = self.agreement(films, given_back, patients)
        chosen = np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)
        errors = np.abs(given_back - films).mean(axis=(1, 2, 3))
        return scores, {
            "films": films[chosen, ..., 0],
            "given_back": given_back[chosen, ..., 0],
            "errors": errors[chosen],
        }

    def agreement(self, films, given_back, patients):
        """What the classifier says of films and of what they are given back as."""
        import kxray
        from kxray.metrics import summarise
        from training import scoring

        model, spec = kxray.load(self.classifier.folder)
        forward = scoring.traced_logits(model, spec)
        before, after = (
            scoring.calibrated(
                np.concatenate(
                    [forward(some[start : start + BATCH]).numpy() for start in range(0, len(some), BATCH)]
                ),
                spec,
            )
            for some in (films, given_back)
        )
        if spec.task == "multilabel":
            limits = np.array([spec.threshold(label) for label in spec.labels])
            same = ((before >= limits) == (after >= limits)).mean(axis=1)
        else:
            same = (before.argmax(axis=1) == after.argmax(axis=1)).astype(float)
        drift = np.abs(after - before).mean(axis=1)
        return {
            "same_decisions": summarise(same, patients, seed=self.recipe.seed),
            "drift": summarise(drift, patients, seed=self.recipe.seed),
            "little_kept": bool(same.mean() < _LITTLE_KEPT),
        }

    def spec(self, scores):
        from kxray.spec import ModelSpec

        return ModelSpec(
            NAME,
            ("film",),
            NAME,
            self.size,
            provenance={
                "recipe": NAME,
                "trained": time.strftime("%Y-%m-%d"),
                "data_fingerprint": self.config["data_fingerprint"],
                "split_hash": self.config["split_hash"],
                "films": self.config["films"],
                "kxray": self.config["versions"]["kxray"],
                "keras": self.config["versions"]["keras"],
                "classifier": self.recipe.classifier,
                **{name: scores[name]["value"] for name in ("psnr", "ssim", "error")},
            },
        )


def reconstruction(films, given_back) -> dict:
    """PSNR (dB), SSIM and mean |error| of each film, float (N,).

    Args:
        films, given_back: float32 (N, h, w, 1) in [0, 1].
    """
    from training.autoencoding.ae_loss import structural_similarity

    away = np.asarray(given_back, np.float64) - films
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10(np.mean(away**2, axis=(1, 2, 3)))
    ssim = [
        structural_similarity(films[start : start + BATCH], given_back[start : start + BATCH]).numpy()
        for start in range(0, len(films), BATCH)
    ]
    return {"psnr": psnr, "ssim": np.concatenate(ssim), "error": np.abs(away).mean(axis=(1, 2, 3))}


def _themselves(films, labels, weights):
    return films, films, weights


def _source_name(recipe):
    source = recipe.data or recipe.classifier
    return Path(source).resolve().name if source else "thorax-phantoms"


def _dry_run(recipe, classifier, size, console):
    console.print_json(json.dumps({"recipe": NAME, "options": options.as_json(recipe)}))
    if recipe.out is not None:
        runs.check_free(recipe.out)
    console.print(f"films of {size[0]}x{size[1]} pixels")
    if recipe.data is None and classifier is None:
        console.print(f"would generate {recipe.phantoms} thorax phantoms")
        return None
    table, problems, notes, parts = ae_films.read(recipe, classifier)
    if parts is None:
        parts, split_notes = ae_films.split(recipe, table)
        notes = [*notes, *split_notes]
    counts = ", ".join(f"{part} {int((parts == part).sum())}" for part in ("train", "val", "test"))
    console.print(f"{len(table)} films: {counts}")
    skipped = [] if problems is None else problems[["row", "problem"]].values
    for note in [*notes, *(f"would skip row {row}: {why}" for row, why in skipped)]:
        console.print(note, soft_wrap=True)
    return None


def _tell(console, folder, scores):
    def interval(score, digits):
        return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"

    lines = [
        f"films given back: PSNR {interval(scores['psnr'], 1)} dB, SSIM {interval(scores['ssim'], 3)}, mean "
        f"|error| {interval(scores['error'], 4)}, {scores['conditions']}"
    ]
    if "classifier" in scores:
        same = scores["classifier"]["same_decisions"]
        line = f"the classifier decides the same of films that are given back: {interval(same, 3)}"
        if scores["classifier"]["little_kept"]:
            line += (
                " -> the code loses what it sees; try a larger --latent, a smaller --depth or more --epochs"
            )
        lines.append(line)
    lines.append(f"report {(folder / 'report.html').resolve()}")
    console.print("\n".join(lines), soft_wrap=True)
