"""The classical baseline of texture classification: LBP and grey-level co-occurrence into an RBF SVM."""

import numpy as np

_RADII = (1, 2, 3)
_DISTANCES = (1, 2, 4, 8)
_LEVELS = 32
_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
_NARROWEST = 1e-6


def texture_features(pixels) -> np.ndarray:
    """Rotation-invariant texture of a film.

    Args:
        pixels: float (H, W) in [0, 1]. Stretched between their 1st and 99th percentile first, so that
            exposure does not speak.

    Returns:
        float32 (F,): histograms of uniform local binary patterns (Ojala et al., 2002) at radii 1, 2 and 3,
        and co-occurrence properties (Haralick et al., 1973), mean and range over four directions, at
        distances 1, 2, 4 and 8.
    """
    from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

    low, high = np.percentile(pixels, (1, 99))
    stretched = np.clip((pixels - low) / max(high - low, _NARROWEST), 0, 1)
    grey = np.round(stretched * 255).astype(np.uint8)
    parts = []
    for radius in _RADII:
        points = 8 * radius
        patterns = local_binary_pattern(grey, points, radius, method="uniform")
        parts.append(np.histogram(patterns, bins=points + 2, range=(0, points + 2), density=True)[0])
    angles = np.arange(4) * np.pi / 4
    counts = graycomatrix(
        (stretched * (_LEVELS - 1)).round().astype(np.uint8), _DISTANCES, angles, _LEVELS, True, True
    )
    for name in _PROPERTIES:
        values = graycoprops(counts, name)
        parts += [values.mean(axis=1), np.ptp(values, axis=1)]
    return np.concatenate(parts).astype(np.float32)


def texture_scores(features, labels, folds, groups, seed=0) -> np.ndarray:
    """Out-of-fold scores of an RBF SVM, its C and gamma chosen by cross-validation in the training films.

    Args:
        features: float (N, F).
        labels: int (N,), 0 to L - 1.
        folds: int (N,), the fold in which a film is scored; -1 for films that are only trained on.
        groups: (N,), films that the inner folds keep together.
        seed: of the inner folds.

    Returns:
        float (N, L): the larger, the more likely, -inf for a class without training films; NaN where a film
        is not scored.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    labels, folds, groups = np.asarray(labels), np.asarray(folds), np.asarray(groups)
    scores = np.full((len(labels), labels.max() + 1), np.nan)
    grid = {"svc__C": (1, 10, 100), "svc__gamma": (0.003, 0.01, 0.03)}
    for fold in np.unique(folds[folds >= 0]):
        grown, scored = folds != fold, folds == fold
        scores[scored] = -np.inf
        known = np.unique(labels[grown])
        if len(known) < 2:
            scores[scored, known[0]] = 0.0
            continue
        inner = min(4, *(len(np.unique(groups[grown & (labels == label)])) for label in known))
        machine = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
        if inner > 1:
            splits = StratifiedGroupKFold(inner, shuffle=True, random_state=seed)
            splits = list(splits.split(features[grown], labels[grown], groups[grown]))
            machine = GridSearchCV(machine, grid, cv=splits)
        machine.fit(features[grown], labels[grown])
        decided = machine.decision_function(features[scored])
        if decided.ndim == 1:
            decided = np.stack([-decided, decided], axis=1)
        scores[np.ix_(scored, machine.classes_)] = decided
    return scores
