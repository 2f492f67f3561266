"""The table that training.explain grows: one row a film, whole batches only, no row lost or doubled."""

import csv
import io
import json
import os
from pathlib import Path

from kxray.io.files import replacing
from training import runs

FILES = ("overlay", "arrays", "map_png")
SCORES = ("pointing_game", "mass_inside", "iou_at_half")
_ROWS_BEFORE = "rows_before"


def columns_of(labels) -> tuple[str, ...]:
    """The columns of explained.csv for a model's labels."""
    probabilities = [f"probability_{label}" for label in labels]
    coding = ("map_min", "map_max", "png_scale", "png_offset")
    return (
        *("path", "patient_id", "label", "predicted", "decision", *probabilities, "explained_label"),
        *(*FILES, *coding, *SCORES, "reason"),
    )


class ExplainedTable:
    """OUT/explained.csv while it grows.

    Rows go to explained.csv.part batch by batch. A resumed run drops an incomplete last batch, so that it
    forms the batches of an uninterrupted run: results of equal batches are equal to the last bit.

    Args:
        folder: OUT.
        labels: of the model.
        facts: what must not change between the runs that share OUT, JSON values.
        batch_size: films a batch.

    Raises:
        ValueError: OUT was begun with other facts.
    """

    def __init__(self, folder, labels, facts, batch_size):
        self.folder = Path(folder)
        self.path = self.folder / "explained.csv"
        self.part = self.folder / "explained.csv.part"
        self.columns = columns_of(labels)
        note = self.folder / "explained.json"
        begun = self.part if self.part.exists() else self.path
        rows = self._read(begun) if begun.exists() else []
        known = _facts(note) if begun.exists() else {}
        changed = [name for name in facts if known.get(name, facts[name]) != facts[name]]
        if changed:
            raise ValueError(
                f"{begun} was begun with another {' and '.join(changed)}; choose another --out, or delete "
                "it to start again"
            )
        if begun == self.part:
            before = known.get(_ROWS_BEFORE, 0)
            rows = rows[: len(rows) - max(0, len(rows) - before) % batch_size]
        else:
            # A finished table is continued: what could not be read may have been mended since.
            rows = [row for row in rows if not row["reason"]]
        # What was deleted is made again.
        rows = [row for row in rows if row["reason"] or self._has_files(row)]
        if begun != self.part:
            runs.write_json(note, {**facts, _ROWS_BEFORE: len(rows)})
        self.rows = {row["path"]: row for row in rows}

    def __contains__(self, path):
        return self.relative(path) in self.rows

    def __enter__(self):
        self._write(self.part, self.rows.values())
        self.file = open(self.part, "a", encoding="utf-8", errors="surrogateescape", newline="")
        return self

    def __exit__(self, *failure):
        self.file.close()

    def relative(self, path):
        return Path(os.path.relpath(path, os.path.abspath(self.folder))).as_posix()

    def append(self, rows):
        """Adds one batch of rows: dicts of texts, columns left out are empty."""
        rows = [{name: row.get(name, "") for name in self.columns} for row in rows]
        self.file.write(self._csv(rows))
        self.file.flush()
        self.rows.update({row["path"]: row for row in rows})

    def finish(self, paths):
        """Writes explained.csv with the rows of `paths`, in their order, and returns them."""
        rows = [self.rows[self.relative(path)] for path in paths]
        self._write(self.path, rows)
        self.part.unlink()
        return rows

    def _has_files(self, row):
        return all((self.folder / row[name]).is_file() for name in FILES)

    def _csv(self, rows):
        text = io.StringIO()
        for row in rows:
            cells = [row[name] for name in self.columns]
            # Before Python 3.13, csv leaves a carriage return unquoted, which tears the row apart on reading.
            quoting = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
            csv.writer(text, lineterminator="\n", quoting=quoting).writerow(cells)
        return text.getvalue()

    def _write(self, path, rows):
        header = {name: name for name in self.columns}
        with replacing(path) as temporary:
            text = self._csv([header, *rows])
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")

    def _read(self, path):
        """The complete rows of a table, be it finished or cut off in the middle of a row."""
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
        rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))]
        if not rows or tuple(rows[0]) != self.columns:
            raise ValueError(f"{path}: not a table of training.explain for this model; choose another --out")
        # A cell with a line break, cut off at that break, ends in a row that is short.
        return [
            dict(zip(self.columns, row, strict=True)) for row in rows[1:] if len(row) == len(self.columns)
        ]


def _facts(note):
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(
            f"{note} is missing or damaged, which says what made this table; choose another --out"
        )
    return facts
