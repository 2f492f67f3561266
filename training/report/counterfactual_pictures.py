"""Pictures of counterfactuals: the film, what it became, the difference, the mask, and the way between them.

A page shows examples with the macros of `_counterfactuals.html.j2`, and these functions make what they take.
"""

import base64
import dataclasses
import io

import numpy as np

from training.report.plots import inline_films

# Where the way from the film to its counterfactual is looked at.
TIMES = tuple(step / 10 for step in range(11))
_RED, _BLUE, _GOLD = np.float32([0.85, 0.1, 0.1]), np.float32([0.1, 0.25, 0.9]), (0.85, 0.6, 0.0)
# Labels whose probabilities are told before and after.
_TOLD = 4


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnCounterfactual:
    """One example.

    Attributes:
        film, counterfactual: float (h, w) in [0, 1].
        difference: float (h, w), signed: what was added.
        mask: float (h, w) in [0, 1], where the film was allowed to change.
        target: name of what was asked for.
        reached: whether the classifier says it of the counterfactual.
        frames: float (K, h, w) in [0, 1], films on the way at `TIMES`.
        scores: float (K,), the classifier's probability of what was asked for, of each of them.
        labels: (name, probability before, after) of some labels, the one asked about first.
        caption: whose film it is.
        truth: bool (h, w), where the finding is, or None.
    """

    film: np.ndarray
    counterfactual: np.ndarray
    difference: np.ndarray
    mask: np.ndarray
    target: str
    reached: bool
    frames: np.ndarray
    scores: np.ndarray
    labels: tuple
    caption: str
    truth: np.ndarray | None = None


def examples_of(made, spec, probabilities_of, captions, truths=None) -> list[DrawnCounterfactual]:
    """What is drawn of counterfactuals.

    Args:
        made: `kxray.explain.Counterfactuals` of N films; take a few of them before (`made.take(rows)`).
        spec: ModelSpec of the classifier.
        probabilities_of: function from films float32 (n, h, w, 1) to calibrated probabilities (n, L).
        captions: N texts.
        truths: N bool (h, w), or None for films of which nobody knows where the finding is.
    """
    from kxray.explain.targets import reached, targets_of, wanted_probability

    targets, known = np.asarray(made.targets), targets_of(spec)
    differences = np.asarray(made.counterfactuals - made.reference)[..., 0]
    # The last frame is the counterfactual itself, whatever sums round to.
    frames = [*(np.asarray(made.along(time)) for time in TIMES[:-1]), np.asarray(made.counterfactuals)]
    scores = [wanted_probability(spec, probabilities_of(each), targets) for each in frames]
    hits = reached(spec, made.after, targets)
    examples = []
    for row, number in enumerate(targets.tolist()):
        examples.append(
            DrawnCounterfactual(
                film=np.asarray(made.films[row, ..., 0]),
                counterfactual=np.asarray(made.counterfactuals[row, ..., 0]),
                difference=differences[row],
                mask=np.asarray(made.masks[row, ..., 0]),
                target=known[number].name,
                reached=bool(hits[row]),
                frames=np.stack([each[row, ..., 0] for each in frames]),
                scores=np.array([each[row] for each in scores]),
                labels=_told_labels(spec, known[number].label, made.before[row], made.after[row]),
                caption=captions[row],
                truth=None if truths is None else truths[row],
            )
        )
    return examples


def _told_labels(spec, label, before, after):
    """The label asked about, and those of the others that moved most."""
    moved = np.abs(np.asarray(after) - np.asarray(before))
    moved[label] = np.inf
    chosen = np.argsort(-moved, kind="stable")[:_TOLD]
    return tuple((spec.labels[index], float(before[index]), float(after[index])) for index in chosen)


def for_page(example) -> dict:
    """What the macro `example` of `_counterfactuals.html.j2` takes."""
    return {
        "caption": example.caption,
        "target": example.target,
        "reached": example.reached,
        "labels": example.labels,
        "panels": panels(example),
        "strip": strip(example.frames),
        "times": [f"{time:g}" for time in TIMES],
        "scores": [f"{score:.2f}" for score in example.scores],
        "shape": example.film.shape,
    }


def panels(example) -> str:
    """Film, counterfactual, difference and mask side by side, as an inline picture.

    Red: brighter in the counterfactual; blue: darker. Full colour is the largest difference of this film,
    which stands above it. Gold: the outline of where the finding is.
    """
    from matplotlib.figure import Figure

    full = float(np.abs(example.difference).max())
    shown = (
        ("film", example.film),
        (f"counterfactual: {example.target}", example.counterfactual),
        (f"difference, up to {full:.2f}", difference_picture(example.difference)),
        (f"mask, mean {example.mask.mean():.3f}", example.mask),
    )
    height, width = example.film.shape
    tall = 2.1 * height / width
    figure = Figure(figsize=(2.1 * len(shown), tall + 0.25))
    for axis, (title, picture) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        axis.set_title(title, fontsize=8, pad=3)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#cccccc")
        if example.truth is not None and example.truth.any() and not example.truth.all():
            axis.contour(example.truth, levels=[0.5], colors=[_GOLD], linewidths=0.9)
    figure.subplots_adjust(0.003, 0.005, 0.997, 1 - 0.22 / (tall + 0.25), wspace=0.03)
    return inline_films(figure)


def difference_picture(difference, full=None) -> np.ndarray:
    """A signed difference as a colour picture: white where nothing changed, red brighter, blue darker.

    Args:
        difference: float (..., h, w).
        full: difference of full colour; None: the largest of its absolute values.

    Returns:
        uint8 (..., h, w, 3).
    """
    difference = np.asarray(difference, np.float32)
    full = float(np.abs(difference).max(initial=0)) if full is None else full
    share = np.clip(difference / full if full > 0 else np.zeros_like(difference), -1, 1)[..., None]
    ends = np.where(share >= 0, _RED, _BLUE)
    return np.round(255 * (1 - np.abs(share) * (1 - ends))).astype(np.uint8)


def strip(frames) -> str:
    """Films float (K, h, w) in [0, 1] side by side without gaps, as an inline picture: a slider's frames."""
    from PIL import Image

    joined = np.concatenate(list(np.clip(frames, 0, 1)), axis=1)
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * joined).astype(np.uint8)).save(buffer, "jpeg", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
