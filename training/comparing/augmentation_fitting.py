"""The trainings of a comparison of augmentation: one network, as many steps on whatever films it is given."""

import dataclasses
import random
from pathlib import Path

import numpy as np

from training import augmentation
from training.comparing.augmentation_pools import Pool, validation_weights
from training.comparisons.augmentation import STRONG


def task_spec(recipe, labels, side):
    """The `kxray.ModelSpec` of the classifier."""
    from kxray.spec import ModelSpec

    return ModelSpec("multiscale_densenet", tuple(labels), "multiclass", (side, side))


def check_network(recipe, side) -> None:
    """Raises ValueError where the network does not take films of this side."""
    from kxray import models

    models.check_backbone(recipe.backbone, 1, (side, side))


def augmenting_layers(recipe, strong) -> tuple:
    """The mild augmentation of a recipe, or the strong one, which is nowhere milder."""
    if strong:
        larger = {name: max(value, getattr(recipe, name)) for name, value in STRONG.items()}
        recipe = dataclasses.replace(recipe, **larger)
    return augmentation.film_layers(recipe)


@dataclasses.dataclass(frozen=True)
class Training:
    """One training.

    Args:
        name: for the progress bar.
        pool: what is trained on.
        pixels: float32 (N + M, h, w, 1), real films and then synthetic ones.
        classes: int (N + M,).
        validation: positions of the validation films.
        strong: whether the augmentation is the strong one.
        seed: of the weights, and of the order and augmentation of films.
    """

    name: str
    pool: Pool
    pixels: np.ndarray
    classes: np.ndarray
    validation: np.ndarray
    strong: bool
    seed: int


class Trainer:
    """Keeps the compiled network: the next training starts it from fresh weights, and traces nothing.

    Unlike `training.fitting.Fitting`, whose epochs are passes over the films of a training, every training
    has the same steps here, whatever its films.

    Args:
        recipe: `training.comparisons.augmentation.Recipe`.
        spec: of `task_spec`.
        steps: between two looks at the validation films.
        folder: of the comparison.
        progress: rich progress with a `facts` field.
        devices: (context manager to build a model in, number of replicas).
    """

    def __init__(self, recipe, spec, steps, folder, progress, devices):
        self.recipe = recipe
        self.spec = spec
        self.steps = steps
        self.folder = Path(folder)
        self.progress = progress
        self.devices = devices
        self.model = self._optimizer_start = None

    def train(self, training, folder):
        """Trains in a folder below that of the comparison, or goes on where a kill left it.

        Returns:
            (model, history); the model is trained anew by the next call.
        """
        from kxray.data import pipeline
        from training import loop

        recipe, replicas, pool = self.recipe, self.devices[1], training.pool
        inputs = pipeline.ArrayInputs(training.pixels)
        targets = np.eye(self.spec.num_labels, dtype=np.float32)[training.classes]
        weights = np.ones(len(training.classes))
        weights[training.validation] = validation_weights(pool.mix, training.classes[training.validation])
        layers = augmenting_layers(recipe, training.strong)

        def batches(first_epoch):
            passes, within = divmod(
                first_epoch * self.steps, pipeline.steps_per_epoch(pool.rows, recipe.batch_size)
            )
            endless = pipeline.training_batches(
                inputs,
                targets,
                pool.weights[training.classes],
                pool.rows,
                batch_size=recipe.batch_size,
                seed=training.seed,
                augment=layers,
                first_epoch=passes,
                replicas=replicas,
            )
            return endless.skip(within)

        validation = pipeline.evaluation_batches(
            inputs, targets, weights, training.validation, replicas=replicas
        )
        bar = self.progress.add_task(training.name, total=recipe.epochs, facts="")

        def on_epoch(done, logs):
            facts = f"validation loss {logs['val_loss']:.4f}" if logs else ""
            self.progress.update(bar, completed=done, facts=facts)

        model, history = loop.train(
            self.folder / folder,
            lambda: self._fresh(training.seed),
            batches,
            validation,
            epochs=recipe.epochs,
            steps=self.steps,
            on_epoch=on_epoch,
        )
        best = history.loc[history["val_loss"].idxmin()]
        facts = f"validation loss {best['val_loss']:.4f} in epoch {best['epoch']:.0f} of {len(history)}"
        self.progress.update(bar, completed=recipe.epochs, facts=facts)
        if self.progress.disable:
            told = f"{training.name}: {len(pool.rows)} films, {facts}, {history.attrs['seconds']:.0f} s"
            self.progress.console.print(told, soft_wrap=True)
        return model, history

    def _fresh(self, seed):
        """The compiled network with the starting weights of a seed."""
        from kxray import models
        from training import loop
        from training.optimizer import warm_adamw

        # What Keras's initialisers draw their seeds from, see `training.fitting`.
        random.seed(seed)
        scope, replicas = self.devices
        with scope():
            model = models.build(
                self.spec.name,
                num_labels=self.spec.num_labels,
                image_size=self.spec.image_size,
                backbone=self.recipe.backbone,
                taps=1,
            )
            if self.model is None:
                model.compile(
                    warm_adamw(self.recipe, self.steps),
                    "categorical_crossentropy",
                    # Keras's loop over several steps does not run under MirroredStrategy.
                    steps_per_execution=loop.steps_per_execution(self.steps) if replicas == 1 else 1,
                )
                model.optimizer.build(model.trainable_variables)
                self.model = model
                self._optimizer_start = [variable.numpy() for variable in model.optimizer.variables]
                return model
            self.model.set_weights(model.get_weights())
            for variable, start in zip(self.model.optimizer.variables, self._optimizer_start, strict=True):
                variable.assign(start)
        return self.model
