"""Which films an audit is of, and which classes of them it asks to be told apart."""

import dataclasses

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class Question:
    """Which classes are told apart: the values of a column (or some of them), or a finding against its
    absence, which is called "no ..." unless it has a name."""

    label_column: str = "label"
    finding: str | None = None
    labels: tuple[str, ...] | None = None
    absence: str | None = None

    def labels_of(self, table) -> np.ndarray:
        """The class of every film, str (N,), `""` where it is unknown. Raises ValueError: no such column."""
        from kxray.data import finding_columns

        findings = finding_columns(table)
        if self.finding is not None:
            if self.finding not in findings:
                raise ValueError(
                    f"--finding {self.finding}: no such 0/1 column; "
                    f"{'findings: ' + ', '.join(findings) if findings else 'the data have none'}"
                )
            names = {1.0: self.finding, 0.0: self.absence or f"no {self.finding}"}
            return np.array([names.get(value, "") for value in table[self.finding]], dtype=str)
        if self.label_column not in table.columns:
            shown = [name for name in table.columns if name not in findings]
            others = f" or --finding with one of {', '.join(findings)}" if findings else ""
            raise ValueError(
                f"the data have no column {self.label_column!r}; give --label-column with one of "
                f"{', '.join(map(str, shown))}{others}"
            )
        column = table[self.label_column]
        if pd.api.types.is_numeric_dtype(column):
            texts = [f"{value:g}" if value == value else "" for value in column]
        else:
            texts = [str(value).strip() for value in column]
        asked = set(texts) if self.labels is None else set(self.labels)
        return np.array([text if text in asked else "" for text in texts], dtype=str)

    @property
    def column(self) -> str:
        return self.finding or self.label_column

    def __str__(self):
        return f"{self.finding} against its absence" if self.finding else f"the classes of {self.column!r}"


@dataclasses.dataclass(frozen=True)
class AskedFilms:
    """The films of a source and what is asked of them.

    Args:
        table: the sound rows.
        question: which classes.
        problems: of the other rows.
        notes: on the source, in words.
    """

    table: pd.DataFrame
    question: Question
    problems: pd.DataFrame
    notes: list[str]


def read_films(source, question, finished=None) -> AskedFilms:
    """Reads the films of a source.

    Args:
        source: as `kxray.data.read_source` takes it.
        question: which classes, or None for those that a run tells apart.
        finished: of `training.auditing.run_films.read_finished`; a question beside it must be the run's.

    Raises:
        ValueError: no such column, not a sound row, or another question than the run's.
    """
    from kxray import data

    table = data.read_source(source, check=False)
    if table.empty:
        raise ValueError(f"{source}: has no films")
    notes = list(table.attrs.get("notes", []))
    if question is None:
        table, question, chosen = _asked_by(finished, table)
        notes += chosen
    elif finished is not None:
        question = _as_asked_by(finished, table, question)
    question.labels_of(table)
    problems = data.check_manifest(table)
    # A cell that is broken tells nothing, its film can be looked at all the same; a doubtful path cannot.
    table = data.drop_problems(table, problems) if len(problems) else table
    if table.empty:
        raise ValueError(f"{source}: none of its rows is sound; the first problem: {problems['problem'][0]}")
    return AskedFilms(table, question, problems, notes)


def _asked_by(finished, table):
    """(films, question, notes) of a run: the column that has its labels, or its findings made one."""
    from training import chosen_labels
    from training.auditing.run_films import truth_of

    labels, notes = finished.spec.labels, []
    column, _ = truth_of(table, labels)
    if column is None:
        column = "label"
        try:
            table, notes = chosen_labels.choose(table, list(labels), column)
        except ValueError as error:
            raise ValueError(
                f"the data have no films labelled {' or '.join(labels)}, which {finished.folder} tells apart "
                f"({error})"
            ) from None
    return table, Question(column, labels=tuple(labels)), notes


def _as_asked_by(finished, table, question):
    """A question in the words of a run that answers it; scores of two questions cannot be compared."""
    from training import chosen_labels

    labels = set(question.labels_of(table)) - {""}
    own = finished.spec.labels
    if question.finding in own and f"no {question.finding}" not in own:
        absent = [label for label in own if chosen_labels.is_absence(label)]
        question = dataclasses.replace(question, absence=absent[0] if absent else None)
        labels = set(question.labels_of(table)) - {""}
    elif question.finding is None and labels > set(own):
        return dataclasses.replace(question, labels=tuple(own))
    if not labels <= set(own):
        option = "--label-column" if question.finding is None else "--finding"
        shown = ", ".join(sorted(labels)[:5]) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"{option} {question.column} asks for {shown}, but {finished.folder} tells "
            f"{' from '.join(own)}; leave {option} out, or give the run of that question"
        )
    return question
