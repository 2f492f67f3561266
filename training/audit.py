"""What a score on these films is worth, before anyone believes one: python -m training.audit --data DIR"""

import math
import sys
from pathlib import Path

import click

from training.shell import program

HELP = """
Looks for what makes a score on a set of films worth less than it seems, and says in plain words whether a
shortcut is likely, possible or not seen:

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
\b
With --run the first rule is: one of them
  reaches at least 0.9 of what the run is better than chance, the two intervals meet, and its own lower end is
    at least 0.3 of the way from chance to perfect.

A shortcut is possible where the lower end of one of these classifiers is at least 0.3 of the way from chance
to perfect (0.65 for two classes), or where one that is above chance reaches 0.9 of what the run is above it:
so much of a score may be no anatomy. Sharpness and the frame of a film that is filled to its edge are partly
anatomy; that is why this is no more than a reason to hold a model's score against them. Not seen means that
none of these classifiers found one; a network may find what they do not look for.

\b
Exit code 0; with --strict 3 where a shortcut is likely (not where it is only possible), or where one film or
patient is in two splits; 2 where the arguments or the data make an audit impossible.

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

    from training import shell
    from training.auditing import audit_question, audited_data
    from training.report.audit import write_report

    finished = None
    if run is not None:
        from training.auditing.run_films import read_finished

        finished = read_finished(run)
    asked = run is None or label_column is not None or finding is not None
    question = audit_question.Question(label_column or "label", finding) if asked else None
    films = audit_question.read_films(data, question, finished)
    with shell.progress_bars(Console(highlight=False, markup=False)) as progress:
        found = audited_data.audit(films, folds=folds, seed=seed, workers=workers, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        audited = None
        if run is not None:
            from training.auditing.audited_run import audit_run

            audited = audit_run(
                run, found.table, found.facts["baselines"], folder=out,
                thumbnails=found.scan.thumbnails, progress=progress, workers=workers,
            )  # fmt: skip
    level, text = judgement(found.facts["baselines"], audited, found.told)
    likely = level == "likely"
    leaks = found.leaks()
    facts = {
        "data": str(data),
        "verdict": {"level": level, "likely": likely, "text": text, "leaks": leaks},
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
        run: of `training.auditing.audited_run.audit_run`, or None.
        told: what tells the class all by itself, in words (a file property, a source, a marker).

    Returns:
        (likely, text), see `judgement`.
    """
    level, text = judgement(baselines, run, told)
    return level == "likely", text


def judgement(baselines, run=None, told=()) -> tuple[str, str]:
    """How likely a shortcut is, and why, in words.

    How far a balanced accuracy is from chance (0) to perfect (1) is its skill. The arguments are those of
    `verdict`.

    Returns:
        (level, text). Level "likely": something is `told`; or, without a run, the lower end of some
        classifier's interval has a skill of 0.8; or, with one, some classifier has 0.9 of the run's skill,
        their intervals meet, and the skill at its own lower end is at least 0.3: the best of six is a little
        lucky. "possible": that lower end has a skill of 0.3, or a classifier that is above chance has 0.9 of
        the run's. "not seen" else.
    """
    from kxray.data.shortcuts import EXPLAINED_SHARE, LIKELY_SKILL, POSSIBLE_SKILL, SHOWN_AS, skill

    num_labels = len(next(iter(baselines.values()))["recall"])
    scores = {name: row["balanced_accuracy"] for name, row in baselines.items()}
    # One cause is better to know than all of them together.
    names = sorted(scores, key=lambda name: (name == "all", -scores[name]["value"]))
    chance = 1 / num_labels

    def from_skill(share):
        return chance + share * (1 - chance)

    def surely(name, share):
        return skill(_number(scores[name]["low"]), num_labels) >= share

    own, before = None if run is None else run["scores"]["balanced_accuracy"], ""
    if own is not None and not _number(own["low"]) > chance:
        before, own = f"your run is not shown to be above chance ({_interval(own)}); of the data: ", None
    if own is None:
        near = []
        likely = [name for name in names if surely(name, LIKELY_SKILL)]
        of, needed = " balanced accuracy", f"{from_skill(LIKELY_SKILL):.2f} at the lower end"
    else:
        share = EXPLAINED_SHARE * skill(own["value"], num_labels)
        near = [
            name
            for name in names
            if skill(scores[name]["value"], num_labels) >= share and _number(scores[name]["low"]) > chance
        ]
        likely = [
            name
            for name in near
            if surely(name, POSSIBLE_SKILL) and _number(scores[name]["high"]) >= own["low"]
        ]
        of = f" of your {_interval(own)}"
        needed = f"{from_skill(share):.2f}, {EXPLAINED_SHARE:g} of what yours is above chance"
    possible = [name for name in names if name in near or surely(name, POSSIBLE_SKILL)]
    best = likely[0] if likely else max(possible or names, key=lambda name: scores[name]["value"])
    reach = f"{SHOWN_AS[best]} reaches {_interval(scores[best])}{of} (chance {chance:.2f})"
    if best != "histogram":
        reach += f", a histogram alone {scores['histogram']['value']:.2f}"
    if likely:
        return "likely", "; ".join([f"{before}shortcut likely: {reach}", *told])
    if told:
        return "likely", "; ".join([f"{before}shortcut likely: {told[0]}", *told[1:], reach])
    advice = ["hold the score of your model against it: --run RUN"] if run is None else []
    if possible:
        rule = f"so much of a score may be no anatomy, and it counts as likely from {needed}"
        return "possible", "; ".join(
            [f"{before}shortcut possible, not shown to be likely: {reach}", rule, *advice]
        )
    rule = f"it counts as possible from {from_skill(POSSIBLE_SKILL):.2f} at the lower end"
    return "not seen", "; ".join([f"{before}shortcut not seen: no more than this, {reach}", rule])


def _number(value) -> float:
    return float("nan") if value is None else value


def _interval(score) -> str:
    if not math.isfinite(_number(score["value"])):
        return "undefined"
    low, high = _number(score["low"]), _number(score["high"])
    return f"{score['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")


if __name__ == "__main__":
    main(prog_name="python -m training.audit")
