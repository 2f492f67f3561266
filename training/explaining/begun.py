"""What an evaluation was begun with, so that a later call does not mix its scores with others."""

import hashlib
import json
import os

from training import runs


def check_begun(work, facts, out):
    """Keeps facts in WORK/facts.json, or compares them with those that are there.

    Args:
        work: Path of a folder.
        facts: dict of JSON values.
        out: folder that the user knows.

    Raises:
        ValueError: other facts, the first of them.
    """
    note = work / "facts.json"
    known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else facts
    changed = [name for name, value in facts.items() if known.get(name) != value]
    if changed:
        raise ValueError(
            f"{out} was begun with another {changed[0]} ({known.get(changed[0])!s:.60}); choose another "
            f"--out, or delete {work}"
        )
    runs.write_json(note, facts)


def films_state(table, labels, chosen) -> str:
    """Short SHA-256 of what a table says of films, and of size and time of the chosen ones' files.

    Args:
        table: of `training.explain.find`.
        labels: columns of findings.
        chosen: list of (row as a dict, label).
    """
    from kxray.data.truth import find_masks

    columns = dict.fromkeys(("path", "patient_id", "label", "boxes", "masks", *labels))
    digest = hashlib.sha256()
    for row in table[[name for name in columns if name in table.columns]].to_dict("records"):
        digest.update(repr(sorted(row.items())).encode("utf-8", "surrogateescape"))
    files = {row["path"] for row, _ in chosen}
    files |= {file for row, _ in chosen for file in find_masks(row.get("masks"), row["path"]).values()}
    for file in sorted(files):
        try:
            status = os.stat(file)
            version = (status.st_size, status.st_mtime_ns)
        except OSError:
            version = None
        digest.update(repr((file, version)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
