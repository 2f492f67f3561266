"""No film that a generator made is validated or tested on."""

import numpy as np
import pandas as pd

from kxray.data import synthetic


class SplitError(ValueError):
    """A split that cannot be made, or that lets one group into two parts."""


def check_held_out(table: pd.DataFrame, parts) -> None:
    """Raises SplitError, which names one, if a synthetic film is in a part that is validated or tested on.

    Args:
        table: one row a film.
        parts: (N,) "train", "val", "test", or fold numbers, each of which is tested on.
    """
    parts = np.asarray(parts)
    if parts.shape != (len(table),):
        raise SplitError(f"expected one part a film, got {parts.shape} for {len(table)} films")
    folds = parts.dtype.kind in "iu"
    tested = np.ones(len(parts), bool) if folds else parts != "train"
    wrong = tested & synthetic_films(table, tested)
    if wrong.any():
        part = parts[wrong][0]
        where = f"fold {part} would test on it" if folds else f"it is in part {str(part)!r}"
        refuse(table, wrong, f"{where}; move synthetic films to train, or leave them out")


def synthetic_films(table, asked=False) -> np.ndarray:
    """Which films are synthetic: bool (N,).

    Args:
        table: one row a film.
        asked: bool (N,), or one for all: films whose files are asked, too. Those of films without a patient
            always are.
    """
    found = synthetic.synthetic_rows(table)
    if "patient_id" in table.columns:
        unknown = np.array([pd.isna(value) or value == "" for value in table["patient_id"]], bool)
    else:
        unknown = np.ones(len(table), bool)
    rows = np.flatnonzero((unknown | asked) & ~found)
    if len(rows):
        found[rows] = synthetic.synthetic_rows(table.iloc[rows], marks=True)
    return found


def refuse(table, wrong, why) -> None:
    """Raises SplitError if any film is wrong, and names the first."""
    if wrong.any():
        first = table["path"].iloc[int(np.flatnonzero(wrong)[0])]
        more = f" and {int(wrong.sum()) - 1} more" if wrong.sum() > 1 else ""
        raise SplitError(f"{first}{more}: a synthetic film is for training only, and {why}")
