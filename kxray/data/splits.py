"""Parts of a data set that share no patient.

Films of one patient resemble each other more than films of two; a patient on both sides of a split turns
memory into accuracy. Every split here moves whole groups: patients, or near-duplicates where patients are
unknown. And a score on films that a generator made says nothing of patients: they are for training only, no
split lets them into validation or test (`kxray.data.synthetic`).
"""

import csv
import dataclasses
import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.data import audit
from kxray.data.held_out import SplitError, check_held_out, refuse, synthetic_films
from kxray.data.manifest import as_manifest, is_normal, write_text

PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
BY_PATIENT = "patient_id"
BY_NEAR_DUPLICATES = "near-duplicate groups (no patient ids)"
_HASH_LINE = "# split sha256 "


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which films must stay together, and why.

    Attributes:
        groups: str (N,), the group of every film.
        kind: `"patient_id"`, or in words what stood in for it.
    """

    groups: np.ndarray
    kind: str

    @property
    def count(self) -> int:
        return len(np.unique(self.groups))

    @property
    def largest(self) -> int:
        """Films in the largest group."""
        return int(np.unique(self.groups, return_counts=True)[1].max(initial=0))

    def take(self, rows) -> "Grouping":
        """The grouping of some films: a boolean mask or positions."""
        return Grouping(self.groups[np.asarray(rows)], self.kind)

    def facts(self) -> dict:
        return {"grouped_by": self.kind, "groups": self.count, "largest_group": self.largest}


@dataclasses.dataclass(frozen=True)
class Split:
    """The part of every film.

    Attributes:
        parts: (N,) fold numbers 0..k-1 (int), or "train", "val", "test" (str).
        grouping: what was kept together.
        notes: what a reader of the results should know, in words.
    """

    parts: np.ndarray
    grouping: Grouping
    notes: tuple[str, ...] = ()

    def facts(self) -> dict:
        """JSON-able: the grouping, films and groups a part, notes."""
        names = np.unique(self.parts)
        films = {str(name): int((self.parts == name).sum()) for name in names}
        groups = {str(name): self.grouping.take(self.parts == name).count for name in names}
        return {**self.grouping.facts(), "films": films, "groups_by_part": groups, "notes": list(self.notes)}


def film_groups(table: pd.DataFrame, *, thumbnails: np.ndarray | None = None) -> Grouping:
    """Which films must not be parted: those of one `patient_id`, and near-duplicates (`kxray.data.audit`).

    Args:
        table: one row a film.
        thumbnails: uint8 (N, 32, 32) from `kxray.data.scan_films`. Without them films are read only if some
            have no patient id, and a picture that is filed under two patients goes unnoticed.
    """
    patients = as_manifest(table)["patient_id"].to_numpy(dtype=object)
    unknown = patients == ""
    if thumbnails is None:
        if not unknown.any():
            return Grouping(patients.astype(str), BY_PATIENT)
        thumbnails = audit.scan_films(list(table["path"])).thumbnails
    if len(thumbnails) != len(table):
        raise ValueError(f"expected one thumbnail a film, got {len(thumbnails)} for {len(table)} films")
    pairs, _ = audit.near_duplicate_pairs(thumbnails)
    owners = zip(_names(table["path"]), patients, strict=True)
    names = np.array([f"patient {patient}" if patient else f"film {name}" for name, patient in owners])
    distinct, codes = np.unique(names, return_inverse=True)
    codes = codes.reshape(-1)
    component_of = audit.join_pairs(codes[pairs], len(distinct))
    # A group is called after its first member by name, so that no order of rows changes it.
    first = pd.Series(distinct, dtype=object).groupby(component_of).transform("min").to_numpy(dtype=str)
    if unknown.all():
        kind = BY_NEAR_DUPLICATES
    else:
        whole = np.array([name.startswith("patient ") for name in distinct])
        joined = np.bincount(component_of[whole])
        kind = BY_PATIENT
        if (joined > 1).any():
            kind += (
                f", {int(joined[joined > 1].sum())} patients joined because they share near-duplicate films"
            )
        if unknown.any():
            kind += f", and near-duplicate groups for {int(unknown.sum())} films without one"
    return Grouping(first[codes], kind)


def patient_folds(
    table: pd.DataFrame,
    labels: str | Sequence[str] | np.ndarray,
    k: int = 5,
    seed: int = 0,
    *,
    grouping: Grouping | None = None,
) -> Split:
    """Cuts films into `k` folds with whole groups and even classes.

    One label a film: scikit-learn's StratifiedGroupKFold. Several findings: iterative stratification
    (Sechidis et al., 2011) over groups. The result does not depend on the order of rows.

    Args:
        table: one row a film.
        labels: a column, several 0/1 finding columns, or an array (N,) or (N, L).
        k: folds, at least 2.
        seed: of the shuffle.
        grouping: from `film_groups`, if known already.

    Returns:
        `Split` with fold numbers; its notes name the classes that are too rare to be in every fold.

    Raises:
        SplitError: fewer groups than folds; a synthetic film, which a fold would test on.
    """
    if k < 2:
        raise SplitError(f"expected at least 2 folds, got {k}")
    refuse(table, synthetic_films(table, True), "a fold would test on it; fold the real films alone")
    grouping = grouping or film_groups(table)
    _enough_groups(grouping, k, f"{k} folds")
    counts, names = _label_counts(table, labels)
    groups, codes = np.unique(grouping.groups, return_inverse=True)
    codes = codes.reshape(-1)
    parts = None
    if _is_exclusive(counts) and _groups_with(counts, codes).max() >= k:
        parts = _stratified_group_folds(counts, codes, k, seed)
    if parts is None or len(np.unique(parts)) < k:
        parts = _stratify(counts, codes, np.full(k, 1 / k), seed)[codes]
    return _finished(parts, grouping, counts, names, {fold: f"fold {fold}" for fold in range(k)})


def patient_split(
    table: pd.DataFrame,
    labels: str | Sequence[str] | np.ndarray,
    *,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    grouping: Grouping | None = None,
) -> Split:
    """Cuts films into train, val and test with whole groups and even classes.

    Synthetic films are always in train, and have no share in the others.

    Args:
        val, test: shares of the real films in [0, 1); 0 leaves that part out. The rest is for training.
        table, labels, seed, grouping: as in `patient_folds`.

    Returns:
        `Split` with the parts "train", "val", "test".

    Raises:
        SplitError: fewer groups than parts, shares that leave nothing to train on, no real film, or a
            synthetic film that copies one of val or test.
    """
    if val < 0 or test < 0 or not 0 < val + test < 1:
        raise SplitError(f"expected shares val and test, 0 < val + test < 1, got {val} and {test}")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0}
    made = synthetic_films(table)
    grouping = grouping or film_groups(table)
    while True:
        split = _with_synthetic(table, labels, made, grouping, shares, seed)
        # Only now the files: a large archive has many, of which few are held out.
        marked = synthetic_films(table, split.parts != "train") & ~made
        if not marked.any():
            return split
        made |= marked


def _with_synthetic(table, labels, made, grouping, shares, seed) -> Split:
    """The split of the real films, with the synthetic ones in train."""
    if not made.any():
        return _real_split(table, labels, grouping, shares, seed)
    if made.all():
        raise SplitError(f"all {len(table)} films are synthetic; validation and test need real films")
    own = labels[~made] if isinstance(labels, (np.ndarray, pd.Series, pd.DataFrame)) else labels
    real = _real_split(table[~made], own, grouping.take(~made), shares, seed)
    parts = np.full(len(table), "train", dtype="U5")
    parts[~made] = real.parts
    held_out = np.unique(grouping.groups[~made][real.parts != "train"])
    refuse(table, made & np.isin(grouping.groups, held_out), "it copies a held-out film")
    note = f"{int(made.sum())} synthetic films are in train only"
    return Split(parts, grouping, (*real.notes, note))


def _real_split(table, labels, grouping, shares, seed) -> Split:
    _enough_groups(grouping, len(shares), " and ".join(shares))
    counts, names = _label_counts(table, labels)
    codes = np.unique(grouping.groups, return_inverse=True)[1].reshape(-1)
    chosen = _stratify(counts, codes, np.array(list(shares.values())), seed)[codes]
    parts = np.array(list(shares))[chosen]
    return _finished(parts, grouping, counts, names, {name: name for name in shares})


def has_split(table: pd.DataFrame) -> bool:
    """Whether the table's `split` column has a value for each real film."""
    if "split" not in table.columns:
        return False
    blank = (table["split"].fillna("") == "").to_numpy(bool)
    return not blank.any() or bool(not blank.all() and synthetic_films(table, blank)[blank].all())


def given_split(table: pd.DataFrame, *, grouping: Grouping | None = None) -> Split:
    """The split that the table's `split` column prescribes; a synthetic film without a value is in train.

    Raises:
        SplitError: a real film without a part, a group in two parts, or a synthetic film in val or test.
    """
    given = as_manifest(table)["split"].to_numpy(dtype=object)
    blank = given == ""
    if blank.any():
        given = np.where(blank & synthetic_films(table, blank), "train", given)
    if (given == "").any():
        raise SplitError(
            f"{int((given == '').sum())} of {len(given)} films have no value in the column 'split'"
        )
    unknown = sorted({str(name) for name in given if name.lower() not in PART_NAMES})
    if unknown:
        raise SplitError(f"unknown split {', '.join(map(repr, unknown[:5]))}; expected train, val or test")
    parts = np.array([PART_NAMES[name.lower()] for name in given])
    check_held_out(table, parts)
    grouping = grouping or film_groups(table)
    check_parts(grouping.groups, parts)
    return Split(parts, grouping, _grouping_notes(grouping))


def check_parts(groups: np.ndarray, parts: np.ndarray) -> None:
    """Raises SplitError if a group has films in two parts, and names some of those that do."""
    groups, parts = np.asarray(groups), np.asarray(parts)
    if groups.shape != parts.shape or groups.ndim != 1:
        raise SplitError(f"expected one group and one part a film, got {groups.shape} and {parts.shape}")
    torn = straddling_groups(groups, parts)
    if torn:
        shown = ", ".join(f"{group} ({' and '.join(where)})" for group, where in list(torn.items())[:5])
        more = f" and {len(torn) - 5} more" if len(torn) > 5 else ""
        raise SplitError(f"{len(torn)} groups have films in more than one part: {shown}{more}")


def straddling_groups(groups: np.ndarray, parts: np.ndarray) -> dict[str, list[str]]:
    """The groups with films in more than one part, and those parts."""
    pairs = pd.DataFrame({"group": groups, "part": parts}).drop_duplicates()
    torn = pairs[pairs["group"].duplicated(keep=False)].sort_values(["group", "part"])
    return {str(group): [str(part) for part in rows["part"]] for group, rows in torn.groupby("group")}


def split_hash(table: pd.DataFrame) -> str:
    """SHA-256 over the sorted pairs (film, part) of the columns `path` and `split`, 64 hexadecimal digits.

    Films are named relative to the folder that holds them all: neither the order of rows nor the place of
    the folder matters.
    """
    return _hash(zip(_names(table["path"]), map(str, table["split"]), strict=True))


def save_split(table: pd.DataFrame, csv_path) -> str:
    """Writes `path` (relative to the films' common folder) and `split` under a line with their hash."""
    names = _names(table["path"])
    if len(set(names)) != len(names):
        raise SplitError("expected every film once, got a path twice; check the table first")
    pairs = sorted(zip(names, map(str, table["split"]), strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "split"), *pairs])
    digest = _hash(pairs)
    write_text(csv_path, f"{_HASH_LINE}{digest}\n{text.getvalue()}")
    return digest


def load_split(csv_path, table: pd.DataFrame) -> np.ndarray:
    """The parts of the films of `table`, str (N,), as `save_split` wrote them.

    Raises:
        SplitError: the file was changed, or is about other films.
    """
    try:
        first, _, rest = Path(csv_path).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"{csv_path}: cannot be read: {error}") from None
    rows = list(csv.reader(io.StringIO(rest, newline="")))
    if not first.startswith(_HASH_LINE) or rows[:1] != [["path", "split"]]:
        raise SplitError(f"{csv_path}: not a split that kxray.data.save_split wrote")
    pairs = [tuple(row) for row in rows[1:]]
    if any(len(pair) != 2 for pair in pairs) or first != _HASH_LINE + _hash(pairs):
        raise SplitError(f"{csv_path}: its rows no longer match the hash in its first line")
    names, saved = _names(table["path"]), dict(pairs)
    if set(names) != set(saved):
        raise SplitError(
            f"{csv_path}: is about {len(saved)} films, {len(set(names) & set(saved))} of which are among "
            f"the {len(names)} given; split these films anew"
        )
    return np.array([saved[name] for name in names])


def _hash(pairs) -> str:
    lines = sorted(f"{name}\t{part}" for name, part in pairs)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _names(paths) -> list[str]:
    paths = list(paths)
    folder = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    if len(folder) > 1 and all(map(is_normal, paths)):
        return [path[len(folder) + 1 :] for path in paths]
    return [Path(os.path.relpath(path, folder or os.curdir)).as_posix() for path in paths]


def _enough_groups(grouping, needed, what):
    if grouping.count < needed:
        raise SplitError(
            f"{what} need at least {needed} groups, got {len(grouping.groups)} films in "
            f"{grouping.count} groups by {grouping.kind}"
        )


def _label_counts(table, labels) -> tuple[np.ndarray, list[str]]:
    """0/1 (N, L) and the names of the L classes or findings; an unknown value is a class of its own."""
    if isinstance(labels, str):
        labels = [labels]
    if not isinstance(labels, (np.ndarray, pd.Series, pd.DataFrame)):
        missing = [name for name in labels if name not in table.columns]
        if missing:
            raise SplitError(f"expected label columns {missing}, got a table with {', '.join(table.columns)}")
        labels = table[list(labels)] if len(labels) > 1 else table[labels[0]]
    if len(labels) != len(table):
        raise SplitError(f"expected one label a film, got {len(labels)} for {len(table)} films")
    if np.ndim(labels) == 2:
        names = [str(name) for name in getattr(labels, "columns", range(np.shape(labels)[1]))]
        return (np.asarray(labels, float) == 1).astype(int), names
    values = pd.Series(np.asarray(labels, object)).map(_class_name)
    classes = sorted(set(values))
    return np.stack([(values == name).to_numpy(int) for name in classes], axis=1), classes


def _class_name(value) -> str:
    if value is None or value is pd.NA or value != value or value == "":
        return "unknown"
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _is_exclusive(counts) -> bool:
    return bool((counts.sum(axis=1) == 1).all())


def _by_group(counts, codes):
    result = np.zeros((codes.max() + 1, counts.shape[1]), int)
    np.add.at(result, codes, counts)
    return result


def _groups_with(counts, codes):
    return (_by_group(counts, codes) > 0).sum(axis=0)


def _stratified_group_folds(counts, codes, k, seed):
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.full(len(codes), -1)
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of a class with fewer films than folds; our notes say so in more detail.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, rows) in enumerate(splitter.split(codes, counts.argmax(axis=1), codes)):
            folds[rows] = fold
    return folds


def _stratify(counts, codes, shares, seed):
    """Iterative stratification (Sechidis et al., 2011, algorithm 1) of groups: part of each group, int (G,).

    Labels are dealt rarest first, large groups before small ones. A group goes to the part that has least of
    the label for its share, counting half of what the group would add (Sainte-Lague's rule, which gives parts
    of unequal size their due of few and large groups alike); ties go to the part with fewest films for its
    share, then to chance.
    """
    rng = np.random.default_rng(seed)
    labels, sizes = _by_group(counts, codes), np.bincount(codes)
    dealt, dealt_films = np.zeros((len(shares), labels.shape[1])), np.zeros(len(shares))
    part = np.full(len(sizes), -1)
    while (part < 0).any():
        left = (labels[part < 0] > 0).sum(axis=0)
        label = int(np.argmin(np.where(left > 0, left, len(sizes) + 1))) if left.any() else None
        groups = np.flatnonzero((part < 0) & (True if label is None else labels[:, label] > 0))
        groups = rng.permutation(groups)
        for group in groups[np.argsort(-sizes[groups], kind="stable")]:
            fill = (dealt_films + sizes[group] / 2) / shares
            choice = np.arange(len(shares))
            if label is not None:
                choice = _smallest(choice, (dealt[:, label] + labels[group, label] / 2) / shares)
            choice = _smallest(choice, fill)
            part[group] = rng.choice(choice) if len(choice) > 1 else choice[0]
            dealt[part[group]] += labels[group]
            dealt_films[part[group]] += sizes[group]
    for empty in np.setdiff1d(np.arange(len(shares)), part):
        # A part too small for its share of anything still gets the smallest group of the fullest part.
        members = np.flatnonzero(part == np.bincount(part).argmax())
        part[members[np.argmin(sizes[members])]] = empty
    return part


def _smallest(choice, values):
    # What numpy.isclose says, which takes ten times as long to say it of two or three numbers.
    values = values[choice]
    least = values.min()
    return choice[np.abs(values - least) <= 1e-8 + 1e-5 * abs(least)]


def _finished(parts, grouping, counts, names, part_names: Mapping) -> Split:
    check_parts(grouping.groups, parts)
    notes = list(_grouping_notes(grouping))
    for column, name in enumerate(names):
        shown = counts[:, column] > 0
        absent = [words for part, words in part_names.items() if not shown[parts == part].any()]
        if absent:
            groups = len(np.unique(grouping.groups[shown]))
            notes.append(f"{name}: {shown.sum()} films in {groups} groups only, none in {', '.join(absent)}")
    return Split(parts, grouping, tuple(notes))


def _grouping_notes(grouping) -> tuple[str, ...]:
    if grouping.kind == BY_PATIENT:
        return ()
    return (f"grouped by {grouping.kind}: {grouping.count} groups, the largest of {grouping.largest}",)
