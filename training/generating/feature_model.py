"""What sees films for the distances between real and generated ones: a classifier of the conditions."""

import contextlib
import hashlib
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kxray.io.files import replacing, write_whole
from kxray.spec import DECIDING_TASKS

_BATCH = 64


class FeatureModel:
    """A classifier, and what its last layers say of films of any size.

    Args:
        model: keras.Model of one of our classifiers, functional, that ends in dense layers.
        spec: its `kxray.ModelSpec`.
        labels: names of the conditions of generated films; None: those of the spec.

    Attributes:
        labels: of the conditions.
        knows: whether the model has a label for each of them.
        validation: its scores on its validation films, as `train_feature_model` found them; None of others.

    Raises:
        ValueError: a model that is no classifier, or without a vector of features before its logits.
    """

    def __init__(self, model, spec, labels=None):
        if spec.task not in DECIDING_TASKS:
            raise ValueError(f"{spec.name} makes films and does not tell them apart; give a classifier's run")
        self.model, self.spec = model, spec
        self.labels = spec.labels if labels is None else tuple(labels)
        self.knows = set(self.labels) <= set(spec.labels)
        self.validation = spec.provenance.get("validation")
        self._tensors, self._units = _before_logits(model), model.outputs[0].shape[-1]
        self._forward = None

    @classmethod
    def load(cls, run, labels=None) -> "FeatureModel":
        """The classifier in a run folder or .keras file; see `kxray.load` for what is raised."""
        from kxray import models

        return cls(*models.load(run), labels)

    def features(self, films, batch_size=_BATCH) -> dict[str, np.ndarray]:
        """What the model sees of films; traced at the first call and for all later ones.

        Args:
            films: float (N, h, w, 1) in [0, 1], bone bright, of any size; they are stretched to the model's.
            batch_size: films at a time.

        Returns:
            dict of float32 arrays: `features` (N, F), what the dense layer of the logits reads, pooled over
            places where it is a map, joined where a model has several such layers; `logits` (N, units),
            before any activation; `probabilities` (N, L), calibrated, in the order of the spec's labels; and
            `scores` (N, len(self.labels)), the probabilities of the conditions in their order, NaN where the
            model does not know them.
        """
        films = np.asarray(films)
        if films.ndim != 4 or films.shape[-1] != 1 or films.dtype.kind != "f":
            raise ValueError(
                f"expected float films (N, h, w, 1) in [0, 1], got {films.dtype} of shape {films.shape}"
            )
        films = films.astype(np.float32, copy=False)
        return self._joined(films[start : start + batch_size] for start in range(0, len(films), batch_size))

    def features_of(self, inputs, rows, batch_size=_BATCH) -> dict[str, np.ndarray]:
        """The same of some films of `kxray.data.pipeline.NetworkInputs`, decoded where they are not kept.

        Args:
            inputs: NetworkInputs or ArrayInputs.
            rows: positions of films.
        """
        return self._joined(inputs.batches(np.asarray(rows, np.int64), batch_size))

    def _joined(self, batches):
        from training import scoring

        # Convolutions on no film at all fail: the empty answer is made of its shapes.
        widths = (self._units, sum(tensor.shape[-1] for tensor in self._tensors))
        seen = [[np.zeros((0, width), np.float32) for width in widths]]
        seen += [[part.numpy() for part in self._traced()(batch)] for batch in batches]
        logits, features = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        probabilities = scoring.calibrated(logits, self.spec).astype(np.float32)
        scores = np.full((len(logits), len(self.labels)), np.nan, np.float32)
        if self.knows:
            scores = probabilities[:, [self.spec.labels.index(label) for label in self.labels]]
        return {"features": features, "probabilities": probabilities, "logits": logits, "scores": scores}

    def _traced(self):
        if self._forward is None:
            import tensorflow as tf

            from kxray.explain.head import with_logits
            from kxray.layers import film_input

            run, stretched = with_logits(self.model, *self._tensors), film_input(self.spec)

            def forward(films):
                logits, *found = run(stretched(films))
                vectors = [tf.cast(each, tf.float32) for each in found]
                pooled = [
                    tf.reduce_mean(each, axis=(1, 2)) if each.shape.rank == 4 else each for each in vectors
                ]
                return logits, tf.concat(pooled, axis=1)

            signature = [tf.TensorSpec([None, None, None, 1], tf.float32)]
            self._forward = tf.function(forward, input_signature=signature)
        return self._forward


def _before_logits(model):
    """The symbolic tensors (N, F) or (N, h, w, F) that the layers of a model's logits read."""
    from keras import layers

    from kxray.explain.head import logit_layer, split_head
    from kxray.layers.symbolic import inputs_of, made_by

    logits, _ = split_head(model)
    if made_by(logits) is not logit_layer(model):
        # The last layer is dense and has an activation: what was split off is what it reads.
        return [logits]
    found, waiting = [], [logits]
    while waiting:
        tensor = waiting.pop(0)
        operation = made_by(tensor)
        for given in inputs_of(tensor):
            if isinstance(operation, layers.Dense) or len(given.shape) == 4:
                if not any(given is other for other in found):
                    found.append(given)
            else:
                waiting.append(given)
    if not found or any(len(tensor.shape) not in (2, 4) for tensor in found):
        raise ValueError(
            f"model {model.name!r} has no features before its logits; give a run of training.fit"
        )
    return found


@dataclass(frozen=True)
class _Options:
    """Of the training of a feature model; the rest of what `training.fitting.Fitting` asks of a recipe.

    Nothing is mirrored and nothing blurred: to what is trained away the distances would be blind.
    """

    epochs: int
    seed: int
    batch_size: int = 32
    patience: int = 0
    learning_rate: float = 1e-3
    learning_rate_decay: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.05
    flips: str = "none"
    rotation: float = 10.0
    shift: float = 0.05
    zoom: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.2
    blur: float = 0.0


def train_feature_model(
    conditions,
    inputs,
    rows_train,
    rows_val,
    folder,
    *,
    backbone="densenet121",
    epochs=30,
    seed=0,
    progress=None,
) -> FeatureModel:
    """Trains a softmax classifier of the conditions, of balanced classes, or finds it finished in its folder.

    The weights of the lowest validation loss are kept. A killed call goes on where it was.

    Args:
        conditions: with `classes` int (N,) and `labels`, such as `kxray.data.conditions.Conditions`; patients
            are those of its table, where it has one.
        inputs: `kxray.data.pipeline.NetworkInputs` or ArrayInputs of the N films, (h, w, 1) in [0, 1].
        rows_train, rows_val: positions of films; the distances are to be measured on none of `rows_train`.
        folder: its own; afterwards with model.keras, spec.json and history.csv, as a run has them.
        backbone: of `kxray.models.build("multiscale_densenet")`.
        epochs: passes over the training films.
        seed: of the weights, and of the order and augmentation of films.
        progress: rich progress with a `facts` field, or None.

    Returns:
        FeatureModel; `validation` has its AUROC by class (also in the provenance of spec.json).

    Raises:
        ValueError: films in both parts, a part or a class without training films, or a folder with a model of
            other films or options.
    """
    classes, labels = np.asarray(conditions.classes), tuple(conditions.labels)
    rows_train, rows_val = (np.asarray(rows, np.int64) for rows in (rows_train, rows_val))
    _check_rows(classes, labels, rows_train, rows_val)
    folder = Path(folder)
    facts = {
        "backbone": backbone,
        "epochs": epochs,
        "seed": seed,
        "films": {"train": len(rows_train), "validation": len(rows_val)},
        "fingerprint": _fingerprint(classes, labels, rows_train, rows_val, inputs.shape),
    }
    if (folder / "spec.json").exists():
        found = FeatureModel.load(folder)
        other = [name for name, fact in facts.items() if found.spec.provenance.get(name) != fact]
        if other:
            raise ValueError(
                f"{folder} holds a feature model of other {' and '.join(other)}; choose another folder, or "
                "remove it"
            )
        return found
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    options = _Options(epochs, seed)
    fitting = _fitting(options, classes, labels, inputs, backbone, folder, progress)
    model, history = fitting.train("work/feature_model", "feature model", rows_train, rows_val, seed)
    return _kept(model, fitting.task.spec, conditions, inputs, rows_val, folder, (facts, history, began))


def _check_rows(classes, labels, rows_train, rows_val):
    shared = np.intersect1d(rows_train, rows_val)
    if len(shared):
        raise ValueError(f"{len(shared)} films are in both the training and the validation part")
    if not len(rows_val):
        raise ValueError("the feature model is chosen by validation films, and there are none")
    counts = np.bincount(classes[rows_train], minlength=len(labels))
    if len(labels) < 2 or not counts.all():
        missing = ", ".join(label for label, count in zip(labels, counts, strict=True) if not count)
        raise ValueError(
            f"the feature model tells conditions apart: it takes two or more with training films each, got "
            f"{', '.join(labels)}" + (f", and none of {missing}" if missing else "")
        )


def _fingerprint(classes, labels, rows_train, rows_val, shape) -> str:
    digest = hashlib.sha256(repr((labels, tuple(shape))).encode())
    for values in (classes, rows_train, rows_val):
        digest.update(np.asarray(values, np.int64).tobytes() + b"\0")
    return digest.hexdigest()[:32]


def _fitting(options, classes, labels, inputs, backbone, folder, progress):
    from kxray import models
    from training import augmentation, shell
    from training.fitting import Fitting
    from training.optimizer import warm_adamw
    from training.task import ClassifierTask

    if progress is None:
        from rich.console import Console

        progress = shell.progress_bars(Console(quiet=True, highlight=False, markup=False))
    size = tuple(inputs.shape[:2])
    models.check_backbone(backbone, 1, size)

    def build(spec):
        return models.build(spec.name, num_labels=spec.num_labels, image_size=size, backbone=backbone, taps=1)

    task = ClassifierTask(
        name="feature_model",
        model="multiscale_densenet",
        kind="multiclass",
        label_column="label",
        phantom_kind="thorax",
        image_size=size,
        build=build,
        optimizer=lambda steps, model: warm_adamw(options, steps),
        augment=lambda: augmentation.film_layers(options),
        labels=labels,
    )
    films = SimpleNamespace(inputs=inputs, labels=classes)
    return Fitting(options, task, films, folder, progress, (contextlib.nullcontext, 1))


def _kept(model, spec, conditions, inputs, rows_val, folder, training):
    """The trained model with its measured scores; spec.json, written last, says that it is whole."""
    import dataclasses

    import keras

    from training import runs

    facts, history, began = training
    validation = _validation(FeatureModel(model, spec), conditions, inputs, rows_val, facts["seed"])
    best = history.loc[history["val_loss"].idxmin()]
    provenance = {
        **facts,
        "trained": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began, 1),
        "best_epoch": int(best["epoch"]),
        "validation_loss": float(best["val_loss"]),
        "validation": validation,
    }
    spec = dataclasses.replace(spec, provenance=provenance)
    runs.write_table(folder / "history.csv", history)
    with replacing(folder / "model.keras") as temporary:
        keras.Model(model.input, model.output, name=model.name).save(temporary)
    write_whole(folder / "spec.json", spec.to_json())
    shutil.rmtree(folder / "work", ignore_errors=True)
    # Of its own weights, whatever is trained next with the compiled model.
    return FeatureModel.load(folder)


def _validation(feature_model, conditions, inputs, rows, seed):
    """AUROC of each class against all others with its interval over patients, null where it has no film."""
    from kxray import metrics

    classes, labels = np.asarray(conditions.classes)[rows], feature_model.labels
    probabilities = feature_model.features_of(inputs, rows)["probabilities"].astype(float)
    table = getattr(conditions, "table", None)
    known = table is not None and "patient_id" in table
    patients = table["patient_id"].to_numpy()[rows] if known else np.arange(len(rows))
    areas = {}
    for index, label in enumerate(labels):
        own = (classes == index).astype(int)
        pair = np.stack([1 - probabilities[:, index], probabilities[:, index]], axis=1)

        def area(weights, own=own, pair=pair):
            return metrics.auroc(own, pair, 2, weights)

        low, high = metrics.patient_bootstrap(area, patients, seed=seed)
        value = float(area(np.ones(len(rows))))
        areas[label] = {"value": value, "low": low, "high": high, "films": int(own.sum())}
        areas[label] = {key: _number(number) for key, number in areas[label].items()}
    found = [score["value"] for score in areas.values() if score["value"] is not None]
    return {
        "auroc": areas,
        "mean_auroc": float(np.mean(found)) if found else None,
        "films": len(rows),
        "note": "on the validation films that also chose the epoch: a little too good",
    }


def _number(value):
    return value if isinstance(value, int) or math.isfinite(value) else None
