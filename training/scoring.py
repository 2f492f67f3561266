"""From a trained model to probabilities, and from probabilities to scores."""

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

BATCH = 128


def traced_logits(model, spec):
    """A tf.function from float32 (N, h, w, 1) network inputs to pre-activation logits float32 (N, units).

    It is kept with the model: tracing a deep network takes longer than running it on a few hundred films.
    """
    return _traced(model, (*spec.image_size, 1))


def _traced(model, shape):
    import tensorflow as tf

    from kxray.explain.head import with_logits

    if "_kxray_logits" not in model.__dict__:
        run = with_logits(model)
        signature = [tf.TensorSpec([None, *shape], tf.float32)]
        model.__dict__["_kxray_logits"] = tf.function(
            lambda pixels: run(pixels)[0], input_signature=signature
        )
    return model.__dict__["_kxray_logits"]


def logits_of(model, inputs, rows, flips="none") -> np.ndarray:
    """The pre-activation logits float32 (len(rows), units) of some films.

    With `flips` "dihedral" or "horizontal", the mean over those views of `kxray.layers.dihedral_views`:
    test-time augmentation.
    """
    from kxray.layers import dihedral_views

    forward = _traced(model, inputs.shape)
    batches = []
    for batch in inputs.batches(rows, BATCH):
        views = [batch] if flips == "none" else dihedral_views(batch, flips == "horizontal")
        batches.append(np.mean([forward(view).numpy() for view in views], axis=0))
    return np.concatenate(batches) if batches else np.zeros((0, model.outputs[0].shape[-1]), np.float32)


def probabilities_of(logits, temperature) -> np.ndarray:
    """Calibrated probabilities (N, L): of a one-unit model those of both labels, else the softmax."""
    scaled = np.asarray(logits, dtype=float) / temperature
    if scaled.shape[1] == 1:
        positive = expit(scaled[:, 0])
        return np.stack([1 - positive, positive], axis=1)
    return softmax(scaled, axis=1)


def calibrated(logits, spec) -> np.ndarray:
    """Calibrated probabilities (N, L) of a spec's own task: findings have a sigmoid each."""
    if spec.task == "multilabel":
        return expit(np.asarray(logits, dtype=float) / spec.temperature)
    return probabilities_of(logits, spec.temperature)


def prediction_table(table, rows, labels, logits, temperature, spec, **columns) -> pd.DataFrame:
    """One row a film: who it is, its true label, its logits and its calibrated probabilities."""
    probabilities = probabilities_of(logits, temperature)
    chosen = table.loc[rows]
    facts = {
        "position": rows,
        "path": chosen["path"].to_numpy(),
        "patient_id": chosen["patient_id"].to_numpy(),
        "label": [spec.labels[index] for index in labels[rows]],
        **{f"logit_{unit}": logits[:, unit] for unit in range(logits.shape[1])},
        **{f"probability_{name}": probabilities[:, index] for index, name in enumerate(spec.labels)},
        "temperature": temperature,
        "predicted": [spec.labels[index] for index in probabilities.argmax(axis=1)],
        **columns,
    }
    return pd.DataFrame(facts)


def columns_of(predictions, spec):
    """Back from a prediction table to arrays: (labels int (N,), logits (N, units), probabilities (N, L))."""
    labels = np.array([spec.labels.index(name) for name in predictions["label"]], dtype=int)
    units = [name for name in predictions.columns if name.startswith("logit_")]
    names = [f"probability_{name}" for name in spec.labels]
    return labels, predictions[units].to_numpy(float), predictions[names].to_numpy(float)


def scores_of(predictions, spec, seed, grouped_by) -> dict:
    """Scores of a prediction table with 95% intervals, over all its films and fold by fold.

    Intervals resample the groups that the split kept together: patients, or near-duplicates where patients
    are unknown (`grouped_by`, the kind of a `kxray.data.Grouping`).
    """
    from kxray import metrics

    labels, logits, probabilities = columns_of(predictions, spec)
    groups = predictions["group"]
    scores = metrics.classification_scores(labels, probabilities, groups, spec.labels, seed=seed)
    scores["expected_calibration_error"] = {
        "calibrated": metrics.expected_calibration_error(probabilities, labels),
        "uncalibrated": metrics.expected_calibration_error(probabilities_of(logits, 1.0), labels),
    }
    chosen = probabilities.argmax(axis=1)
    scores["folds"] = [
        {
            "fold": int(fold),
            "films": len(rows),
            "accuracy": float(np.mean(chosen[rows] == labels[rows])),
            "balanced_accuracy": float(
                metrics.balanced_accuracy(labels[rows], chosen[rows], spec.num_labels)
            ),
        }
        for fold, rows in predictions.reset_index(drop=True).groupby("fold").indices.items()
    ]
    for score in ("accuracy", "balanced_accuracy"):
        by_fold = [fold[score] for fold in scores["folds"]]
        scores[score]["mean_over_folds"] = float(np.mean(by_fold))
        scores[score]["sd_over_folds"] = float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else None
    scores["conditions"] = conditions(scores, len(by_fold), grouped_by, seed)
    return scores


def conditions(scores, folds, grouped_by, seed) -> str:
    """What scores were measured on, in words."""
    kind, unit = (
        ("patient", "patients")
        if grouped_by.startswith("patient")
        else ("near-duplicate", "near-duplicate groups, patients unknown")
    )
    how = f"{folds} {kind}-grouped folds" if folds > 1 else f"{kind}-grouped test split"
    return f"{how}, {scores['films']} films, {scores['patients']} {unit}, seed {seed}"


def accuracy_with_flips(predictions) -> dict:
    """Accuracy, with its 95% interval, of logits averaged over flips and turns of each film."""
    from kxray import metrics

    right = (predictions["label"] == predictions["predicted_with_flips"]).to_numpy(float)
    low, high = metrics.patient_bootstrap(
        lambda weights: (weights * right).sum(axis=-1) / weights.sum(axis=-1), predictions["group"]
    )
    return {"value": float(right.mean()), "low": low, "high": high}


def baseline_scores(predictions, films, spec, seed, columns=slice(None)) -> dict:
    """The no-anatomy baseline on the very films and folds of a prediction table.

    `columns` are the features that it sees, such as one of `kxray.data.audit.FEATURE_GROUPS`; all by default.
    """
    from kxray import metrics

    probabilities = baseline_probabilities(predictions, films, seed, columns)
    labels, _, _ = columns_of(predictions, spec)
    groups = predictions["group"]
    return metrics.classification_scores(labels, probabilities, groups, spec.labels, seed=seed)


def baseline_probabilities(predictions, films, seed, columns=slice(None)) -> np.ndarray:
    """What the no-anatomy baseline says of the films of a prediction table, float32 (N, L)."""
    from kxray.data import no_anatomy_baseline

    known = films.tested.index.to_numpy()
    fold_of = pd.Series(-1, index=known)
    fold_of[predictions["position"]] = predictions["fold"].to_numpy()
    probabilities = no_anatomy_baseline(
        films.features[known][:, columns], films.labels[known], fold_of.to_numpy(), seed=seed
    )
    return probabilities[pd.Series(np.arange(len(known)), index=known)[predictions["position"]].to_numpy()]


def reaching(scores) -> dict | None:
    """The baseline without anatomy that may be as good as the model: better than chance, and in its interval.

    Args:
        scores: what metrics.json holds; runs of older versions have no histogram_baseline.

    Returns:
        The balanced accuracy of the better such baseline, or None where the model is clear of them.
    """
    model = scores["balanced_accuracy"]
    found = [scores[key]["balanced_accuracy"] for key in ("histogram_baseline", "baseline") if key in scores]
    # Undefined numbers are NaN in memory and null on disk; they reach nothing.
    known = [one for one in found if None not in (one["low"], one["high"], model["low"])]
    near = [one for one in known if one["high"] >= model["low"] and one["low"] > 1 / len(scores["recall"])]
    return max(near, key=lambda one: one["value"], default=None)
