"""What is looked at after every epoch of a counterfactual GAN: validation films, changed, and a sheet."""

import io
from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training.counterfactuals import cf_scores
from training.generating.gan_epochs import sheet
from training.report.counterfactual_pictures import difference_picture

# Rows of a sheet: targets that are shown, at most.
MOST_TARGETS = 8
# A sheet's differences are fully coloured here, in every epoch.
FULL_DIFFERENCE = 0.3
# A mask that is above, or below, everywhere says nothing of where.
SATURATED, EMPTY = 0.95, 0.001


class EpochFilms:
    """The same validation films and targets after every epoch, so that epochs differ by their weights alone.

    Args:
        films: `training.counterfactuals.cf_films.CounterfactualFilms`.
        learned: `training.counterfactuals.cf_targets.LearnedTargets`.
        classifier: (keras.Model, ModelSpec).
        recipe: its seed, validation_pairs and samples.
        folder: of the run; sheets go to `samples/` below it.
    """

    def __init__(self, films, learned, classifier, recipe, folder):
        self.learned, self.classifier, self.folder = learned, classifier, Path(folder)
        self.samples = recipe.samples
        self.pairs = cf_scores.pairs_of(learned.held, films.rows("val"), recipe.validation_pairs, recipe.seed)
        self.pixels = films.pixels(self.pairs.films)
        self.changed, self.having = self.pairs.partners()

    def look(self, gan, epoch) -> dict:
        """Writes the sheet of an epoch and gives what history.csv says of its counterfactuals.

        Raises:
            ValueError: counterfactuals that are no numbers.
        """
        if not len(self.pairs):
            return {}
        given = (self.learned.targets, self.pixels, self.pairs.targets)
        table, made = cf_scores.measure(gan, self.classifier, *given)
        if not np.isfinite(made["film"]).all():
            raise ValueError(
                f"counterfactuals hold values that are no numbers after epoch {epoch} (limit: [0, 1]); start "
                "a new run with lower --generator-rate and --discriminator-rate"
            )
        self.write_sheet(made["film"], epoch)
        row = cf_scores.means(table.assign(asked=self.pairs.asked.astype(int)))
        if len(self.changed):
            terms = gan.judge(
                self.pixels[self.changed], self.pairs.targets[self.changed], self.pixels[self.having]
            )
            row |= {f"val_{name}": value for name, value in terms.items()}
        return row

    def write_sheet(self, made, epoch) -> Path:
        """samples/epoch-0001.png: for each target a row of films, of what they became, and of what differs.

        Args:
            made: float32 (P, s, s, 1), the counterfactuals of all pairs.
            epoch: number.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        shown, rows = [], []
        for number, target in enumerate(self.learned.targets[:MOST_TARGETS]):
            own = np.flatnonzero((self.pairs.targets == number) & self.pairs.asked)[: self.samples]
            if not len(own):
                continue
            films, changed = self.pixels[own][..., 0], made[own][..., 0]
            differences = difference_picture(changed - films, FULL_DIFFERENCE)
            grey = (np.repeat(np.round(255 * some)[..., None], 3, -1) for some in (films, changed))
            empty = np.zeros((self.samples - len(own), *differences.shape[1:]))
            shown += [np.concatenate([some, empty]) for some in (*grey, differences)]
            rows += ["films", target.name, f"difference, full colour at {FULL_DIFFERENCE}"]
        path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
        if not shown:
            return path
        joined = np.concatenate(shown)
        picture = np.stack([sheet(joined[..., channel], len(shown)) for channel in range(3)], axis=-1)
        marks, buffer = PngInfo(), io.BytesIO()
        for name, value in (("Software", "kxray"), ("Synthetic", "yes"), ("Rows", "; ".join(rows))):
            marks.add_text(name, value)
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "png", pnginfo=marks)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())
        return path


def findings(row, masked) -> list[dict]:
    """What is wrong after an epoch, as dicts of kind, epoch, step and sentence.

    Args:
        row: of history.csv.
        masked: whether the generator has an attention mask.
    """
    if not masked or row.get("mask_low") is None:
        return []
    where = {"epoch": row["epoch"], "step": row["step"]}
    if row["mask_low"] > SATURATED:
        sentence = (
            f"the mask is above {SATURATED} everywhere after epoch {row['epoch']}: it says nothing of where "
            "a film changes; raise --sparsity-weight"
        )
        return [{"kind": "saturated mask", **where, "sentence": sentence}]
    if row["mask_high"] < EMPTY:
        sentence = (
            f"the mask is below {EMPTY} everywhere after epoch {row['epoch']}: nothing changes; lower "
            "--proximity-weight, --identity-weight and --sparsity-weight, or raise --classifier-weight"
        )
        return [{"kind": "empty mask", **where, "sentence": sentence}]
    return []
