"""What serving.client answers with."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from kxray.io import encode_png16
from kxray.io.marks import SYNTHETIC_TEXTS


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


@dataclasses.dataclass(frozen=True, eq=False)
class Counterfactual:
    """What would have to change in a film for the model to say something else.

    All films are as the network takes them, whatever the size of the film that was sent: h x w pixels.

    Attributes:
        film: float32 (h, w) in [0, 1], bone bright: what the network saw.
        counterfactual: float32 (h, w) in [0, 1]: that film, changed. It is synthetic, and may show a patient.
        difference: float32 (h, w), signed: counterfactual - film.
        mask: float32 (h, w) in [0, 1], where the generator wanted to change the film.
        heatmap: float32 (h, w), 0 or more: mask * |residual|.
        target: what the model was to say, for example "no Effusion".
        reached: whether it says so of the counterfactual.
        prediction: its answer to the film.
        probabilities_after: of the counterfactual, by label, in the model's order.
    """

    film: np.ndarray
    counterfactual: np.ndarray
    difference: np.ndarray
    mask: np.ndarray
    heatmap: np.ndarray
    target: str
    reached: bool
    prediction: Prediction
    probabilities_after: Mapping[str, float]

    @property
    def label(self) -> str:
        """The label that the target is about."""
        labels = self.probabilities_after
        return self.target if self.target in labels else self.target.removeprefix("no ")

    def along(self, steps=5) -> tuple[np.ndarray, np.ndarray]:
        """Films on the way there.

        Returns:
            t float32 (steps,), evenly from 0 to 1; film + t * difference, float32 (steps, h, w) in [0, 1].
        """
        places = np.linspace(0, 1, steps, dtype=np.float32)
        return places, np.clip(self.film + places[:, None, None] * self.difference, 0, 1)

    @property
    def texts(self) -> dict[str, str]:
        """What a file of it must say, by keyword of a PNG text: that it is synthetic, and of what."""
        return {
            **SYNTHETIC_TEXTS,
            "Comment": "A film that a model changed; it may show a patient. Not for diagnosis.",
            "Condition": self.target,
            "Served": f"{self.prediction.model} version {self.prediction.model_version}",
        }

    def png(self) -> bytes:
        """The counterfactual as 16-bit PNG with its texts."""
        return encode_png16(self.counterfactual, self.texts)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """One version: `state` is START, LOADING, AVAILABLE, UNLOADING or END; `error` says why."""

    version: int
    state: str
    error: str
