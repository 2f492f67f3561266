"""Scores of a classifier, with intervals that respect patients."""

import math

import numpy as np
from sklearn import metrics


def confusion(labels, predictions, num_labels):
    """Counts (num_labels, num_labels): rows are the true labels, columns the predicted ones."""
    return metrics.confusion_matrix(labels, predictions, labels=np.arange(num_labels))


def balanced_accuracy(labels, predictions, num_labels, weights=None):
    """Mean recall over the labels; NaN where a label has no film.

    Args:
        labels, predictions: int (N,).
        num_labels: number of labels.
        weights: float (N,), or (B, N) for B re-weighted copies of the set at once.

    Returns:
        float, or float (B,).
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    recalls = []
    for label in range(num_labels):
        members = labels == label
        with np.errstate(invalid="ignore"):
            recalls.append(
                (weights * (members & (predictions == label))).sum(-1) / (weights * members).sum(-1)
            )
    return np.mean(recalls, axis=0)


def auroc(labels, probabilities, num_labels, weights=None):
    """Area under the ROC curve: of the last label for two labels, else the one-against-rest mean.

    Args:
        labels: int (N,).
        probabilities: float (N, num_labels); any scores that rise with the belief in a label.
        num_labels: number of labels.
        weights: float (N,), or (B, N) for B re-weighted copies of the set at once.

    Returns:
        float, or float (B,); NaN where a label, or all the others, have no film. Equal scores count half
        (Mann & Whitney, 1947), as in scikit-learn.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    told_apart = [1] if num_labels == 2 else range(num_labels)
    return np.mean([_area(labels == label, probabilities[:, label], weights) for label in told_apart], axis=0)


def _area(positive, scores, weights):
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    if not len(starts):
        return np.full(weights.shape[:-1], math.nan)[()]
    gains, losses = (
        np.add.reduceat((weights * members)[..., order], starts, axis=-1) for members in (positive, ~positive)
    )
    below = np.cumsum(losses, axis=-1) - losses / 2
    with np.errstate(invalid="ignore"):
        return (gains * below).sum(-1) / (gains.sum(-1) * losses.sum(-1))


def patient_bootstrap(statistic, patients, resamples=1000, level=0.95, seed=0):
    """Percentile interval of a statistic over resampled patients (Efron & Tibshirani, 1993, ch. 13).

    Films of one patient are not independent, so whole patients are drawn with replacement.

    Args:
        statistic: function of film weights float (B, N) -> float (B,), NaN where it is undefined.
        patients: patient of each film, (N,).
        resamples: number of draws.
        level: coverage, in (0, 1).
        seed: of the draws.

    Returns:
        (low, high); (nan, nan) if fewer than half of the draws define the statistic.
    """
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = owner.max() + 1
    random = np.random.default_rng(seed)
    counts = random.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=resamples)
    values = np.asarray(statistic(counts[:, owner].astype(float)), dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < resamples / 2:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(successes, trials, level=0.95):
    """Interval of a proportion that stays honest at 0 and 1 (Wilson, 1927). (nan, nan) without trials."""
    if not trials:
        return math.nan, math.nan
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def classification_scores(labels, probabilities, patients, label_names, resamples=1000, seed=0):
    """The scores of one set of films with 95% intervals.

    Args:
        labels: int (N,), indices into `label_names`.
        probabilities: float (N, L).
        patients: (N,), for the bootstrap.
        label_names: the L labels.

    Returns:
        dict: films, patients, accuracy, balanced_accuracy and auroc (each {value, low, high}; intervals by
        patient-resampled bootstrap), recall by label (Wilson interval over films), confusion.
        AUROC is that of the last label for two labels, else the one-against-rest mean.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=float)
    num_labels = len(label_names)
    predictions = probabilities.argmax(axis=1)
    correct = predictions == labels

    def accuracy(weights):
        return (weights * correct).sum(-1) / weights.sum(-1)

    def balanced(weights):
        return balanced_accuracy(labels, predictions, num_labels, weights)

    def area(weights):
        return auroc(labels, probabilities, num_labels, weights)

    scores = {"films": len(labels), "patients": len(np.unique(np.asarray(patients)))}
    for name, statistic in (("accuracy", accuracy), ("balanced_accuracy", balanced), ("auroc", area)):
        low, high = patient_bootstrap(statistic, patients, resamples, seed=seed)
        scores[name] = {"value": float(statistic(np.ones((1, len(labels))))[0]), "low": low, "high": high}
    counts = confusion(labels, predictions, num_labels)
    scores["recall"] = {}
    for index, name in enumerate(label_names):
        hits, trials = int(counts[index, index]), int(counts[index].sum())
        low, high = wilson_interval(hits, trials)
        scores["recall"][name] = {
            "value": hits / trials if trials else math.nan,
            "low": low,
            "high": high,
            "films": trials,
        }
    scores["confusion"] = counts.tolist()
    return scores
