"""A few labels of a source that has more: which films show one of them, and which one."""

import re

import numpy as np

_WITHOUT = ("nofinding", "nofindings", "normal", "healthy")


def parse(text) -> list[str]:
    """ "Pneumonia, No Finding" -> ["Pneumonia", "No Finding"]."""
    labels = list(dict.fromkeys(label.strip() for label in text.split(",") if label.strip()))
    if len(labels) < 2:
        raise ValueError(f"--labels takes two labels or more, with commas; got {text!r}")
    return labels


def read(recipe):
    """(films of --data with the labels of --labels, notes in words); (None, []) without --data.

    Raises:
        ValueError: a source without labels, or without those.
    """
    from kxray import data

    if recipe.data is None:
        return None, []
    table = data.read_source(recipe.data, check=False)
    notes = list(table.attrs.get("notes", []))
    if recipe.labels is not None:
        table, chosen = choose(table, parse(recipe.labels), recipe.label_column)
        return table, notes + chosen
    if not {recipe.label_column, "label"} & set(table.columns):
        findings = data.manifest.finding_columns(table)
        if findings:
            raise ValueError(
                f"{recipe.data}: films have several findings; say which to tell apart, such as --labels "
                f'"{findings[0]},No Finding" (of {", ".join(findings)})'
            )
    return table, notes


def is_absence(label) -> bool:
    """Whether a label says that there is nothing to be found: "No Finding", "normal", ..."""
    return re.sub("[^a-z]", "", label.lower()) in _WITHOUT


def choose(table, labels, column):
    """The films of a source that have exactly one of some labels.

    A source with a label column: films with one of the labels. A source with findings: a label is the name of
    a finding, and its films have that finding, whatever else they show; "No Finding" (or "normal") are the
    films whose known findings are all 0, those asked for among them. Films with several of the labels, or
    none, are left out.

    Args:
        table: of `kxray.data.read_source`.
        labels: two names or more.
        column: of the labels, where the table has it.

    Returns:
        (table with the labels in `column`, notes in words).

    Raises:
        ValueError: a label that the source does not have.
    """
    from kxray import data

    if column in table.columns and (table[column] != "").any():
        known = sorted({str(value) for value in table[column]} - {""})
        _all_there(labels, known, f"column {column!r} has")
        kept = table[table[column].astype(str).isin(labels)].copy()
        left = len(table) - len(kept)
        return kept, [
            f"{left} films with other labels than {', '.join(labels)} were left out"
        ] if left else []
    findings = data.manifest.finding_columns(table)
    if not findings:
        raise ValueError(f"--labels: the source has neither a column {column!r} nor findings")
    values = table[findings].to_numpy(float)
    # A finding that is asked for and that nobody looked for may be there.
    asked = (table[[label for label in labels if label in findings]].to_numpy(float) == 0).all(axis=1)
    has = []
    for label in labels:
        if label in findings:
            has.append((table[label] == 1).to_numpy())
        elif is_absence(label):
            has.append(~(values == 1).any(axis=1) & (values == 0).any(axis=1) & asked)
        else:
            _all_there([label], [*findings, "No Finding"], "the source has the findings")
    has = np.stack(has, axis=1)
    shown = has.sum(axis=1)
    kept = table[shown == 1].copy()
    kept[column] = np.array(labels, object)[has[shown == 1].argmax(axis=1)]
    rule = ", ".join(
        f"{label}: films with that finding, whatever else they show"
        if label in findings
        else f"{label}: films without any finding, known to be without those asked for"
        for label in labels
    )
    notes = [rule]
    if (shown != 1).any():
        notes.append(
            f"{int((shown == 0).sum())} films with none of the labels and {int((shown > 1).sum())} with "
            "several were left out"
        )
    return kept, notes


def _all_there(labels, known, where):
    missing = [label for label in labels if label not in known]
    if missing:
        raise ValueError(f"--labels: no {missing[0]!r}; {where} {', '.join(known)}")
