"""Fidelity against diversity: what share of generated films looks real, and of real films is made."""

import numpy as np

_ROWS = 1024


def precision_recall_density_coverage(real, generated, k=5) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020).

    A film's ball reaches to its k-th nearest other film of its own set, border included.

    Args:
        real: float (N, F), features of real films.
        generated: float (M, F); as many as real ones, for numbers that compare.
        k: neighbours.

    Returns:
        dict: precision, the share of generated films in the ball of some real film; recall, the share of real
        films in the ball of some generated film; density, the number of real balls that a generated film is
        in, over k, on average: about 1 for films of the real distribution, and not bounded by 1; coverage,
        the share of real films whose ball holds a generated film: unlike recall it is not raised by a few
        generated outliers with large balls. Films of one distribution reach a coverage of about 1 - 2^-k at
        equal counts, and a precision and recall below 1.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or no more than k films of a kind.
    """
    real, generated = (np.asarray(features, dtype=np.float64) for features in (real, generated))
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"expected features (N, F) and (M, F) of the same feature model, got {real.shape} and "
            f"{generated.shape}"
        )
    if k < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(
            f"k={k} neighbours take more than {k} films of each kind, got {len(real)} real and "
            f"{len(generated)} generated"
        )
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        raise ValueError("features hold values that are not finite; look at the films")
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    balls = np.zeros(len(generated), int)
    covered, recalled = [], []
    for start in range(0, len(real), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = _squared_distances(real[rows], generated)
        inside = distances <= real_radii[rows, None]
        balls += inside.sum(axis=0)
        covered.append(inside.any(axis=1))
        recalled.append((distances <= generated_radii).any(axis=1))
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(np.concatenate(recalled).mean()),
        "density": float(balls.mean() / k),
        "coverage": float(np.concatenate(covered).mean()),
    }


def _radii(features, k):
    """Squared distance (N,) of each film to its k-th nearest other one."""
    radii = []
    for start in range(0, len(features), _ROWS):
        distances = _squared_distances(features[start : start + _ROWS], features)
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        radii.append(np.partition(distances, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _squared_distances(one, other):
    lengths = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.maximum(lengths - 2 * one @ other.T, 0.0)
