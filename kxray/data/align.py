"""A folder of films brought upright, to the middle and to one size, by a network or by registration.

Each film is stretched to a square first, as a network's input is, and moved as a similarity of that square.
What is no upright frontal chest is refused, with a reason, and not written.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.data import manifest
from kxray.data.aligners import aligner_of
from kxray.data.moved_places import moved_boxes, moved_masks, write_masks
from kxray.data.sources import find_films, read_source
from kxray.data.synthetic import synthetic_rows
from kxray.data.truth import find_masks
from kxray.io import FilmError, read_films
from kxray.io.files import write_whole
from kxray.io.film import MIN_SIDE
from kxray.io.image import write_png16
from kxray.io.marks import SYNTHETIC_TEXTS
from kxray.io.resize import resize

CHUNK = 32
POSE_COLUMNS = ("rotation", "scale", "shift_x", "shift_y")
COLUMNS = (*POSE_COLUMNS, "confidence", "aligned")
# Brightness that a film must span to show anything, as a share of white.
_LEAST_CONTRAST = 0.02
# What the program training.align leaves in a folder before its films.
_BESIDE = ("template.npz", "template.json")


def align_folder(source, out, by, *, size=256, least_confidence=0.5, progress=None, workers=None) -> dict:
    """Aligns the films of a source and writes them as a source of their own.

    OUT holds films/ (16-bit PNG), masks/FILM/ where the source has any, manifest.csv, refused.csv
    (source_path, reason, confidence) and before_after.png. A killed run is continued by the same call; a
    finished one is not done again.

    manifest.csv has the columns of the source, boxes and masks moved with their films (see
    `kxray.data.moved_places.move_box`), and what was done: rotation (degrees anticlockwise), scale and
    shift_x, shift_y (shares of the width) say how the chest lay on the source's film stretched to a square,
    see `kxray.data.Similarity`; confidence, aligned (1) and source_path (relative to OUT). Columns of the
    source with such a name go on as source_NAME, its own source_NAME as source_source_NAME. A film that a
    generator made stays marked, in its file and by the column synthetic (1).

    Args:
        source: what `kxray.data.read_source` takes, its table, or a folder of films that says nothing of
            them.
        out: folder to write: absent, empty, or begun by the same call.
        by: `kxray.data.Template`, for classical registration with it, or an aligner of square films as
            `kxray.models.load_aligner` gives it.
        size: side of the aligned films in pixels.
        least_confidence: films below are refused; lateral films always are, and by registration those that
            lie turned. 0.5 is where a network says that it is no chest, and where
            a film agrees with a template less than its own films do (`Template.threshold`).
        progress: called with the number of films done and how many there are.
        workers: films decoded and registered at a time; one a core by default.

    Returns:
        {"aligned": number of films written, "refused": number of films not, "boxes_left_out": number of boxes
        of aligned films that lie outside of them}.

    Raises:
        kxray.data.ManifestError: malformed rows. Films that are missing or unreadable, or that have a mask
            that is, are refused instead.
        ValueError: no films, an unsuitable size, an aligner of films that are not square, or an OUT that was
            not begun by the same call.
    """
    if not 32 <= size <= 4096:
        raise ValueError(f"size must be 32 to 4096 pixels, got {size}")
    if not 0 <= least_confidence <= 1:
        raise ValueError(f"least_confidence must be in [0, 1], got {least_confidence}")
    table = read_films_table(source)
    aligner = aligner_of(by, workers)
    out = Path(out)
    _claim(out, table, aligner, {"size": size, "least_confidence": least_confidence})
    names = _file_names(table["path"])
    chunks = [range(start, min(start + CHUNK, len(table))) for start in range(0, len(table), CHUNK)]
    for chunk in chunks:
        part = _part(out, chunk)
        if _read_part(part, out) is None:
            rows = _align_films(table.iloc[chunk], [names[k] for k in chunk], out, aligner, workers)
            write_whole(part, json.dumps(rows))
        if progress is not None:
            progress(chunk[-1] + 1, len(table))
    rows = [row for chunk in chunks for row in _read_part(_part(out, chunk), out)]
    aligned, refused = _tables(table, rows, out)
    manifest.write_manifest(aligned, out / "manifest.csv")
    manifest.write_text(out / "refused.csv", refused.to_csv(index=False, lineterminator="\n"))
    if len(aligned) or len(refused):
        from kxray.data.align_sheet import write_sheet

        write_sheet(aligned, refused, out)
    lost = sum(row.get("boxes_left_out", 0) for row in rows)
    return {"aligned": len(aligned), "refused": len(refused), "boxes_left_out": lost}


def check_out(out) -> None:
    """Raises ValueError unless films may be aligned into a folder.

    It may be absent, hold nothing but what the program `training.align` puts beside its films, template.npz
    and template.json, or be begun by an earlier call; whether that was the same call, `align_folder` says.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose another folder to write")
    if not out.is_dir() or (out / "alignment.json").is_file():
        return
    # Hidden files may be what a kill left of a file that was being written.
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    others = [name for name in others if name not in _BESIDE]
    if others:
        raise ValueError(f"{out} holds {others[0]!r}, which was not aligned here; choose another folder")


def table_digest(table) -> dict:
    """SHA-256 of what films are aligned by: paths, views, boxes and masks, and their files' sizes and times.

    Returns:
        {"films": number, "paths", "views", "boxes", "masks", "files": hexadecimal}.
    """
    columns = {"views": "view", "boxes": "boxes", "masks": "masks"}
    told = {"paths": table["path"].tolist()}
    for name, column in columns.items():
        told[name] = table[column].tolist() if column in table.columns else []
    masks = [path for cell in told["masks"] for path in _mask_paths(cell)]
    told["files"] = [_written(path) for path in (*told["paths"], *masks)]
    digests = {name: _digest(values) for name, values in told.items()}
    return {"films": len(table)} | digests


def read_films_table(source) -> pd.DataFrame:
    """The table of a source; of a folder that is none, the paths of its films.

    Raises:
        kxray.data.ManifestError: malformed rows, but for files that are missing.
        ValueError: no films.
    """
    if isinstance(source, pd.DataFrame):
        table = manifest.as_manifest(source)
    else:
        try:
            table = read_source(source, check=False)
        except manifest.ManifestError:
            raise
        except ValueError:
            films = find_films(source) if Path(source).is_dir() and not _tables_in(source) else []
            if not films:
                raise
            table = manifest.as_manifest(pd.DataFrame({"path": [str(film.absolute()) for film in films]}))
    problems = manifest.check_manifest(table)
    malformed = problems[~problems["problem"].str.startswith("no such file")]
    if len(malformed):
        raise manifest.ManifestError(malformed, None if isinstance(source, pd.DataFrame) else source)
    if table.empty:
        raise ValueError(f"{source}: no films")
    return table


def _tables_in(folder):
    return [*Path(folder).glob("*.csv"), *Path(folder).glob("*.csv.gz")]


def _digest(values):
    text = json.dumps(values, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _mask_paths(cell):
    try:
        return find_masks(cell, "").values()
    except ValueError:
        return ()


def _written(path):
    """Size and time of a file, or None where it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _claim(out, table, aligner, options):
    """Makes the folder this alignment's own, or says why it cannot be."""
    check_out(out)
    facts = {"version": 2, **table_digest(table), "by": aligner.kind, "aligner": aligner.digest, **options}
    note = out / "alignment.json"
    if note.is_file():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        before = before if isinstance(before, dict) else {}
        changed = [name for name in facts if before.get(name) != facts[name]]
        if changed:
            raise ValueError(
                f"{out} holds films aligned otherwise (other {', '.join(changed)}); choose another folder, "
                "or delete it to start again"
            )
    out.mkdir(parents=True, exist_ok=True)
    # First: whatever else lies there, a folder that holds it was begun here.
    write_whole(note, json.dumps(facts, indent=2) + "\n")
    for name in ("films", "masks", ".parts"):
        (out / name).mkdir(exist_ok=True)


def _file_names(paths):
    """A name for each film, its own where no other has it; none that would lead out of a folder."""
    stems = [Path(path).stem.strip(".") or "film" for path in paths]
    counts, seen, names = {}, set(), []
    for stem in stems:
        counts[stem.lower()] = counts.get(stem.lower(), 0) + 1
    for number, stem in enumerate(stems):
        name = stem if counts[stem.lower()] == 1 else f"{stem}-{number}"
        while name.lower() in seen:
            name += "-"
        seen.add(name.lower())
        names.append(name)
    return names


def _part(out, chunk):
    return out / ".parts" / f"{chunk[0]:08d}.json"


def _read_part(part, out):
    """Rows of a finished chunk whose films are still there."""
    try:
        rows = json.loads(part.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    written = [file for row in rows if not row["reason"] for file in (row["film"], *row["masks"].values())]
    return rows if all((out / file).is_file() for file in written) else None


def frame(film, size, small):
    """What is kept of a decoded film: (copy of shape `small`, square to cut the aligned film from, (H, W)).

    The square is twice the size of what is cut from it where the film has as many pixels, so that the
    result is not blurred twice. Or a sentence, where it is no film that can be aligned.
    """
    height, width = film.pixels.shape
    if min(height, width) < MIN_SIDE:
        return f"{height} x {width} pixels are too few"
    low, high = np.quantile(film.pixels[:: max(1, height // 256), :: max(1, width // 256)], [0.01, 0.99])
    if high - low < _LEAST_CONTRAST:
        return f"one brightness all over ({(low + high) / 2:.2f} of white)"
    side = 2 * size if max(height, width) > size else size
    return resize(film.pixels, small), resize(film.pixels, (side, side)), (height, width)


def _marked_frame(film, size, small):
    """`frame`, and whether the film's file says that a generator made it."""
    kept = frame(film, size, small)
    return kept if isinstance(kept, str) else (*kept, bool(film.facts.get("synthetic")))


def _align_films(table, names, out, aligner, workers):
    size = json.loads((out / "alignment.json").read_text(encoding="utf-8"))
    size, least = size["size"], size["least_confidence"]
    transform = functools.partial(_marked_frame, size=size, small=aligner.shape)
    rows = [{"film": "", "reason": "", "confidence": 0.0} for _ in names]
    frames = {}
    for k, kept in read_films(table["path"], transform=transform, workers=workers):
        if isinstance(kept, (str, FilmError)):
            problem = kept if isinstance(kept, str) else f"{kept.problem}; {kept.remedy}".strip("; ")
            rows[k]["reason"] = " ".join(problem.split())
        else:
            frames[k] = kept
    if not frames:
        return rows
    judged = aligner(np.stack([small for small, *_ in frames.values()]), least)
    made = synthetic_rows(table)
    for (k, (_, square, shape, marked)), (pose, confidence, reason) in zip(
        frames.items(), judged, strict=True
    ):
        row = table.iloc[k]
        if row.get("view") == "lateral":
            reason = "a lateral film, says the source"
        rows[k] |= {"confidence": round(float(confidence), 4), "reason": reason}
        if reason:
            continue
        try:
            masks = moved_masks(row, pose, shape, size)
        except ValueError as error:
            rows[k]["reason"] = " ".join(str(error).split())
            continue
        place, boxes = f"films/{names[k]}.png", moved_boxes(row, pose, shape, size)
        synthetic = bool(marked or made[k])
        texts = SYNTHETIC_TEXTS if synthetic else None
        write_png16(out / place, np.clip(pose.warp(square, (size, size)), 0, 1), texts)
        rows[k] |= {"film": place, "pose": _cells(pose), "boxes": [box for box in boxes if box]}
        rows[k] |= {"boxes_left_out": boxes.count(None), "synthetic": synthetic}
        rows[k]["masks"] = write_masks(masks, out, names[k])
    return rows


def _cells(pose):
    numbers = (pose.rotation, pose.scale, *pose.shift)
    return {name: round(number, 6) for name, number in zip(POSE_COLUMNS, numbers, strict=True)}


def _tables(table, rows, out):
    """(manifest of the aligned films, table of the refused)."""
    kept = [k for k, row in enumerate(rows) if not row["reason"]]
    left = [k for k, row in enumerate(rows) if row["reason"]]
    folder = os.path.abspath(out)
    sources = [Path(os.path.relpath(path, folder)).as_posix() for path in table["path"]]
    taken = {}
    for name in (*COLUMNS, "source_path"):
        # A source that was aligned itself has a source_NAME of its own source.
        while name in table.columns and name not in taken:
            taken[name] = f"source_{name}"
            name = taken[name]
    aligned = table.iloc[kept].rename(columns=taken)
    aligned["path"] = [os.path.join(folder, rows[k]["film"]) for k in kept]
    if "boxes" in aligned.columns:
        aligned["boxes"] = pd.Series([rows[k]["boxes"] for k in kept], aligned.index, dtype=object)
    if "masks" in aligned.columns:
        files = [{name: os.path.join(folder, path) for name, path in rows[k]["masks"].items()} for k in kept]
        aligned["masks"] = [json.dumps(each, ensure_ascii=False) if each else "" for each in files]
    for name in POSE_COLUMNS:
        aligned[name] = [rows[k]["pose"][name] for k in kept]
    aligned["confidence"] = [rows[k]["confidence"] for k in kept]
    aligned["aligned"] = [1] * len(kept)
    aligned["source_path"] = [sources[k] for k in kept]
    if any(rows[k].get("synthetic") for k in kept):
        aligned["synthetic"] = [int(rows[k].get("synthetic", False)) for k in kept]
    refused = {
        "source_path": [sources[k] for k in left],
        "reason": [rows[k]["reason"] for k in left],
        "confidence": [f"{rows[k]['confidence']:.4f}" for k in left],
    }
    return aligned, pd.DataFrame(refused, dtype=object)
