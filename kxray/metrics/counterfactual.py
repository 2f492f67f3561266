"""Counterfactual films scored: does the answer turn, and how little else does.

x is a film, y its counterfactual: what x would have to be for a classifier to say something else of it.
"""

import numpy as np

CHANGED = 0.02


def flipped(before, after):
    """Which films got another answer by their change.

    Args:
        before, after: bool (N,), whether the classifier says what was asked for, of x and of y.

    Returns:
        float64 (N,): 1 it says so of y, 0 it does not, NaN it said so of x already.
    """
    before, after = (np.asarray(said) for said in (before, after))
    if before.shape != after.shape or before.ndim != 1 or {before.dtype.kind, after.dtype.kind} != {"b"}:
        raise ValueError(
            f"expected bool (N,) before and after the change, got {before.dtype} {before.shape} and "
            f"{after.dtype} {after.shape}"
        )
    return np.where(before, np.nan, after.astype(float))


def flip_rate(before, after) -> float:
    """Share of the films with another answer than the one asked for that got it by their change.

    Validity of Mothilal et al. (2020). See `flipped`; NaN where every film had the answer before.
    """
    turned = flipped(before, after)
    known = ~np.isnan(turned)
    return float(turned[known].mean()) if known.any() else float("nan")


def label_drift(before, after, others):
    """Mean |p(y) - p(x)| over the labels that nobody asked to change.

    Args:
        before, after: float (N, L), probabilities of x and y.
        others: bool (N, L) or (L,), the labels that are to stay; of labels that exclude each other neither
            the one asked for nor the one it takes the place of.

    Returns:
        float64 (N,), 0 best; NaN where a film has no other labels.
    """
    before, after = (np.asarray(said, dtype=float) for said in (before, after))
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(
            f"expected probabilities (N, L) before and after the change, got {before.shape} and {after.shape}"
        )
    others = np.broadcast_to(np.asarray(others, bool), before.shape)
    counts = others.sum(axis=1)
    moved = np.where(others, np.abs(after - before), 0).sum(axis=1)
    return np.where(counts > 0, moved / np.maximum(counts, 1), np.nan)


def mean_change(films, counterfactuals):
    """Proximity: mean |y - x| over the pixels of each film.

    Args:
        films, counterfactuals: float (N, ...), in [0, 1].

    Returns:
        float64 (N,), 0 best, in grey values of the films.
    """
    return np.abs(_differences(films, counterfactuals)).mean(axis=1)


def changed_share(films, counterfactuals, tolerance=CHANGED):
    """Sparsity: share of the pixels that differ by more than `tolerance` (about 5 of 255 grey values).

    Args:
        films, counterfactuals: float (N, ...), in [0, 1].
        tolerance: smallest difference that is not counted.

    Returns:
        float64 (N,) in [0, 1], 0 best.
    """
    return (np.abs(_differences(films, counterfactuals)) > tolerance).mean(axis=1)


def path_monotonicity(scores):
    """Does the answer rise all the way from x to y? Net rise over all rise and fall along the straight line.

    (f(t_K) - f(t_0)) / sum_k |f(t_k) - f(t_(k-1))|, f the probability of what was asked for, of the films
    x + t (y - x). A path that falls on its way leads through films of which the classifier says something
    else again: y is then beyond its border by chance, or a film of no kind lies between.

    Args:
        scores: float (N, K), K of 2 or more, the probability asked for at rising t from 0 to 1.

    Returns:
        float64 (N,) from -1, it only falls, to 1, it never falls; NaN where it does not move at all.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"expected scores (N, K) at two or more places of the path, got {scores.shape}")
    ways = np.abs(np.diff(scores, axis=1)).sum(axis=1)
    shares = (scores[:, -1] - scores[:, 0]) / np.where(ways > 0, ways, 1)
    return np.where(ways > 0, np.clip(shares, -1, 1), np.nan)


def noisy(films, radius, seed=0, numbers=None):
    """Films with uniform noise in [-radius, radius], cut at 0 and 1, each by a seed of its own.

    Args:
        films: float (N, ...), in [0, 1].
        radius: 0 or more, in grey values of the films.
        seed: int, or a list of them.
        numbers: (N,), of the films, so that their noise does not depend on batches; by default 0 to N - 1.

    Returns:
        As films, of their dtype.
    """
    films = np.asarray(films)
    if not radius >= 0:
        raise ValueError(f"expected a radius of 0 or more, got {radius}")
    numbers = np.arange(len(films)) if numbers is None else np.asarray(numbers)
    if numbers.shape != (len(films),):
        raise ValueError(f"expected one number a film, {len(films)}, got {numbers.shape}")
    moved = np.empty_like(films)
    for row, number in enumerate(numbers):
        random = np.random.default_rng([*np.atleast_1d(seed), number])
        moved[row] = np.clip(films[row] + random.uniform(-radius, radius, films.shape[1:]), 0, 1)
    return moved


def noise_robustness(reached, counterfactuals, radius=CHANGED, draws=3, *, seed=0, numbers=None):
    """Does the answer to y outlast a little noise? Share of noisy copies of y that still have it.

    Of a y that is adversarial noise itself, few copies have; so few that a scanner's noise would do as well.

    Args:
        reached: function from films float (N, ...) to bool (N,): whether the classifier says what was asked
            for of each; bind the targets to it.
        counterfactuals: float (N, ...), y in [0, 1].
        radius, seed, numbers: of `noisy`.
        draws: copies of each film; one is held at a time.

    Returns:
        float64 (N,) in [0, 1], 1 best; NaN where y itself is not answered as asked.
    """
    counterfactuals = np.asarray(counterfactuals)
    if int(draws) != draws or draws < 1:
        raise ValueError(f"expected draws of 1 or more, got {draws}")
    kept = np.zeros(len(counterfactuals))
    for draw in range(int(draws)):
        copies = noisy(counterfactuals, radius, [*np.atleast_1d(seed), draw], numbers)
        kept += np.asarray(reached(copies), float) / draws
    return np.where(np.asarray(reached(counterfactuals), bool), kept, np.nan)


def _differences(films, counterfactuals):
    films, counterfactuals = (np.asarray(pixels, dtype=float) for pixels in (films, counterfactuals))
    if films.shape != counterfactuals.shape or films.ndim < 2 or 0 in films.shape[1:]:
        raise ValueError(
            f"expected films and counterfactuals (N, h, w, 1) of one shape, got {films.shape} and "
            f"{counterfactuals.shape}"
        )
    return (counterfactuals - films).reshape(len(films), -1)
