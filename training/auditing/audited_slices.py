"""Whom a model serves: its scores by everything that is known of the films."""

import math

import pandas as pd

from kxray.data import associations
from training import scoring

MOST_VALUES = 12
MOST_NUMBERS = 5
SMALLEST_SLICE = 10
AGE_BANDS = ((20, "0-19"), (40, "20-39"), (60, "40-59"), (math.inf, "60+"))
_NO_SLICES = ("path", "patient_id", "label", "coarse_label", "split", "boxes", "masks", "group", "study_id")


def slices_of(known, known_rows, groups, table, truth_column, spec) -> dict:
    """Scores a run by every column of few values that says something of its films.

    Numbers of more than 5 values are cut into thirds, unless no two films have the same whole number: then
    they are names, and left out, as are texts of as many values as there are films, or nearly so.

    Args:
        known: prediction table of the run, of the films at positions `known_rows` of `table`.
        groups: (N,), what the run kept together.
        table: films with what is known of them; ages become bands.
        truth_column: the column that holds the run's labels.
        spec: ModelSpec.

    Returns:
        dict: rows (of `kxray.metrics.slice_scores`), compared (their number), smallest, too_many_values and
        coded (names of columns that are not sliced, and of those whose every value has one label only), and
        reading, a sentence.
    """
    from kxray import metrics
    from kxray.data import finding_columns

    skipped = {*_NO_SLICES, truth_column, *finding_columns(table)}
    columns, too_many, coded = {}, [], []
    for name in table.columns:
        if name in skipped or not isinstance(name, str):
            continue
        values = _texts(name, table[name].iloc[known_rows])
        distinct = set(values) - {""}
        if len(distinct) > min(MOST_VALUES, max(MOST_NUMBERS, sum(map(bool, values)) // 2)):
            too_many.append(name)
        elif len(set(values)) > 1 and distinct:
            columns[name] = values
            if len(set(zip(values, known["label"], strict=True))) == len(set(values)):
                coded.append(name)
    labels, _, probabilities = scoring.columns_of(known, spec)
    rows = metrics.slice_scores(labels, probabilities, groups, columns, spec.labels, smallest=SMALLEST_SLICE)
    return {
        "rows": rows,
        "compared": sum(row["compared"] for row in rows),
        "smallest": SMALLEST_SLICE,
        "too_many_values": too_many,
        "coded": coded,
        "reading": _reading(rows),
    }


def _reading(rows):
    compared = sum(row["compared"] for row in rows)
    if not rows:
        return "Nothing is known of the films by which they could be sliced."
    if not compared:
        return f"No slice has {SMALLEST_SLICE} independent films."
    differing = sum(bool(row["differs"]) for row in rows)
    sure = [f"{row['slice']} {row['value']}" for row in rows if row["p_holm"] < 0.05]
    told = "none differs" if not sure else f"{', '.join(sure)} differ{'s' if len(sure) == 1 else ''}"
    return (
        f"{differing} of {compared} slices have an interval that excludes the score of all films; chance "
        "alone makes about one in twenty do so, for each score. Corrected for so many comparisons (Holm), "
        f"{told} from the other films in accuracy."
    )


def _texts(name, column):
    """A column's values as texts of few values where that can be done, "" where nothing is known."""
    if _is_age(name):
        return [age_band(value) for value in column]
    known = column.dropna()
    if pd.api.types.is_numeric_dtype(column) and known.nunique() > MOST_NUMBERS:
        whole = (known == known.round()).all()
        if not whole or 2 * known.nunique() <= len(known):
            texts = associations.thirds(column.to_numpy(float)).tolist()
            return ["" if text == associations.UNKNOWN else text for text in texts]
    return [_cell(value) for value in column]


def _cell(value):
    """Text of a table's cell, "" where nothing is known."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _is_age(name):
    return name.lower().replace("_", " ").split()[-1:] == ["age"]


def age_band(value) -> str:
    """The band of an age in years: 57, "57", "057Y" or "18M" (DICOM's months); "" where there is none."""
    text = _cell(value).upper()
    unit = text[-1:] if text[-1:] in ("Y", "M", "W", "D") else "Y"
    try:
        years = float(text.rstrip("YMWD")) / {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}[unit]
    except ValueError:
        return ""
    return next(name for end, name in AGE_BANDS if years < end) if 0 <= years < 150 else ""
