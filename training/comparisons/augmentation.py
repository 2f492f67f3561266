"""Do a generator's films help a classifier? Classical ways of treating rare classes against synthetic films.

\b
  python -m training.compare augmentation --run RUN
      takes the films, conditions and split of a run of attention_cgan or cdcgan, and trains the same
      classifier on its training films: as they are (real), with class weights (weighted), with rare classes
      repeated and strong classical augmentation (oversampled), and with every class filled up with synthetic
      films to half of the most frequent class, and to as many (synthetic@0.5, synthetic@1)
  python -m training.compare augmentation --run RUN --ratios 0.25,0.5,1,2 --seeds 5
  python -m training.compare augmentation --run RUN --rows real,weighted,synthetic,synthetic-only
      only some of the rows; synthetic-only trains on synthetic films alone, which says what they hold
  python -m training.compare augmentation --run RUN --data DIR
      where the films of the run have moved

Synthetic films are made by the run's generator, which learned from the training part; with --keep best its
epoch was chosen on the validation films, the test films it never met. They are trained on only: the
validation films, by whose loss the epoch of the classifier is chosen, and the test films are the same real
ones in every row. So are the number of steps, the films a step, the starting weights of each seed, and the
mild augmentation; only oversampled has the strong one. Each seed has new weights and new synthetic films,
those that `training.generate` makes of that seed.

Told of each row: AUROC of every class against the rest, their mean over all classes and over the rare ones
(--rare of the run; without it those with fewer than half of the median count of training films), balanced
accuracy, with intervals, paired differences and a verdict: synthetic films help, no gain shown, or harm. The
ratio and the row without synthetic films that the verdict is about are chosen on validation films; films help
only where they also beat the real films alone. Beside them: a random
forest that sees no anatomy, and chance.

Every finished training is kept: with --resume an interrupted comparison goes on where it stopped.
"""

from dataclasses import dataclass

from training.options import option

ROWS = ("real", "weighted", "oversampled", "synthetic", "synthetic-only")
PRESETS = {
    "smoke": {"seeds": 1, "epochs": 2, "steps": 4, "ratios": "1", "batch_size": 8},
}
# Of rows with the strong classical augmentation; what is larger at the shell stays larger.
STRONG = {"rotation": 15.0, "shift": 0.1, "zoom": 0.2, "brightness": 0.15, "contrast": 0.4, "blur": 1.2}


@dataclass(frozen=True)
class Recipe:
    run: str | None = option(None, "Folder of a finished run of attention_cgan or cdcgan.")
    data: str | None = option(None, "Folder of its films or manifest CSV, where they have moved.")
    out: str | None = option(None, "Folder of the comparison; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted comparison in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    rows: str = option(
        "real,weighted,oversampled,synthetic", f"What to train, with commas between: {', '.join(ROWS)}."
    )
    ratios: str = option(
        "0.5,1",
        "Sizes to which synthetic films fill up every class, as shares of the most frequent class's films.",
    )
    seeds: int = option(
        3, "Repetitions, each with its own weights, order of films and synthetic films.", low=1
    )
    truncation: float = option(
        1.0, "Of the generator's latents: below 1 gives more typical films.", low=0.01, high=1.0
    )
    backbone: str = option(
        "small_densenet",
        "Network, from random weights.",
        choices=(
            *("small_densenet", "densenet121", "densenet169", "densenet201"),
            *("resnet50", "resnet152", "xception"),
        ),
    )
    image_size: int | None = option(
        None, "Side of the network's input in pixels; the generator's largest by default.", low=32, high=1024
    )
    epochs: int = option(24, "Times that the validation films are looked at.", low=1)
    steps: int | None = option(
        None,
        "Steps between two looks, the same in every row; one pass over the real training films by default, "
        "but at least 40.",
        low=1,
    )
    batch_size: int = option(16, "Films a step, over all devices.", low=1)
    learning_rate: float = option(1e-3, "The optimizer's highest rate.", low=1e-8, high=1.0)
    learning_rate_decay: str = option(
        "cosine", "cosine: falls to zero over the training; none: stays.", choices=("cosine", "none")
    )
    warmup: float = option(0.1, "Share of the training in which the rate rises from 0.", low=0.0, high=0.9)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay.", low=0.0, high=1.0)
    flips: str = option(
        "horizontal",
        "Augmentation of every row: left-right only (for patients), mirror images and quarter turns "
        "(dihedral), or none.",
        choices=("dihedral", "horizontal", "none"),
    )
    rotation: float = option(0.0, "Mild augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.05, "Mild augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    zoom: float = option(0.1, "Mild augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    brightness: float = option(
        0.08, "Mild augmentation: largest shift, share of full range.", low=0.0, high=1.0
    )
    contrast: float = option(0.2, "Mild augmentation: largest change, fraction.", low=0.0, high=0.9)
    blur: float = option(0.8, "Mild augmentation: largest Gaussian blur, pixels.", low=0.0, high=3.0)
    strategy: str = option(
        "auto",
        "Devices: one (none), all GPUs or logical CPUs (mirrored), or mirrored where there are several GPUs.",
        choices=("auto", "none", "mirrored"),
    )
    mixed_precision: bool = option(False, "Compute in half precision where it is safe.")
    deterministic: bool = option(False, "Bit-equal results on the same machine, a little slower.")
    workers: int | None = option(None, "Decoding workers; one a core by default.", low=1)
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: such as "synthetic@0.5".
        told: what is trained on, in words.
        ratio: size to which synthetic films fill up every class, as a share of the most frequent class's
            films; None without synthetic films.
        weighted: whether every class has the same say in the loss.
        repeated: whether rare classes are repeated to the most frequent one's count.
        strong: whether the augmentation is the strong one.
        real: whether real films are trained on.
    """

    name: str
    told: str
    ratio: float | None = None
    weighted: bool = False
    repeated: bool = False
    strong: bool = False
    real: bool = True

    @property
    def classical(self) -> bool:
        """Whether this is a remedy for rare classes without synthetic films."""
        return self.weighted or self.repeated


def parse_ratios(text) -> tuple[float, ...]:
    """ "0.5,1" -> (0.5, 1.0)."""
    try:
        ratios = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        ratios = ()
    if not ratios or len(set(ratios)) != len(ratios) or not all(0 < ratio <= 10 for ratio in ratios):
        raise ValueError(f"--ratios takes distinct numbers above 0 and up to 10, as 0.5,1; got {text!r}")
    return ratios


def rows_of(recipe) -> list[Row]:
    """The rows of a comparison, the first of which the others are measured against.

    Raises:
        ValueError: an unknown row, none of the plain real films, or nothing to compare it with.
    """
    ratios = parse_ratios(recipe.ratios)
    asked = [name.strip() for name in recipe.rows.split(",") if name.strip()]
    unknown = [name for name in asked if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows {recipe.rows}: no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    known = {
        "real": [Row("real", "real films as they are")],
        "weighted": [Row("weighted", "real films, class weights", weighted=True)],
        "oversampled": [
            Row(
                "oversampled",
                "real films, rare classes repeated, strong augmentation",
                repeated=True,
                strong=True,
            )
        ],
        "synthetic": [
            Row(
                f"synthetic@{ratio:g}",
                f"real films, classes filled up with synthetic ones to {ratio:g} x the most frequent",
                ratio,
            )
            for ratio in ratios
        ],
        "synthetic-only": [Row("synthetic-only", "synthetic films alone, all classes even", 1.0, real=False)],
    }
    rows = [row for name in ROWS if name in asked for row in known[name]]
    if "real" not in asked or len(rows) < 2:
        raise ValueError(
            f"--rows {recipe.rows}: give real, which the others are measured against, and at least one more"
        )
    return rows


def run(recipe, given):
    from training.comparing import augmentation_run

    return augmentation_run.run(recipe, given, rows_of)
