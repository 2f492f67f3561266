"""Scores as texts."""

import numpy as np


def cell(summary) -> str:
    """A value with its interval, short; empty where the metric does not apply."""
    if summary is None:
        return ""
    if np.isnan(summary["value"]):
        return "no score"
    return f"{number(summary['value'])} [{number(summary['low'])}, {number(summary['high'])}]"


def number(value) -> str:
    """Three digits that tell."""
    if value is None or not np.isfinite(value):
        return "inf" if value is not None and np.isinf(value) else "-"
    if value != 0 and (abs(value) < 0.01 or abs(value) >= 1000):
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
