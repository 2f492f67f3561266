"""What a comparison of augmentation takes from a generator's run: its films and parts, and new films."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from training import films as film_tables
from training import runs

PARTS = ("train", "val", "test")
_GENERATORS = ("attention_cgan", "cdcgan")


@dataclasses.dataclass(frozen=True)
class GeneratorRun:
    """A finished run of a conditional generator.

    Args:
        folder: of the run.
        config: what its config.json holds.
        labels: the conditions, in the generator's order.
        side: of its largest films, in pixels.
    """

    folder: Path
    config: dict
    labels: tuple[str, ...]
    side: int

    @property
    def name(self) -> str:
        return self.folder.name

    def digest(self) -> str:
        """The generator's fingerprint, see `kxray.data.synthetic.generator_digest`."""
        from training.generating.generator import load_generator

        return load_generator(self.folder).facts.run

    def make_films(self, classes, seed, truncation, side) -> np.ndarray:
        """Synthetic films float32 (len(classes), side, side, 1) in [0, 1].

        Film k of a class is what `training.generate --seed SEED` makes as its number k.

        Args:
            classes: int (M,).
            seed: of the latents; film k does not depend on how many follow.
            truncation: see `kxray.models` of the generator.
            side: a scale of the generator, or its largest films are resized to it.
        """
        from kxray.io.resize import resize
        from training.generating.generator import load_generator

        films, classes = np.zeros((len(classes), side, side, 1), np.float32), np.asarray(classes, int)
        if not len(classes):
            return films
        generator = load_generator(self.folder)
        for place in np.unique(classes):
            own = np.flatnonzero(classes == place)
            for start, made in generator.chunks(self.labels[place], seed, len(own), truncation):
                largest = made.get(side, made[max(made)])[..., 0]
                for row, film in zip(own[start : start + len(largest)], largest, strict=True):
                    films[row, ..., 0] = film if film.shape == (side, side) else resize(film, (side, side))
        return films


def read_run(folder) -> GeneratorRun:
    """The run of a generator.

    Raises:
        ValueError: none given, not such a run, or one that is not finished.
    """
    from kxray.spec import ModelSpec

    if folder is None:
        raise ValueError(
            "give the run of a generator with --run; `python -m training.fit attention_cgan` makes one"
        )
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"--run {folder}: not a run folder, it has no config.json")
    config = runs.read_config(folder)
    if config.get("recipe") not in _GENERATORS:
        raise ValueError(
            f"--run {folder}: a run of {config.get('recipe')!r}; expected one of {' or '.join(_GENERATORS)}"
        )
    missing = [name for name in ("model.keras", "spec.json", "split.csv") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"--run {folder}: not finished, it has no {missing[0]}; continue it with --resume")
    spec = ModelSpec.read(folder / "spec.json")
    return GeneratorRun(folder, config, spec.labels, spec.image_size[0])


@dataclasses.dataclass(frozen=True)
class ChosenFilms:
    """The films of a generator's run, still unread.

    Args:
        conditions: `kxray.data.Conditions`.
        parts: str (N,): "train", "val", "test", or what a made imbalance left out.
        rare: labels that the run made rare.
        notes: in words.
    """

    conditions: object
    parts: np.ndarray
    rare: tuple[str, ...]
    notes: tuple[str, ...]

    def counts(self, part) -> list[int]:
        """Films of each class in a part."""
        labels = len(self.conditions.labels)
        return np.bincount(self.conditions.classes[self.parts == part], minlength=labels).tolist()

    def told(self) -> list[str]:
        """How many films there are, a line a class."""
        by_part = zip(self.conditions.labels, *(self.counts(part) for part in PARTS), strict=True)
        return [
            f"{label}: {'/'.join(map(str, counts))} films to train, validate and test"
            + (", rare" if label in self.rare else "")
            for label, *counts in by_part
        ]


def choose_films(recipe, run) -> ChosenFilms:
    """The films that a generator's run was made of, from where they were or from --data.

    Raises:
        ValueError: other films than those of the run, or classes that a comparison cannot be made of.
    """
    from kxray import data
    from kxray.data.held_out import check_held_out
    from training.generating.gan_films import run_conditions
    from training.generating.gan_options import names

    table = None if recipe.data is None else data.read_source(recipe.data, check=False)
    conditions, parts = run_conditions(run.folder, table)
    check_held_out(conditions.table, np.where(np.isin(parts, PARTS), parts, "train"))
    chosen = ChosenFilms(conditions, parts, names(run.config["options"].get("rare")), tuple(conditions.notes))
    if tuple(conditions.labels) != tuple(run.labels):
        raise ValueError(
            f"{run.folder}: makes films of {', '.join(run.labels)}, its films show "
            f"{', '.join(conditions.labels)}"
        )
    for part in PARTS:
        counts = chosen.counts(part)
        if part == "train" and not all(counts):
            raise ValueError(f"{run.folder}: no training film shows {conditions.labels[counts.index(0)]}")
        if np.count_nonzero(counts) < 2:
            raise ValueError(f"{run.folder}: the films of part {part!r} show fewer than two classes")
    return chosen


@dataclasses.dataclass(frozen=True)
class ComparedFilms:
    """The real films of a comparison.

    Args:
        films: `training.films.RunFilms`; its table has the columns label and split.
        labels: the classes.
        rare: those that the run made rare; none where it made none.
        grouping: `kxray.data.Grouping`, which films show one patient.
        generated: what to say where the films are phantoms, else "".
    """

    films: film_tables.RunFilms
    labels: tuple[str, ...]
    rare: tuple[str, ...]
    grouping: object
    generated: str = ""

    @property
    def classes(self) -> np.ndarray:
        return self.films.labels

    @property
    def groups(self) -> np.ndarray:
        return np.asarray(self.grouping.groups).astype(str)

    def rows(self, part) -> np.ndarray:
        return np.flatnonzero(self.films.table["split"] == part)

    def counts_by_part(self) -> dict:
        """Label -> {"train", "val", "test"} -> films."""
        counts = {
            part: np.bincount(self.classes[self.rows(part)], minlength=len(self.labels)) for part in PARTS
        }
        return {
            label: {part: int(counts[part][place]) for part in PARTS}
            for place, label in enumerate(self.labels)
        }


def load(recipe, run, side, folder, progress) -> ComparedFilms:
    """Reads the films of a comparison at the side of its network.

    Raises:
        ValueError: see `choose_films`; or a film that cannot be read any more.
    """
    from kxray import data
    from kxray.data import audit, pipeline, splits
    from kxray.spec import ModelSpec

    chosen = choose_films(recipe, run)
    used = np.isin(chosen.parts, PARTS)
    conditions, parts = chosen.conditions.take(used), chosen.parts[used]
    thumbnails = np.zeros((len(conditions), audit.THUMBNAIL_SIDE, audit.THUMBNAIL_SIDE), np.uint8)
    features = np.zeros((len(conditions), len(audit.FEATURE_NAMES)), np.float32)
    bar = progress.add_task("reading films", total=len(conditions), facts="")

    def on_film(index, measured):
        if measured is not None:
            thumbnails[index], features[index] = measured
        progress.update(bar, completed=index + 1)

    inputs = pipeline.load_inputs(
        conditions.table["path"],
        ModelSpec("multiscale_densenet", conditions.labels, "multiclass", (side, side)),
        measure=_measured,
        on_film=on_film,
        workers=recipe.workers,
    )
    if inputs.errors:
        error = next(iter(inputs.errors.values()))
        raise ValueError(f"{len(inputs.errors)} films of the run cannot be read, the first: {error}")
    table = pd.DataFrame(
        {
            "path": conditions.table["path"].to_numpy(),
            "patient_id": conditions.table["patient_id"].to_numpy(),
            "label": conditions.names,
            "split": parts,
            "training_only": False,
        }
    )
    grouping = data.film_groups(table, thumbnails=thumbnails)
    splits.check_parts(grouping.groups, parts)
    notes = list(chosen.notes)
    unused = int((~used).sum())
    if unused:
        notes.append(f"{unused} films are unused, as in the generator's run, which made classes rare")
    phantoms = run.config["options"].get("data") is None
    if phantoms:
        notes.append("the films are generated phantoms: scores say nothing about real films")
    films = film_tables.RunFilms(table, inputs, conditions.classes, features, thumbnails, tuple(notes))
    said = " that are generated phantoms and say nothing of patients" if phantoms else ""
    return ComparedFilms(films, tuple(conditions.labels), chosen.rare, grouping, said)


def _measured(pixels):
    from kxray.data import audit

    return audit.thumbnail(pixels), audit.no_anatomy_features(pixels)


def read_json(path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))
