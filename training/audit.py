"""What a score on these films is worth, before anyone believes one: python -m training.audit --data DIR"""

import sys
from pathlib import Path

import click

from training.shell import program

HELP = """
Looks for what makes a score on a set of films worth less than it seems, and says in plain words whether a
shortcut is likely:

\b
  films that cannot be read, duplicates and near-duplicates, within and across splits and classes
  patients, sources and dates that are in more than one split
  class against source, view, sex, file format, bit depth, size, exposure, ... (Cramer's V)
  five classifiers that see no anatomy: grey histogram, border strip, file header and size, sharpness and
    noise, and the film with its centre blanked out; cross-validated with whole patients, 95% intervals
  burned-in text, side markers, redaction boxes and blank margins, and whether they tell the class

OUT gets audit.html (one file, with the films that are meant), audit.json, pairs.csv, markers.csv and
unreadable.csv. The films stay as they are; broken rows and films are listed and left out.

\b
Without --run a shortcut is likely where
  the lower end of the 95% interval of one of these classifiers' balanced accuracy is at least 0.8 of the way
    from chance to perfect (0.90 for two classes), or
  a property of the file, the source or view, or a marker at the border tells the class: Cramer's V at least
    0.5 at the lower end of its 95% interval.
With --run the first rule is: one of them reaches at least 0.9 of what the run is better than chance.
Sharpness and the frame of a film that is filled to its edge are partly anatomy; that is why less than that is
no more than a reason to hold a model's score against these.

\b
Exit code 0; with --strict 3 where a shortcut is likely, or where one film or patient is in two splits; 2
where the arguments or the data make an audit impossible.

\b
Examples
  python -m training.audit --data films
  python -m training.audit --data films --run runs/transfer-1
  the question is a finding of a multi-label source, or another column:
    python -m training.audit --data nih --finding Pneumonia
    python -m training.audit --data films --label-column view
  in a pipeline:
    python -m training.audit --data films --strict || exit 1
"""


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of films, or its CSV.")
@click.option("--run", type=click.Path(path_type=Path), help="Finished run of training.fit on these films.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: DATA-audit, here]")
@click.option(
    "--label-column",
    help="Column with the class of a film.  [default: label; with --run, what it was trained on]",
)
@click.option("--finding", help="Ask for this finding against its absence, instead of --label-column.")
@click.option("--strict", is_flag=True, help="Exit code 3 on a likely shortcut or leaking split.")
@click.option("--workers", type=click.IntRange(1), help="Films read at a time.  [default: the cores]")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Of the classifiers.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds and forests.")
@program
def main(data, run, out, label_column, finding, strict, workers, folds, seed):
    if label_column is not None and finding is not None:
        raise ValueError("give --label-column or --finding, not both")
    out = out or Path(f"{Path(data).resolve().name.removesuffix('.csv')}-audit")
    _check_places(data, out)
    from rich.console import Console

    from training import audited_data, shell
    from training.report.audit import write_report

    finished = None
    if run is not None:
        from training.run_films import read_finished

        finished = read_finished(run)
    asked = run is None or label_column is not None or finding is not None
    question = audited_data.Question(label_column or "label", finding) if asked else None
    table, question, problems, notes = audited_data.read_table(data, question, finished)
    with shell.progress_bars(Console(highlight=False)) as progress:
        found = audited_data.audit(
            table, question, problems=problems, notes=notes, folds=folds, seed=seed, workers=workers,
            progress=progress,
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        audited = None
        if run is not None:
            from training.audited_run import audit_run

            audited = audit_run(
                run, found.table, found.facts["baselines"], folder=out, progress=progress, workers=workers
            )
    likely, text = verdict(found.facts["baselines"], audited, found.told)
    leaks = found.leaks()
    facts = {
        "data": str(data),
        "verdict": {"likely": likely, "text": text, "leaks": leaks},
        **found.facts,
        "run": audited,
    }
    audited_data.write_tables(out, found)
    page = write_report(out, found, facts)
    click.echo(f"{text}.")
    for leak in leaks:
        click.echo(f"leak: {leak}")
    for note in found.facts["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"look at the films that are meant: {page}")
    if strict and (likely or leaks):
        sys.exit(3)


def _check_places(data, out):
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names the folder to write")
    source = Path(data).resolve()
    if source.is_dir() and (out.resolve() == source or source in out.resolve().parents):
        raise ValueError(f"--out {out} is in the folder of the films, which stays as it is; choose another")


def verdict(baselines, run=None, told=()) -> tuple[bool, str]:
    """Whether a shortcut is likely, and why, in words.

    Args:
        baselines: of `kxray.data.shortcuts.shortcut_scores`, two or more classes.
        run: of `training.audited_run.audit_run`, or None.
        told: what tells the class all by itself, in words (a file property, a source, a marker).

    Returns:
        (likely, text). Without a run it is likely where the lower end of some classifier's balanced accuracy
        reaches 0.8 of the way from chance to perfect; with one, where some classifier that is above chance
        reaches 0.9 of what the run is above chance. What is `told` makes it likely too.
    """
    from kxray.data.shortcuts import EXPLAINED_SHARE, LIKELY_SKILL, SHOWN_AS, skill

    num_labels = len(next(iter(baselines.values()))["recall"])
    scores = {name: row["balanced_accuracy"] for name, row in baselines.items()}
    # One cause is better to know than all of them together.
    names = sorted(scores, key=lambda name: (name == "all", -scores[name]["value"]))
    chance = 1 / num_labels
    own, before = None if run is None else run["scores"]["balanced_accuracy"], ""
    if own is not None and not _number(own["low"]) > chance:
        before, own = f"your run is not shown to be above chance ({_interval(own)}); of the data: ", None
    if own is None:
        needed = chance + LIKELY_SKILL * (1 - chance)
        enough = [name for name in names if _number(scores[name]["low"]) >= needed]
        of, rule = " balanced accuracy", f"it counts as likely from {needed:.2f} at the lower end"
        advice = ["hold the score of your model against it: --run RUN"] if run is None else []
    else:
        needed = EXPLAINED_SHARE * skill(own["value"], num_labels)
        enough = [
            name
            for name in names
            if skill(scores[name]["value"], num_labels) >= needed and _number(scores[name]["low"]) > chance
        ]
        of, advice = f" of your {own['value']:.2f}", []
        needed = chance + needed * (1 - chance)
        rule = f"it counts as likely from {needed:.2f}, {EXPLAINED_SHARE:g} of what yours is above chance"
    best = enough[0] if enough else max(names, key=lambda name: scores[name]["value"])
    reach = f"{SHOWN_AS[best]} reaches {_interval(scores[best])}{of} (chance {chance:.2f})"
    if best != "histogram":
        reach += f", a histogram alone {scores['histogram']['value']:.2f}"
    if enough:
        return True, "; ".join([f"{before}shortcut likely: {reach}", *told])
    if told:
        return True, "; ".join([f"{before}shortcut likely: {told[0]}", *told[1:], reach])
    return False, "; ".join([f"{before}shortcut not likely: no more than this, {reach}", rule, *advice])


def _number(value) -> float:
    return float("nan") if value is None else value


def _interval(score) -> str:
    low, high = _number(score["low"]), _number(score["high"])
    return f"{score['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")


if __name__ == "__main__":
    main(prog_name="python -m training.audit")
