"""The films of a conditional GAN's run: read, given one condition each, decoded once, and split."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training import runs
from training.generating.gan_options import names

VALIDATION_SHARE = TEST_SHARE = 0.2
# The part of films that thinning rare conditions out has left unused.
UNUSED = "unused"
# Where conditions come from: finding columns, or one column of labels.
FINDINGS, LABEL = "findings", "label"
_LEAST_TRAINED = 2
_LEAST_COMPARED = 2


@dataclasses.dataclass(frozen=True)
class GanFilms:
    """The films of a run.

    Args:
        conditions: `kxray.data.Conditions` of N films.
        inputs: `kxray.data.pipeline.NetworkInputs` of the same films, at the side of the largest films made,
            or `SomeInputs` of them.
        parts: str (N,): "train", "val", "test", or "unused".
        grouping: `kxray.data.Grouping` of the films.
        notes: what a reader of the report should know.
    """

    conditions: object
    inputs: object
    parts: np.ndarray
    grouping: object
    notes: tuple[str, ...]

    def rows(self, part) -> np.ndarray:
        return np.flatnonzero(self.parts == part)

    def pixels(self, rows) -> np.ndarray:
        """Films as they are, float32 (len(rows), s, s, 1)."""
        films = list(self.inputs.batches(rows, 256))
        return np.concatenate(films) if films else np.zeros((0, *self.inputs.shape), np.float32)


@dataclasses.dataclass(frozen=True)
class SomeInputs:
    """Some films of `kxray.data.pipeline.NetworkInputs`, none of which is copied."""

    whole: object
    kept: np.ndarray

    def __len__(self):
        return len(self.kept)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one film."""
        return self.whole.shape

    def batches(self, indices, batch_size):
        """Yields float32 (up to batch_size, s, s, 1) in the order of `indices`."""
        return self.whole.batches(self.kept[np.asarray(indices)], batch_size)


def load(recipe, side, folder, progress) -> GanFilms:
    """Gathers the films of a recipe, decodes each once, and splits them.

    Raises:
        kxray.data.ManifestError: broken rows or unreadable films, unless the recipe skips them.
        ValueError: a source without such conditions, or with too few films of one.
    """
    from kxray import data
    from kxray.spec import ModelSpec

    folder, notes = Path(folder), []
    if recipe.data is None:
        table, problems = phantoms(recipe, side, folder / "phantoms", progress), None
        notes.append("the films are generated phantoms: figures say nothing about real films")
    else:
        table, problems, notes = read(recipe)
    conditions = conditions_of(recipe, table)
    spec = ModelSpec("generator", conditions.labels, "generator", (side, side))
    inputs, thumbnails = decoded(recipe, conditions.table, spec, folder, progress)
    numbers = dict(zip(table["path"], data.manifest.row_numbers(table), strict=True))
    unreadable = unreadable_rows(conditions.table["path"], inputs, numbers)
    if len(unreadable) and not recipe.skip_bad:
        raise data.ManifestError(unreadable, recipe.data)
    problems = pd.concat([problems, unreadable], ignore_index=True)
    if len(problems):
        data.write_skipped(problems, folder / "skipped.csv")
        notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
    if len(unreadable):
        # The rarest of several labels is chosen among the films that can be read, here and ever after.
        readable = table[~table["path"].isin(unreadable["path"])]
        conditions = conditions_of(recipe, readable)
        place = {path: row for row, path in enumerate(inputs.paths)}
        kept = np.array([place[str(path)] for path in conditions.table["path"]])
        thumbnails, inputs = thumbnails[kept], SomeInputs(inputs, kept)
    grouping = data.film_groups(conditions.table, thumbnails=thumbnails)
    parts, split_notes = split(recipe, conditions, grouping)
    return GanFilms(conditions, inputs, parts, grouping, (*notes, *conditions.notes, *split_notes))


def read(recipe) -> tuple:
    """(table of readable rows of real films, problems that were skipped, notes) of the recipe's source."""
    from kxray import data
    from kxray.data.held_out import synthetic_films

    table = data.read_source(recipe.data, check=False)
    notes = list(table.attrs.get("notes", []))
    problems = data.check_manifest(table)
    if len(problems) and not recipe.skip_bad:
        raise data.ManifestError(problems, recipe.data)
    table = data.drop_problems(table, problems)
    made = synthetic_films(table, True)
    if made.any():
        notes.append(f"{int(made.sum())} synthetic films are left out: a generator learns from real ones")
        table = table[~made]
    return table, problems, notes


def conditions_of(recipe, table):
    """`kxray.data.Conditions` of a recipe's films, of which there must be two at least."""
    from kxray import data

    asked = names(recipe.labels) or None
    conditions = data.condition_films(table, asked, normal=recipe.normal, several=recipe.several)
    if len(conditions.labels) < 2:
        raise ValueError(
            f"{recipe.data or 'the phantoms'}: all films show {conditions.labels[0]}; a conditional "
            "generator needs two conditions: name others with --labels, or add --normal"
        )
    for label in names(recipe.rare):
        if label not in conditions.labels:
            raise ValueError(f"--rare {label}: the labels are {', '.join(conditions.labels)}")
    return conditions


def phantoms(recipe, side, folder, progress):
    """Writes the phantom films of a recipe, or finishes writing them, and returns their table."""
    from kxray import data
    from kxray.data.phantom import FINDINGS, Mix, write_phantoms

    asked = [name for name in names(recipe.labels) if name != data.conditions.NORMAL]
    unknown = [name for name in asked if name not in FINDINGS]
    if unknown:
        raise ValueError(f"phantoms have no {unknown[0]!r}; their findings are {', '.join(FINDINGS)}")
    bar = progress.add_task("phantom films", total=recipe.phantoms, facts="")
    manifest = write_phantoms(
        folder,
        "thorax",
        recipe.phantoms,
        recipe.seed,
        mix=Mix(size=max(128, side), views=("frontal",), findings=tuple(asked) or "random"),
        progress=lambda done: progress.update(bar, completed=done),
    )
    return data.read_manifest(manifest)


def split(recipe, conditions, grouping=None) -> tuple:
    """(part of every film, notes): the source's own split, or one by patients, even over conditions.

    Rare conditions are thinned out of the training part.
    """
    from kxray import data

    shares, table = {"val": VALIDATION_SHARE, "test": TEST_SHARE}, conditions.table
    if "split" in table.columns and (table["split"] != "").all():
        own = data.given_split(table, grouping=grouping)
        parts, notes = own.parts.astype("U6"), ["the source's own split", *own.notes]
        if "val" not in parts:
            train = parts == "train"
            inner = data.patient_split(
                table[train],
                conditions.names[train],
                val=VALIDATION_SHARE,
                test=0.0,
                seed=recipe.seed,
                grouping=own.grouping.take(train),
            )
            parts[train] = inner.parts
            notes.append("the source has no validation part: one was cut out of its train part")
    else:
        blank = int((table["split"] == "").sum()) if "split" in table.columns else len(table)
        if blank < len(table):
            notes_of_source = [f"{blank} films have no split, so that the source's split is not used"]
        else:
            notes_of_source = []
        made = data.patient_split(table, conditions.names, seed=recipe.seed, grouping=grouping, **shares)
        parts, notes = made.parts.astype("U6"), [*notes_of_source, *made.notes]
    if recipe.rare:
        kept = data.thin_out(conditions, parts, names(recipe.rare), recipe.imbalance, seed=recipe.seed)
        parts[~kept] = UNUSED
        notes.append(
            f"made rare in training, 1 to {recipe.imbalance:g}: {recipe.rare}; {int((~kept).sum())} films "
            "are unused"
        )
    for label, count in conditions.counts(parts == "train").items():
        if count < _LEAST_TRAINED:
            raise ValueError(
                f"label {label!r} has {count} films to train on, a generator needs {_LEAST_TRAINED} and "
                "more; leave it out with --labels, or give films of more patients"
            )
    if recipe.features != "none" and (parts == "val").sum() < _LEAST_COMPARED:
        raise ValueError(
            f"{int((parts == 'val').sum())} validation films are too few to compare generated ones with; "
            "give films of more patients, or --features none"
        )
    absent = [label for label, count in conditions.counts(parts == "val").items() if not count]
    if absent:
        notes.append(f"no validation film shows {', '.join(absent)}")
    return parts, notes


def run_conditions(run, table=None) -> tuple:
    """(`kxray.data.Conditions`, parts str (N,)) of a run's films, as it trained and validated on them.

    Args:
        run: folder of a run of `training.fit attention_cgan` or `cdcgan`.
        table: its films, or their source, if they have been moved; by default its --data, or its phantoms.

    Raises:
        ValueError: no such run, or other films than it was trained on.
    """
    from kxray import data
    from kxray.data.held_out import synthetic_films

    run = Path(run)
    config = runs.read_config(run)
    chosen = config["options"]
    if "labels" not in config:
        raise ValueError(f"{run}: not the run of a conditional GAN that has read its films")
    if not isinstance(table, pd.DataFrame):
        table = data.read_source(table or chosen.get("data") or run / "phantoms", check=False)
    table = data.drop_problems(table, data.check_manifest(table))
    if (run / "skipped.csv").exists():
        left_out = set(pd.read_csv(run / "skipped.csv", dtype=str, keep_default_na=False)["path"])
        table = table[~table["path"].isin(left_out)]
    table = table[~synthetic_films(table, True)]
    asked = names(chosen.get("labels")) or None
    conditions = data.condition_films(table, asked, normal=chosen["normal"], several=chosen["several"])
    if list(conditions.labels) != config["labels"]:
        raise ValueError(
            f"{run}: was trained on {', '.join(config['labels'])}, its films now show "
            f"{', '.join(conditions.labels)}"
        )
    return conditions, data.load_split(run / "split.csv", conditions.table)


def decoded(recipe, table, spec, folder, progress) -> tuple:
    """(NetworkInputs of all films of a table, their thumbnails uint8 (N, 32, 32)).

    Thumbnails are kept in FOLDER/work, because a disk cache spares the reading that makes them.

    Args:
        recipe: its cache, workers and dicom_reader.
        table: of films.
        spec: ModelSpec of what takes them.
        folder: of the run.
        progress: rich progress with a `facts` field.
    """
    from kxray.data import audit, pipeline

    kept = Path(folder) / "work" / "thumbnails.npy"
    kept.parent.mkdir(parents=True, exist_ok=True)
    thumbnails = np.zeros((len(table), audit.THUMBNAIL_SIDE, audit.THUMBNAIL_SIDE), np.uint8)
    seen, bar = [], progress.add_task("reading films", total=len(table), facts="")

    def on_film(index, thumbnail):
        seen.append(index)
        if thumbnail is not None:
            thumbnails[index] = thumbnail
        progress.update(bar, completed=index + 1)

    if not kept.exists():
        import shutil

        # Killed between the two: a cache alone would spare the reading that measures.
        shutil.rmtree(kept.with_name("cache"), ignore_errors=True)
    inputs = pipeline.load_inputs(
        table["path"],
        spec,
        cache=recipe.cache,
        cache_dir=kept.with_name("cache"),
        measure=audit.thumbnail,
        on_film=on_film,
        workers=recipe.workers,
        dicom_reader=recipe.dicom_reader,
    )
    progress.update(bar, completed=len(table))
    if seen or not kept.exists():
        with replacing(kept) as temporary:
            np.save(temporary, thumbnails)
    return inputs, np.load(kept)


def unreadable_rows(paths, inputs, numbers) -> pd.DataFrame:
    """The films that could not be read, as problems.

    Args:
        paths: of all films.
        inputs: their NetworkInputs.
        numbers: the row of each path in its source.
    """
    return pd.DataFrame(
        [
            (numbers[paths[index]], paths[index], "path", f"unreadable film: {error}")
            for index, error in inputs.errors.items()
        ],
        columns=["row", "path", "column", "problem"],
    )


def described(films) -> dict:
    """What config.json says of films: how many of each condition are in which part."""
    return {
        part: films.conditions.counts(films.parts == part)
        for part in ("train", "val", "test", UNUSED)
        if part != UNUSED or (films.parts == UNUSED).any()
    }


def check_same(folder, fingerprint) -> dict:
    """The run's config.json; a resumed run must find the films it was started on."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    known = config.get("data_fingerprint", fingerprint)
    if known != fingerprint:
        raise ValueError(
            f"the films are not those this run was started on ({known[:12]}, now {fingerprint[:12]}); "
            "restore them or start a new run"
        )
    return config
