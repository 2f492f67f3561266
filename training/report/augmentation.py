"""The report of a comparison of augmentation: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.comparing import augmentation_verdict
from training.comparing.augmentation_verdict import SHOWN
from training.report import plots

_COLOURS = ("#1f4e79", "#c0504d", "#7f9f3f", "#e08a1e", "#6a4c93", "#2a9d8f", "#555555")


def write_report(folder, config, metrics, histories, examples=()) -> Path:
    """Writes FOLDER/report.html.

    Args:
        folder: of the comparison.
        config: what config.json holds.
        metrics: what metrics.json holds, see `training.comparing.augmentation_scores.scores_of`.
        histories: table with row, seed, epoch and val_loss of every training.
        examples: [(class, real films (K, H, W), synthetic films (K, H, W))].
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = augmentation_verdict.interval
    environment.filters["change"] = lambda score: augmentation_verdict.interval(score, signed=True)
    page = environment.get_template("augmentation.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        metrics=metrics,
        rows={**metrics["rows"], **metrics["baselines"]},
        trained=metrics["rows"],
        shown=SHOWN,
        conditions=augmentation_verdict.conditions(metrics),
        chart=class_dots(metrics),
        curves=loss_curves(histories),
        picture=film_strip(examples) if examples else None,
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def class_dots(metrics) -> str:
    """AUROC of every class, a dot with its interval for each row; rare classes in bold."""
    rows = {**metrics["rows"], "no-anatomy": metrics["baselines"]["no-anatomy"]}
    labels = sorted(metrics["labels"], key=lambda label: metrics["counts"][label]["train"])
    figure, (axis,) = plots.figure_axes(width=8.0, height=0.16 * len(labels) * (len(rows) + 2) + 1.2)
    place = np.arange(len(labels)) * 1.0
    for number, (name, row) in enumerate(rows.items()):
        colour = _COLOURS[number % len(_COLOURS)] if name != "no-anatomy" else "#bbbbbb"
        scores = [row["classes"].get(label) for label in labels]
        known = [score is not None and np.isfinite(score["value"]) for score in scores]
        if not any(known):
            continue
        height = place[known] + 0.8 * ((number + 1) / (len(rows) + 1) - 0.5)
        values = np.array([score["value"] for score, there in zip(scores, known, strict=True) if there])
        ends = np.array(
            [[score["low"], score["high"]] for score, there in zip(scores, known, strict=True) if there]
        )
        # An interval that is undefined is not drawn; its dot is.
        reach = np.nan_to_num(np.abs(ends.T - values))
        axis.errorbar(
            values, height, xerr=reach, fmt="o", color=colour, markersize=3.5, linewidth=0.9, label=name
        )
    counts = metrics["counts"]
    names = [f"{label} ({counts[label]['train']} + {counts[label]['test']})" for label in labels]
    axis.set_yticks(place, names, fontsize=8)
    for tick, label in zip(axis.get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if label in metrics["rare"] else "normal")
    axis.invert_yaxis()
    axis.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("AUROC against the rest, 95% interval (training + test films)", fontsize=8)
    axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    axis.grid(axis="x", alpha=0.3)
    return plots.inline(figure)


def loss_curves(histories) -> str:
    """Validation loss of every training, a panel a row, a line a seed."""
    names = list(dict.fromkeys(histories["row"]))
    columns = min(3, len(names))
    figure, axes = plots.figure_axes(columns=columns, rows=-(-len(names) // columns), width=3.2, height=2.2)
    for axis, name in zip(axes, names, strict=False):
        for seed, lines in histories[histories["row"] == name].groupby("seed"):
            axis.plot(
                lines["epoch"], lines["val_loss"], color=_COLOURS[int(seed) % len(_COLOURS)], linewidth=1
            )
            best = lines.loc[lines["val_loss"].idxmin()]
            axis.plot(best["epoch"], best["val_loss"], "o", color="black", markersize=3)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.axis("off")
    figure.tight_layout()
    return plots.inline(figure)


def film_strip(examples) -> str:
    """A line of films for each class: real training films, then synthetic ones."""
    half = max(max(len(real), len(made)) for _, real, made in examples)
    lines = [[*real, *[None] * (half - len(real)), *made] for _, real, made in examples]
    titles = ["real", *[""] * (half - 1), "synthetic"]
    return plots.inline_films(plots.film_grid(lines, [label for label, *_ in examples], [titles]))
