"""Compares the films of generators with real ones: `python -m training.generate evaluate --run RUN`."""

import dataclasses
from pathlib import Path

import click
import numpy as np
import pandas as pd

from training import runs, shell
from training.generating.evaluated_told import FLOOR, paper_table, table_rows, told, verdict
from training.shell import program

_SHOWN = 6
# Whether classes are told apart takes no real films: so many generated ones of each class, at least.
_LEAST_MADE = 64
PARTS = ("test", "val")


@click.command(context_settings={"max_content_width": 100})
@click.option("--run", required=True, help="Run folder of training.fit attention_cgan or cdcgan.")
@click.option("--against", multiple=True, help="Another run of the same classes; may be repeated.")
@click.option(
    "--features",
    help="Run of a classifier, whose features films are compared by.  [default: RUN/features]",
)
@click.option("--part", type=click.Choice(PARTS), default="test", show_default=True, help="Real films.")
@click.option("--films", type=click.IntRange(2), help="At most so many of each class; all by default.")
@click.option("--out", required=True, help="Folder to write to.")
@click.option("--truncation", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Of films and intervals.",
)
@click.option(
    "--resamples", type=click.IntRange(0), default=200, show_default=True, help="Of an interval; 0: none."
)
@click.option("--data", "source", help="The run's films, if they have been moved.")
@click.option("--workers", type=click.IntRange(1), help="Decoding workers; one a core by default.")
@program
def main(run, against, features, part, films, out, truncation, seed, resamples, source, workers):
    """Compare generated films with real ones, one generator beside the other.

    \b
    By the features of a classifier that learned from the run's training films, or of --features:
      Frechet DenseNet distance (FDD; of features and of class probabilities), kernel distance (KID),
      precision, recall, density and coverage, for each class and overall, at equal counts; and whether the
      classifier tells generated classes apart, of which at least 64 films each are made.
    Beside the generators stand real films of other patients: nothing can be nearer than they are.

    \b
    OUT/generated.html  tables with 95% intervals, the paper's Table 1, films to look at
    OUT/table.csv       a row a model and class
    OUT/metrics.json    everything

    \b
    python -m training.generate evaluate --run runs/00007 --against runs/00008 --out judged
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    shell.load_tensorflow()
    from rich.console import Console

    asked = Evaluation(part, films, truncation, seed, resamples, workers, source)
    with shell.progress_bars(Console(highlight=False, markup=False)) as progress:
        found = evaluate((run, *against), features, out, asked, progress)
    click.echo(told(found, out))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked.

    Attributes:
        part: "test" or "val": the real films; those of the other part are what real films score.
        films: most films of a class, or None.
        truncation: of the generated films.
        seed: of films that are drawn or made, and of intervals.
        resamples: of an interval.
        workers: of reading.
        source: where the first run's films are, if they have been moved.
    """

    part: str = "test"
    films: int | None = None
    truncation: float = 1.0
    seed: int = 0
    resamples: int = 200
    workers: int | None = None
    source: str | None = None


def evaluate(folders, features, out, asked, progress) -> dict:
    """Judges generators by the real films of the first one's run, and writes tables and page.

    Args:
        folders: of the generators' runs.
        features: run of a classifier, or None: RUN/features of the first.
        out: folder.
        asked: Evaluation.
        progress: rich progress with a `facts` field.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: a run that makes no films, or of other classes; films that were moved; no feature model.
    """
    from kxray.metrics import scale_agreement
    from training.generating.generator import load_generator
    from training.report.generated import write_report

    generators = [load_generator(folder) for folder in folders]
    labels = generators[0].spec.labels
    for other in generators[1:]:
        if set(other.spec.labels) != set(labels):
            raise ValueError(
                f"{other.run} makes films of {', '.join(other.spec.labels)}, {generators[0].run} of "
                f"{', '.join(labels)}; only runs of the same classes compare"
            )
    names = _names(generators)
    place = Path(features or Path(folders[0]) / "features")
    model = _feature_model(place, labels)
    real, others, notes = real_films(generators, asked, progress)
    notes += _seen(model, place, features, generators[0], asked.source)
    counts = np.bincount(real.classes, minlength=len(labels))
    seen = model.features(real.films)
    judged = _Judged(seen, real, labels, asked)
    pictures = {f"{FLOOR} ({asked.part})": _examples(real.films, real.classes, len(labels))}
    rows = []
    for generator, name in zip(generators, names, strict=True):
        made, classes = _made(generator, labels, counts, asked, progress)
        films = made[generator.side]
        pictures[name] = _examples(films, classes, len(labels))
        facts = _facts(generator) | {"scales": scale_agreement(made, classes)}
        rows.append({"name": name, **facts, "scores": judged(model.features(films), classes)})
    if others is not None:
        scores = judged(model.features(others.films), others.classes)
        rows.append({"name": FLOOR, "model": FLOOR, "scores": scores})
    found = {
        "labels": labels,
        "part": asked.part,
        "counts": dict(zip(labels, counts.tolist(), strict=True)),
        "films": int(counts.sum()),
        "patients": len(set(real.patients.tolist())),
        "features": {
            "run": str(place.resolve()),
            "model": model.spec.name,
            "backbone": model.spec.provenance.get("backbone"),
            "image_size": model.spec.image_size,
            "validation": model.validation,
        },
        "truncation": asked.truncation,
        "seed": asked.seed,
        "resamples": asked.resamples,
        "rows": rows,
        "paper": paper_table(labels),
        "notes": notes,
        "versions": runs.versions(),
    }
    found["verdict"] = verdict(found)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.write_json(out / "metrics.json", found)
    runs.write_table(out / "table.csv", pd.DataFrame(table_rows(found)))
    write_report(out, found, pictures)
    return found


def _feature_model(place, labels):
    from training.generating.feature_model import FeatureModel

    if not place.exists():
        raise ValueError(f"{place}: no such classifier; name one with --features RUN")
    return FeatureModel.load(place, labels)


def _seen(model, place, given, generator, source):
    """What a reader must know of the feature model."""
    from kxray import data
    from training.generating.gan_films import run_conditions

    notes = []
    if not model.knows:
        notes.append(
            f"the feature model {place} has other labels ({', '.join(model.spec.labels)}): it cannot say "
            "whether classes are told apart"
        )
    if given is not None:
        conditions, parts = run_conditions(generator.run, source)
        paths = conditions.table["path"][parts != "train"]
        notes += runs.seen_before(str(place), "feature model", data.fingerprint(conditions.table), paths)
    return notes


@dataclasses.dataclass(frozen=True)
class RealFilms:
    """Real films of one part: float32 (N, s, s, 1), classes (N,), patients (N,)."""

    films: np.ndarray
    classes: np.ndarray
    patients: np.ndarray


def real_films(generators, asked, progress) -> tuple:
    """(RealFilms of the part, as many of each class of the other part or None, notes).

    Of a class both have as many films as the part with fewer has; where the other part has too few films for
    an FDD (2), the part keeps all of its own.
    """
    from kxray.data import pipeline
    from kxray.spec import ModelSpec
    from training.generating.gan_films import run_conditions

    conditions, parts = run_conditions(generators[0].run, asked.source)
    labels, classes = conditions.labels, conditions.classes
    side = max(generator.side for generator in generators)
    notes = _trained_on(generators, conditions, parts, asked)
    random = np.random.default_rng([asked.seed, 45])
    other = PARTS[1 - PARTS.index(asked.part)]
    drawn = {asked.part: [], other: []}
    for index, label in enumerate(labels):
        members = {part: np.flatnonzero((parts == part) & (classes == index)) for part in drawn}
        enough = [len(members[part]) for part in drawn if len(members[part]) > 1 or part == asked.part]
        count = min(*enough, asked.films or len(classes), len(classes))
        if count < 2:
            notes.append(f"{label}: {count} real films in part {asked.part}; its scores say nothing")
        for part, rows in members.items():
            drawn[part].append(rows if len(rows) <= count else random.permutation(rows)[:count])
    rows = {part: np.sort(np.concatenate(chosen)) for part, chosen in drawn.items()}
    if not len(rows[asked.part]):
        raise ValueError(f"{generators[0].run}: no films in part {asked.part}")
    both = np.concatenate([*rows.values()])
    bar = progress.add_task("reading real films", total=len(both), facts="")
    inputs = pipeline.load_inputs(
        conditions.table["path"].to_numpy(object)[both],
        ModelSpec("generator", labels, "generator", (side, side)),
        on_film=lambda index, _: progress.update(bar, completed=index + 1),
        workers=asked.workers,
    )
    if inputs.errors:
        raise ValueError(next(iter(inputs.errors.values())))
    progress.update(bar, completed=len(both))
    patients = conditions.table["patient_id"].to_numpy(object)
    patients = np.where(patients == "", conditions.table["path"].to_numpy(object), patients)
    cut, pixels = len(rows[asked.part]), np.asarray(inputs.pixels)
    real = RealFilms(pixels[:cut], classes[both[:cut]], patients[both[:cut]])
    others = RealFilms(pixels[cut:], classes[both[cut:]], patients[both[cut:]])
    if len(others.films) < 2:
        notes.append(f"too few {other} films to say how near real films of other patients are")
        others = None
    return real, others, notes


def _trained_on(generators, conditions, parts, asked):
    """Whether another run was trained on films that the first one is judged by."""
    from training.generating.gan_films import run_conditions

    notes, judged = [], {*conditions.table["path"][parts == asked.part]}
    data = [runs.read_config(generator.run)["options"].get("data") for generator in generators]
    for other, own in zip(generators[1:], data[1:], strict=True):
        # Films of one source have been moved together.
        theirs, their_parts = run_conditions(other.run, asked.source if own and own == data[0] else None)
        seen = len(judged & {*theirs.table["path"][their_parts == "train"]})
        if seen:
            notes.append(
                f"{other.run} was trained on {seen} of the {len(judged)} films: its scores are too good"
            )
    return notes


def _made(generator, labels, counts, asked, progress):
    """Generated films, of each class as many as real ones and _LEAST_MADE: (films by side, their classes)."""
    counts = np.where(counts > 0, np.maximum(counts, _LEAST_MADE), 0)
    bar = progress.add_task(f"making films: {generator.spec.name}", total=int(counts.sum()), facts="")
    chunks, done = [], 0
    for label, count in zip(labels, counts.tolist(), strict=True):
        chunks += [films for _, films in generator.chunks(label, asked.seed, count, asked.truncation)]
        done += count
        progress.update(bar, completed=done)
    made = {side: np.concatenate([films[side] for films in chunks]) for side in generator.gan.sides}
    return made, np.repeat(np.arange(len(labels)), counts)


class _Judged:
    """Scores of films against the same real ones."""

    def __init__(self, seen, real, labels, asked):
        self.seen, self.real, self.labels, self.asked = seen, real, labels, asked

    def __call__(self, fake, classes):
        from training.generating.judged import judge

        return judge(
            self.seen,
            self.real.classes,
            fake,
            classes,
            self.labels,
            seed=self.asked.seed,
            resamples=self.asked.resamples,
            patients=self.real.patients,
        )


def _names(generators):
    """Models by their name, and by their run's folder where two have the same; no two alike."""
    names = [generator.spec.name for generator in generators]
    for place in (lambda run: run.name, str):
        names = [
            name if names.count(name) == 1 else f"{generator.spec.name} ({place(generator.run.resolve())})"
            for name, generator in zip(names, generators, strict=True)
        ]
    if len(set(names)) < len(names):
        raise ValueError(f"--against {generators[-1].run}: the same run is given twice")
    return names


def _facts(generator):
    """What a reader of a generator's row should know."""
    import json

    facts = {
        "model": generator.spec.name,
        "run": str(Path(generator.run).resolve()),
        "fingerprint": generator.facts.run,
        "side": generator.side,
        "epoch": generator.spec.provenance.get("epoch"),
    }
    try:
        scores = json.loads((Path(generator.run) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        scores = {}
    names = ("discriminator_updates", "minutes", "nearest", "copies", "diversity")
    return facts | {name: scores.get(name) for name in names}


def _examples(films, classes, count):
    """Up to _SHOWN films of each class, float32 (count, _SHOWN, s, s); black where there are fewer."""
    side = films.shape[1]
    shown = np.zeros((count, _SHOWN, side, side), np.float32)
    for index in range(count):
        own = films[classes == index][:_SHOWN, ..., 0]
        shown[index, : len(own)] = own
    return shown
