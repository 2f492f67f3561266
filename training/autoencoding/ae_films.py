"""The films of an autoencoder: a classifier's, those of a folder with or without labels, or phantoms."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from training.counterfactuals import cf_films
from training.counterfactuals.cf_films import ClassifierRun
from training.generating import gan_films

_SHARES = {"val": gan_films.VALIDATION_SHARE, "test": gan_films.TEST_SHARE}
_DEFAULT_SIDE = 64
_LEAST = {"train": 8, "val": 2, "test": 1}


@dataclasses.dataclass(frozen=True)
class AutoencoderFilms:
    """The films of a run.

    Attributes:
        table: one row a film.
        inputs: `NetworkInputs` or `SomeInputs` of the same films.
        parts: str (N,): "train", "val" or "test".
        grouping: `kxray.data.Grouping`.
        notes: what a reader of the report should know.
    """

    table: pd.DataFrame
    inputs: object
    parts: np.ndarray
    grouping: object
    notes: tuple[str, ...]

    def rows(self, part) -> np.ndarray:
        return np.flatnonzero(self.parts == part)

    def pixels(self, rows) -> np.ndarray:
        """Films as they are, float32 (len(rows), h, w, 1)."""
        return np.concatenate(list(self.inputs.batches(np.asarray(rows, int), 256)))


def classifier_of(recipe) -> ClassifierRun | None:
    """The classifier's run that a recipe names, or None. Raises ValueError for what is none."""
    return None if recipe.classifier is None else ClassifierRun.read(recipe.classifier)


def image_size(recipe, classifier) -> tuple[int, int]:
    """(height, width) of the films of a recipe.

    Raises:
        ValueError: another size than the classifier's, or one that the stages do not divide.
    """
    size = (recipe.image_size or _DEFAULT_SIDE,) * 2
    if classifier is not None:
        own = tuple(classifier.spec.image_size)
        if recipe.image_size is not None and size != own:
            raise ValueError(
                f"--image-size {recipe.image_size}: the classifier takes films of {own[0]}x{own[1]} pixels, "
                "and a latent shift of it needs an autoencoder of the same; leave --image-size out"
            )
        size = own
    if any(side % 2**recipe.depth for side in size):
        raise ValueError(
            f"--depth {recipe.depth} takes films of multiples of {2**recipe.depth} pixels, got "
            f"{size[0]}x{size[1]}; choose another --depth or --image-size"
        )
    return size


def read(recipe, classifier, folder=None, progress=None) -> tuple:
    """(table of readable rows of real films, problems that were skipped, notes, parts or None).

    Args:
        recipe: its data, phantoms, skip_bad.
        classifier: ClassifierRun, whose films are taken without --data, or None.
        folder, progress: where phantoms are written, where there is nothing else.

    Raises:
        kxray.data.ManifestError: broken rows, unless they are skipped.
        ValueError: the films of the classifier's run are not there any more.
    """
    if recipe.data is not None:
        table, problems, notes = _read_source(recipe)
        return table, problems, notes, _known_parts(classifier, table)
    if classifier is not None:
        found = cf_films.read(recipe, classifier)
        return found.table, found.problems, list(found.notes), found.parts
    notes = ["the films are generated phantoms: figures say nothing about real films"]
    return _phantoms(recipe, folder / "phantoms", progress), None, notes, None


def load(recipe, classifier, size, folder, progress) -> AutoencoderFilms:
    """Gathers the films of a recipe, decodes each once, and splits those that have no parts yet.

    Raises:
        kxray.data.ManifestError: broken rows or unreadable films, unless they are skipped.
        ValueError: too few films for three parts, or not those of the classifier.
    """
    from kxray import data
    from kxray.spec import ModelSpec

    table, problems, notes, parts = read(recipe, classifier, folder, progress)
    numbers = dict(zip(table["path"], data.manifest.row_numbers(table), strict=True))
    table = table.reset_index(drop=True)
    spec = ModelSpec("autoencoder", ("film",), "autoencoder", size)
    inputs, thumbnails = gan_films.decoded(recipe, table, spec, folder, progress)
    unreadable = gan_films.unreadable_rows(table["path"], inputs, numbers)
    if len(unreadable) and not recipe.skip_bad:
        raise data.ManifestError(unreadable, recipe.data or classifier.source)
    problems = pd.concat([problems, unreadable], ignore_index=True)
    if len(problems):
        data.write_skipped(problems, folder / "skipped.csv")
        notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
    if inputs.errors:
        kept = np.setdiff1d(np.arange(len(table)), list(inputs.errors))
        table, thumbnails = table.iloc[kept].reset_index(drop=True), thumbnails[kept]
        inputs, parts = gan_films.SomeInputs(inputs, kept), None if parts is None else parts[kept]
    grouping = data.film_groups(table, thumbnails=thumbnails)
    if parts is None:
        parts, split_notes = split(recipe, table, grouping)
        notes += split_notes
    for part, least in _LEAST.items():
        count = int((parts == part).sum())
        if count < least:
            raise ValueError(
                f"{count} films to {'validate' if part == 'val' else part} on, an autoencoder takes {least} "
                "and more; give films of more patients"
            )
    return AutoencoderFilms(table, inputs, parts, grouping, tuple(notes))


def split(recipe, table, grouping=None) -> tuple:
    """(part of every film, notes): the source's own split, or one by patients."""
    from kxray import data
    from kxray.data.splits import has_split

    by = {"seed": recipe.seed, "grouping": grouping}
    if not has_split(table):
        made = data.patient_split(table, _alike(table), **_SHARES, **by)
        return made.parts.astype("U5"), list(made.notes)
    own = data.given_split(table, grouping=grouping)
    parts, notes = own.parts.astype("U5"), ["the source's own split", *own.notes]
    if "val" not in parts:
        train = parts == "train"
        by["grouping"] = own.grouping.take(train)
        inner = data.patient_split(table[train], _alike(table[train]), val=_SHARES["val"], test=0.0, **by)
        parts[train] = inner.parts
        notes.append("the source has no validation part: one was cut out of its train part")
    return parts, notes


def _alike(table):
    """One label for all films: none is used."""
    return np.full(len(table), "film")


def _read_source(recipe):
    """(table of readable rows of real films, problems, notes) of --data, which need not say more of them."""
    from kxray import data
    from kxray.data import sources

    try:
        return gan_films.read(recipe)
    except data.ManifestError:
        raise
    except ValueError:
        folder = Path(recipe.data)
        found = sources.find_films(folder) if folder.is_dir() and not any(folder.rglob("*.csv")) else []
        if not found:
            raise
    paths = [str(path.absolute()) for path in found]
    table = data.manifest.as_manifest(pd.DataFrame({"path": paths, "patient_id": [""] * len(paths)}))
    return table, None, ["nothing tells the films' patients: only films that look alike are kept together"]


def _known_parts(classifier, table):
    """The parts of films that are those of a classifier's run, moved; else None."""
    from kxray import data

    if classifier is None or classifier.folds or not (classifier.folder / "split.csv").is_file():
        return None
    try:
        return data.load_split(classifier.folder / "split.csv", table)
    except data.SplitError:
        return None


def _phantoms(recipe, folder, progress):
    """Writes the phantom films of a recipe, or finishes writing them, and returns their table."""
    from kxray import data
    from kxray.data.phantom import Mix, write_phantoms

    bar = progress.add_task("phantom films", total=recipe.phantoms, facts="")
    manifest = write_phantoms(
        folder,
        "thorax",
        recipe.phantoms,
        recipe.seed,
        mix=Mix(size=max(128, recipe.image_size or _DEFAULT_SIDE), views=("frontal",)),
        progress=lambda done: progress.update(bar, completed=done),
    )
    return data.read_manifest(manifest)
