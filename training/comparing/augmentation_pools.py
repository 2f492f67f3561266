"""Which films a row of a comparison of augmentation trains on, and how much each counts."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pool:
    """The films that a training draws from.

    Attributes:
        rows: int, positions among real and then synthetic films; a repeated film is there several times.
        weights: float (L,), what a film of each class counts in the loss.
        real, synthetic: int (L,), films of each class, a repeated film as often as it is there.
    """

    rows: np.ndarray
    weights: np.ndarray
    real: np.ndarray
    synthetic: np.ndarray

    @property
    def mix(self) -> np.ndarray:
        """float (L,): the share of each class in the loss."""
        said = self.weights * (self.real + self.synthetic)
        return said / said.sum()


def rare_classes(labels, counts, asked=()) -> tuple[str, ...]:
    """The labels that count as rare.

    Args:
        labels: all.
        counts: training films of each.
        asked: those that a run was told to make rare; they are the rare ones.

    Returns:
        `asked`; or else the labels with fewer than half of the median count, of which there may be none: then
        the one with fewest films.
    """
    if asked:
        return tuple(label for label in labels if label in asked)
    counts = np.asarray(counts)
    rare = counts < np.median(counts) / 2
    if not rare.any():
        rare = np.arange(len(counts)) == counts.argmin()
    return tuple(label for label, is_rare in zip(labels, rare, strict=True) if is_rare)


def missing(rows, counts) -> np.ndarray:
    """int (L,): how many synthetic films of each class the rows need at most.

    Args:
        rows: `training.comparisons.augmentation.Row`s.
        counts: real training films of each class.
    """
    needed = [_filling(row, counts) for row in rows]
    return np.max(needed, axis=0)


def _filling(row, counts):
    """How many synthetic films of each class fill it up."""
    counts = np.asarray(counts)
    if row.ratio is None:
        return np.zeros(len(counts), int)
    target = round(row.ratio * counts.max())
    return np.maximum(target - counts, 0) if row.real else np.full(len(counts), target)


def pool_of(row, classes, train, made, seed) -> Pool:
    """The films of one row.

    Args:
        row: `training.comparisons.augmentation.Row`.
        classes: int (N,), of all real films; the training films show every class.
        train: int, positions of the real training films.
        made: int (M,), classes of the synthetic films, which come after the N real ones; the first of a class
            are used, so that a larger ratio has all films of a smaller one.
        seed: of which films a row repeats once more than others.
    """
    train, made, labels = np.asarray(train), np.asarray(made, int), int(classes.max()) + 1
    counts = np.bincount(classes[train], minlength=labels)
    parts = [train] if row.real else []
    if row.repeated:
        random = np.random.default_rng([seed, 7])
        for label in range(labels):
            own, more = train[classes[train] == label], counts.max() - counts[label]
            parts += [np.tile(own, more // len(own)), random.permutation(own)[: more % len(own)]]
    for label, number in enumerate(_filling(row, counts)):
        own = np.flatnonzero(made == label)
        if len(own) < number:
            raise ValueError(f"{row.name} needs {number} synthetic films of class {label}, got {len(own)}")
        parts.append(len(classes) + own[:number])
    rows = np.concatenate(parts).astype(np.int64)
    is_real = rows < len(classes)
    real = np.bincount(classes[rows[is_real]], minlength=labels)
    synthetic = np.bincount(made[rows[~is_real] - len(classes)], minlength=labels)
    whole = real + synthetic
    weights = len(rows) / (labels * whole) if row.weighted else np.ones(labels)
    return Pool(rows, weights, real, synthetic)


def validation_weights(mix, classes) -> np.ndarray:
    """What films count so that classes have the shares `mix` in a mean over them; 1 on average.

    A row is chosen by the loss that it is trained on: a network that was taught that classes are even would
    be blamed, on films where they are not, for what it was taught.

    Args:
        mix: float (L,), shares.
        classes: int (N,), of the films.
    """
    shares = np.bincount(classes, minlength=len(mix)) / len(classes)
    weights = (np.asarray(mix) / np.maximum(shares, 1e-12))[classes]
    return weights / weights.mean()
