"""Naive against multi-scale DenseNet, two classes against size classes, on your own films.

\b
  python -m training.compare multiscale --data DIR --folds 5 --seeds 2
      trains four networks on the same splits with the same budget: the plain DenseNet-121 and the multi-scale
      one, each on the classes of DIR and on its size classes (made by training.relabel where DIR has none)
  python -m training.compare multiscale --data DIR --init runs/fillets --candidates xception,init=WEIGHTS.h5
      starts all four from the same trained network, and adds a multi-scale Xception
  python -m training.compare multiscale --phantoms 400 --split 7:1:2 --seeds 1
      on generated fish fillets, whose bone masks also score the class activation maps

Accuracy over four classes and over two are different questions, so every network is also scored on the coarse
question: the probabilities of a defect's size classes are added up. Beside them: an RBF SVM on texture
features (LBP and co-occurrence) and a random forest that sees no anatomy. Among the multi-scale networks,
with and without test-time flips, the one that does best on validation films is named, and its score on test
films is the one to expect.

Every finished training is kept: with --resume an interrupted comparison goes on where it stopped.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from training import options
from training.options import option
from training.recipes import multiscale_cam

PRESETS = {
    "smoke": {
        **multiscale_cam.PRESETS["smoke"],
        "phantoms": 48,
        "seeds": 1,
        "split": "7:1:2",
        "folds": 0,
        "classes": 0,
    },
}
# What must be equal for films and splits to be.
_SHARED = (
    *("data", "out", "resume", "dry_run", "folds", "seed", "phantoms", "label_column", "strategy"),
    *("mixed_precision", "skip_bad", "preset", "export", "corrections", "findings"),
)
UNUSED = ("export", "corrections", "findings", "freeze", "label_column", "seed", "test_time_flips")


@dataclass(frozen=True)
class Recipe(multiscale_cam.Recipe):
    out: str | None = option(None, "Folder of the comparison; the next free one under runs/ by default.")
    folds: int = option(5, "Every film is tested once by a model that saw no film of its patient.", low=0)
    split: str | None = option(
        None, "Parts for training, validation and test instead of folds, such as 7:1:2; a new split a seed."
    )
    seeds: int = option(2, "Repetitions, each with its own splits, weights and order of films.", low=1)
    by: str = option("width", "What films are relabelled by.", choices=("width", "area", "boxes"))
    classes: int = option(3, "Size classes a label; 0 compares on the classes there are only.", low=0)
    keep: str | None = option(
        None, "Labels without defects, with commas; they are not split. By default no_bone, normal and so on."
    )
    candidates: str | None = option(
        None,
        "More multi-scale networks: a preset of the recipe multiscale_cam, or options such as "
        "backbone=xception,init=FILE,freeze=true; several with semicolons between them.",
    )
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: unique, a file name.
        network: what is said of the network.
        fine: whether it tells size classes apart.
        multiscale: whether several stages vote.
        recipe: `training.recipes.multiscale_cam.Recipe` that trains it.
    """

    name: str
    network: str
    fine: bool
    multiscale: bool
    recipe: multiscale_cam.Recipe


def rows_of(recipe, fine) -> list[Row]:
    """The networks of a comparison; `fine` says whether there are size classes."""
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(multiscale_cam.Recipe)}
    base = multiscale_cam.Recipe(**{**shared, "preset": None})
    taps = recipe.taps if recipe.taps != "1" else "3"
    named = {"naive": ("naive", "1"), "multiscale": ("multi-scale", taps)}
    rows = []
    for name, (told, chosen) in named.items():
        trained = dataclasses.replace(base, taps=chosen)
        rows.append((f"{name}-{recipe.backbone}", f"{told} {recipe.backbone}", name != "naive", trained))
    for number, text in enumerate(filter(None, (recipe.candidates or "").split(";")), start=1):
        trained = _candidate(base, text.strip())
        frozen = ", frozen" if trained.freeze else ""
        told = f"multi-scale {trained.backbone}{frozen}, {trained.image_size} px"
        rows.append((f"candidate{number}-{trained.backbone}", told, True, trained))
    return [
        Row(f"{name}-{'fine' if classes else 'coarse'}", told, classes, several, trained)
        for name, told, several, trained in rows
        for classes in ((False, True) if fine else (False,))
    ]


def _candidate(base, text):
    preset, _, rest = text.partition(",")
    if preset in multiscale_cam.PRESETS:
        given = {**multiscale_cam.PRESETS[preset], **options.parse(multiscale_cam.Recipe, rest)}
    else:
        given = options.parse(multiscale_cam.Recipe, text)
    foreign = sorted(set(given) & set(_SHARED))
    if foreign:
        raise ValueError(f"a candidate shares {', '.join(foreign)} with the others; give it as an option")
    start = given.get("init")
    if start not in (None, "imagenet"):
        given["init"] = str(Path(start).resolve())
    return dataclasses.replace(base, **{"init": None, **given})


def run(recipe, given):
    from training.comparing import multiscale_run

    return multiscale_run.run(recipe, given, rows_of)
