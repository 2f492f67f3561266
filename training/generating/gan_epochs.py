"""What is looked at after every epoch of a conditional GAN: a sheet of samples, and how films compare."""

import io
from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.generating import gan_watch

# So many films a class, at least, say how much films differ.
_WATCHED = 16
_GAP = 2


class EpochFilms:
    """The same random vectors and classes after every epoch, so that epochs differ by their weights alone.

    Args:
        films: `training.generating.gan_films.GanFilms`.
        recipe: its seed, fdd_films, samples and epochs.
        folder: of the run; sheets go to `samples/` below it.
        feature_model: `training.generating.feature_model.FeatureModel`, or None.
    """

    def __init__(self, films, recipe, folder, feature_model=None):
        self.films, self.recipe, self.folder = films, recipe, Path(folder)
        self.labels, self.feature_model = films.conditions.labels, feature_model
        self.judged = self._drawn(films.rows("val"))
        self.z = None
        train, classes = films.rows("train"), films.conditions.classes
        self.watch = gan_watch.Watch.of(
            self.labels,
            recipe.epochs,
            _small(films, train),
            classes[train],
            _small(films, self.judged),
        )
        wanted = np.bincount(classes[self.judged], minlength=len(self.labels))
        self.classes = np.repeat(np.arange(len(self.labels)), np.maximum(wanted, _WATCHED))
        # As many generated films of each class as there are real ones; the others are watched only.
        number = np.concatenate([np.arange(max(count, _WATCHED)) for count in wanted])
        self.compared = number < wanted[self.classes]
        self.real_features = None
        if feature_model is not None:
            self.real_features = feature_model.features_of(films.inputs, self.judged)

    def _drawn(self, rows):
        """The validation films that are compared with: all, or as many as were asked for."""
        if len(rows) <= self.recipe.fdd_films:
            return rows
        drawn = np.random.default_rng([self.recipe.seed, 43]).permutation(rows)[: self.recipe.fdd_films]
        return np.sort(drawn)

    def generated(self, gan) -> np.ndarray:
        """Films of `classes`, float32 (N, s, s, 1), of the largest side."""
        from kxray.models import latents

        if self.z is None:
            self.z = latents(self.recipe.seed + 1, len(self.classes), gan.latent)
        return gan.sample(self.classes, z=self.z)[max(gan.sides)]

    def look(self, gan, epoch) -> dict:
        """Writes the sheet of an epoch and gives what history.csv says of its films."""
        from kxray import metrics

        self.write_sheet(gan, epoch)
        made = self.generated(gan)
        if not np.isfinite(made).all():
            raise ValueError(
                f"generated films hold values that are no numbers after epoch {epoch} (limit: [0, 1]); start "
                "a new run with lower --generator-rate and --discriminator-rate"
            )
        row = self.watch.measure(gan_watch.small_copies(made), self.classes)
        if self.feature_model is not None:
            own = self.feature_model.features(made[self.compared])["features"]
            row["fdd"] = metrics.frechet_distance(self.real_features["features"], own)
            row["kid"] = metrics.kernel_distance(self.real_features["features"], own)
        return row

    def judge(self, gan) -> dict:
        """The scores of a finished GAN's films against validation films, class by class."""
        from training.generating.judged import judge

        if self.feature_model is None:
            return {}
        fake = self.feature_model.features(self.generated(gan)[self.compared])
        return judge(
            self.real_features,
            self.films.conditions.classes[self.judged],
            fake,
            self.classes[self.compared],
            self.labels,
            seed=self.recipe.seed,
            patients=self.films.grouping.groups[self.judged],
        )

    def real_against_real(self) -> dict | None:
        """The FDD of real films of other patients: test against validation, at equal counts a condition."""
        from kxray import metrics

        rows, classes = self.films.rows("test"), self.films.conditions.classes
        if self.feature_model is None or not len(rows):
            return None
        random = np.random.default_rng([self.recipe.seed, 44])
        rows = np.sort(random.permutation(rows)[: self.recipe.fdd_films])
        ours, theirs = metrics.equal_rows(classes[self.judged], classes[rows], self.recipe.seed)
        if len(ours) < 2:
            return None
        other = self.feature_model.features_of(self.films.inputs, rows[theirs])["features"]
        value = metrics.frechet_distance(self.real_features["features"][ours], other)
        return {"value": value, "films": len(ours)}

    def write_sheet(self, gan, epoch) -> Path:
        """samples/epoch-0001.png: a row a class, the same random vector down a column."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        marks, buffer = PngInfo(), io.BytesIO()
        for name, value in (("Software", "kxray"), ("Synthetic", "yes"), ("Rows", ", ".join(self.labels))):
            marks.add_text(name, value)
        picture = sheet(self.samples(gan), len(self.labels))
        Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(buffer, "png", pnginfo=marks)
        write_whole(path, buffer.getvalue())
        return path

    def samples(self, gan) -> np.ndarray:
        """Float32 (classes x samples, s, s): what the sheet shows, row by row."""
        from kxray.models import latents

        columns = self.recipe.samples
        z = np.tile(latents(self.recipe.seed, columns, gan.latent), (len(self.labels), 1))
        classes = np.repeat(np.arange(len(self.labels)), columns)
        return gan.sample(classes, z=z)[max(gan.sides)][..., 0]


def _small(films, rows):
    """Small copies of films, which need not fit into memory as they are."""
    copies = [gan_watch.small_copies(some) for some in films.inputs.batches(rows, 256)]
    return np.concatenate(copies) if copies else np.zeros((0, gan_watch.SMALL_SIDE**2), np.float32)


def sheet(films, rows) -> np.ndarray:
    """Films (rows x columns, s, s) side by side with black gaps between them, float (H, W)."""
    count, side = films.shape[:2]
    films = np.pad(films, ((0, 0), (0, _GAP), (0, _GAP)))
    joined = films.reshape(rows, count // rows, side + _GAP, side + _GAP).transpose(0, 2, 1, 3)
    return joined.reshape(rows * (side + _GAP), -1)[:-_GAP, :-_GAP]
