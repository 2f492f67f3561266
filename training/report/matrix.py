"""The report of a matrix run: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.comparing import matrix_advice
from training.comparing.matrix_scores import ALL_FILMS, FINE_TUNED, FROZEN, network
from training.comparisons.transfer import UNUSED
from training.report import plots

_MODES = {FROZEN: "feature extractor (frozen)", FINE_TUNED: "fine-tuned"}
_COLOURS = (plots.INK, plots.SECOND, "#4f8a3c", "#8064a2", "#d68a2e", "#4bacc6", "#7f7f7f", "#a6761d")


def write_report(folder, config, metrics, histories) -> Path:
    """Writes FOLDER/report.html.

    Args:
        folder: of the matrix run.
        config: what config.json holds.
        metrics: what metrics.json holds, see `training.comparing.matrix_scores.scores_of`.
        histories: one line an epoch of every training: row, films_per_class, seed, fold, epoch, loss.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = matrix_advice.interval
    environment.filters["network"] = network
    environment.filters["p"] = lambda p: matrix_advice.probability(p).removeprefix("p ")
    rows = metrics["rows"]
    names = {name: network(row) for name, row in rows.items()}
    names |= {name: row["network"] for name, row in metrics["baselines"].items()}
    advice = matrix_advice.recommendation(metrics)
    page = environment.get_template("matrix.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        metrics=metrics,
        rows=rows,
        names=names,
        backbones=list(dict.fromkeys(row["backbone"] for row in rows.values())),
        modes={mode: told for mode, told in _MODES.items() if mode in {row["mode"] for row in rows.values()}},
        headline=advice[0],
        reasons=advice[1:],
        suspicious=matrix_advice.shortcut_likely(metrics) or not matrix_advice.above_chance(metrics),
        usable=matrix_advice.above_chance(metrics),
        options={name: value for name, value in config["options"].items() if name not in UNUSED},
        bars=plots.score_bars(
            list(names.values()),
            [row["accuracy"] for row in (*rows.values(), *metrics["baselines"].values())],
            "accuracy on test films, 95% interval",
        ),
        losses=losses(histories, rows),
        curves=learning_curves(rows),
        more_films=matrix_advice.more_films(metrics),
        reliability=plots.reliability_diagram(**metrics["reliability"]),
        has_memory=any(row["peak_memory_mb"] is not None for row in rows.values()),
        untested=matrix_advice.untested(config, metrics),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def losses(histories, rows) -> list[tuple[str, str]]:
    """(caption, figure) of the training loss by epoch, one figure a mode and one line a backbone.

    The mean over seeds and folds with one standard deviation on either side, of all films, up to the epoch
    that half of the trainings reached.
    """
    figures = []
    colours = _colours(rows)
    for mode, told in _MODES.items():
        shown = {name: row for name, row in rows.items() if row["mode"] == mode}
        if not shown:
            continue
        figure, axis = _axis(5.6, 3.4)
        for name, row in shown.items():
            own = histories[(histories["row"] == name) & (histories["films_per_class"] == ALL_FILMS)]
            by_epoch = own.groupby("epoch")["loss"]
            reached = by_epoch.count()
            mean, spread = by_epoch.mean(), by_epoch.std().fillna(0.0)
            kept = reached >= reached.max() / 2
            axis.plot(
                mean.index[kept],
                mean[kept],
                color=colours[row["backbone"]],
                label=row["backbone"],
                linewidth=1.4,
            )
            axis.fill_between(
                mean.index[kept],
                np.maximum((mean - spread)[kept], 0),
                (mean + spread)[kept],
                color=colours[row["backbone"]],
                alpha=0.15,
                linewidth=0,
            )
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylabel("training loss", fontsize=8)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        figures.append((told, plots.inline(figure)))
    return figures


def learning_curves(rows) -> str | None:
    """Accuracy against films a class, one line a network with its intervals; None where there are none."""
    shown = {name: row for name, row in rows.items() if row["learning_curve"] is not None}
    if not shown:
        return None
    figure, axis = _axis(6.4, 3.8)
    colours = _colours(rows)
    for number, row in enumerate(shown.values()):
        points = row["learning_curve"]["points"]
        # Moved apart a little, so that intervals do not cover each other.
        sizes = np.array([point["films_per_class"] for point in points]) * 1.02**number
        values, low, high = (
            np.array([point["accuracy"][key] for point in points]) for key in ("value", "low", "high")
        )
        axis.errorbar(
            sizes,
            values,
            yerr=np.abs(np.stack([values - low, high - values])),
            fmt="o-" if row["mode"] == FROZEN else "s--",
            color=colours[row["backbone"]],
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=network(row),
        )
    ticks = sorted(
        {
            round(point["films_per_class"])
            for row in shown.values()
            for point in row["learning_curve"]["points"]
        }
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("training films a class; last, all films: those of the smallest class", fontsize=8)
    axis.set_ylabel("accuracy on test films, 95% interval", fontsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return plots.inline(figure)


def _colours(rows):
    backbones = list(dict.fromkeys(row["backbone"] for row in rows.values()))
    return {backbone: _COLOURS[number % len(_COLOURS)] for number, backbone in enumerate(backbones)}


def _axis(width, height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()
