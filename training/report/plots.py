"""The figures of a report, each drawn without a display and returned as an inline PNG."""

import base64
import io

import numpy as np

INK, SECOND = "#1f4e79", "#c0504d"


def inline(figure) -> str:
    """A matplotlib figure as a data: URI, so that a report is one file."""
    return _inline(figure, "png", bbox_inches="tight")


def inline_films(figure) -> str:
    """The same for a figure that is full of films and has its own margins: as JPEG, a fifth as large."""
    return _inline(figure, "jpeg", pil_kwargs={"quality": 88})


def _inline(figure, kind, **options):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110, facecolor="white", **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def figure_axes(columns=1, rows=1, width=4.2, height=3.2):
    """(figure, its axes row by row); `width` and `height` are those of one of them, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    return figure, np.ravel(figure.subplots(rows, columns))


def training_curves(history) -> str:
    """Training and validation loss and accuracy by epoch, after the figure of Choe & Jo (2020)."""
    titles = {
        "loss": "training loss",
        "accuracy": "training accuracy",
        "val_loss": "validation loss",
        "val_accuracy": "validation accuracy",
    }
    shown = [column for column in titles if column in history]
    figure, axes = figure_axes(columns=-(-len(shown) // 2), rows=2, height=2.4)
    best = history["epoch"][history["val_loss"].idxmin()]
    for axis, column in zip(axes, shown, strict=False):
        axis.plot(history["epoch"], history[column], color=INK, linewidth=1.2)
        axis.axvline(best, color=SECOND, linewidth=0.8, linestyle="--")
        axis.set_title(titles[column], fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(shown) :]:
        axis.axis("off")
    figure.tight_layout()
    return inline(figure)


def confusion_matrix(counts, labels) -> str:
    counts = np.asarray(counts)
    side = max(1.0, 0.24 * len(labels))
    figure, (axis,) = figure_axes(width=4.2 * side, height=3.2 * side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}\n{shares[row, column]:.1%}"
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=10 if side == 1 else 9)
    # Two short names keep their old places; more or longer ones would run into each other.
    long = len(labels) > 2 or max(map(len, labels)) > 12
    upright = {"rotation": 90, "va": "center"}
    tilted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(labels)), labels, **(tilted if long else {}))
    axis.set_yticks(range(len(labels)), labels, **({} if long else upright))
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    return inline(figure)


def reliability_diagram(
    calibrated,
    uncalibrated,
    across="stated confidence (films in the bin beside the point)",
    upward="share of right decisions",
) -> str:
    """How often what was stated is so, before and after temperature scaling, with each bin's count beside it.

    Args:
        calibrated, uncalibrated: of `kxray.metrics.reliability_curve`.
        across, upward: what the axes show.
    """
    figure, (axis,) = figure_axes(width=4.6, height=3.8)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    for curve, colour, name in ((uncalibrated, SECOND, "before"), (calibrated, INK, "after")):
        filled = curve["films"] > 0
        axis.plot(
            curve["confidence"][filled],
            curve["accuracy"][filled],
            "o-",
            color=colour,
            markersize=4,
            label=f"{name} temperature scaling",
        )
    for confidence, accuracy, films in zip(*calibrated.values(), strict=True):
        if films:
            place = {"xytext": (4, -8), "textcoords": "offset points"}
            axis.annotate(f"{films}", (confidence, accuracy), fontsize=7, **place)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(upward, fontsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return inline(figure)


def roc_curves(truths, probabilities, names) -> str:
    """Sensitivity against 1 - specificity, one small curve a finding.

    Args:
        truths: float (N, L): 1, 0 or NaN (unknown).
        probabilities: float (N, L).
        names: the L findings.
    """
    from sklearn.metrics import roc_curve

    columns = min(4, len(names))
    figure, axes = figure_axes(columns=columns, rows=-(-len(names) // columns), width=2.2, height=2.2)
    for axis, name, known, stated in zip(axes, names, truths.T, probabilities.T, strict=False):
        there = np.isfinite(known)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        if len(np.unique(known[there])) == 2:
            false_alarms, found, _ = roc_curve(known[there], stated[there])
            axis.plot(false_alarms, found, color=INK, linewidth=1.2)
        axis.set_title(name, fontsize=8)
        axis.set_xticks([0, 0.5, 1])
        axis.set_yticks([0, 0.5, 1])
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.axis("off")
    figure.supxlabel("1 - specificity", fontsize=8)
    figure.supylabel("sensitivity", fontsize=8)
    figure.tight_layout()
    return inline(figure)


def film_grid(films, names=(), titles=(), side=1.1):
    """A matplotlib figure of rows of films.

    Args:
        films: rows of (H, W) arrays in [0, 1]; None leaves a place empty, as a short row does.
        names: one text a row, at its left; none by default.
        titles: rows of texts above films, of the first row alone where they are of columns.
        side: of a film, inches.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, films))
    left, above = (1.0 if len(names) else 0.03), (0.22 if len(titles) else 0.03)
    between = above if len(titles) > 1 else 0.03
    width, height = left + side * columns + 0.03, above + (side + between) * len(films)
    figure = Figure(figsize=(width, height), facecolor="white")
    for row, axes in enumerate(figure.subplots(len(films), columns, squeeze=False)):
        for column, axis in enumerate(axes):
            film = films[row][column] if column < len(films[row]) else None
            axis.set(xticks=[], yticks=[], frame_on=film is not None)
            if film is not None:
                axis.imshow(film, cmap="gray", vmin=0, vmax=1)
            if row < len(titles) and column < len(titles[row]):
                axis.set_title(titles[row][column], fontsize=6, pad=2)
        if len(names):
            axes[0].set_ylabel(names[row], fontsize=7, rotation=0, ha="right", va="center")
    edges = (left / width, 0.03 / height, 1 - 0.03 / width, 1 - above / height)
    figure.subplots_adjust(*edges, wspace=0.03, hspace=between / side)
    return figure


def contact_sheet(films, captions, columns=6) -> str:
    """Small films side by side.

    Args:
        films: list of (H, W) arrays in [0, 1].
        captions: one text a film.
        columns: films a row.
    """
    rows = -(-len(films) // columns)
    figure, axes = figure_axes(columns=columns, rows=rows, width=1.9, height=2.3)
    for axis in axes:
        axis.axis("off")
    for axis, film, caption in zip(axes, films, captions, strict=False):
        axis.imshow(film, cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=7)
    figure.tight_layout(pad=0.4)
    return inline(figure)


def score_bars(names, scores, title) -> str:
    """One bar a name with its interval; `scores` are dicts of value, low and high in [0, 1]."""
    figure, (axis,) = figure_axes(width=7.0, height=0.35 * len(names) + 0.9)
    places = np.arange(len(names))[::-1]
    values = np.array([score["value"] for score in scores])
    reach = np.abs(np.array([[score["low"], score["high"]] for score in scores]).T - values)
    axis.barh(places, values, color=INK, height=0.6)
    axis.errorbar(values, places, xerr=reach, fmt="none", ecolor=SECOND, capsize=3, linewidth=1.2)
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xlim(min(0.5, float((values - reach[0]).min())), 1.0)
    axis.set_title(title, fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    return inline(figure)
