"""The training films that are nearest to generated ones: does the generator make films, or repeat them?"""

import dataclasses
from pathlib import Path

import numpy as np

from kxray.io.files import replacing
from training.generating import gan_watch
from training.generating.gan_films import run_conditions

MEASURES = ("copies", "features")
NEIGHBOURS = 3
_SHOWN = 24
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class TrainingFilms:
    """The training films of a generator, as vectors that distances are taken of.

    Attributes:
        paths: of N films.
        names: their conditions.
        vectors: float32 (N, F).
        held_out: median distance of validation films to their nearest training film; NaN without any.
        vector_of: function from films (n, s, s, 1) in [0, 1] to vectors (n, F).
        side: of the films that vectors are taken of.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    vectors: np.ndarray
    held_out: float
    vector_of: object
    side: int


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Where neighbours are looked for, and by what; nothing is read yet.

    Attributes:
        generator: `training.generating.generator.Generator`.
        conditions, parts: of its run's films, see `run_conditions`.
        vector_of: function from films (n, s, s, 1) in [0, 1] to vectors (n, F).
    """

    generator: object
    conditions: object
    parts: np.ndarray
    vector_of: object

    @classmethod
    def of(cls, generator, measure="copies", source=None) -> "Neighbourhood":
        """Finds the films of a generator's run.

        Args:
            generator: `training.generating.generator.Generator`.
            measure: "copies": copies of 32 x 32 pixels; "features": those of the run's feature model.
            source: where the films are, if they have been moved.

        Raises:
            ValueError: the films have been moved or changed; a run without a feature model.
        """
        vector_of = gan_watch.small_copies
        if measure == "features":
            from training.generating.feature_model import FeatureModel

            place = Path(generator.run) / "features"
            if not place.is_dir():
                raise ValueError(f"{generator.run}: has no features/ folder; use --neighbours copies")
            model = FeatureModel.load(place)

            def vector_of(films):
                return model.features(films)["features"]

        return cls(generator, *run_conditions(generator.run, source), vector_of)


def training_films(neighbourhood, *, workers=None, progress=None) -> TrainingFilms:
    """Reads the training and validation films of a `Neighbourhood`.

    Args:
        neighbourhood: of a generator's run.
        workers: decoding workers.
        progress: called with (films read so far, films).

    Raises:
        kxray.io.FilmError: a film that cannot be read.
    """
    generator, vector_of = neighbourhood.generator, neighbourhood.vector_of
    conditions, parts = neighbourhood.conditions, neighbourhood.parts
    paths = conditions.table["path"].to_numpy(object)
    rows = [np.flatnonzero(parts == part) for part in ("train", "val")]
    both = np.concatenate(rows)
    vectors = _vectors(paths[both], generator.spec, vector_of, workers, progress)
    train, held_out = vectors[: len(rows[0])], vectors[len(rows[0]) :]
    apart = float(np.median(gan_watch.nearest(held_out, train)[0])) if len(held_out) else float("nan")
    names = tuple(conditions.names[rows[0]].tolist())
    return TrainingFilms(tuple(paths[rows[0]]), names, train, apart, vector_of, generator.side)


def _vectors(paths, spec, vector_of, workers, progress=None) -> np.ndarray:
    """What `vector_of` makes of films on disk; memory holds one batch of them."""
    from kxray.data.pipeline import stream_inputs
    from kxray.io import FilmError

    vectors, batch = [], []
    for index, film in stream_inputs(paths, spec, workers=workers):
        if isinstance(film, FilmError):
            raise film
        batch.append(film)
        if len(batch) == _BATCH or index == len(paths) - 1:
            vectors.append(np.asarray(vector_of(np.stack(batch)), np.float32))
            batch = []
        if progress is not None:
            progress(index + 1, len(paths))
    return np.concatenate(vectors)


def add_neighbours(table, training, spec, *, workers=None):
    """The table of generated films with the columns nearest_film and nearest_distance.

    Returns:
        (table, distances (N, K), positions (N, K) of training films).
    """
    vectors = _vectors(table["path"].tolist(), spec, training.vector_of, workers)
    distances, places = gan_watch.nearest(vectors, training.vectors, NEIGHBOURS)
    nearest_film = [training.paths[place] for place in places[:, 0]]
    found = table.assign(nearest_film=nearest_film, nearest_distance=np.round(distances[:, 0], 6))
    return found, distances, places


def told(distances, training) -> str:
    """One sentence on how near films are to training films."""
    sentence = f"median distance to the nearest training film {np.median(distances[:, 0]):.4g}"
    if np.isfinite(training.held_out) and training.held_out > 0:
        shares = distances[:, 0] / training.held_out
        copies = int((shares < gan_watch.MEMORISED).sum())
        sentence += (
            f", {np.median(shares):.2f} times that of held-out real films; {copies} of {len(shares)} films "
            f"are nearer than {gan_watch.MEMORISED} times: "
            + ("look at them, they may be copies" if copies else "no copies")
        )
    return sentence


def write_sheet(path, table, training, distances, places) -> None:
    """A PNG of generated films, the nearest to any training film first, beside their training neighbours."""
    from kxray.io import read_image
    from training.report.plots import film_grid

    films, titles = [], []
    for film in np.argsort(distances[:, 0], kind="stable")[:_SHOWN]:
        row = table.iloc[film]
        films.append(read_image(row["path"]).pixels)
        titles.append(f"synthetic {row['condition']}, {row['number']}")
        for distance, place in zip(distances[film], places[film], strict=True):
            films.append(read_image(training.paths[place]).pixels)
            share = f" ({distance / training.held_out:.2f}x)" if training.held_out > 0 else ""
            titles.append(f"{training.names[place]} {distance:.3f}{share}")
    # Two of them a line, each with its neighbours.
    columns = 2 * (1 + distances.shape[1])
    films, titles = (
        [some[at : at + columns] for at in range(0, len(some), columns)] for some in (films, titles)
    )
    figure = film_grid(films, titles=titles, side=1.35)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # Most of it are real films: not marked as synthetic.
        figure.savefig(temporary, dpi=130, metadata={"Software": "kxray"})
