"""What two parts of a data set, or two classes of it, have in common that they must not: films, patients."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.data import audit
from kxray.data.splits import PART_NAMES, straddling_groups

PAIR_COLUMNS = ("first", "second", "kind", "correlation", "splits", "labels", "patients", "leak")
# A value of these is one exposure or one person: it may be in one part only. Others may well be in all.
_IDENTITIES = ("patient_id", "study_id", "source_file", "series_id")
_ORIGINS = re.compile(
    r"source|origin|site|hospital|institution|centre|center|archive|device|scanner|station|date|year", re.I
)


def parts_of(table: pd.DataFrame) -> np.ndarray | None:
    """The part of every film by the column `split`, str (N,), `""` where it has none; None without one."""
    if "split" not in table.columns:
        return None
    given = [str(name).strip() for name in table["split"]]
    parts = np.array([PART_NAMES.get(name.lower(), name) for name in given], dtype=str)
    return parts if (parts != "").any() else None


def duplicate_pairs(
    table: pd.DataFrame, thumbnails: np.ndarray, labels: Sequence[str] | None = None
) -> pd.DataFrame:
    """Every pair of films that are the same file or show the same picture.

    Args:
        table: one row a film, a manifest.
        thumbnails: uint8 (N, 32, 32), from `kxray.data.audit.thumbnail`.
        labels: (N,) class of each film, `""` where unknown.

    Returns:
        Table of pairs, leaks first: first and second (row positions), kind ("same file" or "near-duplicate"),
        correlation (of the thumbnails, less their blurred selves), splits, labels and patients ("train and
        test" where the two differ and both are known, else ""), and leak: True where the pair is in two
        parts. Of k copies of one file the first is paired with each other one, and each copy with the first
        one in each other part and of each other class (and with one of another patient), so that what
        differs among them is seen whatever is known of the first.
    """
    pairs, correlations = audit.near_duplicate_pairs(thumbnails)
    near = zip(pairs.tolist(), correlations, strict=True)
    found = {tuple(pair): ("near-duplicate", float(correlation)) for pair, correlation in near}
    parts = parts_of(table)
    patients = [str(patient) for patient in table["patient_id"]] if "patient_id" in table.columns else None
    files = pd.Series(audit.exact_duplicate_groups(list(table["path"])))
    for members in files.groupby(files).groups.values():
        if len(members) > 1:
            copies = sorted(int(i) for i in members)
            same = set(copies)
            found = {p: kind for p, kind in found.items() if not (p[0] in same and p[1] in same)}
            told = {(copies[0], other) for other in copies[1:]}
            told |= _differing(copies, parts) | _differing(copies, labels)
            # There may be as many patients as copies: one other is enough.
            told |= _differing(copies, patients, most=1)
            found |= {pair: ("same file", 1.0) for pair in sorted(told)}
    rows = []
    for (first, second), (kind, correlation) in found.items():
        splits = _two(parts, first, second)
        rows.append(
            (first, second, kind, correlation, splits, _two(labels, first, second),
             _two(patients, first, second), bool(splits))
        )  # fmt: skip
    result = pd.DataFrame(rows, columns=list(PAIR_COLUMNS)).astype({"leak": bool})
    order = sorted(
        range(len(rows)),
        key=lambda i: (
            not rows[i][7],
            not rows[i][5],
            not rows[i][6],
            rows[i][2] != "same file",
            rows[i][:2],
        ),
    )
    return result.iloc[order].reset_index(drop=True)


def straddling_columns(table: pd.DataFrame) -> list[dict]:
    """Patients, sources and dates with films in more than one part of the column `split`.

    Returns:
        dicts, leaks first: column, value, parts (names), films (row positions) and leak. It is a leak where
        the value stands for one patient, study or file (columns patient_id, study_id, source_file,
        series_id); a hospital or a day may be in every part, but then no part shows how a model does
        elsewhere.
    """
    parts = parts_of(table)
    if parts is None:
        return []
    found = []
    for name in table.columns:
        if name not in _IDENTITIES and not _ORIGINS.search(str(name)):
            continue
        values = np.array(["" if value != value else str(value) for value in table[name]], dtype=str)
        known = (values != "") & (parts != "")
        if not known.any():
            continue
        # A "source_file" of many films is an archive.
        crowd = known.sum() / len(np.unique(values[known]))
        leak = name == "patient_id" or (name in _IDENTITIES and crowd <= 4)
        for value, where in straddling_groups(values[known], parts[known]).items():
            films = np.flatnonzero(known & (values == value))
            found.append(
                {"column": str(name), "value": value, "parts": where, "films": films.tolist(), "leak": leak}
            )
    return sorted(found, key=lambda row: (not row["leak"], row["column"] != "patient_id"))


def pair_names(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`pairs` with the films' paths in place of their positions."""
    paths = table["path"].to_numpy(dtype=object)
    named = {side: [str(Path(paths[i])) for i in pairs[side]] for side in ("first", "second")}
    return pairs.assign(**named)


def _differing(copies, values, most=None):
    """Pairs of each copy with the first one of each other known value (of the first `most` values)."""
    if values is None:
        return set()
    first = {}
    for copy in copies:
        if str(values[copy]):
            first.setdefault(str(values[copy]), copy)
    leaders = list(first.items())[:most]
    return {
        (min(copy, leader), max(copy, leader))
        for copy in copies
        for value, leader in leaders
        if str(values[copy]) not in ("", value)
    }


def _two(values, first, second) -> str:
    """ "a and b" where two films differ in something that is known of both, else ""."""
    if values is None:
        return ""
    one, other = str(values[first]), str(values[second])
    return f"{one} and {other}" if one and other and one != other else ""
