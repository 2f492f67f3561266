"""How far generated films are from real ones by what a classifier sees: Frechet and kernel distance."""

import math

import numpy as np

# Share of the films that each draw of an interval leaves out.
LEFT_OUT = 1 / 5
# Of fewer films an interval says nothing.
SMALLEST_INTERVAL = 5
_LEVEL = 0.95
_ROWS = 1024


def frechet_distance(real, generated) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (Dowson and Landau, 1982; Heusel et al.,
    2017, eq. 6; of DenseNet features: Ann et al., 2020, eq. 8).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with the unbiased covariances (over N - 1). With A'A = C1 and
    B'B = C2 the singular values of AB' are the square roots of the eigenvalues of the symmetric
    C1^(1/2) C2 C1^(1/2), and their sum is the trace of the root. A and B are the centred films themselves, or
    F x F by symmetric eigen-decomposition where there are more films than features: of few films nothing
    larger than N x M is decomposed. All in float64.

    Args:
        real: float (N, F).
        generated: float (M, F).

    Returns:
        float, 0 or more, in the features' squared units. Biased upwards for finite N and M, the more so the
        nearer they are to F: compare at equal counts.

    Raises:
        ValueError: shapes that do not fit, fewer than two films, values that are not finite.
    """
    return _frechet(*_checked(real, generated))


def _frechet(real, generated, quick=False):
    """The distance; `quick` to 7 digits, four times as quickly: for the draws of an interval."""
    between = real.mean(axis=0) - generated.mean(axis=0)
    one, other = _covariance_factor(real), _covariance_factor(generated)
    product = one @ other.T
    if quick:
        product = product if product.shape[0] <= product.shape[1] else product.T
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(product @ product.T), 0.0)).sum()
    else:
        shared = np.linalg.svd(product, compute_uv=False).sum()
    # Rounding leaves identical sets a little below or above 0.
    return max(0.0, float(between @ between + np.square(one).sum() + np.square(other).sum() - 2 * shared))


def _covariance_factor(features):
    """A with A'A the covariance: (N, F), or (F, F) where that is smaller."""
    centred = (features - features.mean(axis=0)) / math.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def kernel_distance(real, generated) -> float:
    """Kernel distance (KID; Binkowski et al., 2018): the squared maximum mean discrepancy of two sets.

    Of the kernel (x.y / F + 1)^3, over all pairs of different films; unbiased at any count, so that films of
    one distribution give 0 on average, and therefore often a little less than 0.

    Args:
        real: float (N, F).
        generated: float (M, F).

    Raises:
        ValueError: as `frechet_distance`.
    """
    real, generated = _checked(real, generated)
    return float(_kernel(real, generated, np.ones((1, len(real))), np.ones((1, len(generated))))[0])


def _kernel(real, generated, kept_real, kept_generated):
    """The kernel distance of B choices of films at once; kept are 0 or 1, (B, N) and (B, M)."""
    n, m = kept_real.sum(axis=1), kept_generated.sum(axis=1)
    return (
        _kernel_sum(real, real, kept_real, kept_real) / (n * (n - 1))
        + _kernel_sum(generated, generated, kept_generated, kept_generated) / (m * (m - 1))
        - 2 * _kernel_sum(real, generated, kept_real, kept_generated) / (n * m)
    )


def _kernel_sum(one, other, kept_one, kept_other):
    total = np.zeros(len(kept_one))
    for start in range(0, len(one), _ROWS):
        rows = slice(start, start + _ROWS)
        kernel = (one[rows] @ other.T / one.shape[1] + 1) ** 3
        if one is other:
            own = np.arange(len(kernel))
            kernel[own, start + own] = 0
        total += ((kept_one[:, rows] @ kernel) * kept_other).sum(axis=1)
    return total


def equal_rows(real_classes, generated_classes, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """As many real as generated films of every class, as in table 1 of Ann et al. (2020).

    Args:
        real_classes: (N,), class of each real film.
        generated_classes: (M,).
        seed: by which films are drawn, without replacement, where a class has more of one kind.

    Returns:
        (positions of real films, positions of generated films), both sorted and equally long.
    """
    real_classes, generated_classes = np.asarray(real_classes), np.asarray(generated_classes)
    random = np.random.default_rng(seed)
    chosen = ([], [])
    for name in np.unique(np.concatenate([real_classes, generated_classes])):
        both = [np.flatnonzero(classes == name) for classes in (real_classes, generated_classes)]
        count = min(map(len, both))
        for rows, members in zip(chosen, both, strict=True):
            rows.append(members if len(members) == count else random.permutation(members)[:count])
    empty = np.zeros(0, int)
    return tuple(np.sort(np.concatenate([empty, *rows])) for rows in chosen)


def fdd(real, generated, *, classes=None, patients=None, equal=True, resamples=200, seed=0) -> dict:
    """Frechet DenseNet distance (Ann et al., 2020, section 2.1) over all films and class by class.

    The interval is of the distance that other films would give on average at these counts, bias included:
    drawing films with replacement would add to the bias and miss the value itself. Each of `resamples` draws
    leaves out a random fifth of the real and of the generated films (delete-d jackknife over random subsets:
    Shao and Wu, 1989; Shao, 1989); their deviations, times the square root of (kept / left out), are put
    about the value. That is right for distances far from 0 and too wide near 0 (Efron and Stein, 1981).

    Args:
        real: float (N, F), features of films that the feature model was not trained on; or probabilities.
        generated: float (M, F).
        classes: (class of each real film (N,), class of each generated film (M,)); None: one class.
        patients: (N,), of the real films, left out together; None: every film stands for itself.
        equal: whether every class is brought to as many real as generated films (`equal_rows`), "overall"
            too, so that the mix of classes is the same.
        resamples: draws of the interval; 0: none.
        seed: of the films that are drawn, and of the interval.

    Returns:
        {"overall": score, "classes": {class: score}}; a score is a dict: value, low, high (95%; NaN where
        there are too few films, or no resamples), real, generated (films compared), dimensions F, reliable,
        note. `reliable` is False where a covariance is rank-deficient (no more films than F): then the value
        is biased upwards and comparable at equal counts only. Classes in the order of `numpy.unique`.

    Raises:
        ValueError: as `frechet_distance`, but for the number of films; classes or patients of another length.
    """

    def measured(real, generated, kept_real, kept_generated):
        kept = zip(kept_real > 0, kept_generated > 0, strict=True)
        quick = len(kept_real) > 1
        return np.array([_frechet(real[these], generated[those], quick) for these, those in kept])

    return _by_class(measured, real, generated, (classes, patients, equal), resamples, seed, ranked=True)


def kid(real, generated, *, classes=None, patients=None, equal=True, resamples=200, seed=0) -> dict:
    """`kernel_distance` over all films and class by class, on the very films that `fdd` takes.

    Arguments and result are those of `fdd`; unbiased, it is marked unreliable of fewer than five films only.
    """
    return _by_class(_kernel, real, generated, (classes, patients, equal), resamples, seed, ranked=False)


def _by_class(measured, real, generated, chosen, resamples, seed, ranked):
    real, generated = sets = _checked(real, generated, least=0)
    classes, patients, equal = chosen
    one_class = tuple(np.zeros(len(features), int) for features in sets)
    classes = one_class if classes is None else tuple(map(np.asarray, classes))
    names = () if chosen[0] is None else np.unique(np.concatenate(classes))
    patients = np.arange(len(real)) if patients is None else np.asarray(patients)
    if tuple(map(len, classes)) != tuple(map(len, sets)) or len(patients) != len(real):
        raise ValueError(
            f"expected a class of each of {len(real)} real and {len(generated)} generated films, and a "
            f"patient of each real one, got {', '.join(str(len(given)) for given in (*classes, patients))}"
        )
    rows = equal_rows(*classes, seed) if equal else tuple(np.arange(len(features)) for features in sets)
    scores = {}
    for name in [None, *names]:
        these, those = (
            members if name is None else members[own[members] == name]
            for members, own in zip(rows, classes, strict=True)
        )
        films = (real[these], generated[those], patients[these])
        scores[name] = _score(measured, films, resamples, seed, ranked)
    return {
        "overall": scores.pop(None),
        "classes": {name.item(): score for name, score in scores.items()},
    }


def _score(measured, films, resamples, seed, ranked):
    real, generated, patients = films
    count, dimensions = min(len(real), len(generated)), real.shape[1]
    score = {"value": math.nan, "low": math.nan, "high": math.nan}
    score |= {"real": len(real), "generated": len(generated), "dimensions": dimensions}
    if count < 2:
        note = f"{len(real)} real and {len(generated)} generated films: it takes two of each"
        return {**score, "reliable": False, "note": note}
    whole = (np.ones((1, len(real))), np.ones((1, len(generated))))
    score["value"] = float(measured(real, generated, *whole)[0])
    note = ""
    if ranked and count <= dimensions:
        note = (
            f"{count} films in {dimensions} dimensions: rank-deficient covariances, biased upwards; compare "
            "at equal counts only"
        )
    elif count < SMALLEST_INTERVAL:
        note = f"{count} films of a kind say next to nothing"
    score |= {"reliable": not note, "note": note}
    if resamples and count >= SMALLEST_INTERVAL:
        random = np.random.default_rng(seed)
        kept = (
            _thinned(patients, resamples, random),
            _thinned(np.arange(len(generated)), resamples, random),
        )
        draws = measured(real, generated, *kept)
        spread = math.sqrt(kept[0][0].sum() / (len(real) - kept[0][0].sum()))
        low, high = np.quantile(spread * (draws - draws.mean()), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        low = score["value"] + min(low, 0.0)
        score |= {
            "low": float(max(0.0, low) if ranked else low),
            "high": score["value"] + float(max(high, 0)),
        }
    return score


def _thinned(patients, resamples, random):
    """0 or 1, (B, N): choices that leave a fifth of the films out, patient by patient."""
    _, owner = np.unique(patients, return_inverse=True)
    owner = owner.reshape(-1)
    kept = np.ones((resamples, len(owner)))
    left_out = max(1, round(LEFT_OUT * len(owner)))
    for row in kept:
        places = random.permutation(owner.max() + 1)
        row[np.argsort(places[owner], kind="stable")[:left_out]] = 0
    return kept


def _checked(real, generated, least=2):
    checked = []
    for name, features in (("real", real), ("generated", generated)):
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or len(features) < least or features.shape[1] == 0:
            raise ValueError(
                f"expected features (N, F) of at least {least} {name} films, got shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of the {name} films hold values that are not finite; look at the films"
            )
        checked.append(features)
    real, generated = checked
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real films have {real.shape[1]} features and generated ones {generated.shape[1]}; take both "
            "from the same feature model"
        )
    return real, generated
