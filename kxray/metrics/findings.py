"""Scores of findings that may occur together, with intervals that respect patients."""

import math

import numpy as np

from kxray.metrics.classification import auroc, wilson_interval

# Resampled films that are weighed at once.
_MOST_WEIGHTS = 1 << 23


def average_precision(positive, scores, weights=None):
    """Area under the precision-recall curve, as a sum over steps: sum of (R_n - R_(n-1)) P_n.

    Args:
        positive: bool (N,).
        scores: float (N,); any that rise with the belief in a finding. Equal scores make one step, as in
            scikit-learn.
        weights: float (N,), or (B, N) for B re-weighted copies of the set at once.

    Returns:
        float, or float (B,); NaN where no film is positive.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, dtype=float)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(-scores[order], prepend=np.nan) != 0)
    if not len(starts):
        return np.full(weights.shape[:-1], math.nan)[()]
    hits, films = (
        np.add.reduceat((weights * members)[..., order], starts, axis=-1)
        for members in (positive, np.ones(len(scores)))
    )
    called = np.cumsum(films, axis=-1)
    with np.errstate(invalid="ignore"):
        precision = np.cumsum(hits, axis=-1) / np.where(called > 0, called, 1.0)
        return (hits * precision).sum(-1) / hits.sum(-1)


def finding_scores(truths, probabilities, patients, names, *, decided=None, resamples=1000, seed=0):
    """The scores of one set of films, finding by finding and on average, with 95% intervals.

    A film counts for the findings that are known of it.

    Args:
        truths: float (N, L): 1, 0 or NaN (unknown).
        probabilities: float (N, L); NaN leaves a film out.
        patients: (N,), whole patients are resampled (see `kxray.metrics.patient_bootstrap`).
        names: the L findings.
        decided: bool (N, L), whether a finding is said to be there; without it there is no sensitivity.
        resamples, seed: of the bootstrap.

    Returns:
        dict: films, patients; auroc and average_precision, means over the findings for which the films define
        both (each {value, low, high}, NaN for none); findings, by name: positive, negative, unknown (films),
        auroc, average_precision and, with `decided`, sensitivity and specificity (Wilson interval over
        films). A draw without a film of a finding does not count for its interval, and that of the means goes
        by the other findings then.
    """
    truths, probabilities = np.asarray(truths, dtype=float), np.asarray(probabilities, dtype=float)
    if truths.shape != probabilities.shape or truths.shape != (len(patients), len(names)):
        raise ValueError(
            f"expected truths and probabilities ({len(patients)}, {len(names)}), one row a film and one "
            f"column a finding; got {truths.shape} and {probabilities.shape}"
        )
    known = np.isfinite(truths) & np.isfinite(probabilities)

    def ranked(weights):
        """Float (2, B, L): AUROC and average precision of B re-weighted copies."""
        columns = []
        for index in range(len(names)):
            rows = known[:, index]
            positive, scores = truths[rows, index] == 1, probabilities[rows, index]
            own = weights[:, rows]
            area = auroc(positive.astype(int), np.stack([-scores, scores], axis=1), 2, own)
            columns.append((area, average_precision(positive, scores, own)))
        return np.moveaxis(np.array(columns), 0, -1)

    values = ranked(np.ones((1, len(truths))))[:, 0]
    draws = np.concatenate([ranked(weights) for weights in _resampled(patients, resamples, seed)], axis=1)
    defined = np.isfinite(values).all(axis=0)
    scores = {"films": len(truths), "patients": len(np.unique(np.asarray(patients)))}
    for row, score in enumerate(("auroc", "average_precision")):
        mean = values[row, defined].mean() if defined.any() else math.nan
        scores[score] = _with_interval(mean, _means(draws[row][:, defined]))
    scores["findings"] = {}
    for index, name in enumerate(names):
        positive, negative = truths[:, index] == 1, truths[:, index] == 0
        found = {
            "positive": int(positive.sum()),
            "negative": int(negative.sum()),
            "unknown": int(np.isnan(truths[:, index]).sum()),
            "auroc": _with_interval(values[0, index], draws[0, :, index]),
            "average_precision": _with_interval(values[1, index], draws[1, :, index]),
        }
        if decided is not None:
            said = np.asarray(decided, bool)[:, index]
            found["sensitivity"] = _share(said[positive])
            found["specificity"] = _share(~said[negative])
        scores["findings"][name] = found
    return scores


def _resampled(patients, resamples, seed):
    """Film weights float (b, N) of resampled patients, the draws of `patient_bootstrap` in pieces."""
    distinct, owner = np.unique(np.asarray(patients), return_inverse=True)
    shares = np.full(len(distinct), 1 / len(distinct))
    counts = np.random.default_rng(seed).multinomial(len(distinct), shares, size=resamples)
    step = max(1, _MOST_WEIGHTS // len(owner))
    for start in range(0, resamples, step):
        yield counts[start : start + step][:, owner.reshape(-1)].astype(float)


def _means(draws):
    """Mean of each draw (B, L) over the findings that it defines; NaN for none."""
    known = np.isfinite(draws)
    with np.errstate(invalid="ignore"):
        return np.where(known, draws, 0.0).sum(axis=1) / known.sum(axis=1)


def _with_interval(value, draws):
    low, high = math.nan, math.nan
    known = np.asarray(draws)[np.isfinite(draws)]
    if len(known) and 2 * len(known) >= len(draws):
        low, high = np.quantile(known, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _share(hits):
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()) if len(hits) else math.nan, "low": low, "high": high}
