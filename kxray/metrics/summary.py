"""From the scores of films to what is reported of a set."""

import numpy as np

from kxray.metrics.classification import patient_bootstrap


def summarise(scores, patients=None, resamples=1000, seed=0):
    """The mean score of a set of films with its 95% interval; films without a score are counted, not scored.

    Args:
        scores: float (N,), NaN where a film has none.
        patients: (N,), for the bootstrap; by default every film stands for itself.
        resamples, seed: of `patient_bootstrap`.

    Returns:
        dict: value, low, high (over the films with a finite score; NaN without any), median (over all that
        are not NaN), films (with a finite score), undefined (NaN), infinite.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1:
        raise ValueError(f"expected scores (N,), got {scores.shape}")
    patients = np.arange(len(scores)) if patients is None else np.asarray(patients)
    if patients.shape != scores.shape:
        raise ValueError(f"expected one patient a film, {len(scores)}, got {patients.shape}")
    finite, undefined = np.isfinite(scores), np.isnan(scores)
    value = low = high = median = np.nan
    if finite.any():
        kept = scores[finite]
        value = kept.mean()
        low, high = patient_bootstrap(
            lambda weights: weights @ kept / weights.sum(axis=-1), patients[finite], resamples, seed=seed
        )
    if not undefined.all():
        median = np.median(scores[~undefined])
    return {
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "median": float(median),
        "films": int(finite.sum()),
        "undefined": int(undefined.sum()),
        "infinite": int(np.isinf(scores).sum()),
    }
