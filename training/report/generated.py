"""The page of training.generate evaluate: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.generating import evaluated_told as evaluated
from training.report.plots import figure_axes, film_grid, inline, inline_films

_HEADINGS = {
    "fdd": "Frechet DenseNet distance (features)",
    "fdd_probabilities": "Frechet distance of class probabilities",
    "kid": "Kernel distance",
}
# A picture of films is no wider, in pixels.
_WIDEST = 64


def write_report(out, found, pictures) -> Path:
    """Writes OUT/generated.html.

    Args:
        out: folder.
        found: what metrics.json holds.
        pictures: dict from a row's name to films float32 (L, n, s, s) in [0, 1].
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("generated.html.j2").render(
        title=f"{' and '.join(row['name'] for row in found['rows'] if row['name'] != evaluated.FLOOR)}: "
        "generated films against real ones",
        found=found,
        floor=evaluated.FLOOR,
        conditions=evaluated.conditions_told(found),
        tables=[distance_table(found, key, heading) for key, heading in _HEADINGS.items()],
        bars=bars(found),
        fidelity=fidelity_rows(found),
        apart=apart_table(found),
        pictures={name: films_picture(films, found["labels"]) for name, films in pictures.items()},
    )
    path = Path(out) / "generated.html"
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def distance_table(found, key, heading) -> dict:
    """A row a model, a column a class, as Table 1 of Ann et al. (2020); the nearest generator is marked."""
    labels = [*found["labels"], "all"]
    rows = []
    for row in found["rows"]:
        scores = [
            (row["scores"]["overall"] if label == "all" else row["scores"]["classes"][label])[key]
            for label in labels
        ]
        rows.append((row["name"], scores))
    cells = []
    for name, scores in rows:
        line = []
        for column, score in enumerate(scores):
            others = [
                given[column]["value"]
                for other, given in rows
                if other != evaluated.FLOOR and given[column]["value"] is not None
            ]
            best = name != evaluated.FLOOR and len(others) > 1 and score["value"] == min(others)
            value, _, ends = evaluated.interval(score).partition(" [")
            line.append(
                {"value": value, "ends": f"[{ends}" if ends else "", "best": best, "note": score["note"]}
            )
        cells.append((name, line))
    notes = sorted({score["note"] for _, scores in rows for score in scores if score["note"]})
    return {"heading": heading, "labels": labels, "rows": cells, "notes": notes}


def fidelity_rows(found) -> list:
    """Precision, recall, density and coverage over all classes, by model."""
    names = ("precision", "recall", "density", "coverage")
    rows = []
    for row in found["rows"]:
        fidelity = row["scores"]["overall"]["fidelity"]
        rows.append((row["name"], [f"{fidelity[name]:.3f}" if fidelity else "-" for name in names]))
    return rows


def apart_table(found) -> list | None:
    """How well the classifier picks a class out of generated films, by class and model; None: it cannot."""
    rows = [row for row in found["rows"] if row["scores"]["told_apart"]]
    if not rows:
        return None
    lines = []
    for label in found["labels"]:
        scores = [row["scores"]["told_apart"]["classes"][label] for row in rows]
        cells = [(evaluated.interval(score["auroc"]), score["better"]) for score in scores]
        real = scores[0]["real_auroc"]
        lines.append((label, cells, "-" if real is None else f"{real:.3f}"))
    return [[row["name"] for row in rows], lines]


def bars(found) -> str:
    """FDD by class and model with intervals."""
    labels, rows = found["labels"], found["rows"]
    figure, (axis,) = figure_axes(width=max(5.0, 0.9 * len(labels)), height=3.0)
    thickness = 0.8 / len(rows)
    for number, row in enumerate(rows):
        scores = [row["scores"]["classes"][label]["fdd"] for label in labels]
        values = np.array([np.nan if score["value"] is None else score["value"] for score in scores])
        ends = np.array(
            [[np.nan if score[key] is None else score[key] for score in scores] for key in ("low", "high")]
        )
        places = np.arange(len(labels)) + (number - (len(rows) - 1) / 2) * thickness
        color = "#a6a6a6" if row["name"] == evaluated.FLOOR else f"C{number}"
        axis.bar(places, values, thickness, color=color, label=row["name"])
        if np.isfinite(ends).any():
            apart = np.maximum(0, np.stack([values - ends[0], ends[1] - values]))
            axis.errorbar(places, values, apart, fmt="none", ecolor="#333", elinewidth=0.8)
    axis.set_xticks(np.arange(len(labels)), labels, fontsize=8, rotation=20, ha="right")
    axis.set_ylabel("FDD", fontsize=9)
    axis.legend(fontsize=7)
    axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    return inline(figure)


def films_picture(films, labels) -> str:
    """A row a class."""
    step = max(1, films.shape[2] // (2 * _WIDEST))
    return inline_films(film_grid([*films[:, :, ::step, ::step]], labels))
