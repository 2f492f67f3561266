"""Films with findings that may occur together: which are asked for, and what is known of each film."""

import dataclasses

import numpy as np
import pandas as pd

from training.task import SMALLEST_CLASS

# The absence of all findings, which every film without one shows anyway.
NO_FINDING = ("No Finding", "No_Finding", "no_finding")


def parse(text) -> tuple[str, ...]:
    """The names of `--findings`; none for "all".

    Raises:
        ValueError: a name twice, or none.
    """
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if names == ("all",):
        return ()
    if not names or len(set(names)) != len(names):
        raise ValueError(f"--findings takes all, or distinct names with commas between them; got {text!r}")
    without = sorted(set(names) & set(NO_FINDING))
    if without:
        raise ValueError(f"--findings {without[0]}: that is the absence of all findings; leave it out")
    return names


def columns_of(table) -> list[str]:
    """The finding columns of a table of films."""
    from kxray import data

    return [name for name in data.finding_columns(table) if name not in NO_FINDING]


def read(source, task, skip_bad, every_finding=True):
    """Reads a source with finding columns; as `training.films.read_labelled`.

    Args:
        every_finding: whether all of the task's findings must have a column. Otherwise one will do, and the
            others are unknown.
    """
    from kxray import data

    table = data.read_source(source, check=False)
    notes = list(table.attrs.get("notes", []))
    known = columns_of(table)
    missing = [name for name in task.labels if name not in known]
    if not known or (missing and (every_finding or len(missing) == len(task.labels))):
        there = f"its finding columns are {', '.join(known)}" if known else "it has none"
        raise ValueError(
            f"{source}: expected a column of 0, 1 or nothing for {' and '.join(missing) or 'each finding'}; "
            f"{there}"
        )
    problems = data.check_manifest(table)
    if len(problems) and not skip_bad:
        raise data.ManifestError(problems, source)
    table = data.drop_problems(table, problems)
    for name in missing:
        table[name] = np.nan
    return table, problems, notes


def settle(task, table) -> tuple:
    """The task with its findings, the films of which something is known, and notes.

    Where the recipe asks for all findings, those are left out that too few patients have, or have not.
    """
    labels, notes = task.labels, []
    if not labels:
        there = columns_of(table)
        asked = [name for name in task.preferred if name in there] or there
        real, _ = real_films(table)
        counts = counted(real, asked, real["patient_id"].where(real["patient_id"] != "", real["path"]))
        enough = (counts[["positive", "negative"]] >= SMALLEST_CLASS).all(axis=1)
        labels = tuple(counts.index[enough])
        if not labels:
            raise ValueError(
                f"no finding has {SMALLEST_CLASS} patients with it and {SMALLEST_CLASS} without: there is "
                "nothing to learn"
            )
        if not enough.all():
            rare = ", ".join(f"{name} ({row.positive})" for name, row in counts[~enough].iterrows())
            notes.append(
                f"findings that fewer than {SMALLEST_CLASS} patients have, or have not, are left out: {rare}"
            )
    _check_names(labels)
    known = table[list(labels)].notna().any(axis=1)
    if not known.all():
        notes.append(f"{int((~known).sum())} films of which no finding is known are left out")
    return dataclasses.replace(task, labels=labels), table[known], notes


def _check_names(labels):
    joined = [name for name in labels if "|" in name]
    if joined:
        raise ValueError(f"a finding may not be called {joined[0]!r}: answers join names with |")


def counted(table, labels, groups=None) -> pd.DataFrame:
    """How many films (or groups of films) are known with and without each finding, and unknown.

    Args:
        table: films.
        labels: names of findings.
        groups: (len(table),), films of one group count once.

    Returns:
        Table with the columns positive, negative, unknown, by finding.
    """
    names = pd.Series(np.arange(len(table)) if groups is None else np.asarray(groups), index=table.index)
    rows = [
        (
            names[table[label] == 1].nunique(),
            names[table[label] == 0].nunique(),
            names[table[label].isna()].nunique(),
        )
        for label in labels
    ]
    return pd.DataFrame(rows, columns=["positive", "negative", "unknown"], index=list(labels))


def real_films(table, grouping=None) -> tuple:
    """(films, their `kxray.data.Grouping` or None) without the synthetic ones, which no part is tested on."""
    from kxray.data import held_out

    real = ~held_out.synthetic_films(table)
    return table[real], None if grouping is None else grouping.take(real)


def check(task, table, grouping=None) -> None:
    """Raises ValueError where a finding, or its absence, is too rare to be in every part: of real films."""
    table, grouping = real_films(table, grouping)
    counts = counted(table, task.labels, None if grouping is None else grouping.groups)
    kind = "films" if grouping is None else "independent films"
    for label, row in counts.iterrows():
        for count, what in ((row.positive, "with"), (row.negative, "without")):
            if count < SMALLEST_CLASS:
                raise ValueError(
                    f"{label!r}: {count} {kind} {what} it; to train, validate and test, a finding needs at "
                    f"least {SMALLEST_CLASS} of each: choose others with --findings"
                )


def truths_of(table, labels) -> np.ndarray:
    """Float (N, L): 1, 0 or NaN where it is unknown whether a film shows a finding."""
    return table[list(labels)].to_numpy(float)


def joined(truths, labels) -> list[str]:
    """The findings of each film as answers name them: joined by `|`, "" for none."""
    return ["|".join(np.array(labels)[row == 1]) for row in np.asarray(truths)]


def names_of(table, labels) -> list[str]:
    """The same for a table that need not know all of them, or any."""
    known = table.reindex(columns=list(labels)).apply(pd.to_numeric, errors="coerce")
    return joined(known.to_numpy(float), labels)


def phantom_mix(task):
    """What phantoms are generated: frontal ones, half of them with the task's findings."""
    from kxray.data.phantom import Mix
    from kxray.data.phantom.film import FINDINGS

    if not task.labels:
        return Mix(views=("frontal",), poses=task.phantom_poses)
    drawn = tuple(name for name in task.labels if name in FINDINGS)
    if not drawn:
        raise ValueError(
            f"phantoms have none of {', '.join(task.labels)}; their findings are {', '.join(FINDINGS)}"
        )
    return Mix(views=("frontal",), findings=drawn, poses=task.phantom_poses)
