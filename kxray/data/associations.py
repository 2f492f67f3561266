"""How strongly a class hangs together with something that is no anatomy: source, view, size, bit depth, ...

Cramer's V (Cramer, 1946, section 21.9) lies between 0 (independent) and 1 (the one says the other). It is
corrected for bias as Bergsma (2013) proposes: chance alone makes the plain V of few films large. Films of one
patient are not independent, so intervals resample patients and p-values deal classes to patients anew.
"""

import math

import numpy as np
import pandas as pd

from kxray.data.manifest import finding_columns

MOST_VALUES = 20
UNKNOWN = "unknown"
# What a table says about the place of a film, its labels, or the very thing that is to be found.
_NO_METADATA = (
    "path",
    "patient_id",
    "label",
    "coarse_label",
    "split",
    "boxes",
    "masks",
    "calibre",
    "calibre_px",
)
_NO_METADATA += ("size_px", "study_id", "dicom_id", "license")
# A view names its position, and the other way round.
_SYNONYMS = {"view": ("position",), "position": ("view",)}
_RESAMPLES_AT_ONCE = 4_000_000


def cramers_v(counts) -> float:
    """Cramer's V of a table of counts, corrected for bias (Bergsma, 2013, equations 5 to 7).

    Args:
        counts: (R, C) numbers of films; empty rows and columns are passed over.

    Returns:
        float in [0, 1]; NaN where fewer than two rows or two columns have films.
    """
    counts = np.asarray(counts, float)
    if counts.ndim != 2 or (counts < 0).any():
        raise ValueError(f"expected counts (R, C) from 0, got an array of shape {counts.shape}")
    return float(_corrected_v(counts[None])[0])


def association(labels, values, groups=None, *, resamples=1000, seed=0) -> dict:
    """Association of a class with a property of few values, with its interval and p-value.

    Args:
        labels: (N,) class of each film.
        values: (N,) property of each film, texts or numbers.
        groups: (N,) patient of each film; by default every film is its own.
        resamples: bootstrap copies of the patients, and permutations.
        seed: of both.

    Returns:
        dict: v (corrected Cramer's V), low and high (95% percentile interval over resampled patients; a
        resample has sampling noise twice, so that its V is corrected twice), p (share of permutations of the
        classes over patients, the observed order among them, whose chi-square is at least as large), films,
        labels, values (the R names, most frequent first) and counts (R, L), a list of lists. v, low, high
        and p are NaN where there is but one class or one value.
    """
    labels, values = np.asarray(labels).astype(str), np.asarray(values).astype(str)
    if labels.ndim != 1 or labels.shape != values.shape or not len(labels):
        raise ValueError(f"expected one label and one value a film, got {labels.shape} and {values.shape}")
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    label_names, label_of = np.unique(labels, return_inverse=True)
    names, value_of = np.unique(values, return_inverse=True)
    order = np.argsort(-np.bincount(value_of), kind="stable")
    names, value_of = names[order], np.argsort(order)[value_of.reshape(-1)]
    owner = np.unique(groups, return_inverse=True)[1].reshape(-1)
    shape = (len(names), len(label_names))
    counts = np.bincount(value_of * shape[1] + label_of, minlength=shape[0] * shape[1]).reshape(shape)
    found = {"films": len(labels), "labels": [str(name) for name in label_names]}
    found |= {"values": [str(name) for name in names], "counts": counts.tolist()}
    if min(shape) < 2:
        return {"v": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, **found}
    random = np.random.default_rng(seed)
    v = cramers_v(counts)
    low, high = _interval(value_of * shape[1] + label_of, owner, shape, resamples, random)
    p = _permutation_p(value_of, label_of, owner, shape, resamples, random)
    # Corrected twice, copies of a table without exceptions stay a little below it.
    return {"v": v, "low": min(low, v), "high": max(high, v), "p": p, **found}


def metadata_columns(table: pd.DataFrame, label_column: str) -> dict[str, np.ndarray]:
    """The columns of a table that say something of few values about each film, str (N,) each.

    Numbers of more than 20 values (age) are cut into thirds; texts of more, or of as many as there are films,
    are names and are left out, and so are labels, findings, places on disk and a phantom's size of defect.
    Cells without anything are `"unknown"`.
    """
    left_out = {*_NO_METADATA, label_column, *_SYNONYMS.get(label_column, ()), *finding_columns(table)}
    found = {}
    for name in table.columns:
        if name in left_out:
            continue
        column = table[name]
        known = column[column.notna() & (column.astype(str) != "")]
        distinct = known.nunique()
        if distinct < 1 or (distinct == 1 and len(known) == len(column)):
            continue
        if pd.api.types.is_numeric_dtype(column) and distinct > MOST_VALUES:
            found[str(name)] = thirds(column.to_numpy(float))
        elif distinct <= MOST_VALUES and 2 * distinct <= max(len(known), 4):
            cells = [_cell(value) for value in column]
            found[str(name)] = np.array(cells, dtype=str)
    return found


def thirds(values) -> np.ndarray:
    """Numbers as the names of their thirds ("up to 41", "41 to 58", "above 58"), str (N,); NaN is unknown.

    Numbers of at most 3 distinct values keep them.
    """
    values = np.asarray(values, float)
    known = np.isfinite(values)
    result = np.full(len(values), UNKNOWN, dtype=object)
    if len(np.unique(values[known])) <= 3:
        result[known] = [f"{value:g}" for value in values[known]]
        return result.astype(str)
    low, high = np.quantile(values[known], (1 / 3, 2 / 3))
    first, last = f"{low:.3g}", f"{high:.3g}"
    names = np.array([f"up to {first}", f"{first} to {last}", f"above {last}"], dtype=object)
    result[known] = names[(values[known] > low).astype(int) + (values[known] > high)]
    return result.astype(str)


def _cell(value) -> str:
    if value is None or value is pd.NA or value != value or value == "":
        return UNKNOWN
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _corrected_v(counts, times=1):
    """V of counts (B, R, C), the bias of `times` rounds of sampling taken off; NaN where it is undefined."""
    films = counts.sum(axis=(1, 2))
    rows, columns = counts.sum(axis=2), counts.sum(axis=1)
    r, c = (rows > 0).sum(axis=1), (columns > 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = rows[:, :, None] * columns[:, None, :] / films[:, None, None]
        squares = np.where(expected > 0, (counts - expected) ** 2 / expected, 0.0)
        phi = squares.sum(axis=(1, 2)) / films - times * (r - 1) * (c - 1) / (films - 1)
        least = np.minimum(r - (r - 1) ** 2 / (films - 1), c - (c - 1) ** 2 / (films - 1)) - 1
        v = np.sqrt(np.maximum(phi, 0) / least)
    return np.where((r > 1) & (c > 1) & (least > 0), np.minimum(v, 1.0), np.nan)


def _interval(cell_of, owner, shape, resamples, random):
    num_groups, num_cells = owner.max() + 1, shape[0] * shape[1]
    of_group = np.zeros((num_groups, num_cells))
    np.add.at(of_group, (owner, cell_of), 1)
    even, drawn = np.full(num_groups, 1 / num_groups), []
    step = max(1, _RESAMPLES_AT_ONCE // num_groups)
    for start in range(0, resamples, step):
        weights = random.multinomial(num_groups, even, size=min(step, resamples - start))
        drawn.append(_corrected_v((weights @ of_group).reshape(-1, *shape), times=2))
    drawn = np.concatenate(drawn)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < resamples / 2:
        return math.nan, math.nan
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _permutation_p(value_of, label_of, owner, shape, resamples, random):
    observed = np.bincount(value_of * shape[1] + label_of, minlength=shape[0] * shape[1]).reshape(shape)
    expected = observed.sum(axis=1, keepdims=True) * observed.sum(axis=0) / len(value_of)

    def chi_square(dealt):
        counts = np.bincount(value_of * shape[1] + dealt, minlength=shape[0] * shape[1]).reshape(shape)
        if same:
            return ((counts - expected) ** 2 / expected).sum()
        # Patients of several films make the totals of the classes change from deal to deal.
        fair = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / len(value_of)
        return np.where(fair > 0, (counts - fair) ** 2 / np.maximum(fair, 1e-9), 0.0).sum()

    deal, same = _dealer(label_of, owner, random)
    least = chi_square(label_of) - 1e-9
    reached = sum(chi_square(deal()) >= least for _ in range(resamples))
    return float((1 + reached) / (1 + resamples))


def _dealer(label_of, owner, random):
    """(function () -> classes dealt anew to whole patients, whether class totals stay the same)."""
    _, first, sizes = np.unique(owner, return_index=True, return_counts=True)
    if len(sizes) == len(owner):
        return lambda: random.permutation(label_of), True
    of_group = label_of[first]
    if (of_group[owner] == label_of).all():
        return lambda: random.permutation(of_group)[owner], False
    # A patient with films of several classes hands them on, in order, to one with as many films.
    films = np.argsort(owner, kind="stable")
    starts = np.cumsum(sizes) - sizes
    blocks = [films[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]

    def deal():
        dealt = label_of.copy()
        for block in blocks:
            dealt[block] = label_of[block[random.permutation(len(block))]]
        return dealt

    return deal, True
