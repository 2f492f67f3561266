"""The report of a conditional GAN: one HTML file that needs nothing beside it."""

import math
from pathlib import Path

from kxray.io.files import write_whole
from training.report import gan_plots

_CURVES = {
    "FDD to validation films": ["fdd"],
    "KID to validation films": ["kid"],
    "films differ (share of real)": ["diversity", "diversity_lowest"],
    "nearest training film (times held-out)": ["nearest"],
}


def write_report(folder, config, scores, history, steps, shown) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        config: what config.json holds.
        scores: what metrics.json holds, but for saved_model.
        history: one row an epoch.
        steps: one row every few steps, with discriminator_updates and losses.
        shown: dict of float (classes x samples, s, s) in [0, 1]: `samples` of the kept weights, and `real`
            training films.
    """
    import jinja2

    from training.generating.gan_epochs import sheet
    from training.generating.gan_watch import COLLAPSED, MEMORISED, grace_epochs

    labels, kept = config["labels"], scores["epoch"]
    curves = {title: names for title, names in _CURVES.items() if set(names) <= set(history.columns)}
    heads = [name for name in history.columns if name.startswith(("real_", "fake_"))]
    for side in dict.fromkeys(name.rpartition("_")[2] for name in heads):
        own = [name for name in heads if name.endswith(f"_{side}")]
        curves[f"discriminator's scores, {side} px"] = own
    levels = {
        "films differ (share of real)": (COLLAPSED, "collapse"),
        "nearest training film (times held-out)": (MEMORISED, "memorisation"),
    }
    real = scores["fdd_of_real_films"]
    # A distance is biased by its number of films: only at the same number is it a level to reach.
    if real is not None and real["films"] == scores["compared_films"]:
        levels["FDD to validation films"] = (real["value"], "real test films")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    page = environment.get_template("gan.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        scores=scores,
        labels=labels,
        last=history.iloc[-1].to_dict(),
        figure_two=gan_plots.figure_two(steps),
        curves=gan_plots.by_epoch(history, curves, kept, levels),
        samples=gan_plots.labelled_sheet(sheet(shown["samples"], len(labels)), labels),
        real=gan_plots.labelled_sheet(sheet(shown["real"], len(labels)), labels),
        sheets=gan_plots.sheets(folder, gan_plots.chosen_epochs(len(history), kept)),
        classes=class_rows(scores["validation"], labels),
        told=told_apart(scores["validation"]),
        limits={"collapsed": COLLAPSED, "memorised": MEMORISED, "grace": grace_epochs(len(history))},
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def number(value, digits=3) -> str:
    """A number for a reader, "-" where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.{digits}g}"


def class_rows(validation, labels) -> list[list[str]]:
    """The table of scores against validation films: a row a class, then all; empty without features.

    Args:
        validation: of `training.generating.judged.judge`, or {}.
        labels: the conditions.
    """
    if not validation:
        return []
    apart = validation["told_apart"]
    rows = []
    for name in (*labels, "all"):
        score = validation["overall"] if name == "all" else validation["classes"][name]
        area = apart["classes"][name]["auroc"] if apart and name != "all" else None
        fidelity = score["fidelity"] or {}
        rows.append(
            [
                name,
                str(score["counts"]["compared"]),
                *(_interval(score[key]) for key in ("fdd", "fdd_probabilities", "kid")),
                *(number(fidelity.get(key)) for key in ("precision", "recall")),
                "-" if area is None else _interval(area),
            ]
        )
    return rows


def told_apart(validation) -> str:
    """One sentence: how many classes the classifier of real films sees in generated ones."""
    apart = validation.get("told_apart") if validation else None
    if not apart:
        return ""
    return (
        f"Better than chance: {apart['better']} of {apart['of']} classes; "
        f"{_interval(apart['accuracy'])} of the films get their own class, by chance "
        f"{number(apart['chance'])}."
    )


def _interval(score):
    if score["value"] is None:
        return "-"
    ends = f" [{number(score['low'])}, {number(score['high'])}]" if score["low"] is not None else ""
    return f"{number(score['value'])}{ends}"
