"""The page of training.explain evaluate: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.explaining import counterfactual_told, evaluating, map_judge, map_metrics, map_numbers
from training.explaining.map_makers import BASELINES
from training.explaining.map_metrics import GROUPS, METRICS, PERTURBATION, PLACES
from training.report import evaluated_counterfactuals, plots
from training.report.map_plots import _signed

_HEADINGS = {
    PLACES: "Do the maps point at the finding?",
    PERTURBATION: "Does the answer depend on what they mark?",
    map_metrics.STATISTICS: "What the maps are like",
}
_CHARTS = (
    "mass_inside",
    "mean_iou",
    "outside_inside_ratio",
    "negative_perturbation",
    "aopc_gap",
    "pointing_game",
)
_GREY, _GOLD = "#a6a6a6", (0.85, 0.6, 0.0)
_PERCENTILE = 99


def write_report(out, found, films, maps, judge=None) -> Path:
    """Writes OUT/evaluated.html.

    Args:
        out: folder.
        found: what metrics.json holds.
        films: EvaluatedFilms.
        maps: method or baseline -> float32 (E, h, w), of the E pairs in `found["examples"]`.
        judge: CounterfactualJudge, where counterfactuals were asked for.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = map_numbers.number
    speed = found["speed"]
    page = environment.get_template("evaluated.html.j2").render(
        title=f"{found['model']}: methods of explanation",
        found=found,
        conditions=evaluating.conditions(found),
        verdict=verdict(found),
        tables=[
            _table(found, group)
            for group in GROUPS
            if any(METRICS[n].group == group for n in found["metrics"])
        ],
        bars=bars(found),
        curves=kept_curves(found) if found["kept_curves"] else None,
        examples=[_example(films, row, place, maps, found) for place, row in enumerate(found["examples"])],
        percentile=_PERCENTILE,
        meanings=[
            (METRICS[name].title, METRICS[name].told, METRICS[name].source) for name in found["metrics"]
        ],
        baselines=BASELINES,
        speeds=_speeds(speed),
        sanity=_sanity(found["sanity"]),
        counterfactuals=evaluated_counterfactuals.section(found["counterfactuals"], judge),
        untested=untested(found),
    )
    path = Path(out) / "evaluated.html"
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def verdict(found) -> list[str]:
    """What a reader takes away, in sentences."""
    said = []
    for name in ("outside_inside_ratio", "mean_iou", "mass_inside", "negative_perturbation", "aopc_gap"):
        if name not in found["metrics"]:
            continue
        ranked = _ranked(found, name)
        methods = [row for row in ranked if row not in BASELINES]
        knowing_nothing = [row for row in ranked if row in BASELINES]
        if not methods:
            continue
        best = methods[0]
        sentence = f"{METRICS[name].title}: best is {best} with {map_numbers.cell(found['rows'][best][name])}"
        if knowing_nothing:
            baseline = knowing_nothing[0]
            sentence += f"; the {baseline} map, which knows nothing of the model, has "
            sentence += map_numbers.cell(found["rows"][baseline][name])
            behind = [row for row in methods if ranked.index(row) > ranked.index(baseline)]
            if len(behind) == len(methods):
                sentence += ", which no method reaches"
            elif behind:
                sentence += (
                    f", which {len(behind)} of {len(methods)} methods do not reach: {', '.join(behind)}"
                )
        said.append(sentence)
    if found["said_by_the_model"] < 0.8:
        said.append(
            f"the model gives the explained label on {found['said_by_the_model']:.0%} of the films: a map "
            "can tell the truth about a model that looks elsewhere"
        )
    return said


def _ranked(found, name):
    """Methods and baselines with a score, best first."""
    rows = {row: cells[name]["value"] for row, cells in found["rows"].items() if name in cells}
    rows = {row: value for row, value in rows.items() if value is not None and not np.isnan(value)}
    return sorted(rows, key=rows.get, reverse=METRICS[name].better == "high")


def _table(found, group):
    names = [name for name in found["metrics"] if METRICS[name].group == group]
    best, floor = {}, {}
    for name in names:
        ranked = _ranked(found, name) if METRICS[name].better else []
        methods = [row for row in ranked if row not in BASELINES]
        best[name] = {row for row in methods if _value(found, row, name) == _value(found, methods[0], name)}
        baselines = [row for row in ranked if row in BASELINES]
        floor[name] = {*ranked[ranked.index(baselines[0]) :]} if baselines else set()
    rows = []
    for row in found["rows"]:
        cells = []
        for name in names:
            summary = found["rows"][row].get(name)
            kinds = ["best"] if row in best[name] else []
            kinds += ["below"] if row in floor[name] and row not in BASELINES else []
            cells.append(_cell(summary, " ".join(kinds)))
        rows.append((row, cells))
    arrows = {"high": "high is good", "low": "low is good", "": ""}
    heads = [(METRICS[name].title, arrows[METRICS[name].better]) for name in names]
    return {"heading": _HEADINGS[group], "heads": heads, "rows": rows}


def _value(found, row, name):
    return found["rows"][row][name]["value"]


def _cell(summary, kind):
    if summary is None:
        return {"value": "", "interval": "", "notes": "", "kind": ""}
    value, _, interval = map_numbers.cell(summary).partition(" [")
    notes = [f"{summary[name]} {name}" for name in ("undefined", "infinite") if summary[name]]
    scored = summary["films"] + summary["infinite"] > 0
    return {
        "value": value if scored else "no score",
        "interval": f"[{interval}" if scored else "",
        "notes": ", ".join(notes),
        "kind": kind,
    }


def _speeds(speed):
    if speed is None:
        return []
    forward = speed["seconds"][map_judge.FORWARD]
    return [
        (name, speed["films_a_batch"] / seconds, seconds / forward)
        for name, seconds in speed["seconds"].items()
    ]


def _sanity(sanity):
    if sanity is None:
        return None
    return {**sanity, "chart": _sanity_lines(sanity)}


def untested(found) -> list[str]:
    """What the page says nothing of."""
    lines = [
        "whether the model was trained on these films",
        "options of the methods other than their defaults",
    ]
    if not found["with_place"]:
        lines.append("where the maps point: no film has a mask or box")
    elif found["with_place"] < found["pairs"]:
        lines.append(
            f"where the maps of {found['pairs'] - found['with_place']} films without a mask or box point"
        )
    if found["films"] < found["films_in_data"]:
        lines.append(f"{found['films_in_data'] - found['films']} films of the data")
    missing = [METRICS[name].title for name in METRICS if name not in found["metrics"]]
    if missing:
        lines.append(f"metrics: {', '.join(missing)}")
    if "negative_perturbation" in found["metrics"] or "deletion" in found["metrics"]:
        lines.append("other replacements of pixels than those named: a film with holes is a film of no kind")
    lines += [name for name in ("speed", "sanity") if found[name] is None]
    lines += [f"{name}: {reason}" for name, reason in found["skipped"].items()]
    if found["counterfactuals"]:
        lines += counterfactual_told.cautions(found["counterfactuals"])
    return lines


def bars(found) -> str | None:
    """One panel a metric, one bar a method with its interval; baselines grey."""
    from matplotlib.figure import Figure

    shown = [name for name in _CHARTS if name in found["metrics"]]
    if not shown:
        return None
    rows = [*found["rows"]]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, lines * (0.21 * len(rows) + 0.8)))
    panels = figure.subplots(lines, columns, squeeze=False)
    for axis in panels.ravel()[len(shown) :]:
        axis.axis("off")
    places = np.arange(len(rows))[::-1]
    for index, (axis, name) in enumerate(zip(panels.ravel(), shown, strict=False)):
        cells = [found["rows"][row][name] for row in rows]
        values, low, high = (
            np.array([_finite(cell[key]) for cell in cells]) for key in ("value", "low", "high")
        )
        colours = [_GREY if row in BASELINES else plots.INK for row in rows]
        axis.barh(places, np.nan_to_num(values), color=colours, height=0.66)
        reach = np.nan_to_num(np.abs(np.stack([values - low, high - values])))
        axis.errorbar(
            np.nan_to_num(values), places, xerr=reach, fmt="none", ecolor=plots.SECOND, linewidth=1.1
        )
        axis.set_yticks(places, rows if index % columns == 0 else [""] * len(rows), fontsize=7.5)
        axis.tick_params(axis="x", labelsize=7)
        if name == "outside_inside_ratio":
            axis.axvline(1, color="black", linewidth=0.7, linestyle="--")
            axis.set_xlim(0, min(1.1 * max(1.2, np.nan_to_num(values).max()), 3.0))
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set_title(f"{METRICS[name].title} ({METRICS[name].better} is good)", fontsize=8.5)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return plots.inline(figure)


def _finite(value):
    return np.nan if value is None or not np.isfinite(value) else value


def kept_curves(found) -> str:
    """The share of films that keep their label while the least relevant pixels turn 0, as on the slides."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6))
    axis = figure.subplots()
    methods = [name for name in found["kept_curves"] if name not in BASELINES]
    for name, shares in found["kept_curves"].items():
        shares = [np.nan if share is None else share for share in shares]
        if name in BASELINES:
            line = {"color": _GREY, "linestyle": ("--", ":", "-.")[[*BASELINES].index(name)]}
        else:
            line = {"color": colormaps["tab20"](methods.index(name) % 20), "marker": ".", "markersize": 4}
        axis.plot(range(10, 100, 10), shares, linewidth=1.3, label=name, **line)
    axis.set_xlabel("% of the film replaced by 0, least relevant first", fontsize=8)
    axis.set_ylabel("share that keeps the label", fontsize=8)
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return plots.inline(figure)


def _sanity_lines(sanity):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.2))
    axis = figure.subplots()
    for index, (name, found) in enumerate(sanity["methods"].items()):
        values = [1.0, *(_finite(value) for value in found["randomised"]["absolute_spearman"])]
        colour = colormaps["tab20"](index % 20)
        axis.plot(range(len(values)), values, ".-", color=colour, linewidth=1.3, label=name)
    axis.set_xticks(range(1 + len(sanity["stops"])), ["as trained", *sanity["stops"]], fontsize=7)
    axis.set_ylabel("rank correlation of |map|", fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return plots.inline(figure)


def _example(films, row, place, maps, found):
    pair = films.pairs.iloc[row]
    name = Path(pair["path"]).name
    said = "says so" if pair["right"] else "does not say so"
    return {
        "caption": f"{name}, {pair['name']}: the model {said} (probability {pair['probability']:.2f})",
        "picture": _strip(
            films.images(np.array([row]))[0, ..., 0],
            np.asarray(films.masks[row]) if pair["place"] else None,
            {method: kept[place] for method, kept in maps.items()},
        ),
    }


def _strip(pixels, mask, maps):
    """The film with the outline of its mask, then one map a method, each with that outline."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = 1 + len(maps)
    lines = -(-count // 8)
    columns = -(-count // lines)
    height = 1.5 * pixels.shape[0] / pixels.shape[1] + 0.2
    figure = Figure(figsize=(1.5 * columns, height * lines))
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in panels:
        axis.axis("off")
    panels[0].imshow(pixels, cmap="gray", vmin=0, vmax=1)
    panels[0].set_title("film", fontsize=8, pad=2)
    for axis, (name, map_) in zip(panels[1:], maps.items(), strict=False):
        axis.set_title(name, fontsize=8, pad=2, color="#707070" if name in BASELINES else "black")
        if not np.isfinite(map_).all():
            axis.text(0.5, 0.5, "not finite", transform=axis.transAxes, ha="center", fontsize=8)
            continue
        axis.imshow(shares_of(map_), cmap=_signed(1), vmin=-1, vmax=1)
        height_of, width_of = map_.shape
        axis.add_patch(Rectangle((-0.5, -0.5), width_of, height_of, fill=False, edgecolor="#cccccc", lw=0.6))
    if mask is not None and mask.any() and not mask.all():
        for axis in panels[:count]:
            axis.contour(mask, levels=[0.5], colors=[_GOLD], linewidths=0.8)
    figure.subplots_adjust(0.003, 0.005, 0.997, 1 - 0.17 / (height * lines), wspace=0.04, hspace=0.14)
    return plots.inline_films(figure)


def shares_of(map_):
    """A map over the 99th percentile of its absolute values, cut at -1 and 1: 0 stays 0, signs are kept."""
    full = np.percentile(np.abs(map_), _PERCENTILE) or np.abs(map_).max() or 1.0
    return np.clip(map_ / full, -1, 1)
