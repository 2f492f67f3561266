"""Compares methods of explanation on films: `python -m training.explain evaluate --run RUN --data DIR`."""

import dataclasses
from pathlib import Path

import click
import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training import runs, shell
from training.explain import check_places, find
from training.explaining import (
    counterfactual_judge,
    counterfactual_told,
    evaluated_films,
    map_metrics,
)
from training.explaining.begun import check_begun, films_state
from training.explaining.counterfactual_makers import STEPS, asked_makers, load_makers
from training.explaining.map_judge import FORWARD, Judge, memory_told, noisy_pairs
from training.explaining.map_makers import BASELINES, CONSERVING, INTEGRATED, TrainedModel
from training.explaining.map_metrics import METRICS, PLACES
from training.explaining.map_numbers import cell
from training.shell import program

# Characters of a column at the shell.
_COLUMN = 18


@click.command(context_settings={"max_content_width": 100})
@click.option("--run", required=True, help="Run folder of training.fit, or its model.keras.")
@click.option("--data", required=True, help="Folder of films or a manifest CSV, best with masks or boxes.")
@click.option("--out", help="Folder to write to.  [default: DATA-explanations, here]")
@click.option("--methods", default="all", show_default=True, help="all, or names with commas between them.")
@click.option(
    "--target",
    default="true",
    show_default=True,
    help="Whose maps: true (every positive finding of a multi-label model), predicted, or a label.",
)
@click.option(
    "--films",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="At most so many, drawn at random.",
)
@click.option(
    "--metrics",
    default="all",
    show_default=True,
    help="places, perturbation, statistics, speed, sanity, or names of single metrics.",
)
@click.option(
    "--counterfactual",
    "gans",
    multiple=True,
    metavar="[NAME=]RUN",
    help="A run of training.fit counterfactual_gan of this classifier, as one more method; may be repeated.",
)
@click.option(
    "--masked-residual",
    "steps",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=STEPS,
    metavar="[STEPS]",
    help=f"Counterfactuals searched film by film, without a generator, in at most {STEPS} steps or as "
    "many as are given.",
)
@click.option(
    "--latent-shift",
    "autoencoder",
    metavar="RUN",
    help="Counterfactuals by a shift in the code of an autoencoder: a run of training.fit autoencoder.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of draws and noise.")
@click.option("--workers", type=click.IntRange(1), help="Decoding workers; one a core by default.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Films a batch.")
@click.option("--skip-bad", is_flag=True, help="Leave out films that cannot be read instead of stopping.")
@program
def main(
    run,
    data,
    out,
    methods,
    target,
    films,
    metrics,
    gans,
    steps,
    autoencoder,
    seed,
    workers,
    batch_size,
    skip_bad,
):
    """Compare methods of explanation on your films: one table, methods by metrics.

    \b
    With masks or boxes: outside-inside ratio, mIOU, pointing game, relevance mass and rank accuracy, IoU and
      IoBB of boxes. With any films: MoRF and LeRF, negative relevance perturbation, insertion, deletion,
      max-sensitivity, completeness, complexity; whether maps change with weights and class; films a second.
    Beside the methods stand maps that know nothing of the model: random, a blob in the centre, the film.
    Films with masks or boxes are drawn first. Methods that cannot read the model are skipped and named.
    Counterfactuals are asked what would have to change for the opposite answer. They have a table of their
    own beside their rows in this one: flip rate, drift of other labels, how much changes, also of films that
    need no change, FDD and KID to real films, monotone path, noise.

    \b
    OUT/evaluated.html  the table with 95% intervals over patients, charts, films with one map a method
    OUT/evaluated.csv   a row a film, method and metric
    OUT/table.csv, OUT/metrics.json   the table
    OUT/counterfactuals.csv   a row a film and maker of counterfactuals
    OUT/work            scores of every finished method: after an interruption give the same command again

    \b
    python -m training.explain evaluate --run runs/00003 --data fillets
    python -m training.explain evaluate --run runs/00003 --data films --methods grad_cam,lrp,rap --films 40
    python -m training.explain evaluate --run runs/00003 --data films --metrics places,negative_perturbation
    python -m training.explain evaluate --run runs/00003 --data films --counterfactual full=runs/00004
      --counterfactual no-mask=runs/00005 --masked-residual
    """
    out = out or f"{Path(data).resolve().name.removesuffix('.csv')}-explanations"
    check_places(run, data, out)
    chosen = map_metrics.chosen_metrics(metrics)
    shell.load_tensorflow()
    from rich.console import Console

    methods = chosen_methods(methods)
    changing = asked_makers(gans, steps, autoencoder)
    trained = TrainedModel(run)
    known = ("true", "predicted", *trained.spec.labels)
    if target not in known:
        raise ValueError(f"unknown target {target!r}; expected true, predicted or one of the labels: "
                         f"{', '.join(trained.spec.labels)}")  # fmt: skip
    makers = load_makers(changing, trained, batch_size)
    table = find(data, trained.spec, out, skip_bad)
    asked = Evaluation(methods, target, films, chosen, seed, batch_size, workers, skip_bad)
    found = evaluate(trained, table, out, asked, Console(highlight=False, markup=False), makers)
    click.echo(told(found, out))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked.

    Attributes:
        methods: of `kxray.explain.METHODS`.
        target: "true", "predicted" or a label.
        films: most films.
        metrics: of `map_metrics.chosen_metrics`.
        seed: of draws and noise.
        batch_size: films that go through the model at once.
        workers, skip_bad: of reading.
    """

    methods: tuple[str, ...]
    target: str
    films: int
    metrics: tuple[str, ...]
    seed: int = 0
    batch_size: int = 16
    workers: int | None = None
    skip_bad: bool = False


def chosen_methods(text) -> tuple[str, ...]:
    """The methods that "all" or "lrp,rap" names. Raises ValueError for an unknown one."""
    from kxray.explain import METHODS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if "all" in names:
        return tuple(METHODS)
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; the known ones are: all, {', '.join(METHODS)}")
    if not names:
        raise ValueError("--methods names none; take all, or names with commas between them")
    return tuple(dict.fromkeys(names))


def evaluate(trained, table, out, asked, console, makers=()) -> dict:
    """Scores every method that OUT does not have yet, and writes the table.

    Every method's scores are kept, whole, in OUT/work: a killed run goes on with the method it was at.

    Args:
        trained: TrainedModel.
        table: of `training.explain.find`.
        out: folder.
        asked: Evaluation.
        console: rich Console that shows the progress.
        makers: of counterfactuals, see `counterfactual_makers.load_makers`.

    Returns:
        What metrics.json holds.

    Raises:
        kxray.io.FilmError: an unreadable film, unless `asked.skip_bad`.
        ValueError: OUT was begun with another model, data or options; nothing to explain.
    """
    from training.report.evaluated import write_report

    out = Path(out)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    chosen = evaluated_films.choose(table, trained.spec, asked.target, asked.films, asked.seed)
    check_begun(work, _facts(trained, table, asked, chosen), out)
    with memory_told(asked.batch_size), shell.progress_bars(console) as progress:
        bar = progress.add_task("reading films", total=len({row["path"] for row, _ in chosen}), facts="")
        films = evaluated_films.read(
            chosen,
            trained,
            work,
            workers=asked.workers,
            skip_bad=asked.skip_bad,
            progress=lambda done: progress.update(bar, completed=done),
        )
        progress.update(bar, completed=progress.tasks[bar].total)
        judge = Judge(trained, films, asked, work, progress)
        judge.probe()
        if makers:
            judge.counterfactuals = counterfactual_judge.begin(judge, table, makers)
        speed = judge.speed() if "speed" in asked.metrics else None
        names = [*judge.readable, *judge.changing, *BASELINES]
        scores = {name: judge.scores(name) for name in names}
        sanity = judge.sanity() if "sanity" in asked.metrics else None
    found = _summary(trained, table, films, asked, scores, judge.examples)
    found |= {"skipped": judge.skipped, "speed": speed, "sanity": sanity, "counterfactuals": None}
    if makers:
        found["counterfactuals"] = judge.counterfactuals.summary(scores)
        counterfactual_told.write_tables(out, judge.counterfactuals, found)
    _write_tables(out, films, scores, found)
    runs.write_json(out / "metrics.json", found)
    maps = {name: judge.example_maps(name) for name in names}
    write_report(out, found, films, maps, judge.counterfactuals)
    return found


def _facts(trained, table, asked, chosen):
    """What scores of films depend on, whatever the method."""
    return {
        "model": trained.digest,
        "data": table.attrs["data"],
        "films in the data": len(table),
        "target": asked.target,
        "number of films": asked.films,
        "seed": asked.seed,
        "metrics": list(asked.metrics),
        "state of its films, labels, masks or boxes": films_state(table, trained.spec.labels, chosen),
    }


def _summary(trained, table, films, asked, scores, examples):
    pairs, patients = films.pairs, films.patients
    placed = pairs["place"].to_numpy() == 1
    noisy = np.isin(np.arange(len(films)), noisy_pairs(films))
    shown = [name for name in asked.metrics if name in METRICS]
    if not placed.any():
        shown = [name for name in shown if METRICS[name].group != PLACES]
    rows = {}
    for name, found in scores.items():
        rows[name] = {"not_finite": int((found["finite"] == 0).sum())}
        for metric in shown:
            if _applies(metric, name):
                which = np.ones(len(films), bool)
                which = placed if METRICS[metric].group == PLACES else which
                which = noisy if metric == "max_sensitivity" else which
                rows[name][metric] = map_metrics.summed_up(metric, found[which], patients[which])
    kept = {
        name: found[list(map_metrics.KEPT)].mean().tolist()
        for name, found in scores.items()
        if map_metrics.KEPT[0] in found
    }
    empty = sum(not films.masks[row].any() for row in np.flatnonzero(placed))
    return {
        "model": trained.spec.name,
        "labels": trained.spec.labels,
        "task": trained.spec.task,
        "image_size": trained.spec.image_size,
        "data": table.attrs["data"],
        "target": asked.target,
        "seed": asked.seed,
        "films_in_data": len(table),
        "films": int(pairs["film"].nunique()),
        "pairs": len(films),
        "patients": len({*patients}),
        "with_place": int(placed.sum()),
        "empty_masks": int(empty),
        "label_unknown": int((pairs["known"] == 0).sum()) if asked.target == "true" else 0,
        "said_by_the_model": float(pairs["right"].mean()),
        "mask_share": float(np.mean([films.masks[row].mean() for row in np.flatnonzero(placed)]))
        if placed.any()
        else None,
        "metrics": shown,
        "rows": rows,
        "kept_curves": kept,
        "examples": examples,
        "versions": runs.versions(),
    }


def _applies(metric, name):
    if metric == "completeness_error":
        return name in (INTEGRATED, *CONSERVING)
    return metric != "max_sensitivity" or name not in BASELINES


def _write_tables(out, films, scores, found):
    """evaluated.csv: a row a film, method and metric; table.csv: a row a method."""
    pairs = films.pairs[["path", "patient_id", "name", "place", "right", "probability"]]
    pairs = pairs.rename(columns={"name": "label"})
    long = pd.concat(
        [
            pd.concat([pairs, table[found["metrics"]]], axis=1)
            .melt(list(pairs), var_name="metric")
            .assign(method=name)
            for name, table in scores.items()
        ]
    )
    long = long[[*pairs, "method", "metric", "value"]]
    asked = long["value"].notna() | (long["place"] == 1)
    with replacing(out / "evaluated.csv") as temporary:
        long[asked].to_csv(temporary, index=False, na_rep="nan", errors="surrogateescape")
    rows = []
    for name, cells in found["rows"].items():
        row = {"method": name, "films": found["films"], "pairs": found["pairs"]}
        for metric in found["metrics"]:
            for key in ("value", "low", "high", "undefined", "infinite"):
                row[metric if key == "value" else f"{metric}_{key}"] = cells.get(metric, {}).get(key)
        if found["speed"] is not None and name in found["speed"]["seconds"]:
            row["films_per_second"] = found["speed"]["films_a_batch"] / found["speed"]["seconds"][name]
        rows.append(row)
    rows += [{"method": name, "skipped": reason} for name, reason in found["skipped"].items()]
    runs.write_table(out / "table.csv", pd.DataFrame(rows))


def told(found, out) -> str:
    """The lines that are printed: a row a method, at most five columns."""
    # The three of the slides first.
    shown = ("outside_inside_ratio", "mean_iou", "negative_perturbation", "pointing_game", "aopc_gap")
    shown = [name for name in shown if name in found["metrics"]] or found["metrics"][:5]
    heads = [METRICS[name].title for name in shown]
    speed = found["speed"]
    width = max(map(len, [*found["rows"], *found["skipped"], "method"]))
    lines = [conditions(found), ""]
    lines.append(
        "  ".join(
            ["method".ljust(width), *(head.rjust(_COLUMN) for head in heads), "films/s" if speed else ""]
        )
    )
    for name, cells in found["rows"].items():
        texts = [cell(cells.get(metric)).rjust(_COLUMN) for metric in shown]
        rate = ""
        if speed and name in speed["seconds"]:
            rate = f"{speed['films_a_batch'] / speed['seconds'][name]:7.1f}"
        lines.append("  ".join([name.ljust(width), *texts, rate]).rstrip())
    if speed:
        rate = speed["films_a_batch"] / speed["seconds"][FORWARD]
        lines.append("  ".join([FORWARD.ljust(width), *(" " * _COLUMN for _ in shown), f"{rate:7.1f}"]))
    lines += [f"{name.ljust(width)}  skipped: {reason}" for name, reason in found["skipped"].items()]
    if found["counterfactuals"]:
        lines += ["", *counterfactual_told.told(found["counterfactuals"])]
    return "\n".join([*lines, "", f"look at {Path(out) / 'evaluated.html'}"])


def conditions(found) -> str:
    """On what the table stands, in one sentence."""
    sentence = f"{found['films']} of {found['films_in_data']} films of {found['patients']} patients"
    if found["pairs"] != found["films"]:
        sentence += f", {found['pairs']} pairs of a film and a finding"
    place = f"{found['with_place']} with a mask or box" if found["with_place"] else "none with a mask or box"
    sentence += f", {place}"
    if found["empty_masks"]:
        sentence += f" ({found['empty_masks']} of them empty: no score)"
    whose = {"true": "true", "predicted": "predicted"}.get(found["target"], repr(found["target"]))
    sentence += f"; maps of the {whose} label"
    if found["label_unknown"]:
        sentence += f" (of the predicted one where no label is known: {found['label_unknown']})"
    return (
        f"{sentence}, which the model says on {found['said_by_the_model']:.0%}; 95% intervals over resampled "
        f"patients; seed {found['seed']}"
    )
