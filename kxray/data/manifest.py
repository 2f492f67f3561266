"""The one table of films: how it is read, written and checked.

In memory `path` is absolute, so that tables can be filtered and concatenated; on disk it is relative to the
CSV, so that a folder can be moved. Text columns hold `""` where nothing is known, findings hold NaN, `boxes`
holds a list of `{"finding", "x", "y", "width", "height"}` in pixels of the film file, origin top left.
"""

import collections
import csv
import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kxray.io.files import write_whole

BOX_FIELDS = ("finding", "x", "y", "width", "height")
TEXT_COLUMNS = (
    *("path", "patient_id", "label", "coarse_label", "view", "split"),
    *("condition", "nearest_film"),
)
# Columns that describe the film, its patient or a phantom's geometry; a 0 or 1 in them is not a finding.
METADATA_COLUMNS = (
    *(*TEXT_COLUMNS, "boxes", "masks", "position", "age", "sex", "follow_up", "study_id", "source", "group"),
    *("angle", "rotation", "scale", "shift_x", "shift_y", "spacing", "heart_ratio"),
    *("calibre", "calibre_px", "size_px"),
    # Of aligned films; what their source called so itself is source_NAME, see `is_metadata`.
    *("aligned", "confidence"),
    # Of films that a generator made, see `kxray.data.synthetic`.
    *("synthetic", "seed", "number", "nearest_distance"),
)
MOST_SHOWN = 20
_PROBLEM_COLUMNS = ("row", "path", "column", "problem")
_FINDING_VALUES = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


class ManifestError(ValueError):
    """Everything that is wrong with a table of films, told at once.

    Attributes:
        problems: table with the columns `row` (as a spreadsheet numbers it), `path`, `column`, `problem`.
    """

    def __init__(self, problems: pd.DataFrame, source=None):
        self.problems = problems
        plural = "problem" if len(problems) == 1 else "problems"
        lines = [f"{len(problems)} {plural} in {source or 'the table of films'}:"]
        shown = problems.head(MOST_SHOWN)
        lines += [
            f"  row {row}: {problem}" for row, problem in zip(shown["row"], shown["problem"], strict=True)
        ]
        if len(problems) > MOST_SHOWN:
            lines.append(f"  ... and {len(problems) - MOST_SHOWN} more")
        super().__init__("\n".join(lines))


def read_manifest(csv_path, *, findings: Sequence[str] | None = None, check: bool = True) -> pd.DataFrame:
    """Reads a manifest CSV.

    Args:
        csv_path: the file; film paths in it are relative to its folder (or absolute).
        findings: names of the finding columns; by default those whose values are mostly 0 and 1.
        check: raise on missing films, duplicate paths and malformed cells. With `check=False` malformed cells
            stay as text, for `check_manifest` and `drop_problems` to deal with.

    Returns:
        One row a film; its index counts data rows from 0, so row `i` is line `i + 2` of a spreadsheet.

    Raises:
        ManifestError: with every problem and its row.
        ValueError: not a table of films at all.
    """
    csv_path = Path(csv_path)
    cells = read_cells(csv_path)
    if "path" not in cells.columns:
        hint = "; save it with commas, not semicolons" if ";" in str(cells.columns[0]) else ""
        raise ValueError(
            f"{csv_path}: expected a column 'path', got {', '.join(map(str, cells.columns))}{hint}"
        )
    table = as_manifest(cells, folder=csv_path.parent, findings=findings)
    if check:
        problems = check_manifest(table, findings=findings)
        if len(problems):
            raise ManifestError(problems, csv_path)
    return table


def read_cells(csv_path) -> pd.DataFrame:
    """A CSV (or .csv.gz) as text, `""` where a cell is empty; blank rows are dropped but keep their number.

    The standard library's reader, because pandas renumbers rows, guesses an index and cuts long rows short.
    """
    opener = gzip.open if str(csv_path).endswith(".gz") else open
    try:
        with opener(csv_path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise ValueError(f"{csv_path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{csv_path}: expected UTF-8 text ({error}); save it as CSV UTF-8") from None
    except (csv.Error, OSError, EOFError) as error:
        raise ValueError(f"{csv_path}: not a readable CSV table: {error}") from None
    if not rows or not any(rows[0]):
        raise ValueError(f"{csv_path}: expected a header in row 1, got an empty line or file")
    header = rows[0]
    while not header[-1]:
        header = header[:-1]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ValueError(f"{csv_path}: expected distinct column names, got {', '.join(doubled)} twice")
    cells, index, too_long = [], [], []
    for number, row in enumerate(rows[1:], start=2):
        if any(row[len(header) :]):
            too_long.append(number)
        elif any(row):
            cells.append(row[: len(header)] + [""] * (len(header) - len(row)))
            index.append(number - 2)
    if too_long:
        raise ValueError(f"{csv_path}: more cells than the header's {len(header)} in rows {_some(too_long)}")
    return pd.DataFrame(cells, columns=header, index=pd.Index(index, dtype="int64"), dtype=str)


def as_manifest(table: pd.DataFrame, *, folder=None, findings: Sequence[str] | None = None) -> pd.DataFrame:
    """Brings any table with a `path` column into the manifest's types, without checking it.

    Args:
        table: one row a film.
        folder: relative paths are relative to it; by default to the working directory.
        findings: as in `read_manifest`.

    Returns:
        A copy: text as str, findings as float64 (0, 1, NaN), boxes as lists, masks as JSON text of absolute
        paths, other columns numeric where every value is a number. Malformed cells stay as text.
    """
    result = table.copy()
    if "patient_id" not in result.columns:
        result.insert(1, "patient_id", "")
    for name in TEXT_COLUMNS:
        if name in result.columns:
            result[name] = pd.Series(_texts(result[name]), index=result.index, dtype=str)
    base = os.path.abspath(folder or "")
    paths = [
        path if not path or is_normal(path) else os.path.normpath(os.path.join(base, path))
        for path in result["path"].tolist()
    ]
    result["path"] = pd.Series(paths, index=result.index, dtype=str)
    if "boxes" in result.columns:
        boxes = [_boxes_or_text(value) for value in result["boxes"].tolist()]
        result["boxes"] = pd.Series(boxes, index=result.index, dtype=object)
    if "masks" in result.columns:

        def absolute(path):
            return os.path.normpath(os.path.join(base, path))

        masks = [_masks_at(value, absolute) for value in result["masks"]]
        result["masks"] = pd.Series(masks, index=result.index, dtype=str)
    named = finding_columns(result, findings)
    for name in result.columns:
        if name in named:
            result[name] = _findings_or_text(result[name])
        elif name not in (*TEXT_COLUMNS, "boxes", "masks"):
            result[name] = _numbers_or_text(result[name])
    return result


def finding_columns(table: pd.DataFrame, findings: Sequence[str] | None = None) -> list[str]:
    """The columns that hold one finding each, in table order.

    Without `findings` a text column counts when more than half of its known values are 0 or 1 and it is no
    metadata (`is_metadata`): a mistyped value is then reported instead of turning the column into free text.
    A numeric column counts when all of them are.
    """
    if findings is not None:
        missing = [name for name in findings if name not in table.columns]
        if missing:
            raise ValueError(
                f"expected finding columns {missing}, got a table with {', '.join(map(str, table.columns))}"
            )
        return list(findings)
    return [name for name in table.columns if not is_metadata(name) and _mostly_binary(table[name])]


def is_metadata(name) -> bool:
    """Whether a column is of `METADATA_COLUMNS`, or source_NAME: what an aligned film's source held in it."""
    while name not in METADATA_COLUMNS and str(name).startswith("source_"):
        name = name.removeprefix("source_")
    return name in METADATA_COLUMNS


def check_manifest(
    table: pd.DataFrame,
    *,
    labels: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    findings: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Lists what is wrong with a table, without opening a film.

    Args:
        table: as `read_manifest(..., check=False)` returns it.
        labels: the allowed values of `label`; None allows any.
        views: the allowed values of `view`; None allows any.
        findings: names of the finding columns; by default `finding_columns(table)`.

    Returns:
        Table `row`, `path`, `column`, `problem`, in row order; empty when all is well.
    """
    table = as_manifest(table, findings=findings)
    rows = row_numbers(table)
    paths = list(table["path"])
    found = [(rows[i], paths[i], *problem) for i, problem in _path_problems(table, rows)]
    for name, allowed in (("label", labels), ("view", views)):
        if allowed is None:
            continue
        if name not in table.columns:
            raise ValueError(f"expected a column {name!r} with {', '.join(allowed)}, got a table without it")
        for i, value in enumerate(table[name]):
            if value not in allowed:
                what = f"unknown {name} {value!r}" if value else f"no {name}"
                found.append((rows[i], paths[i], name, f"{what}; expected {' or '.join(allowed)}"))
    for name in finding_columns(table, findings):
        if pd.api.types.is_float_dtype(table[name]):
            continue
        for i, value in enumerate(table[name]):
            if _text(value).strip() not in _FINDING_VALUES:
                found.append((rows[i], paths[i], name, f"{name} must be 0, 1 or empty, got {value!r}"))
    if "boxes" in table.columns:
        for i, value in enumerate(table["boxes"]):
            problem = _box_problem(value)
            if problem:
                found.append((rows[i], paths[i], "boxes", problem))
    found.sort(key=lambda problem: problem[0])
    return pd.DataFrame(found, columns=list(_PROBLEM_COLUMNS))


def check_films(table: pd.DataFrame, *, workers: int | None = None) -> pd.DataFrame:
    """Decodes every film that is there and lists the unreadable ones, as `check_manifest` does.

    Missing files and empty paths are `check_manifest`'s to report. Films are read in parallel, in a stream.
    """
    from kxray.io.parallel import read_films

    rows = row_numbers(table)
    present = [(row, path) for row, path in zip(rows, table["path"], strict=True) if os.path.isfile(path)]
    found = []
    for index, result in read_films([path for _, path in present], transform=_forget_pixels, workers=workers):
        if isinstance(result, Exception):
            row, path = present[index]
            found.append((row, path, "path", f"unreadable film: {result}"))
    return pd.DataFrame(found, columns=list(_PROBLEM_COLUMNS))


def drop_problems(table: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that no problem names (problems found in this same table)."""
    bad = set(problems["row"])
    keep = [row not in bad for row in row_numbers(table)]
    return as_manifest(table.loc[keep])


def write_skipped(problems: pd.DataFrame, csv_path) -> None:
    """Writes the problems of rows that were left out, atomically."""
    write_text(csv_path, problems.to_csv(index=False, lineterminator="\n"))


def write_manifest(table: pd.DataFrame, csv_path) -> None:
    """Writes a table so that `read_manifest` gives it back: paths relative to the CSV, atomically."""
    csv_path = Path(csv_path)
    result = as_manifest(table)
    folder = os.path.abspath(csv_path.parent)
    result["path"] = [
        Path(os.path.relpath(path, folder)).as_posix() if path else "" for path in result["path"]
    ]
    for name in finding_columns(result):
        if pd.api.types.is_numeric_dtype(result[name]):
            result[name] = result[name].astype("Int64")
    if "boxes" in result.columns:
        result["boxes"] = [
            json.dumps(value, ensure_ascii=False) if isinstance(value, list) and value else value or ""
            for value in result["boxes"]
        ]
    if "masks" in result.columns:
        result["masks"] = [
            _masks_at(value, lambda path: Path(os.path.relpath(path, folder)).as_posix())
            for value in result["masks"]
        ]
    write_text(csv_path, result.to_csv(index=False, lineterminator="\n"))


def write_text(path, text: str) -> None:
    """Writes a text file whole or not at all, in a folder that is made where missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def row_numbers(table: pd.DataFrame) -> list[int]:
    """Row of each film as a spreadsheet of the CSV numbers it: the header is row 1.

    It follows the index through filtering; a table without a distinct whole-number index is counted from 2.
    """
    if pd.api.types.is_integer_dtype(table.index) and table.index.is_unique:
        return [int(label) + 2 for label in table.index]
    return list(range(2, len(table) + 2))


def _path_problems(table, rows):
    first = {}
    for i, path in enumerate(table["path"].tolist()):
        if not path:
            yield i, ("path", "path is empty")
        elif path in first:
            other = first[path]
            if repr(table.iloc[i].tolist()) == repr(table.iloc[other].tolist()):
                yield i, ("path", f"{path!r} is already in row {rows[other]}")
            else:
                # Nobody can say which of the two is right, so neither may be used.
                yield (
                    i,
                    ("path", f"{path!r} is already in row {rows[other]}, which says something else of it"),
                )
                yield other, ("path", f"{path!r} is again in row {rows[i]}, which says something else of it")
        else:
            first[path] = i
            if not os.path.isfile(path):
                yield i, ("path", f"no such file: {path!r}")


def _some(numbers) -> str:
    shown = ", ".join(map(str, numbers[:MOST_SHOWN]))
    return shown + (f" and {len(numbers) - MOST_SHOWN} more" if len(numbers) > MOST_SHOWN else "")


def _text(value) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        # A column of whole numbers with a gap is read by pandas as floats: patient 12 must not become 12.0.
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _texts(column) -> list[str]:
    """`_text` of every value."""
    values = column.tolist()
    return values if all(type(value) is str for value in values) else [_text(value) for value in values]


def is_normal(path) -> bool:
    """Whether a path is absolute and as `os.path.normpath` would write it: then nothing needs to be asked."""
    return os.sep == "/" and path[:1] == "/" and "//" not in path and "/." not in path and path[-1] != "/"


def _mostly_binary(column) -> bool:
    if pd.api.types.is_numeric_dtype(column):
        # A mistyped finding stays text, so a measured quantity is never taken for one.
        known = column.dropna()
        return len(known) > 0 and not pd.api.types.is_bool_dtype(column) and bool(known.isin([0, 1]).all())
    # A finding has few values, and a long table many rows.
    counts = collections.Counter(_texts(column))
    known = [(text.strip(), count) for text, count in counts.items() if text.strip()]
    binary = sum(count for text, count in known if text in _FINDING_VALUES)
    return 2 * binary > sum(count for _, count in known)


def _findings_or_text(column):
    if column.dtype == "float64" and column.dropna().isin([0, 1]).all():
        return column
    texts = _texts(column)
    values = {text: _FINDING_VALUES.get(text.strip()) for text in set(texts)}
    if None not in values.values():
        return pd.Series([values[text] for text in texts], index=column.index, dtype="float64")
    return pd.Series([text.strip() for text in texts], index=column.index, dtype=object)


def _numbers_or_text(column):
    if pd.api.types.is_numeric_dtype(column):
        return column
    texts = _texts(column)
    known = [text for text in texts if text]
    if not known:
        return pd.Series(math.nan, index=column.index, dtype="float64")
    # "007" is a code, not a number: it would not survive the way to disk and back.
    if not any(text[:1] == "0" and text[1:2].isdigit() for text in known):
        numbers = pd.to_numeric(pd.Series(texts, index=column.index).replace("", None), errors="coerce")
        if numbers.notna().sum() == len(known) and all(math.isfinite(value) for value in numbers.dropna()):
            return numbers
    return pd.Series(texts, index=column.index, dtype=str)


def _masks_at(value, place) -> str:
    """A cell of mask files, {finding: path} as JSON, with every path put through `place`."""
    text = _text(value)
    try:
        files = json.loads(text) if text.strip() else {}
    except ValueError:
        return text
    if not isinstance(files, dict) or not all(isinstance(path, str) for path in files.values()):
        return text
    moved = {finding: place(path) for finding, path in files.items()}
    return json.dumps(moved, ensure_ascii=False) if moved else ""


def _boxes_or_text(value):
    if isinstance(value, (list, tuple)):
        return list(value)
    text = _text(value).strip()
    try:
        boxes = json.loads(text) if text else []
    except ValueError:
        return text
    return boxes if isinstance(boxes, list) else text


def _box_problem(value) -> str | None:
    if not isinstance(value, list):
        return f"boxes must be a JSON list, got {value!r}"
    for box in value:
        if not isinstance(box, dict) or set(box) != set(BOX_FIELDS) or not isinstance(box["finding"], str):
            return f"a box must have {', '.join(BOX_FIELDS)}, got {json.dumps(box, default=str)}"
        numbers = [box[name] for name in BOX_FIELDS[1:]]
        if not all(_is_pixels(number) for number in numbers) or min(numbers[2:]) <= 0:
            return f"a box must have finite pixels and a positive size, got {json.dumps(box, default=str)}"
    return None


def _is_pixels(number) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


def _forget_pixels(film) -> None:
    return None
