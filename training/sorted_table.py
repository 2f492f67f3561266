"""The table that training.sort grows: one row a file, no row lost or doubled by a kill."""

import csv
import io
import json
import os
from pathlib import Path

from kxray.io.files import replacing
from training import runs

COLUMNS = ("path", "view", "probability", "decision", "reason")
CORRECTED = "corrected by a person"


class SortedTable:
    """The growing CSV: which files it lists, and rows appended to it."""

    def __init__(self, out, predictor):
        self.out = Path(out)
        self.part = _part(self.out)
        self.folder = os.path.abspath(self.out.parent)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        begun = self.part if self.part.exists() else self.out
        self.rows = read_rows(begun) if begun.exists() else []
        if begun == self.out:
            # A finished table is continued: what could not be read may have been mended since.
            self.rows = [row for row in self.rows if row[3]]
        self.known = {row[0] for row in self.rows}
        if self.rows and read_facts(self.out)["sha256"] != predictor.digest:
            raise ValueError(
                f"{begun} was begun with another model; choose another --out, or delete it to start again"
            )
        facts = {
            "model": str(predictor.path),
            "sha256": predictor.digest,
            "labels": list(predictor.spec.labels),
        }
        runs.write_json(_beside(self.out), facts)

    def __contains__(self, path):
        return self._relative(path) in self.known or os.path.abspath(path) in self.own_files()

    def own_files(self):
        stem = os.path.abspath(self.out)
        return {stem, f"{stem}.part", f"{stem}.json", os.path.splitext(stem)[0] + ".review.html"}

    def __enter__(self):
        # Rewritten whole first: a row that was cut off in the middle by a kill goes.
        write_rows(self.part, self.rows)
        self.file = open(self.part, "a", encoding="utf-8", errors="surrogateescape", newline="")
        return self

    def __exit__(self, *failure):
        self.file.close()

    def append(self, rows):
        rows = [(self._relative(row[0]), *row[1:]) for row in rows]
        self.file.write(_csv(rows))
        self.file.flush()
        self.rows += rows

    def finish(self):
        os.replace(self.part, self.out)
        counts = {}
        for row in self.rows:
            decision = row[3] or "unreadable"
            counts[decision] = counts.get(decision, 0) + 1
        return counts

    def _relative(self, path):
        return Path(os.path.relpath(path, self.folder)).as_posix()


def _csv(rows) -> str:
    text = io.StringIO()
    for row in rows:
        # Before Python 3.13, csv leaves a carriage return unquoted, which tears the row apart on reading.
        quoting = csv.QUOTE_ALL if any("\r" in cell for cell in row) else csv.QUOTE_MINIMAL
        csv.writer(text, lineterminator="\n", quoting=quoting).writerow(row)
    return text.getvalue()


def write_rows(path, rows) -> None:
    with replacing(path) as temporary:
        temporary.write_text(_csv([COLUMNS, *rows]), encoding="utf-8", errors="surrogateescape", newline="")


def read_rows(path) -> list[tuple[str, ...]]:
    """The complete rows of a sorted table, be it finished or cut off in the middle of a row."""
    text = Path(path).read_bytes().decode("utf-8", errors="surrogateescape")
    rows = [tuple(row) for row in csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))]
    if not rows or rows[0] != COLUMNS:
        raise ValueError(f"{path}: not a table of training.sort, its columns are not {', '.join(COLUMNS)}")
    return [row for row in rows[1:] if len(row) == len(COLUMNS)]


def read_facts(out) -> dict:
    """What OUT.json says of the model that sorted OUT: model, sha256, labels."""
    try:
        facts = json.loads(_beside(out).read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("model", "sha256", "labels")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{out}: {_beside(out).name} is missing or damaged, which says what sorted it; "
            "choose another --out to sort again"
        ) from None


def _beside(out):
    return Path(out).with_name(Path(out).name + ".json")


def _part(out):
    return Path(out).with_name(Path(out).name + ".part")


def enter_corrections(out, corrections) -> int:
    """Writes the views that a person gave into the decision column of a sorted table.

    Args:
        out: CSV of training.sort, finished.
        corrections: CSV with the columns path (relative to itself, or absolute) and view.

    Returns:
        How many films were entered. Raises ValueError, listing them, for films that `out` does not have and
        for views that its model does not know.
    """
    from kxray.data import ManifestError, check_manifest, read_manifest

    out = Path(out)
    if _part(out).exists():
        raise ValueError(f"{out} is not finished; run the sorting command again before entering corrections")
    corrected = read_manifest(corrections)
    if "view" not in corrected.columns:
        raise ValueError(
            f"{corrections}: expected the columns path and view, got {', '.join(corrected.columns)}"
        )
    corrected = corrected[corrected["view"] != ""]
    problems = check_manifest(corrected, views=read_facts(out)["labels"])
    if len(problems):
        raise ManifestError(problems, corrections)
    given = {os.path.realpath(path): view for path, view in corrected[["path", "view"]].values}
    rows = []
    for row in read_rows(out):
        view = given.pop(os.path.realpath(out.parent / row[0]), None)
        rows.append(row if view is None else (*row[:3], view, CORRECTED))
    if given:
        first = ", ".join(list(given)[:5])
        raise ValueError(f"{corrections}: {len(given)} films are not in {out}, the first of them: {first}")
    write_rows(out, rows)
    return len(corrected)
