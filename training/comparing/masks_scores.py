"""What a comparison of masks says: does anatomy help to find, and to see where?"""

import dataclasses
import math

import numpy as np
import pandas as pd

from training import localising
from training.evidence_maps import EVIDENCE, MASK_ALONE
from training.localising import UNIFORM

BASE, FULL, NO_ANATOMY = "neither", "full", "no-anatomy"
PLAIN_METRICS = ("pointing_game", "iou_0.3", "iobb_0.3")
RATIO = "outside_inside_ratio"
SHOWN = {
    "auroc": "mean AUROC",
    "pointing_game": "pointing game",
    "iou_0.3": "IoU above 0.3",
    "iobb_0.3": "IoBB above 0.3",
    RATIO: "outside / inside",
}
RESAMPLES = localising.RESAMPLES
# Below so many, no difference is called a gain or a loss.
FEWEST_GROUPS = 10


@dataclasses.dataclass(frozen=True)
class Results:
    """Predictions of a comparison.

    Args:
        rows: the networks, `training.comparisons.masks.Row`.
        cells: predictions of test films of every row, seed and fold, with group.
        boxes: tables of `training.localising.localise` of the same films, with row, seed, fold, group and the
            fraction at which the map is cut.
        baseline: predictions of the same films by the baseline that sees no anatomy.
        labels: the findings.
    """

    rows: list
    cells: pd.DataFrame
    boxes: pd.DataFrame
    baseline: pd.DataFrame
    labels: list[str]


class Draws:
    """Resampled patients and seeds, the same for every network, so that differences are paired.

    Whole groups of films are drawn, and where there are several seeds, seeds: a network that is better by the
    luck of one training is not better in every draw. The first draw is the set itself.

    Args:
        groups: of all films.
        seeds: all seeds.
        resamples: draws beside the set itself.
    """

    def __init__(self, groups, seeds, resamples=RESAMPLES):
        random = np.random.default_rng(0)
        self.groups = pd.Index(sorted(set(map(str, groups))))
        self.seeds = pd.Index(sorted(set(seeds)))
        self._groups, self._seeds = (
            np.vstack([np.ones(count), random.multinomial(count, np.full(count, 1 / count), size=resamples)])
            for count in (len(self.groups), len(self.seeds))
        )

    def of_groups(self, groups) -> np.ndarray:
        """float (1 + resamples, N): how often each film counts."""
        return self._groups[:, _places(self.groups, list(map(str, groups)))]

    def of_seeds(self, seeds) -> np.ndarray:
        """float (1 + resamples, N): how often the training counts that each row is of."""
        return self._seeds[:, _places(self.seeds, list(seeds))]


def _places(known, asked):
    places = known.get_indexer(asked)
    if (places < 0).any():
        missing = asked[int(np.argmin(places))]
        raise ValueError(f"{missing!r} is not among the {len(known)} groups or seeds that are resampled")
    return places


def scores_of(results) -> dict:
    """Every row's scores, their differences, and what follows, as JSON values."""
    draws = Draws(results.cells["group"], results.cells["seed"])
    measured, scored = {}, {}
    for row in results.rows:
        cells = results.cells[results.cells["row"] == row.name]
        boxes = results.boxes[results.boxes["row"] == row.name]
        areas = _areas(cells, results.labels, draws)
        own = _of_kind(boxes, EVIDENCE)
        measured[row.name] = {"auroc": areas["mean"], **_located(own, draws)}
        trainings = cells.groupby(["seed", "fold"])[["training_seconds", "epochs"]].first()
        scored[row.name] = {
            "network": row.network,
            **_told(measured[row.name]),
            "findings": _by_finding(areas, own, results.labels, draws),
            "by_seed": _by_seed(cells, own, results.labels),
            "fractions": sorted(set(own["fraction"])) if len(own) else [],
            "parameters": int(cells["parameters"].iloc[0]),
            "median_seconds_a_training": float(trainings["training_seconds"].median()),
            "median_epochs": float(trainings["epochs"].median()),
        }
    areas = _areas(results.baseline, results.labels, draws)
    measured[NO_ANATOMY] = {"auroc": areas["mean"]}
    scored[NO_ANATOMY] = {
        "network": "random forest, no anatomy",
        "baseline": True,
        **_told(measured[NO_ANATOMY]),
        "findings": _by_finding(areas, None, results.labels, draws),
    }
    for name, network, boxes in _blind_maps(results):
        measured[name] = _located(boxes, draws)
        scored[name] = {
            "network": network,
            "baseline": True,
            **_told(measured[name]),
            "findings": _by_finding(None, boxes, results.labels, draws),
        }
    differences = _differences(results, measured, scored)
    tested = _of_kind(results.boxes, UNIFORM).drop_duplicates(["seed", "position", "finding", "box"])
    scores = {
        "rows": scored,
        "differences": differences,
        "labels": list(results.labels),
        "films": int(results.cells["path"].nunique()),
        "groups": int(results.cells["group"].nunique()),
        "boxes": len(tested.drop_duplicates(["position", "finding", "box"])),
        "boxes_by_finding": {
            name: int((tested["finding"] == name).sum()) for name in results.labels if len(tested)
        },
        "seeds": int(results.cells["seed"].nunique()),
        "folds": int(results.cells["fold"].nunique()),
    }
    scores["verdict"] = verdict(scores)
    return scores


def _of_kind(boxes, kind):
    return boxes[boxes["map"] == kind].reset_index(drop=True)


def _blind_maps(results):
    """(name, what it is, its boxes) of the maps that have not seen what they point at."""
    names = [row.name for row in results.rows]
    aligned = FULL if FULL in names else next((row.name for row in results.rows if row.aligned), None)
    for name, told, source in (
        ("mask-alone", "mask alone, laid by the aligner", aligned),
        ("mask-alone-unaligned", "mask alone, no film at all", "masks-only"),
    ):
        boxes = _of_kind(results.boxes[results.boxes["row"] == source], MASK_ALONE)
        if len(boxes):
            yield name, told, boxes
    boxes = _of_kind(results.boxes[results.boxes["row"] == names[0]], UNIFORM)
    if len(boxes):
        yield "uniform-map", "uniform map, chance", boxes


# Scores by draw


def _columns(cells, kind, labels):
    columns = [pd.to_numeric(cells[f"{kind}_{name}"], errors="coerce") for name in labels]
    return np.stack([column.to_numpy(float, na_value=np.nan) for column in columns], axis=1)


def _areas(cells, labels, draws) -> dict:
    """AUROC by draw: "mean" over the findings and of each, each the mean over the seeds."""
    from kxray.metrics import auroc

    names, by_seed = sorted(set(cells["seed"])), []
    for seed in names:
        mine = cells[cells["seed"] == seed]
        truths, probabilities = (_columns(mine, kind, labels) for kind in ("truth", "probability"))
        weights = draws.of_groups(mine["group"])
        of_labels = []
        for truth, probability in zip(truths.T, probabilities.T, strict=True):
            known = np.isfinite(truth) & np.isfinite(probability)
            scores = np.stack([-probability[known], probability[known]], axis=1)
            of_labels.append(auroc((truth[known] == 1).astype(int), scores, 2, weights[:, known]))
        by_seed.append(of_labels)
    areas = np.array(by_seed)  # (seeds, findings, draws)
    counts = draws.of_seeds(names).T
    # The set itself decides which findings can be scored; a draw without one goes by the others.
    defined = np.isfinite(areas[:, :, :1])
    mean = _mean(np.where(defined, areas, np.nan), np.ones((1, len(labels), 1)), axis=1)
    return {
        "mean": _mean(mean, counts, axis=0),
        **{name: _mean(areas[:, index], counts, axis=0) for index, name in enumerate(labels)},
    }


def _mean(values, weights, axis):
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        total = (weights * known).sum(axis=axis)
        return (weights * np.where(known, values, 0)).sum(axis=axis) / total


def _located(boxes, draws) -> dict:
    """Scores of maps by draw; none where no film has a box."""
    if boxes is None or not len(boxes):
        return {}
    values = localising.values_of(boxes)
    weights = draws.of_groups(boxes["group"]) * draws.of_seeds(boxes["seed"])
    return {
        **{name: localising.weighted_means(values[name].to_numpy(float), weights) for name in PLAIN_METRICS},
        RATIO: localising.weighted_medians(values[RATIO].to_numpy(float), weights),
    }


def _told(measured) -> dict:
    return {name: localising.with_interval(values[0], values[1:]) for name, values in measured.items()}


def _by_finding(areas, boxes, labels, draws) -> dict:
    told = {}
    for name in labels:
        measured = {} if areas is None else {"auroc": areas[name]}
        if boxes is not None and len(boxes):
            measured |= _located(boxes[boxes["finding"] == name].reset_index(drop=True), draws)
        told[name] = _told(measured)
    return told


def _by_seed(cells, boxes, labels) -> list[dict]:
    """The scores of each seed alone, without intervals."""
    told = []
    for seed in sorted(set(cells["seed"])):
        mine, own = cells[cells["seed"] == seed], boxes[boxes["seed"] == seed].reset_index(drop=True)
        whole = Draws(mine["group"], [seed], resamples=0)
        measured = {"auroc": _areas(mine, labels, whole)["mean"], **_located(own, whole)}
        told.append({"seed": int(seed), **{name: float(values[0]) for name, values in measured.items()}})
    return told


# Differences and what they say


def _differences(results, measured, scored) -> list[dict]:
    """Every network against the plain one, then the full one against each part of it and what is blind."""
    names = [row.name for row in results.rows]
    groups, boxed = (int(table["group"].nunique()) for table in (results.cells, results.boxes))
    pairs = [(name, BASE) for name in names if name != BASE and BASE in names]
    pairs += [(FULL, name) for name in names if FULL in names and name not in (FULL, BASE)]
    pairs += [(FULL, name) for name in ("mask-alone", NO_ANATOMY) if FULL in names and name in measured]
    differences = []
    for one, other in pairs:
        found = {"one": one, "other": other}
        for metric in SHOWN:
            if metric in measured[one] and metric in measured[other]:
                # Ratios may be infinite in both.
                with np.errstate(invalid="ignore"):
                    change = measured[one][metric] - measured[other][metric]
                found[metric] = localising.with_interval(change[0], change[1:])
                found[metric]["groups"] = groups if metric == "auroc" else boxed
                by_seed = [scored[name].get("by_seed", ()) for name in (one, other)]
                found[metric]["by_seed"] = [
                    mine[metric] - theirs[metric]
                    for mine, theirs in zip(*by_seed, strict=False)
                    if metric in mine and metric in theirs
                ]
        differences.append(found)
    return differences


def verdict(scores) -> list[str]:
    """What the differences say, in words; "no gain" where they say nothing."""
    found = {(one["one"], one["other"]): one for one in scores["differences"]}
    rows = scores["rows"]
    lines = []
    whole = found.get((FULL, BASE))
    if whole is not None:
        located = [_outcome(whole[metric]) for metric in ("pointing_game", "iou_0.3") if metric in whole]
        if not located:
            head = "no test film has a box: whether masks and alignment localise better cannot be measured"
        elif all(outcome == "better" for outcome in located):
            head = "masks and alignment localise better than the same network without"
        elif "worse" in located:
            head = "masks and alignment localise worse than the same network without, by one measure or both"
        elif "better" in located:
            head = "masks and alignment localise better by one measure; by the other there is no clear gain"
        else:
            head = "no gain in localisation from masks and alignment that these films can tell from chance"
        lines.append(
            f"{head}: {_listed(whole, ('pointing_game', 'iou_0.3', 'iobb_0.3'))}" if located else head
        )
        outcome = _outcome(whole["auroc"])
        told = {
            "better": "they also tell findings apart better",
            "worse": "they tell findings apart worse",
            "unclear": "no gain or loss in telling findings apart that these films can tell from chance",
        }[outcome]
        lines.append(f"{told}: {_listed(whole, ('auroc',))}")
    for other, told in (
        ("uniform", "what the masks add to alignment and attention"),
        ("aligned-only", "what masks and attention add to alignment"),
        ("masks-only", "what alignment adds to masks"),
        ("no-box-loss", "what supervision by boxes adds"),
    ):
        pair = found.get((FULL, other))
        if pair is not None:
            outcome = _outcome(pair["pointing_game"]) if "pointing_game" in pair else "unclear"
            word = {"better": "a gain", "worse": "a loss", "unclear": "no gain that is clear"}[outcome]
            lines.append(f"{told}: {word}; {_listed(pair, ('pointing_game', 'iou_0.3', 'auroc'))}")
    pair = found.get((FULL, "mask-alone"))
    if pair is not None:
        outcomes = {_outcome(pair[metric]) for metric in ("pointing_game", "iou_0.3")}
        if "worse" in outcomes:
            told = (
                "the mask alone, laid without what is in the lungs, localises better by one measure or both"
            )
        elif outcomes == {"better"}:
            told = (
                "the evidence knows more of the place than the mask alone, laid without what is in the lungs"
            )
        else:
            told = "the evidence localises no better than the mask alone, laid without what is in the lungs"
        lines.append(f"{told}: {_listed(pair, ('pointing_game', 'iou_0.3'))}")
    pair = found.get((FULL, NO_ANATOMY))
    if pair is not None and _outcome(pair["auroc"]) != "better":
        lines.append(
            f"shortcut likely: a classifier that sees no anatomy reaches "
            f"{interval(rows[NO_ANATOMY]['auroc'])}, and the full network is not clearly above it"
        )
    return lines


def _outcome(difference) -> str:
    """ "better" or "worse" where the interval leaves out 0, and no seed says the opposite.

    Of very few patients, the interval of a bootstrap is too narrow to say anything.
    """
    if not math.isfinite(difference["low"]) or difference["groups"] < FEWEST_GROUPS:
        return "unclear"
    if difference["low"] > 0 and min(difference["by_seed"], default=1) > 0:
        return "better"
    if difference["high"] < 0 and max(difference["by_seed"], default=-1) < 0:
        return "worse"
    return "unclear"


def _listed(pair, metrics) -> str:
    return ", ".join(
        f"{SHOWN[metric]} {interval(pair[metric], signed=True)}" for metric in metrics if metric in pair
    )


def interval(score, signed=False) -> str:
    """ "0.712 [0.650, 0.771]"; signed for differences."""
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(*(math.nan if score[key] is None else score[key] for key in ("value", "low", "high")))


def table_of(metrics) -> pd.DataFrame:
    """The comparison as a table, one row a network or baseline."""
    lines = []
    for name, row in metrics["rows"].items():
        line = {"row": name, "network": row["network"]}
        for metric in SHOWN:
            score = row.get(metric, {})
            line |= {
                metric: score.get("value"),
                **{f"{metric}_{end}": score.get(end) for end in ("low", "high")},
            }
        for key in ("parameters", "median_seconds_a_training", "median_epochs"):
            line[key] = row.get(key)
        lines.append(line)
    return pd.DataFrame(lines)


def told(metrics) -> list[str]:
    """The comparison in lines for the shell."""
    width = max(len(row["network"]) for row in metrics["rows"].values()) + 2
    lines = [f"{'network':<{width}}" + "".join(f"{title:<23}" for title in SHOWN.values())]
    for row in metrics["rows"].values():
        cells = "".join(f"{interval(row[metric]) if metric in row else '-':<23}" for metric in SHOWN)
        lines.append(f"{row['network']:<{width}}{cells}".rstrip())
    lines += metrics["verdict"]
    lines.append(conditions(metrics))
    return lines


def conditions(metrics) -> str:
    """What the scores were measured on, in words."""
    seeds, folds = metrics["seeds"], metrics["folds"]
    how = f"{folds} folds, " if folds > 1 else ""
    return (
        f"{metrics['films']} test films in {metrics['groups']} groups, {metrics['boxes']} boxes, {how}"
        f"{seeds} seed{'s' * (seeds > 1)}; 95% intervals over resampled groups{' and seeds' * (seeds > 1)}"
    )
