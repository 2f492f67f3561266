"""Is one model better than another on the same films?"""

import numpy as np


def paired_permutation_test(differences, patients, resamples=10000, seed=0) -> float:
    """Two-sided p-value that the mean difference of two models is zero (Good, 2005: sign flips).

    Under the null hypothesis the two models may be swapped, for a whole patient at a time.

    Args:
        differences: float (N,), score of the one minus score of the other, film by film.
        patients: patient of each film, (N,).
        resamples: number of random sign patterns.
        seed: of the signs.

    Returns:
        p in (0, 1], the share of sign patterns, the observed one among them, that reach the observed size.
    """
    differences = np.asarray(differences, dtype=float)
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.bincount(owner.reshape(-1), differences)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(resamples, len(sums)))
    # Sums that are equal but for rounding count as reached.
    reached = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9
    return float((1 + reached.sum()) / (1 + resamples))


def mcnemar_test(one_right, other_right) -> tuple[int, int, float]:
    """Exact two-sided test that two models are right equally often on the same films (McNemar, 1947).

    Under the null hypothesis a film that only one of the two gets right falls to either with probability 1/2,
    independently of other films: several films of one patient make p too small, and then
    `paired_permutation_test` is the one to go by.

    Args:
        one_right, other_right: bool (N,), film by film.

    Returns:
        (films that only the one has right, films that only the other has right, p); p is 1 where they never
        differ.

    Raises:
        ValueError: two sets of films.
    """
    one_right, other_right = np.asarray(one_right, bool), np.asarray(other_right, bool)
    if one_right.shape != other_right.shape or one_right.ndim != 1:
        raise ValueError(
            f"expected one value a film of the same films, got {one_right.shape} and {other_right.shape}"
        )
    only_one = int((one_right & ~other_right).sum())
    only_other = int((~one_right & other_right).sum())
    if only_one + only_other == 0:
        return 0, 0, 1.0
    from scipy.stats import binomtest

    return only_one, only_other, float(binomtest(only_one, only_one + only_other).pvalue)


def holm(p_values) -> np.ndarray:
    """P-values adjusted for as many tests as are given (Holm, 1979): float, same order, at most 1."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
