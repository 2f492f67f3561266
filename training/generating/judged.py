"""Generated films judged by what a classifier of real ones sees: how near they are, and told apart or not."""

import math

import numpy as np

NEIGHBOURS = 5
# Of a test that a class is told apart better than by chance.
_LEVEL = 0.05
_NO_FILMS = {
    **dict.fromkeys(("value", "low", "high"), math.nan),
    **{"real": 0, "generated": 0, "reliable": False, "note": "no films of this condition"},
}


def judge(
    real_features,
    real_classes,
    fake_features,
    fake_classes,
    labels,
    *,
    seed=0,
    resamples=200,
    patients=None,
) -> dict:
    """All scores of generated films against real ones, over all conditions and one by one.

    Every class is compared at equal counts: films of the larger set are drawn by seed, for all scores alike.

    Args:
        real_features: what `FeatureModel.features` gives of real films that the model was not trained on.
        real_classes: int (N,), positions in `labels`.
        fake_features: the same of generated films.
        fake_classes: int (M,), the conditions they were made of.
        labels: names of the conditions.
        seed: of the films that are drawn, and of the intervals.
        resamples: draws of every interval; 0: none, which takes a fraction of a second.
        patients: (N,), of the real films, for the intervals; None: every film stands for itself.

    Returns:
        dict that json.dumps(allow_nan=False) takes (null for what cannot be said): `overall` and, by label,
        `classes`, each with `fdd` and `fdd_probabilities` (`kxray.metrics.fdd.fdd` of features and of
        probabilities: value, low, high, reliable, note, ...), `kid` (of features), `fidelity` (precision,
        recall, density, coverage, k; null where there are no more than k films) and `counts` (real,
        generated, compared); `told_apart` (see `told_apart`); `conditions`: resamples, seed, dimensions, and
        what the intervals are.

    Raises:
        ValueError: features and classes of different lengths, values that are not finite (the condition of
            the first such film is named), classes outside of the labels.
    """
    from kxray.metrics import equal_rows, kid
    from kxray.metrics.fdd import fdd

    labels = tuple(labels)
    real_classes, fake_classes = (
        _checked(features, classes, labels, what)
        for features, classes, what in (
            (real_features, real_classes, "real"),
            (fake_features, fake_classes, "generated"),
        )
    )
    options = {
        "classes": (real_classes, fake_classes),
        "patients": patients,
        "resamples": resamples,
        "seed": seed,
    }
    measured = {
        "fdd": fdd(real_features["features"], fake_features["features"], **options),
        "fdd_probabilities": fdd(real_features["probabilities"], fake_features["probabilities"], **options),
        "kid": kid(real_features["features"], fake_features["features"], **options),
    }
    rows = equal_rows(real_classes, fake_classes, seed)

    def scores(index):
        """Of one class, or of all."""
        these, those = (
            chosen if index is None else chosen[classes[chosen] == index]
            for chosen, classes in zip(rows, (real_classes, fake_classes), strict=True)
        )
        found = {
            name: score["overall"] if index is None else score["classes"].get(index, _NO_FILMS)
            for name, score in measured.items()
        }
        found["fidelity"] = _fidelity(real_features["features"][these], fake_features["features"][those])
        found["counts"] = {
            "real": int(len(real_classes) if index is None else (real_classes == index).sum()),
            "generated": int(len(fake_classes) if index is None else (fake_classes == index).sum()),
            "compared": len(these),
        }
        return found

    return _plain(
        {
            "overall": scores(None),
            "classes": {label: scores(index) for index, label in enumerate(labels)},
            "told_apart": told_apart(
                real_features,
                real_classes,
                fake_features,
                fake_classes,
                labels,
                seed=seed,
                resamples=resamples,
            ),
            "conditions": {
                "seed": seed,
                "resamples": resamples,
                "dimensions": {
                    name: int(np.shape(real_features[name])[1]) for name in ("features", "probabilities")
                },
                "intervals": "95%; distances: what other films would give at these counts, bias included "
                "(delete-d jackknife, a fifth of the films left out, real ones by patient); told apart: "
                "bootstrap over generated films",
            },
        }
    )


def told_apart(
    real_features, real_classes, fake_features, fake_classes, labels, *, seed=0, resamples=200
) -> dict | None:
    """Does a classifier of real films see in generated ones the conditions that they were made of?

    Args:
        as `judge`; the features need `scores` (of `FeatureModel`), or `probabilities` in the order of labels.

    Returns:
        dict: `classes`, by label: auroc {value, low, high} of the class against all other generated films
        (bootstrap), p (one-sided, Mann and Whitney, 1947) that it is 0.5, p_holm over the classes, better
        (whether the interval lies above 0.5; without resamples, whether p_holm is below 0.05),
        balanced_accuracy (mean of sensitivity and specificity of "the most probable class is this one", 0.5
        by chance), films, and real_auroc, the same area on the real films: how well the classifier knows the
        class at all; `better`, the number of classes, `of` how many; accuracy, the share of films whose most
        probable class is their own, {value, low, high}, and chance, 1 over the classes present. None where
        the classifier does not know the conditions.
    """
    from scipy.stats import mannwhitneyu

    from kxray import metrics

    scores, real_scores = (_class_scores(features, labels) for features in (fake_features, real_features))
    if scores is None:
        return None
    fake_classes, real_classes = np.asarray(fake_classes), np.asarray(real_classes)
    firsts = scores.argmax(axis=1) if len(scores) else np.zeros(0, int)
    present = [index for index in range(len(labels)) if (fake_classes == index).any()]
    classes = {}
    for index, label in enumerate(labels):
        own = fake_classes == index
        found = {"auroc": _interval(_area_of(own, scores[:, index]), len(own), resamples, seed)}
        found["p"] = math.nan
        if own.any() and not own.all():
            found["p"] = mannwhitneyu(scores[own, index], scores[~own, index], alternative="greater").pvalue
            found["balanced_accuracy"] = float(
                metrics.balanced_accuracy(own.astype(int), (firsts == index).astype(int), 2)
            )
        else:
            found["balanced_accuracy"] = math.nan
        real_own = real_classes == index
        area = _area_of(real_own, real_scores[:, index])(np.ones(len(real_own)))
        classes[label] = {**found, "films": int(own.sum()), "real_auroc": float(area)}
    tested = [label for label, score in classes.items() if math.isfinite(score["p"])]
    adjusted = dict(zip(tested, metrics.holm([classes[label]["p"] for label in tested]), strict=True))
    for label, score in classes.items():
        score["p_holm"] = float(adjusted.get(label, math.nan))
        score["better"] = score["auroc"]["low"] > 0.5 if resamples else score["p_holm"] < _LEVEL
    hits = firsts == fake_classes
    return _plain(
        {
            "classes": classes,
            "better": sum(score["better"] for score in classes.values()),
            "of": len(tested),
            "accuracy": _interval(lambda weights: _share(weights, hits), len(hits), resamples, seed),
            "chance": 1 / len(present) if present else math.nan,
        }
    )


def _class_scores(features, labels):
    scores = features.get("scores", features["probabilities"])
    scores = np.asarray(scores, dtype=float)
    if scores.shape[1] != len(labels) or np.isnan(scores).any():
        return None
    return scores


def _area_of(own, scores):
    from kxray import metrics

    pair = np.stack([-scores, scores], axis=1)
    return lambda weights: metrics.auroc(own.astype(int), pair, 2, weights)


def _share(weights, hits):
    with np.errstate(invalid="ignore"):
        return (weights * hits).sum(-1) / weights.sum(-1)


def _interval(statistic, count, resamples, seed):
    from kxray import metrics

    low = high = math.nan
    if resamples and count:
        low, high = metrics.patient_bootstrap(statistic, np.arange(count), resamples, seed=seed)
    return {"value": float(statistic(np.ones(count))), "low": low, "high": high}


def _fidelity(real, generated):
    from kxray.metrics import precision_recall_density_coverage

    if min(len(real), len(generated)) <= NEIGHBOURS:
        return None
    return {**precision_recall_density_coverage(real, generated, NEIGHBOURS), "k": NEIGHBOURS}


def _checked(features, classes, labels, what):
    classes = np.asarray(classes)
    values = np.asarray(features["features"])
    if classes.ndim != 1 or len(values) != len(classes) or classes.dtype.kind not in "iu":
        raise ValueError(
            f"expected one whole number a film, the class of each of {len(values)} {what} films, got "
            f"{classes.dtype} of shape {classes.shape}"
        )
    if len(classes) and not (0 <= classes.min() and classes.max() < len(labels)):
        raise ValueError(
            f"classes of {what} films are 0 to {len(labels) - 1}, got {classes.min()} to {classes.max()}"
        )
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise ValueError(
            f"features of {len(broken)} of {len(values)} {what} films are not finite, the first made of "
            f"{labels[classes[broken[0]]]} (film {broken[0]}); look at the films"
        )
    return classes


def _plain(value):
    """What JSON has: null for a number that is none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
