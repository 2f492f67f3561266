"""The report of a comparison: one HTML file that needs nothing beside it."""

from pathlib import Path

from kxray.io.files import write_whole
from training.comparing import multiscale_scores
from training.report import plots

SIGNIFICANT = 0.05


def write_report(folder, config, metrics) -> Path:
    """Writes FOLDER/report.html.

    Args:
        folder: of the comparison.
        config: what config.json holds.
        metrics: what metrics.json holds, see `training.comparing.multiscale_scores.scores_of`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = _score
    rows = metrics["rows"]
    expected, how = multiscale_scores.chosen_score(metrics)
    page = environment.get_template("comparison.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        metrics=metrics,
        rows=rows,
        coarse=" / ".join(metrics["coarse_labels"]),
        chart=plots.score_bars(
            [f"{row['network']}, {row['classes']} classes" for row in rows.values()],
            [row["coarse_accuracy"] for row in rows.values()],
            f"accuracy on {' / '.join(metrics['coarse_labels'])}, 95% interval",
        ),
        verdict=_verdict(metrics),
        expected=expected,
        how=how,
        has_maps=any(row.get("maps") for row in rows.values()),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def _score(score):
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _verdict(metrics):
    """What the paired tests say, in words."""
    lines = []
    for test in metrics["tests"]:
        one, other = (metrics["rows"][test[key]] for key in ("one", "other"))
        size = test["difference"]
        clear = test["p_holm"] < SIGNIFICANT
        word = "better than" if size["value"] > 0 else "worse than" if size["value"] < 0 else "equal to"
        lines.append(
            f"{one['network']} with {one['classes']} classes is {word} {other['network']} with "
            f"{other['classes']} by {abs(size['value']):.3f}"
            + ("" if clear else ", which these films cannot tell from chance")
        )
    return lines
