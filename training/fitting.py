"""The trainings of a run: one network, trained again and again on different films of one set."""

import dataclasses
import random
import time
from pathlib import Path

import numpy as np


@dataclasses.dataclass
class Fitting:
    """What the trainings of a run share.

    Building and tracing a deep network takes longer than an epoch on a few hundred films, so the compiled
    model is kept, and the next training starts it from fresh weights. Where a task has `frozen_features`,
    what the frozen backbone makes of the films is computed once (`kxray.data.features`), and trainings only
    take the head through its epochs.

    Args:
        recipe: its batch size, epochs and the like.
        task: `training.films.ClassifierTask` with its labels.
        films: `training.films.RunFilms`.
        folder: of the run; every training has a folder of its own below it.
        progress: rich progress with a `facts` field.
        devices: (context manager to build a model in, number of replicas).
        features_folder: where features are kept; `work/features` of the run's folder by default.
    """

    recipe: object
    task: object
    films: object
    folder: Path
    progress: object
    devices: tuple
    features_folder: Path | None = None

    def __post_init__(self):
        self._steps = self._model = self._trained = self._optimizer_start = None
        self._frozen = self._weights = None

    @property
    def feature_seconds(self) -> float:
        """Time spent on computing features; 0.0 where they were found, or none are used."""
        return self._frozen.seconds if self._frozen else 0.0

    @property
    def feature_bytes(self) -> int:
        """Size of the features on disk."""
        return self._frozen.bytes if self._frozen else 0

    def train(self, folder, name, train_rows, validation_rows, seed):
        """Trains on some films and keeps the weights of the lowest validation loss on others.

        Args:
            folder: of this training, below the run's.
            name: for the progress bar.
            train_rows, validation_rows: positions of films.
            seed: of the weights, and of the order and augmentation of films.

        Returns:
            (model, history); the model, from films to probabilities, is trained anew by the next call.
        """
        import tensorflow as tf

        from kxray.data import pipeline
        from training import finding_loss, loop
        from training.frozen import start_head

        if self.task.frozen_features and self._frozen is None:
            self._frozen = self._frozen_backbone()
            self._frozen.load()
            for note in self._frozen.notes:
                self.progress.console.print(note, soft_wrap=True)
        frozen = self._frozen
        training_inputs, validation_inputs, augment = (
            frozen.inputs() if frozen else (self.films.inputs, self.films.inputs, self.task.augment())
        )
        recipe, replicas, masking = self.recipe, self.devices[1], self.task.masking
        boxes = None if masking is None else masking.boxes(self.task, self.films, train_rows, seed)
        steps = pipeline.steps_per_epoch(train_rows, recipe.batch_size)
        self._weigh(name, train_rows)

        def batches(first_epoch):
            return pipeline.training_batches(
                training_inputs,
                self._targets(),
                self._balanced(train_rows),
                train_rows,
                batch_size=recipe.batch_size,
                seed=seed,
                augment=augment,
                first_epoch=first_epoch,
                replicas=replicas,
                boxes=boxes,
            )

        validation = pipeline.evaluation_batches(
            validation_inputs,
            self._targets(),
            self._balanced(validation_rows),
            validation_rows,
            replicas=replicas,
        )
        bar = self.progress.add_task(name, total=recipe.epochs, facts="")

        def on_epoch(done, logs):
            facts = f"validation loss {logs['val_loss']:.4f}" if logs else ""
            self.progress.update(bar, completed=done, facts=facts)

        def build():
            # What Keras's initialisers draw their seeds from. TensorFlow's own seed would do no more, and
            # setting it drops every kernel: a deep network would be prepared anew for each training.
            random.seed(seed)
            if frozen:
                frozen.start(seed, train_rows)
                return self._compiled(frozen.trained, steps)
            with self.devices[0]():
                model = self.task.build(self.task.spec)
                start_head(model, seed)
            if masking is not None:
                made_of = (self.task, self.films, train_rows, seed)
                masking.prepare(model, *made_of, self.folder / folder, self.progress)
            return self._compiled(model, steps)

        began = time.monotonic()
        try:
            _, history = loop.train(
                self.folder / folder,
                build,
                batches,
                validation,
                epochs=recipe.epochs,
                steps=steps,
                patience=recipe.patience,
                log_dir=str(self.folder / "tensorboard" / Path(folder).relative_to("work")),
                on_epoch=on_epoch,
            )
        except tf.errors.OpError as error:
            # A film that was decoded for its batch; TensorFlow tells of it as of an error of its own.
            raise pipeline.film_error(error) or error from None
        best = history.loc[history["val_loss"].idxmin()]
        facts = f"validation loss {best['val_loss']:.4f} in epoch {best['epoch']:.0f} of {len(history)}"
        self.progress.update(bar, completed=recipe.epochs, facts=facts)
        if self.progress.disable:
            self.progress.console.print(f"{name}: {facts}, {time.monotonic() - began:.0f} s", soft_wrap=True)
        model = frozen.finish() if frozen else self._model
        if self.task.multilabel:
            finding_loss.take_back_weights(model, self._weights)
        return model, history

    def logits_of(self, rows, flips="none") -> np.ndarray:
        """The pre-activation logits float32 (len(rows), units) of the last trained model.

        Args:
            rows: positions of films.
            flips: see `training.scoring.logits_of`. Features of mirrored films are kept as well.
        """
        from training import scoring

        if self._frozen is None:
            return scoring.logits_of(self._model, self.films.inputs, rows, flips)
        return self._frozen.logits_of(rows, flips)

    def _frozen_backbone(self):
        from training.frozen import FrozenBackbone

        recipe, bars = self.recipe, {}
        folder = self.features_folder or self.folder / "work" / "features"

        def on_film(name, done):
            if name not in bars:
                bars[name] = self.progress.add_task(name, total=len(self.films.inputs), facts="")
            self.progress.update(bars[name], completed=done)

        # Of the run, not of a training: a resumed run must find the backbone that its features are of.
        random.seed(recipe.seed)
        with self.devices[0]():
            model = self.task.build(self.task.spec)
            return FrozenBackbone(self.task, model, self.films.inputs, folder, recipe.seed, on_film)

    def _compiled(self, model, steps):
        from training import loop

        scope, replicas = self.devices
        with scope():
            if self._steps == steps:
                # The rate's schedule, the loss and the traced step are those of the last training.
                if model is not self._model:
                    self._model.set_weights(model.get_weights())
                for variable, start in zip(
                    self._trained.optimizer.variables, self._optimizer_start, strict=True
                ):
                    variable.assign(start)
                return self._trained
            trained, loss = model, self._loss()
            if self.task.masking is not None:
                trained, loss = self.task.masking.trained(model, self.task, self.films)
            trained.compile(
                self.task.optimizer(steps, model),
                loss,
                # Of findings, most of which most films do not have, accuracy says nothing.
                metrics=None if self.task.multilabel else ["accuracy"],
                # Keras's loop over several steps does not run under MirroredStrategy.
                steps_per_execution=loop.steps_per_execution(steps) if replicas == 1 else 1,
            )
            trained.optimizer.build(trained.trainable_variables)
        self._steps, self._model, self._trained = steps, model, trained
        self._optimizer_start = [variable.numpy() for variable in trained.optimizer.variables]
        return trained

    def _loss(self):
        from training.finding_loss import FindingsCrossentropy

        if self.task.multilabel:
            return FindingsCrossentropy()
        return "binary_crossentropy" if self.task.kind == "binary" else "categorical_crossentropy"

    def _weigh(self, name, train_rows):
        """The weights of films with a finding in this training, from its own films alone."""
        from training import finding_loss

        if not self.task.multilabel:
            return
        self._weights = finding_loss.positive_weights(self.films.labels[train_rows])
        told = ", ".join(
            f"{label} {weight:.1f}" for label, weight in zip(self.task.labels, self._weights, strict=True)
        )
        self.progress.console.print(
            f"{name}: a film with a finding counts (at most {finding_loss.LARGEST_WEIGHT:.0f}) {told} times "
            "one without",
            soft_wrap=True,
        )

    def _targets(self):
        """Float (N, units): the class as 0 or 1, or as a one-hot row; of findings what their loss takes."""
        from training.finding_loss import weighted_targets

        labels = self.films.labels
        if self.task.multilabel:
            return weighted_targets(labels, self._weights)
        return labels[:, None] if self.task.kind == "binary" else np.eye(len(self.task.labels))[labels]

    def _balanced(self, rows):
        """Weights of all films with which every class of `rows` has the same say in the loss.

        Those of findings differ by finding, and come with the targets.
        """
        labels = self.films.labels
        if self.task.multilabel:
            return np.ones(len(labels))
        counts = np.maximum(np.bincount(labels[rows], minlength=len(self.task.labels)), 1)
        return (len(rows) / (len(counts) * counts))[labels]
