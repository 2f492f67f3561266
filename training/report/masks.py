"""The report of a comparison of masks: one HTML file that needs nothing beside it."""

from pathlib import Path

from kxray.io.files import write_whole
from training.comparing import masks_scores
from training.comparing.masks_scores import BASE, FULL, SHOWN
from training.report import localisation, plots

# What is shown finding by finding.
BY_FINDING = ("auroc", "pointing_game", "iou_0.3")


def write_report(folder, config, metrics, examples=()) -> Path:
    """Writes FOLDER/report.html.

    Args:
        folder: of the comparison.
        config: what config.json holds.
        metrics: what metrics.json holds, see `training.comparing.masks_scores.scores_of`.
        examples: list of `training.report.localisation.ExampleFilm`: the maps of the full network, and as
            those without masks the plain network's.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = masks_scores.interval
    environment.filters["change"] = lambda score: masks_scores.interval(score, signed=True)
    rows = metrics["rows"]
    page = environment.get_template("masks.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        metrics=metrics,
        rows=rows,
        shown=SHOWN,
        full=FULL,
        base=BASE,
        conditions=masks_scores.conditions(metrics),
        by_finding=[
            {
                "title": SHOWN[metric],
                "metric": metric,
                "rows": {name: row for name, row in rows.items() if metric in row},
            }
            for metric in BY_FINDING
            if any(metric in row for row in rows.values())
        ],
        charts=[_chart(rows, metric) for metric in ("auroc", "pointing_game", "iou_0.3")],
        picture=localisation.example_rows(list(examples), "plain network's map"),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def _chart(rows, metric):
    """Bars of one score, or None where no row has it."""
    known = {
        row["network"]: row[metric]
        for row in rows.values()
        if metric in row and None not in row[metric].values() and row[metric]["low"] == row[metric]["low"]
    }
    if not known:
        return None
    return plots.score_bars(list(known), list(known.values()), f"{SHOWN[metric]}, 95% interval")
