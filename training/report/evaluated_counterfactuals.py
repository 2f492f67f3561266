"""What the page of training.explain evaluate shows of counterfactuals."""

from pathlib import Path

import numpy as np

from training.explaining import counterfactual_told
from training.explaining.counterfactual_scores import SCORES
from training.explaining.map_makers import BASELINES
from training.explaining.map_metrics import METRICS
from training.explaining.map_numbers import cell
from training.report.counterfactual_pictures import examples_of, for_page

_ARROWS = {"high": "high is good", "low": "low is good", "": ""}
_TURNS = 0.5
_ROWS = {"floor": "other real films", "before": "the films before"}


def section(found, judge) -> dict | None:
    """What the template takes; None where no counterfactuals were asked for.

    Args:
        found: what metrics.json holds of counterfactuals.
        judge: CounterfactualJudge.
    """
    if found is None:
        return None
    shown = [name for name in SCORES if _asked(name, found)]
    realism = found["realism"]
    return {
        "conditions": counterfactual_told.conditions(found),
        "verdict": counterfactual_told.verdict(found),
        "makers": {name: maker["told"] for name, maker in found["makers"].items()},
        "heads": [(SCORES[name].title, _ARROWS[SCORES[name].better]) for name in shown],
        "rows": [(name, [_cell(cells[score]) for score in shown]) for name, cells in found["rows"].items()],
        "best": _best(found, shown),
        "distances": [*counterfactual_told.DISTANCE_TITLES.values()],
        "places": _places(found["places"]),
        "realism": [(name, _distances(cells)) for name, cells in realism["makers"].items()]
        + [(title, _distances(realism[name])) for name, title in _ROWS.items() if realism[name]],
        "realism_note": _note(realism),
        "not_made": [*_ROWS.values(), *BASELINES],
        "meanings": [(SCORES[name].title, SCORES[name].told, SCORES[name].source) for name in shown],
        "examples": [(name, _examples(name, judge)) for name in judge.names],
    }


def _asked(name, found):
    """Whether any maker has this score."""
    return any(cells[name]["films"] for cells in found["rows"].values())


def _best(found, shown):
    """The best makers of each column, where there are several: pairs (maker, place of the column).

    Of all but the flip rate those are compared that turn half of the answers: who turns none changes little.
    """
    best, rows = set(), found["rows"]
    turning = [row for row, cells in rows.items() if cells["flip_rate"]["value"] >= _TURNS]
    for place, name in enumerate(shown):
        compared = rows if name == "flip_rate" else turning
        values = {row: rows[row][name]["value"] for row in compared if rows[row][name]["films"]}
        if len(values) > 1 and SCORES[name].better:
            first = (max if SCORES[name].better == "high" else min)(values.values())
            best |= {(row, place) for row, value in values.items() if value == first}
    return best


def _cell(summary):
    value, _, interval = cell(summary).partition(" [")
    note = f"{summary['undefined']} without" if summary["undefined"] and summary["films"] else ""
    return {"value": value, "interval": f"[{interval}" if interval else "", "note": note}


def _places(places):
    """A table of maps where the answer was to be turned, or None."""
    if places is None:
        return None
    names = [*next(iter(places["rows"].values()))]
    return {
        "pairs": places["pairs"],
        "heads": [(METRICS[name].title, _ARROWS[METRICS[name].better]) for name in names],
        "rows": [(row, [_cell(cells[name]) for name in names]) for row, cells in places["rows"].items()],
    }


def _distances(cells):
    return [_cell({**cells[name], "undefined": 0, "films": 1}) for name in counterfactual_told.DISTANCES]


def _note(realism):
    return realism["floor"]["fdd"]["note"] if realism["floor"] else ""


def _examples(name, judge):
    """Films to look at: what the macros of `_counterfactuals.html.j2` take."""
    rows, made = judge.examples(name)
    if made is None:
        return []
    films, spec = judge.films, judge.trained.spec
    captions, truths = [], []
    for row in rows:
        file = Path(films.paths[row]).name
        if row < films.num_pairs:
            pair = films.pairs.pairs.iloc[row]
            captions.append(f"{file}, {pair['name']}")
            truths.append(np.asarray(films.pairs.masks[row]) if pair["place"] else None)
        else:
            captions.append(f"{file}, which has it already by its true label")
            truths.append(None)
    return [for_page(example) for example in examples_of(made, spec, judge.predict, captions, truths)]
