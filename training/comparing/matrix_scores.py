"""What a matrix of backbones and modes says: scores with intervals, paired tests, costs, learning curves.

A film's value is its mean over the seeds; intervals resample the groups that the splits kept together.
"""

import dataclasses

import numpy as np
import pandas as pd

SIGNIFICANT = 0.05
FROZEN, FINE_TUNED = "feature_extractor", "fine_tune"
BASELINES = {
    "texture": "RBF SVM on LBP and co-occurrence",
    "no-anatomy": "random forest, no anatomy",
}
ALL_FILMS = 0
# One standard error on either side, of a normal distribution.
_ONE_ERROR = 0.6827
# The step of a learning curve that its last doubling is read from is at least so large.
_SMALLEST_STEP = 1.5
_NEAR_ZERO = 1e-6


@dataclasses.dataclass(frozen=True)
class Results:
    """Predictions of a matrix run.

    Args:
        rows: the networks: objects with `name`, `backbone` and `mode`.
        cells: predictions of validation and test films, one line a film, row, seed, fold and
            `films_per_class` (0: all training films); see `training.comparing.matrix_run.Matrix.train`.
        baselines: test predictions: row (texture, no-anatomy), path, group, seed, fold, label, predicted.
        labels: the classes, in order.
        smallest_class: how many films the class with fewest has in a training on all films.
    """

    rows: list
    cells: pd.DataFrame
    baselines: pd.DataFrame
    labels: list[str]
    smallest_class: float


def network(row) -> str:
    """What a network is called in words: "xception frozen"."""
    return f"{row['backbone']} {'frozen' if row['mode'] == FROZEN else 'fine-tuned'}"


def scores_of(results) -> dict:
    """Everything that a matrix run measured, as JSON values.

    Returns:
        dict: rows (by name: backbone, mode, scores, costs, learning_curve), baselines (by name), tests,
        chosen (a row's name), chosen_because, reliability (of the chosen row), labels, films, groups, seeds,
        folds.
    """
    full = results.cells[results.cells["films_per_class"] == ALL_FILMS]
    test, validation = full[full["part"] == "test"], full[full["part"] == "val"]
    rows, films = {}, {}
    for row in results.rows:
        mine, val = test[test["row"] == row.name], validation[validation["row"] == row.name]
        films[row.name] = _films(mine)
        rows[row.name] = {
            "backbone": row.backbone,
            "mode": row.mode,
            **_accuracies(mine, results.labels),
            **_ranking(mine, results.labels),
            "validation_balanced_accuracy": _balanced(results.labels, _films(val))["value"],
            "validation_loss": _log_loss(val),
            **_costs(mine),
            "learning_curve": _learning_curve(results, row.name),
        }
    scored = {}
    for name in results.baselines["row"].unique():
        mine = results.baselines[results.baselines["row"] == name]
        films[name] = _films(mine)
        scored[name] = {"network": BASELINES[name], **_accuracies(mine, results.labels)}
    chosen, because = _choice(results, validation, rows)
    return {
        "rows": rows,
        "baselines": scored,
        "tests": _paired_tests(_pairs(results.rows, list(scored), chosen), films),
        "chosen": chosen,
        "chosen_because": because,
        "reliability": _reliability(test[test["row"] == chosen], results.labels),
        "labels": list(results.labels),
        "films": int(test["path"].nunique()),
        "groups": int(test["group"].nunique()),
        "seeds": int(test["seed"].nunique()),
        "folds": int(test["fold"].nunique()),
    }


# Scores


def _films(cells):
    """One line a film, by path: group, label, right (mean over the seeds), majority.

    `majority` is whether most seeds have the film right; where they are even, the first seed decides.
    """
    cells = cells.assign(right=(cells["label"] == cells["predicted"]).astype(float)).sort_values("seed")
    films = cells.groupby("path").agg(
        group=("group", "first"), label=("label", "first"), right=("right", "mean"), first=("right", "first")
    )
    films["majority"] = np.where(films["right"] == 0.5, films["first"] == 1, films["right"] > 0.5)
    return films.drop(columns="first")


def _interval(statistic, groups, level=0.95):
    """A statistic of film weights (B, N) -> (B,) with its interval over resampled groups."""
    from kxray import metrics

    value = np.asarray(statistic(np.ones((1, len(groups)))))[0]
    low, high = metrics.patient_bootstrap(statistic, groups, level=level)
    return {"value": float(value), "low": low, "high": high}


def _mean(values):
    values = np.asarray(values, float)
    return lambda weights: (weights * values).sum(-1) / weights.sum(-1)


def _mean_recall(labels, of_films, values):
    """The mean over the labels of the mean of some film values."""
    values = np.asarray(values, float)
    members = [(np.asarray(of_films) == label) for label in labels]

    def statistic(weights):
        with np.errstate(invalid="ignore"):
            recalls = [(weights * own * values).sum(-1) / (weights * own).sum(-1) for own in members]
        return np.mean(recalls, axis=0)

    return statistic


def _balanced(labels, films):
    return _interval(_mean_recall(labels, films["label"], films["right"]), films["group"])


def _accuracies(cells, labels):
    films = _films(cells)
    by_fold = (cells["label"] == cells["predicted"]).groupby([cells["seed"], cells["fold"]]).mean()
    return {
        "accuracy": {
            **_interval(_mean(films["right"]), films["group"]),
            "mean_over_folds": float(by_fold.mean()),
            "sd_over_folds": float(by_fold.std(ddof=1)) if len(by_fold) > 1 else None,
        },
        "balanced_accuracy": _balanced(labels, films),
    }


def _arrays(cells, labels):
    """(labels int (N,), calibrated probabilities (N, L), those before calibration) of prediction lines."""
    from training import scoring

    truth = np.array([list(labels).index(label) for label in cells["label"]], int)
    units = [name for name in cells.columns if name.startswith("logit_")]
    logits = cells[units].to_numpy(float)
    temperature = cells["temperature"].to_numpy(float)[:, None]
    return truth, scoring.probabilities_of(logits, temperature), scoring.probabilities_of(logits, 1.0)


def _ranking(cells, labels):
    """AUROC and calibration, each seed by itself and then their mean: no film is averaged over trainings."""
    from kxray import metrics

    groups = _films(cells)["group"]
    position = {path: number for number, path in enumerate(groups.index)}
    statistics, errors = [], {"calibrated": [], "uncalibrated": []}
    for _, mine in cells.groupby("seed"):
        truth, calibrated, uncalibrated = _arrays(mine, labels)
        places = mine["path"].map(position).to_numpy()
        statistics.append((truth, calibrated, places))
        errors["calibrated"].append(metrics.expected_calibration_error(calibrated, truth))
        errors["uncalibrated"].append(metrics.expected_calibration_error(uncalibrated, truth))

    def area(weights):
        of_seeds = [
            metrics.auroc(truth, probabilities, len(labels), weights[..., places])
            for truth, probabilities, places in statistics
        ]
        return np.mean(of_seeds, axis=0)

    return {
        "auroc": _interval(area, groups),
        "expected_calibration_error": {name: float(np.mean(values)) for name, values in errors.items()},
        "median_temperature": float(_of_trainings(cells, "temperature").median()),
    }


def _log_loss(cells):
    right = np.array([cells[f"probability_{name}"][index] for index, name in cells["label"].items()], float)
    return float(-np.log(np.maximum(right, _NEAR_ZERO)).mean())


def _reliability(cells, labels):
    from kxray import metrics

    truth, calibrated, uncalibrated = _arrays(cells, labels)
    return {
        "calibrated": metrics.reliability_curve(calibrated, truth),
        "uncalibrated": metrics.reliability_curve(uncalibrated, truth),
    }


# Costs


def _of_trainings(cells, column):
    return cells.groupby(["seed", "fold"])[column].first()


def _costs(cells):
    seconds, features = _of_trainings(cells, "training_seconds"), _of_trainings(cells, "feature_seconds")
    memory = pd.to_numeric(_of_trainings(cells, "peak_memory_mb"), errors="coerce").max()
    return {
        "trainings": len(seconds),
        "minutes": float((seconds.sum() + features.sum()) / 60),
        "feature_minutes": float(features.sum() / 60),
        "median_seconds_a_training": float(seconds.median()),
        "slowest_training_seconds": float(seconds.max()),
        "median_epochs": float(_of_trainings(cells, "epochs").median()),
        "parameters": int(cells["parameters"].iloc[0]),
        "trained_parameters": int(cells["trained_parameters"].iloc[0]),
        "peak_memory_mb": float(memory) if np.isfinite(memory) else None,
        "feature_mb": float(_of_trainings(cells, "feature_bytes").max() / 1e6),
    }


# Learning curves


def _learning_curve(results, name):
    """Accuracy by films a class, and what the last doubling of films brought; None without smaller sizes.

    All films count as those of their smallest class, which are what a curve of balanced sizes goes on with.
    """
    cells = results.cells[(results.cells["row"] == name) & (results.cells["part"] == "test")]
    if not (cells["films_per_class"] != ALL_FILMS).any():
        return None
    points, films_of = [], []
    for size in sorted(set(cells["films_per_class"]), key=lambda size: (size == ALL_FILMS, size)):
        mine = cells[cells["films_per_class"] == size]
        count = size or results.smallest_class
        films_of.append(_films(mine))
        points.append(
            {
                "films_per_class": count,
                "all_films": size == ALL_FILMS,
                "accuracy": _interval(_mean(films_of[-1]["right"]), films_of[-1]["group"]),
            }
        )
    return {"points": points, "doubling": _last_doubling(points, films_of)}


def _last_doubling(points, films_of):
    """The gain in accuracy a doubling of films between the last point and the last well before it."""
    last = len(points) - 1
    for index in range(last - 1, -1, -1):
        ratio = points[last]["films_per_class"] / points[index]["films_per_class"]
        if ratio >= _SMALLEST_STEP:
            change = _difference(films_of[last], films_of[index])
            return {
                "from": points[index]["films_per_class"],
                "to": points[last]["films_per_class"],
                **{key: float(change[key] / np.log2(ratio)) for key in ("value", "low", "high")},
            }
    return None


def _both(one, other):
    """The films that both tables of `_films` have; the other's columns end in _other."""
    return one.join(other[["right", "majority"]].add_suffix("_other"), how="inner")


def _difference(one, other, level=0.95):
    """Mean difference in accuracy of the films that both have, with its interval."""
    both = _both(one, other)
    return _interval(_mean(both["right"] - both["right_other"]), both["group"], level)


# Choice and tests


def or_lowest(value) -> float:
    """A score to be ranked by: one that is not defined (NaN, in JSON null) comes after all others."""
    return -np.inf if value is None or not np.isfinite(value) else value


def _choice(results, validation, rows):
    """(name of the row to take, why): decided on validation films alone.

    The best balanced accuracy, then the lowest loss; but a frozen network before a fine-tuned one where its
    score is within one standard error of the best (Breiman et al., 1984, section 3.4.3).
    """

    def ranked(names):
        return sorted(
            names,
            key=lambda name: (
                -or_lowest(rows[name]["validation_balanced_accuracy"]),
                -or_lowest(-rows[name]["validation_loss"]),
            ),
        )

    best = ranked(rows)[0]
    frozen = ranked(name for name in rows if rows[name]["mode"] == FROZEN)
    because = "best balanced accuracy on validation films"
    if rows[best]["mode"] == FROZEN or not frozen:
        return best, because
    top = _films(validation[validation["row"] == best])
    other = _films(validation[validation["row"] == frozen[0]])
    both = _both(top, other)
    behind = _interval(
        _mean_recall(results.labels, both["label"], both["right"] - both["right_other"]),
        both["group"],
        _ONE_ERROR,
    )
    if not behind["low"] > 0:
        return frozen[0], (
            f"on validation films within one standard error of {network(rows[best])}, the best there, and "
            "frozen networks go before fine-tuned ones"
        )
    return best, because


def _pairs(rows, baselines, chosen):
    """Frozen against fine-tuned for every backbone, then the chosen network against everything else."""
    by_mode = {(row.backbone, row.mode): row.name for row in rows}
    pairs = [
        (name, by_mode[backbone, FINE_TUNED], "modes")
        for (backbone, mode), name in by_mode.items()
        if mode == FROZEN and (backbone, FINE_TUNED) in by_mode
    ]
    tested = {frozenset(pair[:2]) for pair in pairs}
    for name in (*by_mode.values(), *baselines):
        if name != chosen and frozenset((chosen, name)) not in tested:
            pairs.append((chosen, name, "baseline" if name in baselines else "chosen"))
    return pairs


def _paired_tests(pairs, films):
    """McNemar's exact test and the permutation test over groups, each corrected for all tests after Holm."""
    from kxray import metrics

    tests = []
    for one, other, kind in pairs:
        both = _both(films[one], films[other])
        only_one, only_other, p = metrics.mcnemar_test(both["majority"], both["majority_other"])
        difference = (both["right"] - both["right_other"]).to_numpy()
        tests.append(
            {
                "one": one,
                "other": other,
                "kind": kind,
                "difference": _difference(films[one], films[other]),
                "only_one_right": only_one,
                "only_other_right": only_other,
                "p_mcnemar": p,
                "p_permutation": metrics.paired_permutation_test(difference, both["group"]),
            }
        )
    for name in ("p_mcnemar", "p_permutation"):
        for test, p in zip(tests, metrics.holm([test[name] for test in tests]), strict=True):
            test[f"{name}_holm"] = float(p)
    return tests


def comparison_of(metrics, one, other) -> dict | None:
    """The paired test of two rows or baselines, turned so that `one` is the first; None if not tested."""
    for test in metrics["tests"]:
        if (test["one"], test["other"]) == (one, other):
            return test
        if (test["one"], test["other"]) == (other, one):
            size = test["difference"]
            turned = {"value": -size["value"], "low": -size["high"], "high": -size["low"]}
            swapped = {"only_one_right": test["only_other_right"], "only_other_right": test["only_one_right"]}
            return {**test, "one": one, "other": other, "difference": turned, **swapped}
    return None
