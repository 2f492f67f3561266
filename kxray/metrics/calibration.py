"""Probabilities that mean what they say, and the thresholds that act on them."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

# Standard deviation of the prior on log T. A few dozen films that are all classified right would otherwise
# send T to zero, and the model would be certain of everything.
_LOG_TEMPERATURE_SPREAD = 0.5
# Above 0 in float32, too.
_SMALLEST = float(np.finfo(np.float32).tiny)


def fit_temperature(logits, labels):
    """Fits the temperature T that divides the logits (Guo et al., 2017), with a weak prior around T = 1.

    Minimises sum(-log likelihood) + (log T / 0.5)^2 / 2: T stays near 1 where films are too few to say.

    Args:
        logits: float (N, 1) of a one-unit sigmoid model, or (N, L) of a softmax model; held-out films. Of
            findings (N, L), one sigmoid each: they share the temperature.
        labels: int (N,); of findings float (N, L): 1, 0 or NaN (unknown).

    Returns:
        float T > 0; divide logits by it.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    if not len(logits):
        return 1.0

    def cost(log_temperature):
        scaled = logits / np.exp(log_temperature)
        if labels.ndim == 2:
            likelihood = log_expit(np.where(labels == 1, scaled, -scaled))[np.isfinite(labels)]
        elif logits.shape[1] == 1:
            likelihood = log_expit(np.where(labels == 1, scaled[:, 0], -scaled[:, 0]))
        else:
            likelihood = log_softmax(scaled, axis=1)[np.arange(len(labels)), labels]
        return -likelihood.sum() + 0.5 * (log_temperature / _LOG_TEMPERATURE_SPREAD) ** 2

    return float(np.exp(minimize_scalar(cost, bounds=(-3, 3), method="bounded").x))


def reliability_curve(probabilities, labels, bins=10):
    """How often the chosen label is right, by stated confidence; of findings, how often each is there.

    Args:
        probabilities: float (N, L).
        labels: int (N,); of findings float (N, L): 1, 0 or NaN (unknown). Then each pair of a film and a
            finding is counted, by the stated probability of that finding.
        bins: number of equal-width bins over [0, 1].

    Returns:
        dict of arrays (bins,): confidence (mean, NaN in an empty bin), accuracy, films.
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    if labels.ndim == 2:
        known = np.isfinite(labels)
        return _binned(probabilities[known], labels[known], bins)
    return _binned(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def _binned(confidence, correct, bins):
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    films = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        return {
            "confidence": np.bincount(which, confidence, bins) / films,
            "accuracy": np.bincount(which, correct, bins) / films,
            "films": films,
        }


def expected_calibration_error(probabilities, labels, bins=10):
    """Mean gap between confidence and accuracy over the bins, weighted by films (Naeini et al., 2015).

    Arguments are those of `reliability_curve`.
    """
    curve = reliability_curve(probabilities, labels, bins)
    filled = curve["films"] > 0
    gaps = np.abs(curve["confidence"] - curve["accuracy"])[filled]
    return float(np.average(gaps, weights=curve["films"][filled]))


def decision_thresholds(probabilities, labels, label_names, largest_error=0.01, smallest=0.6):
    """For each label, the smallest probability above which at most `largest_error` of decisions err.

    Args:
        probabilities: float (N, L), calibrated, of held-out films; labels: int (N,).
        label_names: the L labels.
        largest_error: allowed share of wrong ones among the films decided for a label.
        smallest: no threshold is lower than this.

    Returns:
        dict label -> threshold in [smallest, 1], rounded to 3 decimals. Below it a film is `"unsure"`.
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    chosen = probabilities.argmax(axis=1)
    candidates = np.arange(round(smallest * 1000), 1001) / 1000
    thresholds = {}
    for index, name in enumerate(label_names):
        mine = chosen == index
        decided = probabilities[mine, index] >= candidates[:, None]
        wrong = decided & (labels[mine] != index)
        acceptable = wrong.sum(axis=1) <= largest_error * decided.sum(axis=1)
        thresholds[name] = float(candidates[acceptable.argmax()]) if acceptable.any() else 1.0
    return thresholds


def youden_thresholds(probabilities, truths, names):
    """For each finding, the threshold of the largest sensitivity + specificity - 1 (Youden, 1950).

    Args:
        probabilities: float (N, L), calibrated, of held-out films.
        truths: float (N, L): 1, 0 or NaN (unknown).
        names: the L findings.

    Returns:
        dict finding -> threshold in (0, 1), midway between two stated probabilities; of equally good ones the
        lowest, which is the most sensitive. 0.5 where the films show only one side of a finding.
    """
    probabilities, truths = np.asarray(probabilities, dtype=float), np.asarray(truths, dtype=float)
    thresholds = {}
    for index, name in enumerate(names):
        stated = np.unique(probabilities[np.isfinite(truths[:, index]), index])
        candidates = (stated[1:] + stated[:-1]) / 2
        missed, cleared = (
            np.searchsorted(np.sort(probabilities[truths[:, index] == side, index]), candidates)
            for side in (1, 0)
        )
        positives, negatives = ((truths[:, index] == side).sum() for side in (1, 0))
        if not (positives and negatives and len(candidates)):
            thresholds[name] = 0.5
            continue
        # In whole numbers, so that equally good ones are equal.
        thresholds[name] = float(candidates[np.argmax(cleared * positives - missed * negatives)])
    return thresholds


def sensitivity_thresholds(probabilities, truths, names, sensitivity):
    """For each finding, a threshold that finds a chosen share of the films that have it, and few others.

    Args:
        probabilities: float (N, L), calibrated, of held-out films.
        truths: float (N, L): 1, 0 or NaN (unknown).
        names: the L findings.
        sensitivity: share in (0, 1].

    Returns:
        dict finding -> threshold in (0, 1], midway between the highest stated probability that finds so many
        and the next lower one of any film, or 0; 0.5 where no film has the finding. Above 0 even where a film
        that must be found was given a probability of 0, so that not all films are found.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, got {sensitivity}")
    probabilities, truths = np.asarray(probabilities, dtype=float), np.asarray(truths, dtype=float)
    thresholds = {}
    for index, name in enumerate(names):
        found = np.sort(probabilities[truths[:, index] == 1, index])[::-1]
        if not len(found):
            thresholds[name] = 0.5
            continue
        # Tiny, so that 0.9 of 10 films are 9.
        last = found[max(0, int(np.ceil(sensitivity * len(found) - 1e-9)) - 1)]
        lower = probabilities[np.isfinite(truths[:, index]) & (probabilities[:, index] < last), index]
        thresholds[name] = max(float((last + lower.max(initial=0.0)) / 2), _SMALLEST)
    return thresholds
