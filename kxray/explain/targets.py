"""What a classifier can be made to say of a film: the targets of counterfactuals.

Of findings (multilabel) each label is two targets, "no Effusion" and "Effusion", in this order; of exclusive
labels each label is one. Probabilities are calibrated, (N, L), in the order of `spec.labels`, everywhere.
"""

import dataclasses

import numpy as np

from kxray.spec import DECIDING_TASKS

# Exclusive labels are said where they are the more probable one; a fitted threshold is about being unsure.
_EVEN = 0.5


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be said: that label number `label` is there, or that it is not."""

    name: str
    label: int
    present: bool


def targets_of(spec) -> tuple[Target, ...]:
    """All targets of a classifier, in the order of their numbers.

    Args:
        spec: `kxray.ModelSpec` of a classifier.

    Raises:
        ValueError: a model that decides nothing, or labels whose targets would have one name.
    """
    if spec.task not in DECIDING_TASKS:
        raise ValueError(
            f"{spec.name!r} classifies nothing (task {spec.task!r}); a counterfactual needs a classifier"
        )
    if spec.task != "multilabel":
        return tuple(Target(label, index, True) for index, label in enumerate(spec.labels))
    targets = tuple(
        Target(label if present else f"no {label}", index, present)
        for index, label in enumerate(spec.labels)
        for present in (False, True)
    )
    names = [target.name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{twice[0]!r} is a label, and what the absence of another is called; rename the label"
        )
    return targets


def target_names(spec) -> tuple[str, ...]:
    """The names of `targets_of(spec)`."""
    return tuple(target.name for target in targets_of(spec))


def target_index(spec, name) -> int:
    """The number of a target. ValueError lists the known ones."""
    names = target_names(spec)
    if name not in names:
        raise ValueError(f"unknown target {name!r}; the targets of this classifier are: {', '.join(names)}")
    return names.index(name)


def target_numbers(spec, targets, count) -> np.ndarray:
    """The target of each film as int32 (count,).

    Args:
        spec: of the classifier.
        targets: the name or number of one target, or one a film.
        count: number of films.

    Raises:
        ValueError: an unknown target, or not one a film.
    """
    known = targets_of(spec)
    given = [targets] if isinstance(targets, str) else np.ravel(np.asarray(targets, dtype=object)).tolist()
    numbers = []
    for target in given:
        if isinstance(target, str):
            numbers.append(target_index(spec, target))
        elif not isinstance(target, (int, np.integer)) or isinstance(target, bool):
            raise ValueError(f"a target is a name or a whole number, got {target!r}")
        elif not 0 <= target < len(known):
            raise ValueError(
                f"unknown target {target}; the targets of this classifier are 0 to {len(known) - 1}: "
                + ", ".join(target.name for target in known)
            )
        else:
            numbers.append(int(target))
    if len(numbers) == 1:
        numbers = numbers * count
    if len(numbers) != count:
        raise ValueError(f"expected one target, or one for each of {count} films, got {len(numbers)}")
    return np.array(numbers, np.int32)


def opposite(spec, label, probabilities) -> int:
    """The target of the counterfactual that answers "why this label".

    Args:
        spec: of the classifier.
        label: index into `spec.labels`.
        probabilities: (L,), of the film.

    Returns:
        Number of the target: of a finding its absence; of exclusive labels the most probable other one.
    """
    known = targets_of(spec)
    if not 0 <= label < spec.num_labels:
        raise ValueError(
            f"unknown label {label}; the labels of this classifier are 0 to {spec.num_labels - 1}: "
            + ", ".join(spec.labels)
        )
    if spec.task == "multilabel":
        return known.index(Target(f"no {spec.labels[label]}", int(label), False))
    others = np.array(_rows(spec, np.asarray(probabilities)[None])[0])
    others[label] = -np.inf
    return int(others.argmax())


def wanted_probability(spec, probabilities, targets) -> np.ndarray:
    """The probability float (N,) of what each target wants: 1 - p of a finding that is to be absent.

    Args:
        spec: of the classifier.
        probabilities: (N, L).
        targets: int (N,).
    """
    rows, labels, present = _of_films(spec, probabilities, targets)
    chosen = np.take_along_axis(rows, labels[:, None], axis=1)[:, 0]
    return np.where(present, chosen, 1 - chosen)


def reached(spec, probabilities, targets) -> np.ndarray:
    """Whether the classifier says of each film what its target wants, bool (N,).

    Of a finding: its probability is at or above the label's threshold (present), or below it (absent). Of two
    exclusive labels: the probability is at least 0.5; of several: no other label is more probable.

    Args:
        spec: of the classifier.
        probabilities: (N, L).
        targets: int (N,).
    """
    rows, labels, present = _of_films(spec, probabilities, targets)
    chosen = np.take_along_axis(rows, labels[:, None], axis=1)[:, 0]
    if spec.task == "multiclass":
        return rows.argmax(axis=1) == labels
    if spec.task == "binary":
        return chosen >= _EVEN
    thresholds = np.array([spec.threshold(label) for label in spec.labels])[labels]
    return np.where(present, chosen >= thresholds, chosen < thresholds)


def other_labels(spec, probabilities, targets) -> np.ndarray:
    """The labels that a counterfactual is to leave as they are, bool (N, L).

    Of findings all but the one asked about; of several exclusive labels neither the one asked for nor the one
    that the classifier said before; of two none.

    Args:
        spec: of the classifier.
        probabilities: (N, L), of the films.
        targets: int (N,).
    """
    rows, labels, _ = _of_films(spec, probabilities, targets)
    others = np.full(rows.shape, spec.task != "binary")
    others[np.arange(len(rows)), labels] = False
    if spec.task == "multiclass":
        others[np.arange(len(rows)), rows.argmax(axis=1)] = False
    return others


def held(spec, labels) -> np.ndarray:
    """Which targets films have by their true labels.

    Args:
        spec: of the classifier.
        labels: of findings float (N, L): 1, 0, NaN where unknown; else int (N,), -1 where unknown.

    Returns:
        int8 (T, N): 1 the film has the target, 0 it has not, -1 unknown.
    """
    known = targets_of(spec)
    labels = np.asarray(labels)
    wanted = (spec.num_labels,) if spec.task == "multilabel" else ()
    if labels.ndim != 1 + len(wanted) or labels.shape[1:] != wanted:
        shape = f"(N, {spec.num_labels})" if wanted else "(N,)"
        raise ValueError(f"expected labels {shape} of a {spec.task} classifier, got {labels.shape}")
    if not wanted:
        numbers = np.arange(spec.num_labels)[:, None]
        return np.where(labels[None] < 0, -1, labels[None] == numbers).astype(np.int8)
    columns = labels.astype(float).T[[target.label for target in known]]
    present = np.array([[target.present] for target in known])
    return np.where(np.isnan(columns), -1, (columns >= 0.5) == present).astype(np.int8)


def _rows(spec, probabilities):
    rows = np.asarray(probabilities, float)
    if rows.ndim != 2 or rows.shape[1] != spec.num_labels:
        raise ValueError(f"expected probabilities (N, {spec.num_labels}) of {spec.labels}, got {rows.shape}")
    return rows


def _of_films(spec, probabilities, targets):
    """(probabilities (N, L), label (N,) and presence (N,) that each film's target wants)."""
    rows, known = _rows(spec, probabilities), targets_of(spec)
    chosen = [known[number] for number in target_numbers(spec, targets, len(rows))]
    labels = np.array([target.label for target in chosen], int)
    return rows, labels, np.array([target.present for target in chosen], bool)
