"""Which targets a counterfactual GAN learns: those that its classifier tells, and that some films have."""

import dataclasses
import math

import numpy as np

from training.generating.gan_options import names

CHANCE = 0.5


@dataclasses.dataclass(frozen=True)
class LearnedTargets:
    """The targets of a run.

    Attributes:
        targets: T `kxray.explain.targets.Target`, in the classifier's order.
        held: int8 (T, N), whether films have them.
        notes: which ones were left out, and why.
    """

    targets: tuple
    held: np.ndarray
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    def back(self, labels) -> np.ndarray:
        """The target that changes film n back from target t, int (T, N); -1 where none was learned.

        Args:
            labels: int (N,), of exclusive labels; of findings anything.
        """
        found = np.full(self.held.shape, -1)
        for number, target in enumerate(self.targets):
            for other, way in enumerate(self.targets):
                if np.ndim(labels) == 2:
                    if way.label == target.label and way.present != target.present:
                        found[number] = other
                else:
                    found[number, np.asarray(labels) == way.label] = other
        return found


def asked(recipe, spec) -> tuple:
    """The targets that a recipe asks for, in the classifier's order. ValueError lists the known ones."""
    from kxray.explain.targets import target_index, targets_of

    known = targets_of(spec)
    if recipe.targets is None:
        return known
    numbers = {target_index(spec, name) for name in names(recipe.targets)}
    return tuple(known[number] for number in sorted(numbers))


def choose(recipe, spec, labels, rows, scores) -> LearnedTargets:
    """The targets to learn.

    Args:
        recipe: its targets and least_auroc.
        spec: ModelSpec of the classifier.
        labels: of all films, see `kxray.explain.targets.held`.
        rows: int, the training films.
        scores: dict from label to what `label_scores` says of it; None: nobody has looked yet.

    Raises:
        ValueError: the classifier is near chance for all of them, or the films show none.
    """
    from kxray.data import drawable_targets
    from kxray.explain.targets import held, targets_of

    known, kept, unsure, absent = targets_of(spec), [], [], []
    whole = held(spec, labels)
    drawable = set(drawable_targets(whole, rows).tolist())
    for target in asked(recipe, spec):
        number, why = known.index(target), None
        if scores is not None and recipe.least_auroc:
            why = near_chance(scores[spec.labels[target.label]], recipe.least_auroc)
        if why is not None:
            unsure.append(why)
        elif number not in drawable:
            lacking = "lacks" if (whole[number, rows] == 1).any() else "has"
            absent.append(f"target {target.name!r} is left out: no training film {lacking} it")
        else:
            kept.append(number)
    if not kept:
        raise ValueError((*unsure, *absent)[0])
    notes = (*(f"{why}; its targets are left out" for why in dict.fromkeys(unsure)), *absent)
    return LearnedTargets(tuple(known[number] for number in kept), whole[kept], notes)


def near_chance(score, least) -> str | None:
    """Why a counterfactual of a label would explain nothing; None where the classifier tells it.

    Args:
        score: of `label_scores`.
        least: AUROC that is asked for.
    """
    if math.isfinite(score["value"]) and score["value"] >= least and score["low"] > CHANCE:
        return None
    label, films = score["label"], f"{score['films']} {score['which']}"
    if not math.isfinite(score["value"]):
        return (
            f"whether the classifier tells {label} nobody knows: all of {films} have it, or none has; give "
            "more films, or --least-auroc 0"
        )
    return (
        f"the classifier tells {label} by AUROC {score['value']:.2f} [{score['low']:.2f}, "
        f"{score['high']:.2f}] on {films}: near chance, a counterfactual of it would explain nothing (asked "
        f"for: {least:g}, and an interval above {CHANCE}); train a better classifier, choose other "
        "--targets, or give --least-auroc 0"
    )


def label_scores(spec, labels, probabilities, patients, which, seed=0) -> dict:
    """How well a classifier tells each label from the rest.

    Args:
        spec: its ModelSpec.
        labels: true labels of N films, see `kxray.explain.targets.held`.
        probabilities: float (N, L).
        patients: (N,), of the bootstrap.
        which: what the films are, in words.
        seed: of the bootstrap.

    Returns:
        dict from label to a dict of value, low, high (AUROC, 95% interval; NaN where all films are alike),
        films, label and which.
    """
    from kxray import metrics

    labels, patients = np.asarray(labels), np.asarray(patients)
    truths = labels if labels.ndim == 2 else (labels[:, None] == np.arange(spec.num_labels)).astype(float)
    found = {}
    for index, label in enumerate(spec.labels):
        known = ~np.isnan(truths[:, index])
        positive, scores = (truths[known, index] == 1).astype(int), np.asarray(probabilities)[known, index]
        score = {"value": math.nan, "low": math.nan, "high": math.nan}
        if 0 < positive.sum() < len(positive):
            pair = np.stack([-scores, scores], axis=1)

            def area(weights, positive=positive, pair=pair):
                return metrics.auroc(positive, pair, 2, weights)

            low, high = metrics.patient_bootstrap(area, patients[known], seed=seed)
            score = {"value": float(area(np.ones((1, len(positive))))[0]), "low": low, "high": high}
        found[label] = {**score, "films": int(known.sum()), "label": label, "which": which}
    return found


def out_of_fold_scores(run, seed=0) -> dict | None:
    """`label_scores` of a run with folds: of models that had not seen the films; None where it kept none.

    Args:
        run: `training.counterfactuals.cf_films.ClassifierRun`.
        seed: of the bootstrap.
    """
    from training import finding_scores, runs, scoring

    place = run.folder / "predictions.csv"
    if not place.is_file():
        return None
    table, spec = runs.read_table(place), run.spec
    read = finding_scores if spec.task == "multilabel" else scoring
    labels, _, probabilities = read.columns_of(table, spec)[:3]
    return label_scores(spec, labels, probabilities, table["group"], "out-of-fold films", seed)
