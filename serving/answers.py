"""What serving.client answers with."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from kxray.io import encode_png16


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One film's answer.

    Attributes:
        label: the most probable label.
        decision: that label, or "unsure" where it stays under its threshold; for multi-label models the
            labels that reach theirs, joined by "|".
        probability: of `label`, in [0, 1].
        threshold: of `label`, in [0, 1].
        probabilities: probability by label, in the model's order.
        model: the model's name.
        model_version: the version that answered.
    """

    label: str
    decision: str
    probability: float
    threshold: float
    probabilities: Mapping[str, float]
    model: str
    model_version: int


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Why the model answered so.

    Attributes:
        heatmap: float32 (h, w), signed and raw: positive where the film speaks for `explained_label`.
        explained_label: the label the map is about.
        method: the explanation method asked for; empty for the model's own choice.
        prediction: the answer that came with it.
        stage_names: the S stages of a multi-scale explanation, shallow to deep; none for other methods.
        relevance_weights: float32 (S,), how much each stage counts for `explained_label`.
        stage_maps: float32 (S, h, w), each stage's own map before weighting, signed and raw: `heatmap` is the
            sum over the stages of relevance_weights * stage_maps.
        pixelwise: whether the map has a value for each pixel of the network's input.
        details: what else the method computed, by name: `completeness_error` of integrated_gradients; of
            evidence `box` (x, y, width, height in pixels of the film), `evidence_aligned`, and where the
            model aligns its films `pose` and `alignment_confidence`.
    """

    heatmap: np.ndarray
    explained_label: str
    method: str
    prediction: Prediction
    stage_names: tuple[str, ...]
    relevance_weights: np.ndarray
    stage_maps: np.ndarray
    pixelwise: bool = False
    details: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedFilm:
    """A synthetic film: it shows no patient.

    Attributes:
        pixels: float32 (S, S) in [0, 1], bone bright, of 16 bits.
        label: the class that it was made of.
        seed: the same label and seed give the same film of a version.
        model: the model's name.
        model_version: the version that made it.
        texts: what a file of it must say, by keyword of a PNG text: that it is synthetic, and of what.
    """

    pixels: np.ndarray
    label: str
    seed: int
    model: str
    model_version: int
    texts: Mapping[str, str]

    def png(self) -> bytes:
        """The film as 16-bit PNG with its texts."""
        return encode_png16(self.pixels, self.texts)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """One version: `state` is START, LOADING, AVAILABLE, UNLOADING or END; `error` says why."""

    version: int
    state: str
    error: str
