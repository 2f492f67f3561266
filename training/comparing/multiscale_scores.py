"""What a comparison says: scores with intervals, paired tests, and which network to take."""

import dataclasses

import numpy as np
import pandas as pd

_NEAR_ZERO = 1e-6
BASELINES = {
    "texture": "RBF SVM on LBP and co-occurrence",
    "no-anatomy": "random forest, no anatomy",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """Predictions of a comparison.

    Args:
        rows: the networks, `training.comparisons.multiscale.Row`.
        cells: predictions of validation and test films of every row, seed and fold.
        baselines: test predictions of the baselines.
        coarse_labels: the coarse labels, in order.
    """

    rows: list
    cells: pd.DataFrame
    baselines: pd.DataFrame
    coarse_labels: list[str]


def check_masks(films) -> None:
    """Reads the mask of every tested film once: a broken one is found before anything is trained."""
    for position in _masked(films, films.tested.index):
        _mask_of(films, position)


def with_maps(table, row, model, films):
    """Adds what the class activation maps of test films score against the masks of their manifest.

    The map explains the film's own class: multi-scale CAM of a multi-scale network, Grad-CAM of a plain one.
    Columns `pointing_game`, `mass_inside` and `iou_at_half` stay empty where a film has no mask.
    """
    from kxray import explain
    from training.explaining import map_scores
    from training.explaining.explained_table import SCORES

    table = table.assign(**dict.fromkeys(SCORES, "")).set_index("position", drop=False)
    chosen = _masked(films, table["position"][table["part"] == "test"])
    method = "multiscale_cam" if row.multiscale else "grad_cam"
    for start in range(0, len(chosen), 64):
        positions = np.array(chosen[start : start + 64])
        (pixels,) = films.inputs.batches(positions, len(positions))
        maps = explain.attribute(model, pixels, films.labels[positions], method)[..., 0]
        for position, heatmap in zip(positions, maps, strict=True):
            for name, cell in map_scores.score(heatmap, _mask_of(films, position)).items():
                table.loc[position, name] = cell
    return table.reset_index(drop=True)


def _masked(films, positions):
    """Those of some films whose row names a mask."""
    if "masks" not in films.table.columns:
        return []
    return [position for position in positions if films.table.loc[position, "masks"]]


def _mask_of(films, position):
    from kxray.data.truth import truth_mask
    from kxray.io import read_image

    film = films.table.loc[position]
    return truth_mask(film, read_image(film["path"]).pixels.shape)


def scores_of(results) -> dict:
    """Every row's scores, the paired tests between them, and the chosen network, as JSON values.

    A film's value is its mean over the seeds; intervals resample the groups that the splits kept together.
    """
    test = results.cells[results.cells["part"] == "test"]
    validation = results.cells[results.cells["part"] == "val"]
    scored = {}
    for row in results.rows:
        mine, val = test[test["row"] == row.name], validation[validation["row"] == row.name]
        scored[row.name] = {
            "network": row.network,
            "classes": int(mine["label"].nunique()),
            "multiscale": row.multiscale,
            **_accuracies(mine, results.coarse_labels),
            "with_test_time_flips": _interval(mine, mine["coarse"] == mine["coarse_predicted_flips"]),
            "validation_accuracy": float((val["coarse"] == val["coarse_predicted"]).mean()),
            "validation_accuracy_with_flips": float((val["coarse"] == val["coarse_predicted_flips"]).mean()),
            "validation_loss": _log_loss(val),
            "maps": _map_scores(mine),
            "parameters": int(mine["parameters"].iloc[0]),
            "median_seconds_a_fold": float(_of_trainings(mine, "training_seconds").median()),
            "slowest_fold_seconds": float(_of_trainings(mine, "training_seconds").max()),
            "median_epochs": float(_of_trainings(mine, "epochs").median()),
        }
    for name in results.baselines["row"].unique():
        mine = results.baselines[results.baselines["row"] == name]
        scored[name] = {
            "network": BASELINES[name.rsplit("-", 1)[0]],
            "classes": int(mine["label"].nunique()),
            "baseline": True,
            **_accuracies(mine, results.coarse_labels),
        }
    several = [row.name for row in results.rows if row.multiscale]
    best, flips = max(
        ((name, flips) for name in several for flips in (False, True)),
        key=lambda choice: (
            scored[choice[0]]["validation_accuracy_with_flips" if choice[1] else "validation_accuracy"],
            not choice[1],
            -scored[choice[0]]["validation_loss"],
        ),
    )
    return {
        "rows": scored,
        "tests": _paired_tests(results, test),
        "chosen": best,
        "chosen_with_flips": flips,
        "coarse_labels": results.coarse_labels,
        "films": int(test["path"].nunique()),
        "groups": int(test["group"].nunique()),
        "seeds": int(test["seed"].nunique()),
        "folds": int(test["fold"].nunique()),
    }


def _of_trainings(cells, column):
    return cells.groupby(["seed", "fold"])[column].first()


def _log_loss(cells):
    right = np.array(
        [cells[f"coarse_probability_{name}"][index] for index, name in cells["coarse"].items()], float
    )
    return float(-np.log(np.maximum(right, _NEAR_ZERO)).mean())


def _accuracies(cells, coarse_labels):
    """Accuracy over the row's own classes and over the coarse labels, and the coarse balanced accuracy."""
    right = cells["coarse"] == cells["coarse_predicted"]
    by_fold = right.groupby([cells["seed"], cells["fold"]]).mean()
    return {
        "accuracy": _interval(cells, cells["label"] == cells["predicted"]),
        "coarse_accuracy": {
            **_interval(cells, right),
            "mean_over_folds": float(by_fold.mean()),
            "sd_over_folds": float(by_fold.std(ddof=1)) if len(by_fold) > 1 else None,
        },
        "coarse_recall": {name: float(right[cells["coarse"] == name].mean()) for name in coarse_labels},
    }


def _film_values(cells, values):
    """(mean over the seeds of each film's value, the film's group)."""
    films = pd.DataFrame({"path": cells["path"], "group": cells["group"], "value": np.asarray(values, float)})
    films = films.groupby("path").agg({"group": "first", "value": "mean"})
    return films["value"], films["group"]


def _interval(cells, values):
    from kxray import metrics

    film_values, groups = _film_values(cells, values)
    column = film_values.to_numpy()
    low, high = metrics.patient_bootstrap(
        lambda weights: (weights * column).sum(axis=-1) / weights.sum(axis=-1), groups
    )
    return {"value": float(column.mean()), "low": low, "high": high}


def _map_scores(cells):
    from training.explaining.explained_table import SCORES

    cells = cells[cells[SCORES[0]].astype(str) != ""]
    if not len(cells):
        return None
    return {name: _interval(cells, cells[name].astype(float)) for name in SCORES} | {
        "films": int(cells["path"].nunique())
    }


def _paired_tests(results, test):
    """Differences that the paper is about: several stages against one, size classes against none."""
    from kxray import metrics

    rows = {row.name: row for row in results.rows}
    pairs = []
    for name, row in rows.items():
        naive = next(
            (other for other, its in rows.items() if not its.multiscale and its.fine == row.fine), None
        )
        # Anything else that differs would be credited to the stages.
        if (
            row.multiscale
            and naive
            and row.recipe == dataclasses.replace(rows[naive].recipe, taps=row.recipe.taps)
        ):
            pairs.append((name, naive))
        coarse = name.removesuffix("-fine") + "-coarse"
        if row.fine and coarse in rows:
            pairs.append((name, coarse))
    tests = []
    for one, other in pairs:
        values = {}
        for name in (one, other):
            cells = test[test["row"] == name]
            values[name], groups = _film_values(cells, cells["coarse"] == cells["coarse_predicted"])
        difference = (values[one] - values[other]).to_numpy()
        low, high = metrics.patient_bootstrap(
            lambda weights, difference=difference: (weights * difference).sum(axis=-1) / weights.sum(axis=-1),
            groups,
        )
        tests.append(
            {
                "one": one,
                "other": other,
                "difference": {"value": float(difference.mean()), "low": low, "high": high},
                "p": metrics.paired_permutation_test(difference, groups),
            }
        )
    for test_, p in zip(tests, metrics.holm([test_["p"] for test_ in tests]), strict=True):
        test_["p_holm"] = float(p)
    return tests


def chosen_score(metrics) -> tuple[dict, str]:
    """What to expect of the network that the validation films chose, and "with" or "without" flips."""
    row = metrics["rows"][metrics["chosen"]]
    if metrics["chosen_with_flips"]:
        return row["with_test_time_flips"], "with"
    return row["coarse_accuracy"], "without"


def table_of(metrics) -> pd.DataFrame:
    """The comparison as a table, one row a network or baseline."""
    lines = []
    for name, row in metrics["rows"].items():
        own, coarse = row["accuracy"], row["coarse_accuracy"]
        line = {"row": name, "network": row["network"], "classes": row["classes"]}
        for column, score in (("accuracy", own), ("coarse_accuracy", coarse)):
            line |= {column: score["value"], f"{column}_low": score["low"], f"{column}_high": score["high"]}
        line |= {key: coarse[key] for key in ("mean_over_folds", "sd_over_folds")}
        for key in ("validation_accuracy", "median_seconds_a_fold", "slowest_fold_seconds", "parameters"):
            line[key] = row.get(key)
        if row.get("maps"):
            line |= {key: score["value"] for key, score in row["maps"].items() if key != "films"}
        lines.append(line)
    return pd.DataFrame(lines)


def told(metrics) -> list[str]:
    """The comparison in lines for the shell."""

    def interval(score):
        return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"

    coarse = " / ".join(metrics["coarse_labels"])
    lines = [f"{'network':<44}{'classes':>8}  {'accuracy':<22}{coarse}"]
    for row in metrics["rows"].values():
        own, both = interval(row["accuracy"]), interval(row["coarse_accuracy"])
        lines.append(f"{row['network'][:43]:<44}{row['classes']:>8}  {own:<22}{both}")
    for test in metrics["tests"]:
        lines.append(
            f"{test['one']} minus {test['other']}: {interval(test['difference'])}, p {test['p']:.4f}, "
            f"{test['p_holm']:.4f} for {len(metrics['tests'])} tests"
        )
    for name, row in metrics["rows"].items():
        if row.get("maps"):
            scores = ", ".join(
                f"{key.replace('_', ' ')} {interval(score)}"
                for key, score in row["maps"].items()
                if key != "films"
            )
            lines.append(f"maps of {name} on {row['maps']['films']} films: {scores}")
    expected, how = chosen_score(metrics)
    lines.append(
        f"best on validation films among multi-scale networks: {metrics['chosen']} {how} test-time flips, "
        f"{interval(expected)} on test films"
    )
    slowest = max(row.get("slowest_fold_seconds", 0) for row in metrics["rows"].values())
    lines.append(
        f"{metrics['films']} films in {metrics['groups']} groups, {metrics['folds']} folds, "
        f"{metrics['seeds']} seeds; 95% intervals over resampled groups; slowest fold {slowest:.0f} s"
    )
    return lines
