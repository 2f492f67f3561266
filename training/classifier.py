"""The job of every classifier recipe: films in, a trained, measured, reported and exported model out."""

import dataclasses
import json
import math
import shlex
from pathlib import Path

from rich.console import Console

from kxray.io.files import check_exportable
from training import films as film_tables
from training import finding_scores, findings, options, runs, scoring, shell
from training.films import DEFAULT_PHANTOMS
from training.job import ClassifierJob
from training.options import option


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    data: str | None = option(
        None,
        "Folder of films, or a manifest CSV. Left out, films are generated (see --phantoms).",
    )
    out: str | None = option(None, "Run folder; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted run in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    epochs: int = option(100, "Passes over the training films.", low=1)
    batch_size: int = option(32, "Films a step, over all devices.", low=1)
    learning_rate: float = option(1e-3, "The optimizer's highest rate.", low=1e-8, high=1.0)
    learning_rate_decay: str = option(
        "cosine", "cosine: falls to zero over the run; none: stays.", choices=("cosine", "none")
    )
    patience: int = option(
        0, "Stop after so many epochs without a lower validation loss; 0 trains all epochs.", low=0
    )
    folds: int = option(
        0,
        "0: one split into train, validation and test. K: every film is tested once by a model that saw no "
        "film of its patient; then a final model is trained on all but the sixth that chooses its epoch.",
        low=0,
        high=50,
    )
    seed: int = option(0, "Of the split, the weights, and the order and augmentation of films.", low=0)
    phantoms: int | None = option(
        None,
        f"Generated films: all there are without --data ({DEFAULT_PHANTOMS} by default), and with --data "
        "extra training films that are never tested on (0 by default).",
        low=0,
    )
    corrections: str | None = option(
        None, "CSV of corrected films from training.sort: extra training films that are never tested on."
    )
    strategy: str = option(
        "auto",
        "Devices: one (none), all GPUs or logical CPUs (mirrored), or mirrored where there are several GPUs.",
        choices=("auto", "none", "mirrored"),
    )
    mixed_precision: bool = option(False, "Compute in half precision where it is safe.")
    deterministic: bool = option(False, "Bit-equal results on the same machine, a little slower.")
    cache: str = option(
        "memory",
        "Where network inputs are kept between epochs: in memory, on disk, or nowhere (none); stream also "
        "decodes no film before it is trained on, for collections that do not fit anywhere.",
        choices=("memory", "disk", "none", "stream"),
    )
    workers: int | None = option(None, "Decoding workers; one a core by default.", low=1)
    dicom_reader: str = option(
        "auto", "What decodes DICOM films.", choices=("auto", "pydicom", "tensorflow-io")
    )
    skip_bad: bool = option(
        False, "Leave out broken rows and unreadable films, and list them in skipped.csv."
    )
    export: str | None = option(
        None, "Folder for the SavedModel's next version; RUN/saved_models/NAME by default."
    )


def fit_classifier(recipe, given, task_of) -> Path:
    """Runs the whole job and returns the run folder.

    Args:
        recipe: ClassifierOptions.
        given: the options given at the shell.
        task_of: function of a recipe: its `training.films.ClassifierTask`; raises ValueError on options that
            do not fit each other.
    """
    console = Console(highlight=False, markup=False)
    recipe, given = runs.with_absolute_places(recipe, given)
    if not recipe.resume:
        # Found out now, not after the training.
        check_exportable(recipe.export or recipe.out or "")
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    elif recipe.dry_run:
        return _dry_run(recipe, task_of(recipe), console)
    else:
        task = task_of(recipe)
        source = Path(recipe.data).resolve().name if recipe.data else f"{task.phantom_kind}-phantoms"
        folder = runs.create(recipe.out or runs.default_folder(task.name, source))
        runs.write_json(folder / "config.json", {"recipe": task.name, "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        _tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    def work(progress):
        return ClassifierJob(recipe, task_of(recipe), folder, progress).run()

    _tell(console, folder, runs.carried_out(folder, recipe.resume, console, work))
    return folder


def _tell(console, folder, scores):
    if "findings" in scores:
        told = f"SavedModel {scores['saved_model']}\nreport {(folder / 'report.html').resolve()}"
        console.print(f"{_of_findings(scores)}\n{told}", soft_wrap=True)
        return
    console.print(
        f"balanced accuracy {_interval(scores['balanced_accuracy'], 3)}, {scores['conditions']}\n"
        f"{_without_anatomy(folder, scores)}\n"
        f"SavedModel {scores['saved_model']}\n"
        f"report {(folder / 'report.html').resolve()}",
        soft_wrap=True,
    )


def _of_findings(scores):
    """One line a finding, then the means, beside what a classifier reaches that sees no anatomy."""
    longest = max(map(len, scores["findings"]))
    lines = [
        f"{name:<{longest}}  AUROC {_interval(score['auroc'], 3)}, {score['positive']} of "
        f"{score['positive'] + score['negative']} films; no anatomy "
        f"{_interval(scores['baseline']['findings'][name]['auroc'])}"
        for name, score in scores["findings"].items()
    ]
    histogram, whole = (_interval(scores[key]["auroc"]) for key in ("histogram_baseline", "baseline"))
    lines += [
        f"mean AUROC {_interval(scores['auroc'], 3)}, average precision "
        f"{_interval(scores['average_precision'], 3)}, {len(scores['findings'])} findings, "
        f"{scores['conditions']}",
        f"no anatomy: grey histogram alone {histogram}, with borders and sharpness {whole}",
    ]
    reached = ["their mean" if name == "mean" else name for name in finding_scores.reaching(scores)]
    if reached:
        lines[-1] += f" -> shortcut likely? that may be all it takes for {', '.join(reached)}"
    return "\n".join(lines)


def _without_anatomy(folder, scores):
    """One line: how far grey levels alone get on the same films, and what to do where that is as far."""
    told = f"with borders and sharpness {_interval(scores['baseline']['balanced_accuracy'])}"
    if "histogram_baseline" in scores:
        histogram = scores["histogram_baseline"]["balanced_accuracy"]
        told = f"grey histogram alone {_interval(histogram)}, {told}"
    told = f"no anatomy: {told}; this model {_interval(scores['balanced_accuracy'])}"
    if scoring.reaching(scores) is None:
        return told
    films = runs.read_config(folder)["options"].get("data") or folder / "phantoms"
    command = shlex.join(["python", "-m", "training.audit", "--data", str(films), "--run", str(folder)])
    return f"{told} -> shortcut likely? run {command}"


def _interval(score, digits=2):
    ends = (math.nan if score[key] is None else score[key] for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*(f"{end:.{digits}f}" for end in ends))


def _dry_run(recipe, task, console):
    console.print_json(json.dumps({"recipe": task.name, "options": options.as_json(recipe)}))
    if recipe.out is not None:
        runs.check_free(recipe.out)
    if recipe.export is not None and Path(recipe.export).exists() and not Path(recipe.export).is_dir():
        raise ValueError(f"{recipe.export}: --export names a folder, and this is a file")
    if recipe.corrections is not None:
        corrected, _, _ = film_tables.read_labelled(recipe.corrections, task, False, every_class=False)
        console.print(f"{len(corrected)} corrected films to train on")
    if recipe.data is None:
        count = DEFAULT_PHANTOMS if recipe.phantoms is None else recipe.phantoms
        console.print(f"would generate {count} {task.phantom_kind} phantoms")
        _tell_of_model(dataclasses.replace(task, labels=task.labels or ("a", "b")), console)
        return None
    table, skipped, notes = film_tables.read_labelled(recipe.data, task, recipe.skip_bad)
    task, table, own_notes = film_tables.settle(task, table)
    console.print(f"{len(table)} films: {_counts(task, table)}", soft_wrap=True)
    for note in [
        *notes,
        *own_notes,
        *(f"would skip row {row}: {why}" for row, why in skipped[["row", "problem"]].values),
    ]:
        console.print(note)
    split = film_tables.split_films(recipe, task, table, None)
    console.print_json(json.dumps(split.facts()))
    _tell_of_model(task, console)
    return None


def _counts(task, table):
    if task.multilabel:
        counted = findings.counted(table, task.labels).iterrows()
        return ", ".join(
            f"{name} {row.positive}" + (f" ({row.unknown} unknown)" if row.unknown else "")
            for name, row in counted
        )
    counts = table[task.label_column].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in task.labels)


def _tell_of_model(task, console):
    if task.told is not None:
        shell.load_tensorflow()
        console.print(task.told(task.spec), soft_wrap=True)
