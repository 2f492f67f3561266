"""The report of an aligner: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.report import plots

_NAMES = {
    "residuals": "against the known motion of the same film",
    "against_the_phantoms": "against the pose the phantom was drawn in (its build included)",
}


def write_report(folder, config, scores, history, template, shown) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        config: what config.json holds.
        scores: what metrics.json holds.
        history: one row an epoch.
        template: float (s, s) in [0, 1].
        shown: dict with `films` and `aligned` (N, H, W), their `confidences` and `poses`, the `means` of all
            held-out films before and after, and `refused`, a picture of each kind by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("align.html.j2").render(
        title=f"align: {Path(folder).name}",
        config=config,
        scores=scores,
        residuals={_NAMES[key]: scores[key] for key in _NAMES if key in scores},
        curves=plots.training_curves(history),
        best_epoch=int(history["epoch"][history["val_loss"].idxmin()]),
        before_after=before_after(shown),
        means=_films(
            [*shown["means"], template], ["mean of held-out films", "the same, aligned", "template"], 3, 2.2
        ),
        refused=_films(list(shown["refused"].values()), list(shown["refused"]), 5, 1.7),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def before_after(shown) -> str:
    """Films above the same films aligned, with what was found, as an inline picture."""
    films, captions = [], []
    columns = 6
    for start in range(0, len(shown["films"]), columns):
        rows = range(start, min(start + columns, len(shown["films"])))
        films += [shown["films"][row] for row in rows]
        captions += [f"confidence {shown['confidences'][row]:.2f}" for row in rows]
        # Rows of films and of aligned films take turns, each full.
        blank = [None] * (columns - len(rows))
        films += blank + [shown["aligned"][row] for row in rows] + blank
        captions += blank + [_told(shown["poses"][row]) for row in rows] + blank
    return _films(films, captions, columns, 1.6)


def _told(pose):
    return f"{np.degrees(pose[0]):+.0f}°  x{np.exp(pose[1]):.2f}  {100 * pose[2]:+.0f}% {100 * pose[3]:+.0f}%"


def _films(films, captions, columns, side):
    rows = -(-len(films) // columns)
    figure, axes = plots.figure_axes(columns, rows, side, side * 1.12)
    for axis in axes:
        axis.axis("off")
    for axis, film, caption in zip(axes, films, captions, strict=False):
        if film is not None:
            step = max(1, film.shape[0] // 192)
            axis.imshow(film[::step, ::step], cmap="gray", vmin=0, vmax=1)
            axis.set_title(caption, fontsize=7, pad=2)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.95, wspace=0.03, hspace=0.14)
    return plots.inline_films(figure)
