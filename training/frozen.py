"""A frozen backbone: its features are computed once, and only what comes after them is trained."""

import random
import time

import keras
import numpy as np
from keras import layers

from kxray.data import features, pipeline
from training import scoring

_ROWS = 256


def start_head(model, seed) -> None:
    """New weights for the dense layers behind the layer `features`, where a model has one; the last's are 0.

    From zero, a head is made of its training films alone: what it drew at random in the directions that a few
    films do not show would stay and speak on other films (Kolesnikov et al., 2020, start theirs so too).
    """
    names = [layer.name for layer in model.layers]
    if "features" not in names:
        return
    random.seed(seed)
    behind = model.layers[names.index("features") + 1 :]
    dense = [layer for layer in behind if isinstance(layer, layers.Dense)]
    for layer in dense:
        starts = [layer.kernel_initializer, layer.bias_initializer][: len(layer.weights)]
        if layer is dense[-1]:
            starts = [keras.initializers.Zeros()] * len(layer.weights)
        layer.set_weights(
            [
                keras.ops.convert_to_numpy(start.clone()(weight.shape, weight.dtype))
                for start, weight in zip(starts, layer.weights, strict=True)
            ]
        )


class FrozenBackbone:
    """A network, and what its frozen part makes of films.

    Args:
        task: `training.films.ClassifierTask`.
        model: the network, with a layer `features` that gives (N, F).
        films: `kxray.data.pipeline.NetworkInputs`.
        folder: where features are kept.
        seed: of the augmented views.
        on_film: called as on_film(what is computed, number of films done).

    Attributes:
        features: `kxray.data.features.Features` of all films, once `load` has run.
        trained: what is to be trained, from features to probabilities; it shares the head of `model`.
        seconds: spent on computing features so far; 0.0 where all were found.
        bytes: of the features on disk.
        notes: of damaged files that were made anew.
    """

    def __init__(self, task, model, films, folder, seed, on_film):
        self.task = task
        self.model = model
        self.films = films
        self.folder = folder
        self.seed = seed
        self.on_film = on_film
        self.seconds, self.bytes, self.notes = 0.0, 0, []
        self.features, self._flips = None, {}
        between = model.get_layer("features").output
        self.network = keras.Model(model.input, between)
        self.head = self.trained = keras.Model(between, model.output)
        if task.standardize:
            self.trained = self._standardized()

    def load(self) -> None:
        """Computes the features, or finds them."""
        if self.features is None:
            augment = self.task.augment() if self.task.views else ()
            views = features.augmented_views(augment, self.task.views, self.seed)
            self.features = self._load("features", views)

    def _standardized(self):
        dense = self.head.layers[1]
        if not isinstance(dense, layers.Dense) or not dense.use_bias:
            raise ValueError(
                f"features can be standardised for a dense layer with a bias, and {dense.name!r}, "
                f"{type(dense).__name__}, follows them"
            )
        # Batch normalisation that is never trained: statistics are variables, and change without a new trace.
        self._scaler = layers.BatchNormalization(
            center=False, scale=False, epsilon=0.0, trainable=False, dtype="float32", name="standardized"
        )
        values = keras.Input(self.head.inputs[0].shape[1:], name="feature_values")
        return keras.Model(values, self.head(self._scaler(values)))

    def _load(self, name, views):
        began = time.monotonic()
        loaded = features.load_features(
            self.films, self.network, self.folder, views=views, on_film=lambda done: self.on_film(name, done)
        )
        if not loaded.found:
            self.seconds += time.monotonic() - began
        self.bytes += loaded.bytes_on_disk
        self.notes += loaded.notes
        return loaded

    def inputs(self):
        """(training inputs, validation inputs, augmentation), for `kxray.data.pipeline`."""
        if self.task.views:
            return self.features.views, self.features.plain, (features.PickView(),)
        return self.features.plain, self.features.plain, ()

    def start(self, seed, train_rows) -> None:
        """Gives the head new weights, and the scaler the mean and deviation of the training films alone."""
        start_head(self.model, seed)
        if self.task.standardize:
            self._scaler.set_weights(scale_of(self.features.values, train_rows))

    def finish(self):
        """The whole network; the scaler is folded into its head, so that it is part of what is saved."""
        if self.task.standardize:
            mean, variance = (value.astype(float) for value in self._scaler.get_weights())
            kernel, bias = (value.astype(float) for value in self.head.layers[1].get_weights())
            kernel /= np.sqrt(variance)[:, None]
            self.head.layers[1].set_weights([kernel, bias - mean @ kernel])
        return self.model

    def logits_of(self, rows, flips="none") -> np.ndarray:
        """As `training.scoring.logits_of`, without a pass through the backbone; after `finish`."""
        plain = scoring.logits_of(self.head, self.features.plain, rows)
        if flips == "none":
            return plain
        if flips not in self._flips:
            self._flips[flips] = self._load(f"features of {flips} flips", self._flipped(flips))
        flipped = self._flips[flips].values
        views = [
            scoring.logits_of(self.head, pipeline.ArrayInputs(flipped[:, view]), rows)
            for view in range(flipped.shape[1])
        ]
        return np.mean([plain, *views], axis=0)

    def _flipped(self, flips):
        from kxray.layers import dihedral_views

        # The first view is the film itself, whose features there are already.
        def of(pixels, positions):
            return dihedral_views(pixels, flips == "horizontal")[1:]

        count = len(of(np.zeros((1, *self.films.shape), np.float32), [0]))
        return features.Views(count, {"views": f"{flips} flips"}, of)


def scale_of(values, rows) -> list[np.ndarray]:
    """Mean and variance float32 (F,) of the features (N, V, F) of some films, all views of each.

    A variance is at least the median one: what hardly varies in a few films would be blown up where it does
    in others.
    """
    rows = np.asarray(rows)
    chunks = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    count = len(rows) * values.shape[1]
    mean = sum(values[chunk].sum(axis=(0, 1), dtype=float) for chunk in chunks) / count
    variance = sum(np.square(values[chunk] - mean).sum(axis=(0, 1)) for chunk in chunks) / count
    smallest = np.median(variance) or variance.mean() or 1.0
    return [mean.astype(np.float32), np.maximum(variance, smallest).astype(np.float32)]
