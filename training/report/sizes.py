"""What a person looks at after films were split by size: a histogram, a sheet a class, a page to correct."""

import base64
import io
import math
import re
from pathlib import Path

from kxray.io.files import replacing, write_whole
from training.report.plots import INK, SECOND

SIDE = 150
COLUMNS = 8
SHEET_FILMS = 160
PAGE_FILMS = 1500


def write_pages(folder, sheet, facts, name) -> None:
    """Writes histogram.png, sheet-LABEL.png a size class, and index.html, which needs nothing beside it.

    Args:
        folder: where to.
        sheet: one row a film: path, coarse_label, label, size_px, measured_from, x1, y1, x2, y2.
        facts: by, thresholds (label to pixels) and labels (all that a film may have), in the order of show.
        name: of the folder, for the page's title.
    """
    import jinja2

    folder = Path(folder)
    sheet = sheet.sort_values("size_px", kind="stable", na_position="first")
    histogram = _histogram(sheet, facts)
    write_whole(folder / "histogram.png", histogram)
    for old in folder.glob("sheet-*.png"):
        old.unlink()
    groups = []
    shown = _evenly(len(sheet), PAGE_FILMS)
    on_page = set(sheet.index[shown])
    # A film that a person moved to a label without sizes stays in sight, so that it can be moved back.
    for label in facts["labels"]:
        rows = sheet[sheet["label"] == label]
        if not len(rows):
            continue
        on_sheet = [rows.index[k] for k in _evenly(len(rows), SHEET_FILMS)]
        films, pictures = [], []
        for i, row in rows.iterrows():
            if i not in on_page and i not in on_sheet:
                continue
            picture = _picture(row)
            if i in on_sheet:
                pictures.append((picture, f"{_size(row['size_px'])}  {Path(row['path']).stem[:16]}"))
            if i in on_page:
                shown_film = {"path": row["path"], "name": Path(row["path"]).name, "label": label}
                shown_film["size"] = f"{_size(row['size_px'])} {row['measured_from']}".strip()
                films.append({**shown_film, "picture": picture and _inline(picture)})
        _write_sheet(folder / f"sheet-{_file_name(label)}.png", pictures, f"{label}: {len(rows)} films")
        groups.append({"label": label, "count": len(rows), "films": films})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("sizes.html.j2").render(
        title=name,
        facts=facts,
        groups=groups,
        left_out=len(sheet) - len(on_page),
        histogram="data:image/png;base64," + base64.b64encode(histogram).decode("ascii"),
    )
    # A name that is not UTF-8 cannot be shown; its film is corrected in the table itself.
    write_whole(folder / "index.html", page.encode("utf-8", "replace").decode("utf-8"))


def _evenly(count, most):
    """At most `most` positions out of `count`, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def _size(pixels) -> str:
    return "no size" if math.isnan(pixels) else f"{pixels:.1f} px"


def _file_name(label):
    return re.sub(r"[^\w.-]+", "_", label)


def _histogram(sheet, facts) -> bytes:
    import numpy as np
    from matplotlib.figure import Figure

    labels = list(facts["thresholds"])
    figure = Figure(figsize=(6.4, 2.8 * len(labels)))
    for axis, label in zip(figure.subplots(len(labels), squeeze=False)[:, 0], labels, strict=True):
        known = sheet["size_px"][sheet["coarse_label"] == label].dropna()
        if len(known):
            # Sizes differ by factors, so that equal steps of the logarithm show all of them.
            edges = np.geomspace(known.min() * 0.95, known.max() * 1.05, 31)
            axis.hist(known, bins=edges, color=INK)
            axis.set_xscale("log")
            ticks = [t for p in range(8) for t in (10**p, 2 * 10**p, 5 * 10**p) if edges[0] <= t <= edges[-1]]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        for threshold in facts["thresholds"][label]:
            axis.axvline(threshold, color=SECOND, linestyle="--", linewidth=1)
            place = {"xycoords": ("data", "axes fraction"), "xytext": (2, -9), "textcoords": "offset points"}
            axis.annotate(f"{threshold:.2f}", (threshold, 1), fontsize=7, color=SECOND, **place)
        axis.set_title(f"{label}: {len(known)} films by {facts['by']}", fontsize=10)
        axis.set_xlabel("size in pixels", fontsize=8)
        axis.set_ylabel("films", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _picture(row):
    """A film as a small picture with the line that was measured, or None if it went away since."""
    import numpy as np
    from PIL import Image, ImageDraw

    from kxray.io import FilmError, read_image

    try:
        pixels = read_image(row["path"]).pixels
    except FilmError:
        return None
    # Stretched: a rib may be a few grey levels brighter than the flesh.
    low, high = np.percentile(pixels, (0.5, 99.5))
    grey = np.clip((pixels - low) / max(high - low, 1e-3), 0, 1)
    film = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    scale = SIDE / max(film.size)
    size = tuple(max(1, round(side * scale)) for side in film.size)
    film = film.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC).convert("RGB")
    ends = [row[key] for key in ("x1", "y1", "x2", "y2")]
    if all(math.isfinite(end) for end in ends):
        x1, y1, x2, y2 = ((end + 0.5) * scale for end in ends)
        ImageDraw.Draw(film).line((x1, y1, x2, y2), fill=(255, 70, 50), width=2)
    return film


def _inline(picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write_sheet(path, pictures, title):
    """Pictures side by side in the order given, each with its text below it."""
    from PIL import Image, ImageDraw

    rows = -(-len(pictures) // COLUMNS)
    step, caption, head = SIDE + 8, 14, 22
    size = (min(COLUMNS, len(pictures)) * step, head + rows * (step + caption))
    page = Image.new("RGB", (max(size[0], 3 * step), size[1]), "white")
    draw = ImageDraw.Draw(page)
    draw.text((4, 5), f"{title}, smallest first", fill="black")
    for k, (picture, text) in enumerate(pictures):
        x, y = k % COLUMNS * step + 4, head + k // COLUMNS * (step + caption)
        if picture is not None:
            page.paste(picture, (x, y))
        draw.text((x, y + SIDE + 1), text if picture is not None else f"{text}, unreadable", fill="black")
    with replacing(path) as temporary:
        page.save(temporary)
