"""A page of the least certain films of a sorted archive, to be corrected in a browser."""

import base64
import io
import os
from pathlib import Path

from kxray.io.files import write_whole
from training.sorted_table import CORRECTED, read_facts, read_rows

SIDE = 220


def write_review(out, count) -> Path:
    """Writes OUT.review.html: the `count` least certain films no person has corrected, each with its buttons.

    The page needs nothing beside it. Its button saves corrected.csv (path, view) of the films whose view a
    person changed or confirmed, for `training.sort --corrections` and `training.fit --corrections`.

    Args:
        out: CSV of training.sort.
        count: films on the page.

    Returns:
        The page's path.
    """
    import jinja2

    out = Path(out)
    rows = [row for row in read_rows(out) if row[2] and row[4] != CORRECTED]
    rows = sorted(rows, key=lambda row: float(row[2]))[:count]
    labels = read_facts(out)["labels"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    films = []
    for path, view, probability, decision, _ in rows:
        absolute = os.path.abspath(out.parent / path)
        films.append(
            {
                "path": absolute,
                "name": path,
                "view": view,
                "probability": float(probability),
                "decision": decision,
                "picture": _picture(absolute),
            }
        )
    page = environment.get_template("review.html.j2").render(films=films, labels=labels, table=out.name)
    path = out.with_name(f"{out.stem}.review.html")
    # A name that is not UTF-8 cannot be shown; its film is corrected in the table itself.
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _picture(path):
    """A film as a small inline JPEG, or nothing if it went away since."""
    import numpy as np
    from PIL import Image

    from kxray.io import FilmError, read_image

    try:
        pixels = read_image(path).pixels
    except FilmError:
        return None
    film = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    film.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    film.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
