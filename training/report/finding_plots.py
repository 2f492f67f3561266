"""The figures of a report on findings."""

import numpy as np

from training.report.plots import INK, SECOND, figure_axes, inline


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


def reliability(calibrated, uncalibrated) -> str:
    """How often findings are there, by stated probability, before and after temperature scaling.

    Args:
        calibrated, uncalibrated: of `kxray.metrics.reliability_curve`, pairs of films and findings.
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
    for stated, share, pairs in zip(*calibrated.values(), strict=True):
        if pairs:
            place = {"xytext": (4, -8), "textcoords": "offset points"}
            axis.annotate(f"{pairs}", (stated, share), fontsize=7, **place)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("stated probability (films times findings in the bin beside the point)", fontsize=8)
    axis.set_ylabel("share that has the finding", fontsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return inline(figure)
