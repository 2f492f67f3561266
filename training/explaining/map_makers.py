"""Methods of explanation on one trained model, and baselines, as functions from films to maps."""

import numpy as np

from training import scoring
from training.explaining.film_explainer import load_checked, model_digest

RANDOM, CENTRE, FILM = "random", "centre", "film"
BASELINES = {
    RANDOM: "independent normal numbers",
    CENTRE: "a Gaussian in the middle, of a quarter of each side",
    FILM: "the film's own grey",
}
# Methods whose maps should add up to the logit.
CONSERVING = ("lrp", "rap")
INTEGRATED = "integrated_gradients"


class TrainedModel:
    """A run's model with what its spec says of it.

    Args:
        run: see `kxray.load`.

    Attributes:
        model, spec: of the run.
        digest: SHA-256 over their files.

    Raises:
        FileNotFoundError, ValueError: no such run, or a model that does not fit its spec.
    """

    def __init__(self, run):
        self.model, self.spec = load_checked(run)
        self.digest = model_digest(run)

    @property
    def one_unit(self) -> bool:
        return self.spec.task == "binary"

    def probabilities(self, images):
        """float32 (N, h, w, 1) -> calibrated probabilities (N, L)."""
        logits = scoring.traced_logits(self.model, self.spec)(np.asarray(images, np.float32)).numpy()
        return scoring.calibrated(logits, self.spec)

    def thresholds(self, labels):
        """From which probability each of these labels counts as decided; None where the likeliest one is."""
        if self.spec.task != "multilabel":
            return None
        return np.array([self.spec.threshold(self.spec.labels[label]) for label in labels])

    def decided(self, probabilities, labels):
        """Whether the model says these labels, bool (N,)."""
        thresholds = self.thresholds(labels)
        if thresholds is None:
            return probabilities.argmax(axis=1) == labels
        return probabilities[np.arange(len(labels)), labels] >= thresholds

    def units(self, labels):
        """The output unit that speaks for each label, int32 (N,), and whether for (1) or against it (-1)."""
        labels = np.asarray(labels)
        if not self.one_unit:
            return labels.astype(np.int32), np.ones(len(labels), np.float32)
        return np.zeros(len(labels), np.int32), np.where(labels == 0, -1, 1).astype(np.float32)


class MapMaker:
    """One method on one model: (images float32 (N, h, w, 1), labels int (N,)) -> maps float32 (N, h, w).

    Maps are signed and raw, positive for the label, on the grid of the images: those at feature resolution
    are resized by bilinear interpolation with half-pixel centres.

    Args:
        trained: TrainedModel.
        method: of `kxray.explain.METHODS`.

    Raises:
        ValueError: the method cannot read the model (some say so on the first call).
    """

    def __init__(self, trained, method):
        from kxray import explain

        self.method, self._trained = method, trained
        build = explain.binary_explainer if trained.one_unit else explain.detailed_explainer
        self._explain = build(trained.model, method, upsample=True)

    def refresh(self):
        """To be called when the model's weights were set: of a one-unit model it holds a copy of the last."""
        if self._trained.one_unit:
            self._explain.refresh()

    def __call__(self, images, labels):
        return self.with_completeness(images, labels)[0]

    def with_completeness(self, images, labels):
        """The maps, and |completeness error| float (N,), NaN where a map is not finite.

        None in its place, of a method that promises nothing.
        """
        from kxray import metrics

        units, signs = self._trained.units(labels)
        results = self._explain(np.asarray(images, np.float32), np.asarray(labels, np.int32))
        heatmap = results["heatmap"].numpy()
        errors = None
        if self.method in (INTEGRATED, *CONSERVING):
            finite = np.isfinite(heatmap).all(axis=(1, 2, 3))
            known = np.where(finite[:, None, None, None], heatmap, 0)
            if self.method == INTEGRATED:
                promised = known.sum(axis=(1, 2, 3), dtype=float) - results["completeness_error"].numpy()
            else:
                promised = signs * results["logits"].numpy()[np.arange(len(units)), units]
            errors = np.where(finite, np.abs(metrics.completeness_error(known, promised)), np.nan)
        # Pixel methods give one map a channel.
        return heatmap.sum(axis=-1), errors


def baseline_maps(name, images, numbers, seed):
    """Maps that know nothing of the model, float (N, h, w), see `BASELINES`.

    Args:
        name: of the baseline.
        images: float (N, h, w, 1).
        numbers: one an image, for the random maps, so that they do not depend on batches.
        seed: int.
    """
    shape = images.shape[1:3]
    if name == RANDOM:
        return np.stack([np.random.default_rng([seed, number]).standard_normal(shape) for number in numbers])
    if name == CENTRE:
        rows, columns = (((np.arange(side) + 0.5) / side - 0.5) / 0.25 for side in shape)
        blob = np.exp(-(rows[:, None] ** 2 + columns**2) / 2)
        return np.repeat(blob[None], len(images), axis=0)
    return images[..., 0].astype(float)


def reason_of(error) -> str:
    """The last line of an error's message: TensorFlow puts the trace of a graph before it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("ValueError: ") if lines else type(error).__name__
