"""What says how the chest lies on a film: classical registration or a network, behind one call.

Both take films (N, h, w) of their own `shape` and give (Similarity, confidence, reason to refuse it or "").
"""

import hashlib

import numpy as np

from kxray.data import registration
from kxray.data.similarity import Similarity

_TURNS = {1: "on its side", 2: "upside down", 3: "on its side"}
# A turned film must be better by so much, lest noise decide for films that are no chests either way.
_CLEARLY = 0.05
_BATCH = 32


def aligner_of(by, workers=None):
    """The aligner for a `kxray.data.Template` or a keras.Model of square films; ValueError for all else."""
    if isinstance(by, registration.Template):
        return Classical(by, workers)
    outputs = getattr(by, "output", None)
    if callable(by) and isinstance(outputs, dict) and {"pose", "confidence"} <= set(outputs):
        height, width = by.input_shape[1:3]
        if height != width:
            raise ValueError(
                f"films are aligned as squares, this aligner takes films of {height} x {width} pixels; train "
                "one of square films"
            )
        return Network(by)
    raise ValueError(
        "films are aligned by a Template of kxray.data.build_template or by a model of "
        f"kxray.models.load_aligner, got {type(by).__name__}"
    )


class Classical:
    """Registration with a template; see `kxray.data.registration`."""

    kind = "classical"

    def __init__(self, template, workers=None):
        self.template, self.workers = template, workers
        self.shape = template.pixels.shape
        content = np.ascontiguousarray(template.contrast).tobytes() + np.float64(template.threshold).tobytes()
        self.digest = hashlib.sha256(content).hexdigest()

    def __call__(self, films, least):
        poses, scores = registration.register(films, self.template, workers=self.workers)
        confidences = registration.confidence(scores, self.template)
        turned = registration.turned_scores(films, self.template)
        # Turned the right way round, it must be a chest: much else looks likelier when it is turned.
        chests = turned.max(axis=1) >= self.template.threshold
        ways = np.where(chests & (turned.max(axis=1) > turned[:, 0] + _CLEARLY), turned.argmax(axis=1), 0)
        confidences = np.where(ways > 0, 0.0, confidences)
        return [
            (Similarity.from_pose(pose), confidence, _reason(way, confidence, least))
            for pose, confidence, way in zip(poses, confidences, ways, strict=True)
        ]


class Network:
    """A trained aligner; see `kxray.models.load_aligner`."""

    kind = "network"

    def __init__(self, model):
        self.model = model
        self.shape = tuple(model.input_shape[1:3])
        digest = hashlib.sha256()
        for weights in model.get_weights():
            digest.update(np.ascontiguousarray(weights).tobytes())
        self.digest = digest.hexdigest()

    def __call__(self, films, least):
        poses, confidences = find_poses(self.model, films)
        sound = np.isfinite(poses).all(axis=1) & np.isfinite(confidences)
        poses, confidences = np.where(sound[:, None], poses, 0), np.where(sound, confidences, 0)
        ways = np.zeros(len(films), int)
        doubtful = np.flatnonzero(confidences < least)
        if len(doubtful):
            ways[doubtful] = self._way(films[doubtful], confidences[doubtful], least)
        return [
            (Similarity.from_pose(pose), confidence, _reason(way, confidence, least))
            for pose, confidence, way in zip(poses, confidences, ways, strict=True)
        ]

    def _way(self, films, confidences, least):
        """Whether refused films would be taken turned: 0, 1 (on the side) or 2 (upside down)."""
        ways, best = np.zeros(len(films), int), np.maximum(confidences + _CLEARLY, least)
        for turns in (2, 1, 3):
            _, turned = find_poses(self.model, np.rot90(films, turns, axes=(1, 2)))
            ways, best = np.where(turned > best, turns, ways), np.maximum(best, turned)
        return ways


def find_poses(model, films) -> tuple:
    """(poses float32 (N, 4), confidences float32 (N,)) that an aligner finds on films (N, h, w), N > 0."""
    found = [
        model.predict_on_batch(np.ascontiguousarray(films[start : start + _BATCH])[..., None])
        for start in range(0, len(films), _BATCH)
    ]
    return tuple(
        np.concatenate([np.asarray(answers[name], np.float32) for answers in found])
        for name in ("pose", "confidence")
    )


def _reason(way, confidence, least):
    if way:
        return f"it lies {_TURNS[int(way)]}; turn it and align it again"
    if confidence < least:
        return f"not like the upright frontal chests (confidence {confidence:.2f}, {least:g} is asked for)"
    return ""
