"""The page of training.audit: verdict, scores without anatomy, associations, and the films that are meant."""

import base64
import io
import json
from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.report.plots import INK, SECOND, inline

SIDE, CROP = 190, 96
PAIRS_SHOWN, MARKERS_SHOWN, STRADDLES_SHOWN, EXAMPLES = 18, 24, 6, 4
_RED, _GREEN, _BLUE = (255, 70, 50), (60, 220, 90), (80, 150, 255)
_COLOURS = {"text": _RED, "box": _GREEN, "strip": _BLUE}


def write_report(out, found, facts) -> Path:
    """Writes OUT/audit.json and OUT/audit.html, which needs nothing beside it.

    Args:
        out: folder.
        found: `training.auditing.audited_data.Found`.
        facts: what audit.json holds: data, verdict, the facts of `found`, and run (None without one).

    Returns:
        The page's path.
    """
    import jinja2

    # What is undefined becomes null.
    text = json.dumps(facts, default=lambda value: value.tolist(), ensure_ascii=False)
    facts = json.loads(text, parse_constant=lambda constant: None)
    kept = {**facts, "run": _without_pictures(facts["run"])}
    content = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    write_whole(Path(out) / "audit.json", content.encode("utf-8", "replace"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = _score
    shown_rows = [row for row in facts["associations"] if row["v"] is not None]
    page = environment.get_template("audit.html.j2").render(
        title=Path(facts["data"]).name,
        facts=facts,
        run=facts["run"],
        baselines=_baseline_bars(facts),
        bars=_association_bars(shown_rows[:16]) if shown_rows else None,
        rows=shown_rows,
        telling=[_examples(row, found) for row in _telling(facts["associations"])],
        pairs=_pairs(found),
        pairs_total=len(found.pairs),
        straddles=_straddles(found),
        unreadable=found.unreadable.to_dict("records"),
        markers=_markers(found, facts["associations"]),
    )
    path = Path(out) / "audit.html"
    # A name that is not UTF-8 cannot be shown; the tables have it.
    write_whole(path, page.encode("utf-8", "replace"))
    return path


def _without_pictures(value):
    if isinstance(value, dict):
        return {key: _without_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    return None if isinstance(value, str) and value.startswith("data:") else value


def _score(score):
    if score is None or score["value"] is None:
        return "undefined"
    interval = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['value']:.3f}{interval}"


def _baseline_bars(facts):
    from matplotlib.figure import Figure

    names = [name.replace("_", " ") for name in facts["baselines"]]
    scores = [row["balanced_accuracy"] for row in facts["baselines"].values()]
    colours = [INK] * len(names)
    if facts["run"] is not None:
        names, scores = ["your run", *names], [facts["run"]["scores"]["balanced_accuracy"], *scores]
        colours = ["#7a7a7a", *colours]
    figure = Figure(figsize=(7.0, 0.35 * len(names) + 0.9))
    axis = figure.subplots()
    _bars(axis, names, scores, colours)
    chance = facts["chance"]["balanced_accuracy"]
    axis.axvline(chance, color="black", linestyle=":", linewidth=1)
    axis.set_xlim(min(0.45, chance - 0.05), 1.0)
    axis.set_title("balanced accuracy on held-out films; dotted: chance", fontsize=9)
    return inline(figure)


def _association_bars(rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.28 * len(rows) + 0.9))
    axis = figure.subplots()
    scores = [{"value": row["v"], "low": row["low"], "high": row["high"]} for row in rows]
    _bars(axis, [row["name"] for row in rows], scores, [SECOND if row["tells"] else INK for row in rows])
    axis.set_xlim(0, 1)
    axis.set_title("Cramer's V with the class", fontsize=9)
    return inline(figure)


def _bars(axis, names, scores, colours):
    places = np.arange(len(names))[::-1]
    values = np.array([np.nan if score["value"] is None else score["value"] for score in scores])
    ends = [[np.nan if score[end] is None else score[end] for end in ("low", "high")] for score in scores]
    axis.barh(places, values, color=colours, height=0.6)
    # An interval of resamples need not hold the value itself.
    reach = np.maximum(np.abs(np.array(ends).T - values), 0)
    axis.errorbar(values, places, xerr=reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
    axis.set_yticks(places, names, fontsize=8)
    axis.grid(axis="x", alpha=0.3)


# Films


def _film(path, boxes=(), side=SIDE):
    """A film as an inline JPEG with coloured boxes (x, y, width, height, colour), or None if it went away."""
    picture = _drawn(path, boxes, side)
    return None if picture is None else _jpeg(picture)


def _drawn(path, boxes, side):
    from PIL import Image, ImageDraw

    from kxray.io import FilmError, read_image

    try:
        pixels = read_image(path).pixels
    except FilmError:
        return None
    film = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    scale = side / max(film.size)
    size = tuple(max(1, round(length * scale)) for length in film.size)
    film = film.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(film)
    for x, y, width, height, colour in boxes:
        draw.rectangle(
            (max(0, x * scale - 2), max(0, y * scale - 2),
             min(size[0] - 1, (x + width) * scale + 1), min(size[1] - 1, (y + height) * scale + 1)),
            outline=colour, width=2,
        )  # fmt: skip
    return film


def _crop(path, marker):
    """The marker and a little around it, enlarged."""
    from PIL import Image

    from kxray.io import FilmError, read_image

    try:
        pixels = read_image(path).pixels
    except FilmError:
        return None
    margin = max(4, min(marker.height, marker.width) // 2)
    top, left = max(0, marker.y - margin), max(0, marker.x - margin)
    bottom, right = marker.y + marker.height + margin, marker.x + marker.width + margin
    window = pixels[top:bottom, left:right]
    picture = Image.fromarray(np.round(window * 255).astype(np.uint8))
    scale = CROP / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return _jpeg(picture.resize(size, Image.Resampling.BICUBIC))


def _jpeg(picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pairs(found):
    paths = list(found.everything["path"])
    shown = []
    for row in found.pairs.head(PAIRS_SHOWN).itertuples():
        words = [
            row.kind if row.kind == "same file" else f"near-duplicate, correlation {row.correlation:.3f}"
        ]
        words += [f"in {row.splits}"] if row.splits else []
        words += [f"labelled {row.labels}"] if row.labels else []
        words += [f"filed under patients {row.patients}"] if row.patients else []
        films = [{"name": _name(paths[i]), "picture": _film(paths[i])} for i in (row.first, row.second)]
        shown.append({"films": films, "words": "; ".join(words), "leak": bool(row.leak)})
    return shown


def _straddles(found):
    from kxray.data.leaks import parts_of

    paths, shown = list(found.everything["path"]), []
    parts = parts_of(found.everything)
    for row in found.straddles:
        films = []
        if row["leak"] and sum(bool(one["films"]) for one in shown) < STRADDLES_SHOWN:
            # One film of each part, then more.
            first = [next(i for i in row["films"] if parts[i] == part) for part in row["parts"]]
            rest = [i for i in row["films"] if i not in first][: max(0, EXAMPLES - len(first))]
            films = [
                {"name": f"{parts[i]}: {_name(paths[i])}", "picture": _film(paths[i])} for i in first + rest
            ]
        shown.append({**row, "count": len(row["films"]), "films": films})
    return shown


def _telling(associations):
    """The rows that tell the class; of the markers the strongest, the others say the same."""
    rows = [row for row in associations if row["tells"]]
    markers = [row for row in rows if row["kind"] == "marker"]
    return [row for row in rows if row["kind"] != "marker" or row is markers[0]]


def _examples(row, found):
    """Some films of each class with what the file, table or border says of them."""
    values, paths = found.properties[row["name"]], list(found.table["path"])
    groups = []
    for label in row["labels"]:
        members = np.flatnonzero(found.labels == label)
        # The value that is typical of the class comes first.
        names, counts = np.unique(values[members], return_counts=True)
        typical = names[counts.argmax()]
        chosen = [i for i in members if values[i] == typical][:EXAMPLES]
        films = []
        for i in chosen:
            boxes = _boxes(found.scan.markers[i], row) if row["kind"] == "marker" else []
            films.append(
                {"name": _name(paths[i]), "value": str(values[i]), "picture": _film(paths[i], boxes)}
            )
        share = counts.max() / counts.sum()
        groups.append({"label": label, "typical": str(typical), "share": float(share), "films": films})
    return {"row": row, "groups": groups}


def _boxes(film, row=None):
    return [(m.x, m.y, m.width, m.height, _COLOURS[m.kind]) for m in film if row is None or _meant(m, row)]


def _meant(marker, row):
    kind = row["name"].split(" ")[0]
    return marker.kind == (row["name"].split(" ")[1] if kind == "any" else kind)


def _markers(found, associations):
    """Films with markers: those whose marker goes with the class first, then one of each kind and place."""
    order = [row["name"] for row in associations if row["kind"] == "marker"]
    values = [(name, found.properties[name]) for name in order]
    chosen, seen = [], {}
    for name, answers in values:
        for i in np.flatnonzero(answers == "yes"):
            if seen.get(name, 0) >= 3 or len(chosen) >= MARKERS_SHOWN:
                break
            if i not in chosen:
                chosen.append(int(i))
                seen[name] = seen.get(name, 0) + 1
    with_markers = [i for i, film in enumerate(found.scan.markers) if film]
    chosen += [i for i in with_markers if i not in chosen][: MARKERS_SHOWN - len(chosen)]
    paths, shown = list(found.table["path"]), []
    for i in chosen:
        film = found.scan.markers[i]
        crops = [_crop(paths[i], marker) for marker in film if marker.kind == "text"][:2]
        told = ", ".join(
            f"{marker.kind} {marker.place}" + (f" (like #{shape})" if shape else "")
            for marker, shape in zip(film, found.shapes[i], strict=True)
        )
        shown.append(
            {
                "name": _name(paths[i]), "label": str(found.labels[i]), "told": told,
                "picture": _film(paths[i], _boxes(film)), "crops": [crop for crop in crops if crop],
            }
        )  # fmt: skip
    return {"films": shown, "total": len(with_markers)}


def _name(path):
    return Path(path).name[-40:]
