"""The columns of a table of counterfactuals: what each score is, and how films are scored and summed up."""

import numpy as np

from kxray import metrics
from kxray.metrics.counterfactual import CHANGED
from training.explaining.map_metrics import Metric

RADIUS, DRAWS = CHANGED, 3
TIMES = tuple(step / 10 for step in range(11))
ASKED, KEPT = "counterfactual", "needless"
# Of films whose label is to change, and of films that have what is asked for.
SCORES = {
    "flip_rate": Metric(
        "flip rate",
        ASKED,
        "high",
        "share of films of which the classifier says what was asked for after the change and did not before; "
        "films of which it said so already are left out, here and in the next columns",
        "Mothilal et al., 2020",
    ),
    "wanted_after": Metric(
        "probability after",
        ASKED,
        "",
        "calibrated probability of what was asked for, of the counterfactual; far beyond the threshold is no "
        "merit",
        "",
    ),
    "label_drift": Metric(
        "other labels",
        ASKED,
        "low",
        "mean change of the probabilities of all labels that nobody asked to change; of labels that exclude "
        "each other the one asked for and the one it replaces do not count",
        "",
    ),
    "mean_change": Metric("mean |y - x|", ASKED, "low", "over all pixels, in grey values of 0 to 1", ""),
    "needless_change": Metric(
        "without need",
        KEPT,
        "low",
        "mean |y - x| of films that have by their true labels what is asked for: nothing needs to change",
        "Siddiquee et al., 2019",
    ),
    "changed_share": Metric(
        "pixels changed",
        ASKED,
        "low",
        f"share of the pixels that differ by more than {CHANGED}, about 5 of 255 grey values",
        "",
    ),
    "sparseness": Metric(
        "sparseness", ASKED, "", "Gini index of |y - x|; 0: all pixels alike, 1: one pixel", ""
    ),
    "monotonicity": Metric(
        "monotone path",
        ASKED,
        "high",
        "net rise of the probability asked for over all of its rise and fall on the straight line from x to "
        "y; 1: it never falls on the way",
        "",
    ),
    "noise_robustness": Metric(
        "outlasts noise",
        ASKED,
        "high",
        f"share of {DRAWS} copies of y with uniform noise within {RADIUS} that are still answered as asked; "
        "a change that is adversarial noise does not last",
        "",
    ),
    "reconstruction_error": Metric(
        "lost before",
        ASKED,
        "low",
        "mean |x' - x| of the film x' that an autoencoder gives back, to which the change is made",
        "",
    ),
    "turned_before": Metric(
        "turned before",
        ASKED,
        "low",
        "share of films of which the classifier says what was asked for of x' already: what the autoencoder "
        "lost turned the answer, and nothing is explained",
        "",
    ),
}


def film_scores(made, spec, predict, before, numbers, seed) -> dict:
    """The scores of counterfactuals, film by film.

    Args:
        made: `kxray.explain.Counterfactuals` of N films.
        spec: ModelSpec of the classifier.
        predict: function from films float32 (n, h, w, 1) to calibrated probabilities (n, L).
        before: float (N, L), calibrated probabilities of the films.
        numbers: (N,), of the films, so that their noise does not depend on batches.
        seed: of the noise.

    Returns:
        dict of float (N,): the columns of `SCORES`, NaN where they do not apply: flip_rate is 1 or 0, and
        needless_change is mean_change; and wanted_before.
    """
    from kxray.explain.targets import other_labels, reached, wanted_probability

    targets = made.targets
    said = reached(spec, before, targets)

    def wanted(films):
        return wanted_probability(spec, predict(films), targets)

    changed = metrics.mean_change(made.films, made.counterfactuals)
    lost = metrics.mean_change(made.films, made.reference)
    return {
        "wanted_before": wanted_probability(spec, before, targets),
        "flip_rate": metrics.flipped(said, made.reached(spec)),
        "wanted_after": wanted_probability(spec, made.after, targets),
        "label_drift": metrics.label_drift(before, made.after, other_labels(spec, before, targets)),
        "mean_change": changed,
        "needless_change": changed,
        "changed_share": metrics.changed_share(made.films, made.counterfactuals),
        "sparseness": metrics.sparseness(made.counterfactuals - made.films),
        "monotonicity": metrics.path_monotonicity(
            np.stack([wanted(made.along(time)) for time in TIMES], axis=1)
        ),
        "noise_robustness": metrics.noise_robustness(
            lambda films: reached(spec, predict(films), targets),
            made.counterfactuals,
            RADIUS,
            DRAWS,
            seed=seed,
            numbers=numbers,
        ),
        # Makers that change the film itself have no such columns.
        "reconstruction_error": np.where(lost > 0, lost, np.nan),
        "turned_before": np.where(lost > 0, reached(spec, predict(made.reference), targets), np.nan),
    }


def summed_up(table, patients) -> dict:
    """The cells of one method: every score with a 95% interval over resampled patients.

    Args:
        table: a row a film, with the columns of `SCORES`, `kind` (ASKED or KEPT), `known` (whether the maker
            knows the target) and `needs` (whether the classifier does not say it yet).
        patients: (rows,).

    Returns:
        dict of `kxray.metrics.summarise`; the interval of the flip rate is the wider one of that and of
        Wilson's over films: resampled patients say nothing of a rate of 0 or 1.
    """
    cells = {}
    known = table["known"].to_numpy() == 1
    asked = known & (table["kind"] == ASKED).to_numpy() & (table["needs"] == 1).to_numpy()
    kept = known & (table["kind"] == KEPT).to_numpy()
    for name, score in SCORES.items():
        which = asked if score.group == ASKED else kept
        cells[name] = metrics.summarise(table[name].to_numpy(float)[which], np.asarray(patients)[which])
    rate = cells["flip_rate"]
    if rate["films"]:
        low, high = metrics.wilson_interval(round(rate["value"] * rate["films"]), rate["films"])
        rate |= {"low": min(low, rate["low"]), "high": max(high, rate["high"])}
    return cells
