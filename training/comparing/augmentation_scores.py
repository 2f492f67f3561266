"""What a comparison of augmentation measured: every row's scores and their paired differences."""

import dataclasses

import numpy as np
import pandas as pd

from training.comparing import augmentation_verdict
from training.comparing.augmentation_verdict import NO_ANATOMY, REAL, SHOWN
from training.comparing.masks_scores import Draws
from training.localising import with_interval

CHANCE = "chance"
PERMUTATIONS = 2000


@dataclasses.dataclass(frozen=True)
class Results:
    """Predictions of a comparison.

    Args:
        rows: `training.comparisons.augmentation.Row`s.
        cells: one line a row, seed and film: row, seed, part ("val" or "test"), path, group, label and
            probability_<label> of every label.
        facts: what each training was of, of `training.comparing.augmentation_run`: row, seed, real and
            synthetic (films of each class), mix, seconds, epochs, best_epoch, parameters.
        baseline: test predictions of the baseline that sees no anatomy, with row and seed.
        labels: the classes.
        rare: those that are rare.
        counts: label -> {"train", "val", "test"} -> real films.
        holds_for: what films, network and generator the scores are of, in words.
    """

    rows: list
    cells: pd.DataFrame
    facts: list[dict]
    baseline: pd.DataFrame
    labels: tuple[str, ...]
    rare: tuple[str, ...]
    counts: dict
    holds_for: str


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the trainings of one row, a seed each, say of the same films.

    Args:
        truth: int (N,).
        probabilities: float (S, N, L).
        mixes: float (S, L), the classes' shares in each training's loss.
        groups: (N,), films that are resampled together.
    """

    truth: np.ndarray
    probabilities: np.ndarray
    mixes: np.ndarray
    groups: np.ndarray

    def right(self, even) -> np.ndarray:
        """Bool (S, N): whether the most probable class is the film's own.

        With `even`, after each class's probability is divided by the class's share in training: what the
        network would say had all classes been equally frequent.
        """
        said = self.probabilities / self.mixes[:, None] if even else self.probabilities
        return said.argmax(axis=2) == self.truth


def answers_of(cells, labels, mixes) -> Answers:
    """The Answers of one row's lines of one part.

    Args:
        cells: lines of `Results.cells`.
        labels: the classes.
        mixes: seed -> float (L,).
    """
    names = [f"probability_{label}" for label in labels]
    by_seed = {seed: lines.sort_values("path") for seed, lines in cells.groupby("seed")}
    first = next(iter(by_seed.values()))
    if any(list(lines["path"]) != list(first["path"]) for lines in by_seed.values()):
        raise ValueError("the seeds of a row do not answer for the same films")
    return Answers(
        np.array([labels.index(label) for label in first["label"]], int),
        np.stack([lines[names].to_numpy(float) for lines in by_seed.values()]),
        np.stack([np.asarray(mixes[seed], float) for seed in by_seed]),
        first["group"].astype(str).to_numpy(),
    )


def measure(answers, rare, draws) -> dict:
    """Every score by draw, float (1 + B,), the films themselves first.

    Returns:
        dict: "classes": float (L, 1 + B), AUROC against the rest, the mean over the seeds, NaN where a class
        or its rest has no film; "seeds": float (S, L), of the films themselves; and the scores of SHOWN.

    Args:
        answers: of one row.
        rare: int, positions of the rare classes.
        draws: Draws of these films' groups and of the seeds 0, 1, ...
    """
    from kxray.metrics import auroc

    seeds, _, labels = answers.probabilities.shape
    weights, of_seeds = draws.of_groups(answers.groups), draws.of_seeds(range(seeds)).T
    areas = np.full((seeds, labels, len(weights)), np.nan)
    for seed, label in np.ndindex(seeds, labels):
        said = answers.probabilities[seed, :, label]
        own = (answers.truth == label).astype(int)
        areas[seed, label] = auroc(own, np.stack([-said, said], axis=1), 2, weights)
    classes = _over_seeds(areas, of_seeds[:, None])
    shown = np.unique(answers.truth)
    told = {
        "classes": classes,
        "seeds": areas[:, :, 0],
        "auroc": _over_classes(classes, shown),
        "rare_auroc": _over_classes(classes, np.intersect1d(rare, shown)),
    }
    for name, even in (("balanced_accuracy", False), ("even_accuracy", True)):
        right = answers.right(even).astype(float)
        recalls = np.stack([_recall(right, answers.truth == label, weights) for label in shown], axis=1)
        told[name] = _over_classes(_over_seeds(recalls, of_seeds[:, None]), slice(None))
        told[f"{name}_seeds"] = recalls[:, :, 0].mean(axis=1)
    return told


def _recall(right, own, weights):
    """float (S, 1 + B) of right (S, N): the share of a class's films that are right; NaN without any."""
    with np.errstate(invalid="ignore"):
        return (right[:, own] @ weights[:, own].T) / weights[:, own].sum(axis=1)


def _over_seeds(values, counts):
    """The mean over the first axis, seeds, each of which counts as often as it was drawn."""
    return (values * counts).sum(axis=0) / counts.sum(axis=0)


def _over_classes(classes, rows):
    """The mean over some classes, of those that a draw of films has any of."""
    chosen = classes[rows]
    known = np.isfinite(chosen)
    with np.errstate(invalid="ignore"):
        return np.where(known, chosen, 0).sum(axis=0) / known.sum(axis=0)


def swapped(one, other, rare, permutations=PERMUTATIONS, seed=0) -> dict:
    """P-values that two rows are equally good, for every score of SHOWN.

    Under the null hypothesis the answers of the two may be swapped, for a whole group of films and all seeds
    at once. AUROC goes by ranks, for two trainings may mean different things by one probability (Bandos,
    Rockette & Gur, 2005).

    Args:
        one, other: Answers of two rows on the same films.
        rare: int, positions of the rare classes.
        permutations: number of random swaps.
        seed: of them.

    Returns:
        dict from score to p in (0, 1], two-sided; NaN where the score is undefined.
    """
    from scipy.stats import rankdata

    from kxray.metrics import paired_permutation_test

    _, owner = np.unique(one.groups, return_inverse=True)
    owner = owner.reshape(-1)
    random = np.random.default_rng(seed)
    signs = random.choice((-1.0, 1.0), size=(permutations, owner.max() + 1))[:, owner]
    signs = np.vstack([np.ones(len(owner)), signs])
    labels = one.probabilities.shape[2]
    change = np.full((labels, len(signs)), np.nan)
    for label in range(labels):
        own = one.truth == label
        if not 0 < own.sum() < len(own):
            continue
        by_seed = []
        for ranks in zip(
            *(rankdata(answers.probabilities[:, :, label], axis=1) for answers in (one, other)), strict=True
        ):
            mean, half = (ranks[0] + ranks[1]) / 2, (ranks[0] - ranks[1]) / 2
            by_seed.append(_areas(mean + signs * half, own) - _areas(mean - signs * half, own))
        change[label] = np.mean(by_seed, axis=0)
    p_values = {}
    for name, members in (("auroc", np.arange(labels)), ("rare_auroc", np.asarray(rare, int))):
        members = members[np.isfinite(change[members, 0])]
        mean = np.abs(change[members].mean(axis=0)) if len(members) else np.full(len(signs), np.nan)
        reached = (mean[1:] >= mean[0] - 1e-9).sum()
        p_values[name] = (1 + reached) / (1 + permutations) if len(members) else np.nan
    share = 1 / np.bincount(one.truth, minlength=labels)[one.truth]
    for name, even in (("balanced_accuracy", False), ("even_accuracy", True)):
        gained = one.right(even).mean(axis=0) - other.right(even).mean(axis=0)
        p_values[name] = paired_permutation_test(gained * share, one.groups, permutations, seed)
    return p_values


def _areas(scores, own):
    """AUROC float (B,) of scores (B, N); ties count half."""
    from scipy.stats import rankdata

    positive = int(own.sum())
    ranks = rankdata(scores, axis=1)[:, own].sum(axis=1)
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(own) - positive))


def scores_of(results) -> dict:
    """Every row's scores, their differences, and what follows, as JSON values."""
    labels = tuple(results.labels)
    rare = np.array([labels.index(label) for label in results.rare], int)
    answers, validated, measured, scored = {}, {}, {}, {}
    test = results.cells[results.cells["part"] == "test"]
    validation = results.cells[results.cells["part"] == "val"]
    draws = Draws(test["group"], range(test["seed"].nunique()))
    for row in results.rows:
        facts = [one for one in results.facts if one["row"] == row.name]
        mixes = {one["seed"]: one["mix"] for one in facts}
        answers[row.name] = answers_of(test[test["row"] == row.name], labels, mixes)
        measured[row.name] = measure(answers[row.name], rare, draws)
        own = answers_of(validation[validation["row"] == row.name], labels, mixes)
        whole = Draws(own.groups, range(len(own.mixes)), resamples=0)
        scores = measure(own, rare, whole)
        validated[row.name] = {name: float(scores[name][0]) for name in SHOWN}
        scored[row.name] = {
            "told": row.told,
            **_told(measured[row.name], labels),
            "validation": validated[row.name],
            "real": facts[0]["real"],
            "synthetic": facts[0]["synthetic"],
            "films": sum(facts[0]["real"].values()) + sum(facts[0]["synthetic"].values()),
            "by_seed": _by_seed(measured[row.name], rare),
            "parameters": facts[0]["parameters"],
            "median_seconds": float(np.median([one["seconds"] for one in facts])),
            "best_epochs": [one["best_epoch"] for one in facts],
        }
    even = {seed: np.ones(len(labels)) for seed in results.baseline["seed"].unique()}
    answers[NO_ANATOMY] = answers_of(results.baseline, labels, even)
    measured[NO_ANATOMY] = measure(answers[NO_ANATOMY], rare, draws)
    baselines = {
        NO_ANATOMY: {"told": "random forest, no anatomy", **_told(measured[NO_ANATOMY], labels)},
        CHANCE: _chance(labels, np.unique(answers[REAL].truth)),
    }
    chosen = augmentation_verdict.choose(results.rows, validated)
    scores = {
        "rows": scored,
        "baselines": baselines,
        "chosen": chosen,
        "differences": _differences(results.rows, chosen, answers, measured, rare),
        "labels": list(labels),
        "rare": list(results.rare),
        "counts": results.counts,
        "films": int(test["path"].nunique()),
        "groups": int(test["group"].nunique()),
        "rare_groups": int(test["group"][test["label"].isin(results.rare)].nunique()),
        "seeds": int(test["seed"].nunique()),
        "recognised": _recognised(results.facts),
        "holds_for": results.holds_for,
    }
    outcome, lines = augmentation_verdict.verdict(scores)
    return {"outcome": outcome, "verdict": lines, **scores}


def _recognised(facts) -> dict:
    """Class -> AUROC of the real films' classifier on synthetic films, mean over the seeds."""
    known = [one["recognised"] for one in facts if one.get("recognised")]
    names = dict.fromkeys(name for one in known for name in one)
    return {name: float(np.mean([one[name] for one in known if name in one])) for name in names}


def _told(measured, labels) -> dict:
    told = {name: with_interval(measured[name][0], measured[name][1:]) for name in SHOWN}
    told["classes"] = {
        label: with_interval(values[0], values[1:])
        for label, values in zip(labels, measured["classes"], strict=True)
    }
    return told


def _by_seed(measured, rare) -> list[dict]:
    """The scores of each seed alone, without intervals."""
    return [
        {
            "rare_auroc": float(_over_classes(areas, rare)),
            "auroc": float(_over_classes(areas, slice(None))),
            "balanced_accuracy": float(measured["balanced_accuracy_seeds"][seed]),
            "even_accuracy": float(measured["even_accuracy_seeds"][seed]),
        }
        for seed, areas in enumerate(measured["seeds"])
    ]


def _chance(labels, shown) -> dict:
    known = {"value": 0.5, "low": 0.5, "high": 0.5}
    guessed = dict.fromkeys(known, 1 / len(labels))
    return {
        "told": "chance",
        **dict.fromkeys(("rare_auroc", "auroc"), known),
        **dict.fromkeys(("balanced_accuracy", "even_accuracy"), guessed),
        "classes": {label: known for index, label in enumerate(labels) if index in shown},
    }


def pairs_of(rows, chosen) -> list[tuple[str, str]]:
    """Every row against the real films alone, then those with synthetic films against the chosen one."""
    names = [row.name for row in rows]
    pairs = [(name, REAL) for name in names if name != REAL]
    if chosen["classical"] != REAL:
        pairs += [(row.name, chosen["classical"]) for row in rows if row.ratio is not None and row.real]
    return pairs


def _differences(rows, chosen, answers, measured, rare) -> list[dict]:
    """Paired differences, with p-values corrected after Holm for all pairs, score by score."""
    from kxray.metrics import holm

    found = []
    for one, other in [*pairs_of(rows, chosen), (REAL, NO_ANATOMY)]:
        difference = {"one": one, "other": other}
        if other != NO_ANATOMY:
            p_values = swapped(answers[one], answers[other], rare)
        for name in SHOWN:
            change = measured[one][name] - measured[other][name]
            difference[name] = with_interval(change[0], change[1:])
            if other != NO_ANATOMY:
                seeds = [_by_seed(measured[row], rare) for row in (one, other)]
                difference[name] |= {
                    "p": float(p_values[name]),
                    "by_seed": [mine[name] - its[name] for mine, its in zip(*seeds, strict=True)],
                }
        found.append(difference)
    for name in SHOWN:
        tested = [one[name] for one in found if np.isfinite(one[name].get("p", np.nan))]
        for one, adjusted in zip(tested, holm([one["p"] for one in tested]), strict=True):
            one["p_holm"] = float(adjusted)
    return found


def table_of(metrics) -> pd.DataFrame:
    """The comparison as a table, one line a row or baseline."""
    lines = []
    for name, row in {**metrics["rows"], **metrics["baselines"]}.items():
        line = {"row": name, "told": row["told"], "films": row.get("films")}
        for score in SHOWN:
            line |= {
                score: row[score]["value"],
                **{f"{score}_{end}": row[score][end] for end in ("low", "high")},
            }
        for label in metrics["labels"]:
            line[f"auroc_{label}"] = row["classes"].get(label, {}).get("value")
        line["median_seconds"] = row.get("median_seconds")
        lines.append(line)
    return pd.DataFrame(lines)
