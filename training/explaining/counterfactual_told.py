"""What an evaluation says of counterfactuals: a table at the shell, tables on disk, and sentences."""

from pathlib import Path

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training import runs
from training.explaining.counterfactual_scores import SCORES
from training.explaining.map_numbers import cell, number

_COLUMN = 18
_SHOWN = ("flip_rate", "label_drift", "mean_change", "needless_change", "noise_robustness")
DISTANCES = ("fdd", "kid")
DISTANCE_TITLES = {"fdd": "FDD", "kid": "KID"}


def write_tables(out, judge, found):
    """counterfactuals.csv: a row a film and maker; counterfactuals_table.csv: a row a maker.

    Args:
        out: folder.
        judge: CounterfactualJudge.
        found: what metrics.json holds; its `counterfactuals`.
    """
    long = pd.concat([judge.scores(name).assign(method=name) for name in judge.names])
    with replacing(Path(out) / "counterfactuals.csv") as temporary:
        long.to_csv(temporary, index=False, errors="surrogateescape")
    rows = []
    for name, cells in found["counterfactuals"]["rows"].items():
        row = {"method": name, **found["counterfactuals"]["makers"][name]}
        for score, summary in cells.items():
            row |= {score: summary["value"], f"{score}_low": summary["low"], f"{score}_high": summary["high"]}
            row[f"{score}_films"] = summary["films"]
        rows.append(row | _distances(found["counterfactuals"]["realism"]["makers"].get(name)))
    realism = found["counterfactuals"]["realism"]
    for name in ("floor", "before"):
        rows.append({"method": f"({name})", **_distances(realism[name])})
    runs.write_table(Path(out) / "counterfactuals_table.csv", pd.DataFrame(rows))


def _distances(found):
    if found is None:
        return {}
    keys = {"value": "", "low": "_low", "high": "_high", "generated": "_films"}
    return {f"{name}{end}": found[name][key] for name in DISTANCES for key, end in keys.items()}


def told(found) -> list[str]:
    """The lines that are printed: what was asked of how many films, then a row a maker.

    Args:
        found: `CounterfactualJudge.summary`.
    """
    width = max(map(len, [*found["rows"], "counterfactuals", "other real films"]))
    realism = found["realism"]
    heads = [SCORES[name].title for name in _SHOWN] + ["FDD"]
    lines = [
        conditions(found),
        "",
        "  ".join(["counterfactuals".ljust(width), *(head.rjust(_COLUMN) for head in heads)]),
    ]
    for name, cells in found["rows"].items():
        texts = [cell(cells[score]) for score in _SHOWN] + [_distance(realism["makers"].get(name))]
        lines.append("  ".join([name.ljust(width), *(text.rjust(_COLUMN) for text in texts)]))
    gap = " " * (width + len(_SHOWN) * (_COLUMN + 2) + 2)
    for name, title in (("floor", "other real films"), ("before", "films before")):
        if realism[name]:
            lines.append(title.ljust(width) + gap[width:] + _distance(realism[name]).rjust(_COLUMN))
    return lines


def _distance(found):
    return "" if found is None else number(found["fdd"]["value"])


def conditions(found) -> str:
    """On what the counterfactuals stand, in one sentence."""
    already = found["pairs"] - found["need"]
    said = f"{found['need']} of {found['pairs']} answers are to be turned"
    if already:
        said += f" (of {already} films the classifier says the opposite already)"
    said += f"; {found['needless']} films have what is asked for and are asked for it all the same"
    realism = found["realism"]
    if realism["compared"]:
        said += f"; {realism['compared']} a set are held against real films of what is asked for"
    return said


def verdict(found) -> list[str]:
    """What a reader takes away of the counterfactuals, in sentences."""
    said = []
    for name, maker in found["makers"].items():
        cells = found["rows"][name]
        if not maker["pairs"]:
            said.append(f"{name}: none of its targets was asked for, it has no scores")
            continue
        sentence = (
            f"{name} turns {_share(cells['flip_rate'])} of {maker['pairs']} answers and moves a pixel by "
            f"{number(cells['mean_change']['value'])} on average"
        )
        if cells["needless_change"]["films"]:
            sentence += f", by {number(cells['needless_change']['value'])} where nothing needs to change"
        drift = cells["label_drift"]
        if drift["films"]:
            sentence += f"; other labels drift by {number(drift['value'])}"
        lasts = cells["noise_robustness"]
        if lasts["films"] and lasts["value"] < 0.8:
            sentence += (
                f"; only {lasts['value']:.0%} of its answers outlast a little noise: much of the change is "
                "adversarial, not anatomy"
            )
        said.append(sentence + _looks(found["realism"], name))
    return said


def _share(summary):
    return f"{summary['value']:.0%} [{summary['low']:.0%}, {summary['high']:.0%}]"


def _looks(realism, name):
    """Whether counterfactuals are nearer to real films of the target than the films were."""
    if name not in realism["makers"]:
        return ""
    made, before, floor = (
        found["fdd"]["value"] for found in (realism["makers"][name], realism["before"], realism["floor"])
    )
    if floor >= before:
        return (
            "; whether they look like real films of the target FDD cannot tell here: the films were as near "
            f"as other real films of the target are ({number(before)}, {number(floor)})"
        )
    side = "nearer to" if made < before else "no nearer to"
    return (
        f"; to the classifier's eye they are {side} real films of the target than the films were (FDD "
        f"{number(made)} against {number(before)}; real against real {number(floor)})"
    )


def cautions(found) -> list[str]:
    """What must not be read into the numbers."""
    lines = [
        "realism is measured with the features of the very classifier whose answer was turned: a change that "
        "fools it moves its features too, so a small distance is no proof that a radiologist would believe "
        "the film",
        "weights made random (sanity): makers of counterfactuals were trained or searched against one set of "
        "weights",
        "a counterfactual says what this classifier listens to, not what treatment would do to the patient",
    ]
    if not found["needless"]:
        lines.append("films without need, and realism: no film is known to have what is asked for")
    elif not found["realism"]["compared"]:
        lines.append(f"realism: {found['realism']['reason']}")
    elif found["realism"]["left_out"]:
        lines.append(
            f"realism of {found['realism']['left_out']} counterfactuals: it takes two real films of the "
            "target for each"
        )
    unknown = {name: maker["unknown_targets"] for name, maker in found["makers"].items()}
    lines += [
        f"{name}: {count} pairs ask for a target that it has not learned"
        for name, count in unknown.items()
        if count
    ]
    if np.isnan([cells["label_drift"]["value"] for cells in found["rows"].values()]).all():
        lines.append("drift of other labels: the classifier has none beside those two")
    return lines
