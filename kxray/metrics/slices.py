"""Is the score the same for everybody? Scores slice by slice: view, sex, age, source, bit depth."""

import math

import numpy as np

from kxray.metrics.classification import auroc, balanced_accuracy, patient_bootstrap, wilson_interval
from kxray.metrics.paired import holm

SCORES = ("accuracy", "balanced_accuracy", "auroc")
UNKNOWN = "unknown"
# With fewer films of a label than this, resampling says nothing about the spread of an AUROC.
_FEWEST_OF_A_LABEL = 5


def slice_scores(labels, probabilities, groups, slices, label_names, *, smallest=10, seed=0) -> list[dict]:
    """Scores every slice of a set of films, and says which differ from the whole.

    Intervals have 95% coverage and respect groups. Accuracy: Wilson's (1927) where every film is its own
    group, else resampled groups; where no draw differs (all or none are right), which resampling takes for
    certainty, Wilson's with a trial a group. Balanced accuracy: resampled groups; where every film is its own
    group, or all or none of a label are right, the intervals of the labels combined (MOVER, Zou & Donner,
    2008). AUROC: resampled groups. NaN where resampling cannot tell: a single group, an AUROC of 1.

    Args:
        labels: int (N,), indices into `label_names`.
        probabilities: float (N, L); the largest is the decision.
        groups: (N,), patients, or whatever else must not be torn apart.
        slices: dict name -> values (N,) of any kind; None, NaN and "" are the value "unknown".
        label_names: the L labels.
        smallest: a slice of fewer groups is scored, but not compared with the rest.
        seed: of the draws.

    Returns:
        One dict a slice, in the order of `slices` and of sorted values ("unknown" last): slice, value, films,
        groups, by_label (label -> films), accuracy, balanced_accuracy and auroc (each {value, low, high}, NaN
        where undefined), compared, differs (names of the scores whose interval excludes that of all films),
        p (is the accuracy that of all other films? Fisher's exact test where every film is its own group,
        else the generalized score test of Boos, 1992, over groups; NaN where not compared) and p_holm, p
        adjusted for as many slices as were compared.

    Raises:
        ValueError: arrays that do not fit each other.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    probabilities = np.asarray(probabilities, dtype=float)
    _check(labels, probabilities, groups, slices, label_names)
    if not len(labels):
        return []
    whole = _values(labels, probabilities, len(label_names))
    right = probabilities.argmax(axis=1) == labels
    rows = []
    for name, values in slices.items():
        values = np.array([_text(value) for value in values])
        for value in sorted(set(values.tolist()), key=lambda text: (text == UNKNOWN, text)):
            inside = values == value
            row = _scored(labels[inside], probabilities[inside], groups[inside], label_names, seed)
            row["compared"] = bool(row["groups"] >= smallest and not inside.all())
            row["differs"] = _excluding(row, whole) if row["compared"] else []
            row["p"] = _p_value(right, inside, groups) if row["compared"] else math.nan
            rows.append({"slice": name, "value": value, **row})
    adjusted = iter(holm([row["p"] for row in rows if row["compared"]]))
    for row in rows:
        row["p_holm"] = float(next(adjusted)) if row["compared"] else math.nan
    return rows


def _check(labels, probabilities, groups, slices, label_names):
    if probabilities.shape != (len(labels), len(label_names)) or groups.shape != labels.shape:
        raise ValueError(
            f"expected {len(label_names)} probabilities, a label and a group a film, got probabilities "
            f"{probabilities.shape}, labels {labels.shape}, groups {groups.shape}"
        )
    for name, values in slices.items():
        if len(values) != len(labels):
            raise ValueError(f"slice {name!r}: expected {len(labels)} values, one a film, got {len(values)}")


def _text(value):
    if value is None or value != value or value == "":
        return UNKNOWN
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _values(labels, probabilities, num_labels):
    decided = probabilities.argmax(axis=1)
    return {
        "accuracy": float(np.mean(decided == labels)),
        "balanced_accuracy": float(balanced_accuracy(labels, decided, num_labels)),
        "auroc": float(auroc(labels, probabilities, num_labels)),
    }


def _scored(labels, probabilities, groups, label_names, seed):
    num_labels = len(label_names)
    values = _values(labels, probabilities, num_labels)
    decided = probabilities.argmax(axis=1)

    def area(weights):
        return auroc(labels, probabilities, num_labels, weights)

    intervals = {
        "accuracy": _share_interval(decided == labels, groups, seed),
        "balanced_accuracy": _balanced_interval(labels, decided, groups, num_labels, seed),
        "auroc": _resampled(area, groups, seed),
    }
    return {
        "films": len(labels),
        "groups": len(np.unique(groups)),
        "by_label": {name: int((labels == index).sum()) for index, name in enumerate(label_names)},
        **{
            name: {"value": values[name], "low": intervals[name][0], "high": intervals[name][1]}
            for name in SCORES
        },
    }


def _resampled(statistic, groups, seed):
    low, high = patient_bootstrap(statistic, groups, seed=seed)
    return (low, high) if low < high else (math.nan, math.nan)


def _share_interval(right, groups, seed):
    num_groups = len(np.unique(groups))
    if num_groups == len(groups):
        return wilson_interval(right.sum(), len(right))
    low, high = _resampled(lambda weights: (weights * right).sum(-1) / weights.sum(-1), groups, seed)
    if math.isfinite(low):
        return low, high
    return wilson_interval(round(num_groups * right.mean()), num_groups)


def _balanced_interval(labels, decided, groups, num_labels, seed):
    members = [labels == label for label in range(num_labels)]
    if not all(of_label.any() for of_label in members):
        return math.nan, math.nan
    recalls = np.array([np.mean(decided[of_label] == label) for label, of_label in enumerate(members)])
    single = len(np.unique(groups)) == len(groups)
    if not single and ((recalls > 0) & (recalls < 1)).all():
        return _resampled(
            lambda weights: balanced_accuracy(labels, decided, num_labels, weights), groups, seed
        )
    low, high = np.transpose(
        [
            _share_interval(decided[of_label] == label, groups[of_label], seed)
            for label, of_label in enumerate(members)
        ]
    )
    below, above = (np.sqrt(np.sum((recalls - ends) ** 2)) / num_labels for ends in (low, high))
    return float(recalls.mean() - below), float(recalls.mean() + above)


def _excluding(row, whole):
    enough = min(row["by_label"].values()) >= _FEWEST_OF_A_LABEL
    return [
        name
        for name in SCORES
        if (name != "auroc" or enough) and not _holds(row[name]["low"], whole[name], row[name]["high"])
    ]


def _holds(low, value, high):
    # What is undefined excludes nothing; ends of an interval are rounded.
    return not (value < low - 1e-9 or value > high + 1e-9)


def _p_value(right, inside, groups):
    from scipy.stats import fisher_exact, norm

    if len(np.unique(groups)) == len(groups):
        counts = [[np.sum(right & part), np.sum(~right & part)] for part in (inside, ~inside)]
        return float(fisher_exact(counts)[1])
    parts = (right - right.mean()) * np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
    _, owner = np.unique(groups, return_inverse=True)
    sums = np.bincount(owner.reshape(-1), parts)
    spread = math.sqrt(np.sum(sums**2))
    return float(2 * norm.sf(abs(sums.sum()) / spread)) if spread > 0 else 1.0
