"""The figures of a report, each drawn without a display and returned as an inline PNG."""

import base64
import io

import numpy as np

INK, SECOND = "#1f4e79", "#c0504d"


def inline(figure) -> str:
    """A matplotlib figure as a data: URI, so that a report is one file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _axes(columns=1, rows=1, width=4.2, height=3.2):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    return figure, np.ravel(figure.subplots(rows, columns))


def training_curves(history) -> str:
    """Training and validation loss and accuracy by epoch, after the figure of Choe & Jo (2020)."""
    figure, axes = _axes(columns=2, rows=2, height=2.4)
    panels = ("loss", "accuracy", "val_loss", "val_accuracy")
    titles = ("training loss", "training accuracy", "validation loss", "validation accuracy")
    best = history["epoch"][history["val_loss"].idxmin()]
    for axis, column, title in zip(axes, panels, titles, strict=True):
        axis.plot(history["epoch"], history[column], color=INK, linewidth=1.2)
        axis.axvline(best, color=SECOND, linewidth=0.8, linestyle="--")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return inline(figure)


def confusion_matrix(counts, labels) -> str:
    counts = np.asarray(counts)
    figure, (axis,) = _axes()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}\n{shares[row, column]:.1%}"
        axis.text(column, row, text, ha="center", va="center", color=ink)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels, rotation=90, va="center")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    return inline(figure)


def reliability_diagram(calibrated, uncalibrated) -> str:
    """Accuracy against confidence, before and after temperature scaling, with films a bin below."""
    figure, (axis,) = _axes(width=4.6, height=3.8)
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
    axis.set_xlabel("stated confidence (films in the bin beside the point)", fontsize=8)
    axis.set_ylabel("share of right decisions", fontsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return inline(figure)


def contact_sheet(films, captions, columns=6) -> str:
    """Small films side by side.

    Args:
        films: list of (H, W) arrays in [0, 1].
        captions: one text a film.
        columns: films a row.
    """
    rows = -(-len(films) // columns)
    figure, axes = _axes(columns=columns, rows=rows, width=1.9, height=2.3)
    for axis in axes:
        axis.axis("off")
    for axis, film, caption in zip(axes, films, captions, strict=False):
        axis.imshow(film, cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=7)
    figure.tight_layout(pad=0.4)
    return inline(figure)
