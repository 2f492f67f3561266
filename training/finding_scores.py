"""From logits of findings to a prediction table, and from the table to scores; `scoring` is for classes."""

import numpy as np
import pandas as pd
from scipy.special import expit

from training import findings, scoring


def prediction_table(table, rows, truths, logits, calibration, spec, **columns) -> pd.DataFrame:
    """One row a film: who it is, and of every finding the truth, the logit, the probability, the decision.

    Args:
        table: films.
        rows: those that were looked at.
        truths: float (number of films, L): 1, 0 or NaN (unknown).
        logits: float32 (len(rows), L).
        calibration: (temperature, thresholds by finding), fitted on films that are not these.
        spec: ModelSpec.
        **columns: further facts of each film.

    Returns:
        Table with the columns position, path, patient_id, label and predicted (findings joined by `|`),
        logit_0 ..., and of each finding truth_NAME (1, 0 or empty), probability_NAME and decided_NAME.
    """
    temperature, thresholds = calibration
    probabilities = expit(np.asarray(logits, float) / temperature)
    decided = probabilities >= [thresholds[name] for name in spec.labels]
    chosen, known = table.loc[rows], truths[rows]
    facts = {
        "position": rows,
        "path": chosen["path"].to_numpy(),
        "patient_id": chosen["patient_id"].to_numpy(),
        "label": findings.joined(known, spec.labels),
        **{f"logit_{unit}": logits[:, unit] for unit in range(logits.shape[1])},
        **{f"truth_{name}": pd.array(known[:, i], "Int64") for i, name in enumerate(spec.labels)},
        **{f"probability_{name}": probabilities[:, i] for i, name in enumerate(spec.labels)},
        **{f"decided_{name}": decided[:, i].astype(int) for i, name in enumerate(spec.labels)},
        "temperature": temperature,
        "predicted": findings.joined(decided.astype(float), spec.labels),
        **columns,
    }
    return pd.DataFrame(facts)


def columns_of(predictions, spec):
    """Back from a prediction table to arrays (N, L): truths, logits, probabilities, decided (bool)."""
    units = [name for name in predictions.columns if name.startswith("logit_")]

    def of_findings(kind):
        columns = [predictions[f"{kind}_{name}"] for name in spec.labels]
        return np.stack(
            [pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan) for column in columns],
            axis=1,
        )

    logits = predictions[units].to_numpy(float)
    return of_findings("truth"), logits, of_findings("probability"), of_findings("decided") == 1


def scores_of(predictions, spec, seed, grouped_by) -> dict:
    """As `training.scoring.scores_of`, with the scores of `kxray.metrics.finding_scores`.

    Each film is decided by thresholds that were fitted on the validation films of its own model.
    """
    from kxray import metrics

    truths, logits, probabilities, decided = columns_of(predictions, spec)
    groups = predictions["group"]
    scores = metrics.finding_scores(truths, probabilities, groups, spec.labels, decided=decided, seed=seed)
    scores["expected_calibration_error"] = {
        "calibrated": metrics.expected_calibration_error(probabilities, truths),
        "uncalibrated": metrics.expected_calibration_error(expit(logits), truths),
    }
    scores["folds"] = []
    for fold, rows in predictions.reset_index(drop=True).groupby("fold").indices.items():
        own = metrics.finding_scores(
            truths[rows], probabilities[rows], groups.to_numpy()[rows], spec.labels, resamples=1
        )
        scores["folds"].append({"fold": int(fold), "films": len(rows), "auroc": own["auroc"]["value"]})
    by_fold = [fold["auroc"] for fold in scores["folds"]]
    scores["auroc"]["mean_over_folds"] = float(np.mean(by_fold))
    scores["auroc"]["sd_over_folds"] = float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else None
    scores["conditions"] = scoring.conditions(scores, len(by_fold), grouped_by, seed)
    return scores


def baseline_scores(predictions, films, spec, seed, columns=slice(None)) -> dict:
    """As `training.scoring.baseline_scores`."""
    from kxray import metrics

    probabilities = scoring.baseline_probabilities(predictions, films, seed, columns)
    truths, _, _, _ = columns_of(predictions, spec)
    return metrics.finding_scores(truths, probabilities, predictions["group"], spec.labels, seed=seed)


def reaching(scores) -> dict[str, dict]:
    """The findings for which a baseline without anatomy may be as good as the model, with its AUROC.

    It is better than chance, and in the model's interval. `mean` stands for the mean over the findings.
    """
    found = {}
    for name, model in {"mean": scores["auroc"], **auroc_by_finding(scores)}.items():
        for key in ("histogram_baseline", "baseline"):
            one = {"mean": scores[key]["auroc"], **auroc_by_finding(scores[key])}[name]
            # Undefined numbers are NaN in memory and null on disk; they reach nothing.
            if None in (one["low"], one["high"], model["low"]):
                continue
            if one["high"] >= model["low"] and one["low"] > 0.5:
                found[name] = max(found.get(name, one), one, key=lambda score: score["value"])
    return found


def auroc_by_finding(scores) -> dict[str, dict]:
    return {name: score["auroc"] for name, score in scores["findings"].items()}
