"""The parts of an audit of films: what is read, tested and written by training.audit."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

STRONG = 0.5
MOST_FILMS = 10_000
SIGNIFICANT = 0.05
# What makes a shortcut likely when it tells the class; a column that says the class in other words does not.
FILE_PROPERTIES = (
    "format", "compression", "bit depth", "size", "aspect", "stored as", "photometric", "manufacturer",
    "modality",
)  # fmt: skip
ORIGINS = re.compile(
    r"source|origin|site|hospital|institution|device|scanner|manufacturer|view|position|^sex$|^age$", re.I
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What an audit found.

    Args:
        table: the readable films that have a class, one row each.
        labels: str (N,), their classes.
        scan: their `kxray.data.shortcuts.ShortcutScan`.
        unreadable: table row, path, column, problem.
        everything: all readable films, with or without a class; positions in pairs and straddles are its.
        pairs: `kxray.data.leaks.duplicate_pairs` of `everything`.
        straddles: `kxray.data.leaks.straddling_columns` of `everything`.
        properties: association's name -> str (N,), its values.
        shapes: of their markers, from `kxray.data.markers.marker_shapes`.
        told: what tells the class all by itself, in words.
        facts: JSON values for audit.json and the report.
    """

    table: pd.DataFrame
    labels: np.ndarray
    scan: object
    unreadable: pd.DataFrame
    everything: pd.DataFrame
    pairs: pd.DataFrame
    straddles: list[dict]
    properties: dict[str, np.ndarray]
    shapes: list[list[int]]
    told: list[str]
    facts: dict

    def leaks(self) -> list[str]:
        """Films and identities in more than one split, and synthetic films that are tested on, in words."""
        found = []
        across = self.pairs[self.pairs["leak"]]
        for kind, rows in across.groupby("kind", sort=False):
            what = "the same file" if kind == "same file" else "the same picture (near-duplicates)"
            pairs = "1 pair" if len(rows) == 1 else f"{len(rows)} pairs"
            found.append(f"{pairs} of films in two splits: {what}; see pairs.csv")
        leaking = [row for row in self.straddles if row["leak"]]
        for column in dict.fromkeys(row["column"] for row in leaking):
            values = [row["value"] for row in leaking if row["column"] == column]
            shown = ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")
            found.append(f"{column} in more than one split: {shown} ({len(values)} in all)")
        for part, count in self.facts["synthetic"]["held_out"].items():
            films = "1 synthetic film" if count == 1 else f"{count} synthetic films"
            found.append(f"{films} in split {part!r}; for training only")
        return found


def audit(films, *, folds, seed, workers, progress) -> Found:
    """Scans films and tests everything that `Found` holds.

    Args:
        films: of `training.auditing.audit_question.read_films`.
        folds: of the cross-validation; fewer where there are fewer groups.
        seed: of folds, forests and resampling.
        workers: films read at a time.
        progress: of `training.shell.progress_bars`.

    Raises:
        ValueError: fewer than two classes with readable films of two patients.
    """
    from kxray import data
    from kxray.data import held_out, leaks, markers, shortcuts
    from kxray.data.manifest import row_numbers

    table, question, notes = films.table, films.question, list(films.notes)
    bar = progress.add_task("reading films", total=len(table), facts="")
    scan = shortcuts.scan_shortcuts(
        list(table["path"]), workers=workers, progress=lambda done: progress.update(bar, completed=done)
    )
    rows, paths = row_numbers(table), list(table["path"])
    unread = [
        (rows[i], paths[i], "path", f"unreadable film: {why}") for i, why in sorted(scan.errors.items())
    ]
    unread = pd.DataFrame(unread, columns=films.problems.columns)
    unreadable = pd.concat([films.problems, unread], ignore_index=True)
    readable = np.setdiff1d(np.arange(len(table)), list(scan.errors))
    if not len(readable):
        raise ValueError(f"none of the {len(table)} films can be read; the first: {scan.errors[0]}")
    everything, scan = table.iloc[readable].reset_index(drop=True), scan.take(readable)
    labels = question.labels_of(everything)
    pairs = leaks.duplicate_pairs(everything, scan.thumbnails, labels)
    grouping = data.film_groups(everything, thumbnails=scan.thumbnails)
    made = held_out.synthetic_films(everything)
    if made.any():
        notes.append(f"{int(made.sum())} synthetic films: looked at for duplicates and splits only")
    rows = np.flatnonzero(~made)
    rows = rows[_usable(labels[rows], grouping.groups[rows], notes)]
    known, grouping, labels_known, scan_known = (
        everything.iloc[rows].reset_index(drop=True), grouping.take(rows), labels[rows], scan.take(rows)
    )  # fmt: skip
    folds = min(folds, grouping.count)
    split = data.patient_folds(known, labels_known, folds, seed, grouping=grouping)
    notes += split.notes
    some = _some_groups(grouping.groups, labels_known, split.parts, seed, notes)
    bar = progress.add_task("classifiers", total=len(scan_known.features), facts="")
    baselines = shortcuts.shortcut_scores(
        {name: columns[some] for name, columns in scan_known.features.items()}, labels_known[some],
        split.parts[some], grouping.groups[some], seed=seed,
        progress=lambda done: progress.update(bar, completed=done),
    )  # fmt: skip
    shapes = markers.marker_shapes(scan_known.markers)
    kinds = _properties(known, scan_known, shapes, question)
    properties, associations = _associations(kinds, labels_known, grouping.groups, seed)
    telling = [row for row in associations if row["tells"]]
    # "any text" says again what "text top left" says: of the markers the strongest is enough.
    of_markers = [row for row in telling if row["kind"] == "marker"]
    told = [_told(row) for row in telling if row["kind"] != "marker" or row is of_markers[0]]
    straddles = leaks.straddling_columns(everything)
    across = pairs[["leak", "labels", "patients"]]
    facts = {
        "question": str(question),
        "films": {str(name): int((labels_known == name).sum()) for name in np.unique(labels_known)},
        "groups": {"by": grouping.kind, "count": grouping.count, "largest": grouping.largest},
        "folds": folds,
        "seed": seed,
        "notes": notes,
        "unreadable": len(unreadable),
        "duplicates": {
            "same_file": int((pairs["kind"] == "same file").sum()),
            "near_duplicate": int((pairs["kind"] == "near-duplicate").sum()),
            "across_splits": int(across["leak"].sum()),
            "across_classes": int((across["labels"] != "").sum()),
            "across_patients": int((across["patients"] != "").sum()),
        },
        "splits": _splits(everything),
        "synthetic": {"films": int(made.sum()), "held_out": _held_out(everything, made)},
        "straddles": straddles,
        "chance": shortcuts.chance_scores(labels_known),
        "baselines": baselines,
        "associations": associations,
        "markers": _marker_counts(scan_known.markers, labels_known),
    }
    properties = {row["name"]: properties[row["name"]] for row in associations}
    extra = {"bits": [facts_["bits"] for facts_ in scan_known.headers]}
    extra["format"] = [facts_["format"] for facts_ in scan_known.headers]
    if question.finding is not None and "label" not in known.columns:
        extra["label"] = labels_known
    extra = {name: values for name, values in extra.items() if name not in known.columns}
    return Found(
        known.assign(**extra), labels_known, scan_known, unreadable, everything, pairs, straddles, properties,
        shapes, told, facts,
    )  # fmt: skip


def _usable(labels, groups, notes):
    """Positions of the films with a class of two groups or more."""
    usable = labels != ""
    if not usable.all():
        notes.append(
            f"{int((~usable).sum())} films without a class that is asked for: looked at for duplicates only"
        )
    for name in np.unique(labels[usable]):
        members = labels == name
        if len(np.unique(groups[members])) < 2:
            usable &= ~members
            notes.append(f"{name}: {int(members.sum())} films of one patient cannot be cross-validated")
    if len(np.unique(labels[usable])) < 2:
        raise ValueError(
            f"expected two classes or more with films of two patients each, got "
            f"{', '.join(np.unique(labels[labels != ''])) or 'no class at all'}; "
            "choose another --label-column or a --finding"
        )
    return np.flatnonzero(usable)


def _some_groups(groups, labels, folds, seed, notes):
    """Positions of at most about 10,000 films in whole groups: more trees to grow would tell no more.

    The smallest group of each class in each of two folds is always among them, so that every class is grown
    on and scored; the others are drawn, and taken as long as they fit.
    """
    if len(groups) <= MOST_FILMS:
        return np.arange(len(groups))
    owner = np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(owner)
    taken = np.zeros(len(sizes), bool)
    for label in np.unique(labels):
        members = np.unique(np.stack([sizes[owner], owner, folds], axis=1)[labels == label], axis=0)
        _, smallest = np.unique(members[:, 2], return_index=True)
        taken[members[np.sort(smallest)[:2], 1]] = True
    count = int(sizes[taken].sum())
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if not taken[group] and count + sizes[group] <= MOST_FILMS:
            taken[group] = True
            count += int(sizes[group])
    rows = np.flatnonzero(taken[owner])
    notes.append(
        f"the classifiers without anatomy saw {len(rows)} of the {len(groups)} films, drawn by group"
    )
    return rows


def _splits(table):
    from kxray.data import leaks

    parts = leaks.parts_of(table)
    if parts is None:
        return None
    names, counts = np.unique(parts[parts != ""], return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _held_out(table, made):
    """Part that is validated or tested on -> synthetic films in it."""
    splits = _splits(table[made]) or {}
    return {part: count for part, count in splits.items() if part in ("val", "test")}


def _properties(table, scan, shapes, question):
    """Kind to the properties of file, table and markers, name to str (N,) each."""
    from kxray.data import associations, markers, shortcuts

    return {
        "file": shortcuts.header_properties(scan),
        "table": associations.metadata_columns(table, question.column),
        "marker": markers.marker_properties(scan.markers, shapes),
    }


def _associations(kinds, labels, groups, seed):
    """(values by name, association rows in falling order of V) of some kinds of properties."""
    from kxray.data import associations
    from kxray.metrics import holm

    values, rows = {}, []
    for kind, found in kinds.items():
        for name, of_film in found.items():
            name = name if name not in values else f"{name} ({kind})"
            values[name] = of_film
            row = associations.association(labels, of_film, groups, resamples=2000, seed=seed)
            rows.append({"name": name, "kind": kind, **row})
    defined = [row for row in rows if row["p"] == row["p"]]
    for row in rows:
        row["p_holm"] = row["p"]
    for row, adjusted in zip(defined, holm([row["p"] for row in defined]), strict=True):
        row["p_holm"] = float(adjusted)
    for row in rows:
        named = {"file": row["name"] in FILE_PROPERTIES, "table": bool(ORIGINS.search(row["name"]))}
        strong = row["low"] >= STRONG and row["p_holm"] <= SIGNIFICANT
        row["tells"] = bool(strong and named.get(row["kind"], True))

    def order(row):
        # Where it is says more than that it is somewhere.
        v = row["v"] if row["v"] == row["v"] else -1
        return not row["tells"], -round(v, 2), row["name"].startswith("any ")

    rows.sort(key=order)
    return values, rows


def _told(row) -> str:
    """A property that tells the class, in words: which value, and how often in which class."""
    counts = np.array(row["counts"], float)
    shares = counts / counts.sum(axis=0)
    value = int((shares.max(axis=1) - shares.min(axis=1)).argmax())
    if row["kind"] == "marker":
        value = row["values"].index("yes")
    of_class = ", ".join(
        f"{share:.0%} of {label}" for label, share in zip(row["labels"], shares[value], strict=True)
    )
    strength = f"Cramer's V {row['v']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    if row["kind"] == "marker":
        what = "a blank margin" if "strip" in row["name"] else "a marker"
        return f"{what} tells the class: {row['name']} on {of_class} ({strength})"
    where = "the file's" if row["kind"] == "file" else "the column"
    return f"{where} {row['name']} tells the class: {row['values'][value]} in {of_class} ({strength})"


def _marker_counts(markers, labels):
    """Films with each kind of marker, by class."""
    from kxray.data.markers import KINDS

    has = {kind: np.array([any(m.kind == kind for m in film) for film in markers], bool) for kind in KINDS}
    return {
        kind: {str(name): int((present & (labels == name)).sum()) for name in np.unique(labels)}
        for kind, present in has.items()
    }


def write_tables(out, found) -> None:
    """pairs.csv, markers.csv and unreadable.csv; paths are relative to OUT."""
    from kxray.data import leaks
    from kxray.data.manifest import write_text

    def relative(paths):
        return [Path(os.path.relpath(path, out)).as_posix() if path else "" for path in paths]

    pairs = leaks.pair_names(found.pairs, found.everything)
    pairs = pairs.assign(first=relative(pairs["first"]), second=relative(pairs["second"])).round(3)
    write_text(out / "pairs.csv", pairs.to_csv(index=False, lineterminator="\n"))
    unreadable = found.unreadable.assign(path=relative(found.unreadable["path"]))
    write_text(out / "unreadable.csv", unreadable.to_csv(index=False, lineterminator="\n"))
    paths, rows = relative(found.table["path"]), []
    of_film = zip(paths, found.labels, found.scan.markers, found.shapes, strict=True)
    for path, label, film, shapes in of_film:
        for marker, shape in zip(film, shapes, strict=True):
            box = (marker.x, marker.y, marker.width, marker.height)
            rows.append((path, label, marker.kind, marker.place, *box, round(marker.tone, 3), shape or ""))
    columns = ("path", "label", "kind", "place", "x", "y", "width", "height", "tone", "shape")
    table = pd.DataFrame(rows, columns=list(columns))
    write_text(out / "markers.csv", table.to_csv(index=False, lineterminator="\n"))
