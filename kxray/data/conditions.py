"""Which condition a film shows, where each film is to show one: the classes of a conditional generator."""

import dataclasses

import numpy as np
import pandas as pd

from kxray.data import manifest

# The eight diseases of Ann et al. (2020), section 4.1.
DISEASES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
NORMAL = "No Finding"
SEVERAL = ("rarest", "drop")
LEAST_RARE = 2
_NORMAL_COLUMNS = (NORMAL, "No_Finding", "no_finding")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Films that each show one condition.

    Attributes:
        table: one row a film, index 0 to N-1.
        classes: int (N,), positions in `labels`.
        labels: names of the conditions.
        notes: what was left out and why, in words.
        findings: whether they are findings, a column each; else values of the column `label`.
    """

    table: pd.DataFrame
    classes: np.ndarray
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    findings: bool = True

    def __len__(self):
        return len(self.table)

    @property
    def names(self) -> np.ndarray:
        """The condition of each film, str (N,)."""
        return np.array(self.labels)[self.classes]

    def counts(self, rows=slice(None)) -> dict[str, int]:
        """Films of each condition, among all films or those of `rows`."""
        numbers = np.bincount(self.classes[rows], minlength=len(self.labels))
        return dict(zip(self.labels, numbers.tolist(), strict=True))

    def take(self, rows) -> "Conditions":
        """Some of the films: a boolean mask or positions. The labels stay."""
        rows = np.arange(len(self))[np.asarray(rows)]
        table = self.table.iloc[rows].reset_index(drop=True)
        return dataclasses.replace(self, table=table, classes=self.classes[rows])


def condition_films(table, labels=None, *, normal=False, several="rarest") -> Conditions:
    """Gives each film one condition and leaves out the films that show none.

    Args:
        table: of `kxray.data.read_source`: with finding columns, or with a column `label`.
        labels: finding columns, or values of `label` where the table has no finding columns. By default those
            of the eight diseases of Ann et al. (2020) that the table has films of; else all values of
            `label`; else all findings.
        normal: adds "No Finding", the films whose findings are all known to be 0, as the last condition.
        several: what becomes of a film with several of the labels: "rarest" (it shows the one that the fewest
            films have) or "drop".

    Returns:
        Conditions. Lateral films are left out, as are films with none of the labels.

    Raises:
        ValueError: a label that the table does not have or has no film of, or fewer than one film.
    """
    if several not in SEVERAL:
        raise ValueError(f"several must be {' or '.join(SEVERAL)}, got {several!r}")
    if labels is not None and (isinstance(labels, str) or len(set(labels)) != len(labels) or not labels):
        raise ValueError(f"labels must be distinct names, got {labels!r}")
    table, notes = _without_laterals(table)
    columns = [name for name in manifest.finding_columns(table) if name not in _NORMAL_COLUMNS]
    preferred = [name for name in DISEASES if name in columns]
    by_label = not columns or (labels is None and not preferred and _has_labels(table))
    if by_label:
        shown, names = _of_labels(table, labels, normal)
    else:
        shown, names = _of_findings(table, columns, labels or preferred or columns, normal)
    shown, names = _present(shown, names, labels is not None, notes)
    chosen, rule = _one_each(shown, names, several)
    if rule:
        notes.append(rule)
    none = int((~shown.any(axis=1)).sum())
    if none:
        notes.append(f"{none} films with none of {', '.join(names)} are left out")
    kept = chosen >= 0
    classes, there = chosen[kept], np.unique(chosen[kept])
    if len(there) < len(names):
        absent = ", ".join(name for index, name in enumerate(names) if index not in there)
        if labels is not None:
            raise ValueError(f"{absent}: all of its films also show other labels; ask for fewer labels")
        notes.append(f"{absent}: left out, all of its films also show other labels")
        names, classes = [names[index] for index in there], np.searchsorted(there, classes)
    table = table[kept].reset_index(drop=True)
    return Conditions(table, classes, tuple(names), tuple(notes), findings=not by_label)


def thin_out(conditions, parts, rare, ratio, *, seed=0) -> np.ndarray:
    """Makes an imbalance: which films stay where rare conditions are thinned out of the training part.

    Args:
        conditions: Conditions of N films.
        parts: str (N,), the part of every film.
        rare: labels that shall be rare.
        ratio: films of the most frequent other label in training for each film of a rare one, at least 1.
        seed: of the draw.

    Returns:
        bool (N,). In part "train" each rare label keeps round(most frequent / ratio) of its films, at least
        2 (or as many as it has); all other films stay.

    Raises:
        ValueError: an unknown label, no label that is not rare, or a ratio below 1.
    """
    unknown = [label for label in rare if label not in conditions.labels]
    if unknown:
        raise ValueError(f"unknown label {unknown[0]!r}; the labels are {', '.join(conditions.labels)}")
    if not ratio >= 1:
        raise ValueError(f"an imbalance of 1 to N needs N of at least 1, got {ratio}")
    train = np.asarray(parts) == "train"
    frequent = max(
        (count for label, count in conditions.counts(train).items() if label not in rare), default=0
    )
    if not frequent:
        raise ValueError("every label is to be rare; leave out the one that is to stay frequent")
    least, kept = max(LEAST_RARE, round(frequent / ratio)), np.ones(len(conditions), bool)
    for label in rare:
        number = conditions.labels.index(label)
        own = np.flatnonzero(train & (conditions.classes == number))
        drawn = np.random.default_rng([seed, 41, number]).permutation(len(own))[least:]
        kept[own[drawn]] = False
    return kept


def _without_laterals(table):
    table, notes = manifest.as_manifest(table), []
    if "view" in table.columns:
        lateral = (table["view"] == "lateral").to_numpy()
        if lateral.any():
            notes.append(f"{int(lateral.sum())} lateral films are left out")
            table = table[~lateral]
    return table, notes


def _has_labels(table):
    return "label" in table.columns and bool((table["label"] != "").any())


def _of_labels(table, labels, normal):
    """(bool (N, L), names) of a table with one label a film."""
    if not _has_labels(table):
        raise ValueError(
            f"expected finding columns or a column 'label', got a table with {', '.join(table.columns)}"
        )
    if normal:
        raise ValueError('"No Finding" is made of finding columns, which this table lacks; leave it out')
    values = table["label"].to_numpy(object)
    names = list(labels) if labels is not None else sorted(set(values) - {""})
    return np.stack([values == name for name in names], axis=1), names


def _of_findings(table, columns, labels, normal):
    """(bool (N, L), names) of a table with finding columns."""
    names = [name for name in labels if name not in _NORMAL_COLUMNS]
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"no finding {missing[0]!r}; the findings are {', '.join(columns)}")
    shown = [(table[name] == 1).to_numpy() for name in names]
    if normal or len(names) < len(labels):
        shown.append((table[columns] == 0).all(axis=1).to_numpy())
        names.append(NORMAL)
    return np.stack(shown, axis=1), names


def _present(shown, names, asked, notes):
    """Without the labels that no film has; an error where they were asked for."""
    there = shown.any(axis=0)
    absent = ", ".join(name for name, has in zip(names, there, strict=True) if not has)
    if not there.any() or (absent and asked):
        raise ValueError(f"no film shows {absent or 'any condition'}; films of every condition are needed")
    if absent:
        notes.append(f"no film shows {absent}")
    return shown[:, there], [name for name, has in zip(names, there, strict=True) if has]


def _one_each(shown, names, several):
    """(class of each film or -1, what was done with films of several)."""
    counts = shown.sum(axis=0)
    order = np.argsort(counts, kind="stable")
    chosen = np.where(shown.any(axis=1), order[shown[:, order].argmax(axis=1)], -1)
    many = shown.sum(axis=1) > 1
    if not many.any():
        return chosen, ""
    if several == "drop":
        return np.where(many, -1, chosen), f"{int(many.sum())} films with several of the labels are left out"
    rarest = ", ".join(f"{names[index]} {counts[index]}" for index in order)
    return chosen, f"{int(many.sum())} films with several labels count as the rarest of them ({rarest})"
