"""A trained model as one function from pixels to calibrated probabilities, whatever it is stored as."""

import hashlib
from pathlib import Path

import numpy as np

import kxray
from kxray.spec import DECIDING_TASKS
from training import scoring


class Predictor:
    """Predicts with a run folder, a .keras file, a SavedModel version, or a folder of such versions.

    Args:
        path: where the model is. A relative path that is not there is also looked for beside the installed
            package, where `saved_models/view_classifier/1` is shipped.

    Attributes:
        spec: the model's ModelSpec.
        path: where it was found.

    Raises:
        FileNotFoundError, ValueError: nothing that can be read as a model.
    """

    def __init__(self, path):
        self.path = _find(path)
        if (self.path / "saved_model.pb").is_file():
            self.spec, self._predict = _saved_model(self.path)
        else:
            self.spec, self._predict = _keras_model(self.path)

    @property
    def digest(self) -> str:
        """SHA-256 over the model's files; tells one model from another."""
        files = (
            sorted(self.path.rglob("*"))
            if (self.path / "saved_model.pb").is_file()
            else _keras_files(self.path)
        )
        digest = hashlib.sha256()
        for file in files:
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()

    def __call__(self, pixels) -> np.ndarray:
        """Probabilities (N, L), ordered as `spec.labels`, of float32 (N, h, w, 1) network inputs."""
        return self._predict(np.asarray(pixels, np.float32))


def check_classifier(spec, path) -> None:
    """Raises ValueError for the spec of a model that makes or changes films, which classifies nothing."""
    if spec.task not in DECIDING_TASKS:
        remedy = ", or make films with training.generate" if spec.task == "generator" else ""
        raise ValueError(f"{path}: {spec.name!r} makes films, it classifies none; give a classifier{remedy}")


def _find(path):
    path = Path(path)
    if not path.exists() and not path.is_absolute():
        shipped = Path(kxray.__file__).resolve().parent.parent / path
        path = shipped if shipped.exists() else path
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such model; expected a run folder, a .keras file or a SavedModel"
        )
    versions = [int(child.name) for child in path.iterdir() if child.name.isdigit()] if path.is_dir() else []
    return path / str(max(versions)) if versions else path


def _keras_files(path):
    model = path / "model.keras" if path.is_dir() else path
    return [model, model.with_name("spec.json")]


def _saved_model(path):
    import tensorflow as tf

    spec_path = path / "assets.extra" / "spec.json"
    if not spec_path.is_file():
        raise ValueError(f"{path}: a SavedModel without {spec_path.name}; export it with serving.export")
    check_classifier(kxray.ModelSpec.read(spec_path), path)
    try:
        loaded = tf.saved_model.load(str(path))
        signature = loaded.signatures["predict_pixels"]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"{path}: not a SavedModel of serving.export: {str(error).splitlines()[0]}"
        ) from error

    def predict(pixels):
        return signature(pixels=tf.constant(pixels))["probabilities"].numpy()

    predict.keeps_alive = loaded
    return kxray.ModelSpec.read(spec_path), predict


def _keras_model(path):
    model, spec = kxray.load(path)
    check_classifier(spec, path)
    logits_of = scoring.traced_logits(model, spec)

    def predict(pixels):
        return scoring.calibrated(logits_of(pixels).numpy(), spec)

    return spec, predict
