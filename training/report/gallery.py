"""The page through which the overlays of training.explain are looked at."""

import os
from pathlib import Path
from urllib.parse import quote

from kxray.io.files import write_whole


def write_gallery(out, rows, method, most) -> Path:
    """Writes OUT/index.html: overlays by explained label, the least certain first, linked to their files.

    Args:
        out: folder of training.explain.
        rows: of explained.csv, as dicts of texts.
        method: name of the explanation method.
        most: films on the page, shared out evenly among the labels.
    """
    import jinja2

    films = [row for row in rows if not row["reason"]]
    groups = {}
    for row in films:
        groups.setdefault(row["explained_label"], []).append(_film(row))
    for group in groups.values():
        group.sort(key=lambda film: film["confidence"])
    each = max(1, most // max(1, len(groups)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("gallery.html.j2").render(
        title=os.path.basename(os.path.abspath(out)),
        method=method,
        groups={label: (len(group), group[:each]) for label, group in sorted(groups.items())},
        unreadable=len(rows) - len(films),
        total=len(films),
    )
    path = Path(out) / "index.html"
    # A name that is not UTF-8 cannot be shown; its files are there all the same.
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _film(row):
    """What the page shows of one film."""
    wrong = row["label"] not in ("", row["predicted"])
    scores = {"pointing game": row["pointing_game"], "mass inside": row["mass_inside"]}
    return {
        "name": row["path"],
        "overlay": _link(row["overlay"]),
        "arrays": _link(row["arrays"]),
        "map_png": _link(row["map_png"]),
        "predicted": row["predicted"],
        "confidence": float(row[f"probability_{row['predicted']}"]),
        "unsure": row["decision"] == "unsure",
        "label": row["label"],
        "wrong": wrong,
        "range": (float(row["map_min"]), float(row["map_max"])),
        "scores": {name: float(value) for name, value in scores.items() if value},
    }


def _link(path):
    return quote(path.encode("utf-8", "surrogateescape"))
