"""Do alignment and disease masks help? Each part on and off, on your own films.

\b
  python -m training.compare masks --data NIH --preset nih
      trains the recipe masked_densenet as it is (alignment, masks, boxes in the loss) and with each part left
      out, down to the plain network, on the same splits, with the same seeds and budget
  python -m training.compare masks --preset phantoms
      on 1,500 generated chest films that are turned, scaled and shifted, with the boxes of 5% of the training
      films that have boxes
  python -m training.compare masks --data NIH --rows full,neither --seeds 5
      only some of the networks; neither is the one that the others are measured against

The networks: full; no-box-loss (boxes make masks, but do not teach); uniform (the same attention without a
word from the masks); aligned-only (plain pooling of aligned films); masks-only (masks on films that are not
aligned); boxes-only (the plain network, taught by the same boxes); neither (the plain network). One aligner a
split is shared by all that align.

Told of each: AUROC, and on test films with boxes the pointing game, accuracy at T(IoU) and T(IoBB) of Wang
et al. (2017), and how much evidence lies outside of the boxes. Beside them: a random forest that sees no
anatomy, the masks alone, laid without what is in the lungs, and a uniform map, which is chance. --box-share
limits the boxes of training films alone: where a map is cut is chosen on all boxes of the validation films.

Every finished training is kept: with --resume an interrupted comparison goes on where it stopped.

Expected of --preset phantoms --rows full,neither, three seeds, 2 cores (150 to 300 s a training and 3.4
minutes of processor time an aligner, beside other jobs): mean AUROC 0.80 [0.75, 0.84] against 0.72
[0.69, 0.75], pointing game 0.65 against 0.32, accuracy at IoU 0.3 0.54 against 0.28; the mask alone 0.62.
"""

import dataclasses
from dataclasses import dataclass

from training.options import option
from training.recipes import masked_densenet

ROWS = ("full", "no-box-loss", "uniform", "aligned-only", "masks-only", "boxes-only", "neither")
PRESETS = {
    "phantoms": {**masked_densenet.PRESETS["phantoms"], "phantoms": 1500, "seeds": 3, "box_share": 0.05},
    "nih": {**masked_densenet.PRESETS["nih"], "epochs": 20, "folds": 3, "seeds": 1},
    "smoke": {**masked_densenet.PRESETS["smoke"], "seeds": 1, "rows": "full,neither"},
}
UNUSED = ("export", "corrections", "masking", "seed", "sensitivity")


@dataclass(frozen=True)
class Recipe(masked_densenet.Recipe):
    out: str | None = option(None, "Folder of the comparison; the next free one under runs/ by default.")
    folds: int = option(
        0,
        "Every film is tested once by a model that saw no film of its patient; 0: one split a seed, or the "
        "films' own.",
        low=0,
    )
    seeds: int = option(3, "Repetitions, each with its own splits, weights and order of films.", low=1)
    rows: str = option("all", f"Networks to train, with commas between them: {', '.join(ROWS)}.")
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: one of ROWS.
        network: what is said of it.
        recipe: `training.recipes.masked_densenet.Recipe` that trains it.
    """

    name: str
    network: str
    recipe: masked_densenet.Recipe

    @property
    def aligned(self) -> bool:
        return self.recipe.align != "none"


def rows_of(recipe) -> list[Row]:
    """The networks of a comparison.

    Raises:
        ValueError: an unknown network, or none to compare.
    """
    fields = dataclasses.fields(masked_densenet.Recipe)
    shared = {field.name: getattr(recipe, field.name) for field in fields}
    base = masked_densenet.Recipe(**{**shared, "preset": None, "export": None, "corrections": None})
    taught = recipe.box_loss > 0
    # The plain networks do without the boxes' loss as well, but for the one that is about it.
    plain = {"masking": "none", "masks": None, "box_loss": 0.0}
    left_out = {
        "full": ("alignment, masks" + ", boxes" * taught, {}),
        "no-box-loss": ("alignment, masks", {"box_loss": 0.0}),
        "uniform": ("alignment, uniform masks" + ", boxes" * taught, {"masking": "uniform", "masks": None}),
        "aligned-only": ("alignment, plain pooling", plain),
        "masks-only": ("masks" + ", boxes" * taught + ", no alignment", {"align": "none"}),
        "boxes-only": ("plain network, boxes", {**plain, "align": "none", "box_loss": recipe.box_loss}),
        "neither": ("neither: plain network", {**plain, "align": "none"}),
    }
    asked = [name.strip() for name in recipe.rows.split(",") if name.strip()]
    asked = list(ROWS) if asked == ["all"] else asked
    unknown = [name for name in asked if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows {recipe.rows}: no network {unknown[0]!r}; there are {', '.join(ROWS)}")
    chosen = [
        Row(name, told, dataclasses.replace(base, **{"masking": "masks", **changes}))
        for name, (told, changes) in left_out.items()
        if name in asked and (taught or name not in ("no-box-loss", "boxes-only"))
    ]
    if len(chosen) < 2:
        raise ValueError(f"--rows {recipe.rows}: a comparison needs two networks or more")
    return chosen


def run(recipe, given):
    from training.comparing import masks_run

    return masks_run.run(recipe, given, rows_of)
