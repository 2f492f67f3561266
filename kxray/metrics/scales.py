"""Whether the films that a multi-scale generator makes of one random vector are one film."""

import numpy as np


def scale_agreement(films, classes) -> list[dict]:
    """Correlation of each scale's films with the smallest scale's, pixel by pixel.

    A larger film is averaged over squares of pixels down to the smaller side. Any two chests of one pose
    correlate; so the same is told of films of another random vector of the same class (`another`), and of
    what is a film's own, the mean film of its class and scale taken away (`own`).

    Args:
        films: dict from side to float (N, side, side, 1); film i of every side has the same random vector.
        classes: ints (N,).

    Returns:
        A dict for each side above the smallest, from the smallest on: side, against (the smallest side),
        correlation and lowest (mean and least over films), own, another; None for what takes two films of a
        class where no class has them, or films without any contrast.

    Raises:
        ValueError: numbers of films that differ, or sides that are no multiples.
    """
    classes = np.asarray(classes)
    sides = sorted(films)
    counts = {side: len(films[side]) for side in sides} | {"classes": len(classes)}
    if len(set(counts.values())) != 1 or not len(classes):
        raise ValueError(f"expected as many films of every side as classes, one or more, got {counts}")
    for side in sides[1:]:
        if side % sides[0]:
            raise ValueError(f"films of {side} pixels cannot be averaged to {sides[0]}")
    small = _rows(films[sides[0]])
    order = _another(classes)
    found = []
    for side in sides[1:]:
        large = _rows(_averaged(np.asarray(films[side], np.float64), side // sides[0]))
        same = _correlation(large, small)
        found.append(
            {
                "side": side,
                "against": sides[0],
                "correlation": _mean(same),
                "lowest": None if np.isnan(same).all() else float(np.nanmin(same)),
                "own": _mean(_correlation(_own(large, classes), _own(small, classes))[order >= 0]),
                "another": _mean(_correlation(large, small[order])[order >= 0]),
            }
        )
    return found


def _averaged(films, factor):
    count, side = films.shape[:2]
    return films.reshape(count, side // factor, factor, side // factor, factor, -1).mean(axis=(2, 4))


def _rows(films):
    films = np.asarray(films, np.float64)
    return films.reshape(len(films), -1)


def _another(classes):
    """The next film (N,) of the same class, around; -1 where there is no other."""
    order = np.full(len(classes), -1)
    for value in np.unique(classes):
        own = np.flatnonzero(classes == value)
        if len(own) > 1:
            order[own] = np.roll(own, -1)
    return order


def _own(rows, classes):
    rows = rows.copy()
    for value in np.unique(classes):
        rows[classes == value] -= rows[classes == value].mean(axis=0)
    return rows


def _correlation(one, other):
    one, other = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.divide((one * other).sum(axis=1), lengths, out=np.full(len(one), np.nan), where=lengths > 1e-9)


def _mean(values):
    return None if np.isnan(values).all() else float(np.nanmean(values))
