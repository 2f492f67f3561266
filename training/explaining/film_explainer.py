"""A trained run as one function from network inputs to maps with all that belongs to them."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

import kxray
from training import scoring
from training.predictor import check_classifier

PREDICTED, TRUE = "predicted", "true"


@dataclasses.dataclass(frozen=True)
class FilmExplanation:
    """Why one film got its answer.

    Attributes:
        label: the class whose map it is, an index into the spec's labels.
        probabilities: float32 (L,), calibrated.
        heatmap: float32 (h, w), signed and raw: positive where the film speaks for `label`.
        details: what the method adds for this film, such as stage_maps (S, h, w), relevance_weights (S,) and
            stage_names (S,).
    """

    label: int
    probabilities: np.ndarray
    heatmap: np.ndarray
    details: dict


class FilmExplainer:
    """Explains with a run folder or a .keras file.

    Args:
        run: see `kxray.load`.
        method: one of `kxray.explain.METHODS`; None for the first that suits the model.
        target: a label, "predicted", or "true": the film's own label where it is known, else the predicted
            one. Of findings the most probable one is explained; with "true" of those that the film has, if
            any.

    Attributes:
        spec: the model's ModelSpec.
        digest: SHA-256 over the model's files.

    Raises:
        FileNotFoundError, ValueError: no such run, a method that is unknown or does not fit the model, a
            target that is none of its labels.
    """

    def __init__(self, run, method, target=PREDICTED):
        from kxray import explain

        if method is not None and method not in explain.METHODS:
            raise ValueError(
                f"unknown method {method!r}; the known ones are: {', '.join(sorted(explain.METHODS))}"
            )
        model, self.spec = load_checked(run)
        self.method = method or explain.default_methods(model)[0]
        if target not in (*self.spec.labels, PREDICTED, TRUE):
            raise ValueError(
                f"unknown target {target!r}; expected {PREDICTED}, {TRUE} or one of the labels: "
                f"{', '.join(self.spec.labels)}"
            )
        self.target = target
        self._logits = scoring.traced_logits(model, self.spec)
        build = explain.binary_explainer if self.spec.task == "binary" else explain.detailed_explainer
        self._explain = build(model, self.method)
        self.digest = model_digest(run)

    def __call__(self, pixels, truths):
        """Explains a batch.

        Args:
            pixels: float32 (N, h, w, 1), network inputs.
            truths: N labels, "" where unknown; findings joined by `|`.

        Returns:
            list of N FilmExplanation.
        """
        import tensorflow as tf

        wanted = self._wanted(pixels, truths)
        results = self._explain(
            tf.constant(np.asarray(pixels, np.float32)), tf.constant(np.array(wanted, np.int32))
        )
        results = {name: value.numpy() for name, value in results.items()}
        probabilities = self._probabilities(results.pop("logits"))
        # Pixel methods give one map a channel.
        maps = results.pop("heatmap").sum(axis=-1)
        explained = []
        for film, index in enumerate(wanted):
            label = int(probabilities[film].argmax()) if index < 0 else index
            details = {name: _plain(value[film]) for name, value in results.items()}
            explained.append(FilmExplanation(label, probabilities[film], maps[film], details))
        return explained

    def _wanted(self, pixels, truths):
        """The label to explain of each film, an index; -1 for the predicted one."""
        labels = self.spec.labels
        if self.target in labels:
            return [labels.index(self.target)] * len(truths)
        if self.target != TRUE:
            return [-1] * len(truths)
        if self.spec.task != "multilabel":
            return [labels.index(truth) if truth in labels else -1 for truth in truths]
        logits = self._logits(np.asarray(pixels, np.float32)).numpy()
        there = np.array([[label in truth.split("|") for label in labels] for truth in truths])
        return np.where(there.any(axis=1), np.where(there, logits, -np.inf).argmax(axis=1), -1).tolist()

    def _probabilities(self, logits):
        return scoring.calibrated(logits, self.spec).astype(np.float32)


def _plain(value):
    """TensorFlow's byte strings as text."""
    if value.dtype.kind in "OS":
        return np.array([text.decode("utf-8") for text in value.tolist()])
    return value


def load_checked(run):
    """(model, spec) of `kxray.load`, with as many output units as the spec needs, else ValueError."""
    model, spec = kxray.load(run)
    check_classifier(spec, run)
    needed = 1 if spec.task == "binary" else spec.num_labels
    units = model.outputs[0].shape[-1]
    if units != needed:
        raise ValueError(
            f"{run}: the model has {units} output units, a {spec.task} spec with {spec.num_labels} labels "
            f"needs {needed}"
        )
    return model, spec


def model_digest(run):
    """SHA-256 of a run's model and spec: tells one model from another."""
    model = Path(run) / "model.keras" if Path(run).is_dir() else Path(run)
    digest = hashlib.sha256()
    for file in (model, model.with_name("spec.json")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
