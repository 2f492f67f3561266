"""Which backbone, frozen or fine-tuned, for your few hundred films?

\b
  python -m training.compare transfer --data DIR --folds 5 --seeds 3
      AlexNet, ResNet-152 and DenseNet-201, each as a feature extractor and fine-tuned, on the same splits
  python -m training.compare transfer --data DIR --split 486/44/132 --epochs 40
      the split and the epochs of Lee et al.; patients stay together, counts are met as nearly as they allow
  python -m training.compare transfer --data DIR --backbones xception --weights FILE.h5 --fine-tune-epochs 5
      --learning-curve 10,25,50,100
      also says whether more films would help, or another backbone
  python -m training.compare transfer --data NIH --labels "Pneumonia,No Finding" --backbones xception
      two labels of a source with several findings a film
  python -m training.compare transfer --phantoms 200 --preset smoke
      on generated fish fillets, in a minute

After Lee, Hong, Lee and Shin, "Performance Analysis of Feature Extractor for Transfer Learning of a Small
Sample of Medical Images": accuracy by backbone and mode, and training loss by epoch. Added: intervals over
resampled patients, balanced accuracy, AUROC, calibration, paired tests, minutes, parameters and memory, films
a class, an RBF SVM on texture, and a random forest that sees no anatomy. The report ends with the network to
take, chosen on validation films, and what is to be expected of it on test films.

A backbone's features are computed once for all seeds and folds. Every finished training is kept: with
--resume an interrupted comparison goes on where it stopped.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from training.options import option
from training.recipes import transfer

MODES = tuple(transfer.OF_MODE)
PRESETS = {
    # Of the recipe: plain transfer, as in the paper; its split is --split 486/44/132.
    "paper": transfer.PRESETS["paper"],
    "smoke": {
        "backbones": "mobilenetv2",
        "weights": "none",
        "image_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "seeds": 1,
        "folds": 0,
        "split": "7:1:2",
    },
}
UNUSED = ("backbone", "mode", "findings", "export", "corrections", "seed", "test_time_flips")


@dataclass(frozen=True)
class Recipe(transfer.Recipe):
    out: str | None = option(None, "Folder of the comparison; the next free one under runs/ by default.")
    backbones: str = option("alexnet,resnet152,densenet201", "Networks to compare, with commas.")
    modes: str = option(",".join(MODES), "feature_extractor (frozen), fine_tune, or both.")
    weights: str = option(
        "imagenet",
        "Starting weights: imagenet, none (random), or a file; NAME=FILE,NAME=none for several backbones.",
    )
    epochs: int = option(40, "Passes over the training films.", low=1)
    fine_tune_epochs: int | None = option(None, "The same for fine-tuning; --epochs by default.", low=1)
    folds: int = option(5, "Every film is tested once by a model that saw no film of its patient.", low=0)
    split: str | None = option(
        None,
        "Training, validation and test instead of folds: parts such as 7:1:2, or counts of films such as "
        "486/44/132 (more than 100 in all). A new split a seed.",
    )
    seeds: int = option(3, "Repetitions, each with its own splits, weights and order of films.", low=1)
    phantoms: int | None = option(
        None, "Without --data: so many generated fish fillets (400 by default).", low=1
    )
    labels: str | None = option(
        None,
        "The classes to tell apart, with commas, where a source has more: labels, or findings and "
        "'No Finding'. Films with none or several of them are left out.",
    )
    learning_curve: str | None = option(
        None,
        "Also train on so many films a class: 10,25,50,100. Sizes beyond the training part are left out.",
    )
    learning_curve_modes: str = option("feature_extractor", "For which modes.")
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


@dataclass(frozen=True)
class Row:
    """One cell of the paper's table: a backbone in a mode.

    Args:
        name: BACKBONE-MODE, unique, a file name.
        backbone, mode: what it is.
        recipe: `training.recipes.transfer.Recipe` that trains it.
        sizes: films a class of its learning curve, rising.
    """

    name: str
    backbone: str
    mode: str
    recipe: transfer.Recipe
    sizes: tuple[int, ...] = ()


def rows_of(recipe) -> list[Row]:
    """The networks of a comparison.

    Raises:
        ValueError: an unknown backbone or mode, weights that are missing, or sizes that are none.
    """
    from kxray import models

    backbones = _names("backbones", recipe.backbones, models.backbone_names())
    modes = _names("modes", recipe.modes, MODES)
    curved = _names("learning-curve-modes", recipe.learning_curve_modes, MODES)
    weights = weights_of(recipe.weights, backbones)
    sizes = _sizes(recipe.learning_curve)
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(transfer.Recipe)}
    base = transfer.Recipe(**{**shared, "preset": None})
    rows = []
    for backbone in backbones:
        for mode in modes:
            # What a mode does not take goes back to the recipe's default.
            other = [name for owner, names in transfer.OF_MODE.items() if owner != mode for name in names]
            changes = {name: getattr(transfer.Recipe(), name) for name in other}
            changes["epochs"] = recipe.epochs
            if mode == "fine_tune" and recipe.fine_tune_epochs is not None:
                changes["epochs"] = recipe.fine_tune_epochs
            trained = dataclasses.replace(
                base, **changes, backbone=backbone, mode=mode, weights=weights[backbone]
            )
            rows.append(Row(f"{backbone}-{mode}", backbone, mode, trained, sizes if mode in curved else ()))
    return rows


def weights_of(text, backbones) -> dict:
    """Backbone -> "imagenet", "none" or a path, from "imagenet" or "xception=FILE,alexnet=none"."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not any(name in backbones for name, equals, _ in pairs if equals):
        start = text.strip()
        if start not in ("imagenet", "none"):
            if not Path(start).exists():
                raise ValueError(
                    f"--weights {start}: no such file; give imagenet, none, or a file of weights"
                )
            if len(backbones) > 1:
                raise ValueError(
                    f"--weights {start}: one file fits one backbone; for {len(backbones)}, give "
                    f"{backbones[0]}=FILE,{backbones[1]}=FILE and so on"
                )
        return dict.fromkeys(backbones, start)
    given = {}
    for name, _, start in pairs:
        if name.strip() not in backbones:
            raise ValueError(
                f"--weights: {name.strip()!r} is not among --backbones {','.join(backbones)}; give NAME=FILE"
            )
        if start not in ("imagenet", "none") and not Path(start).exists():
            raise ValueError(f"--weights {name}={start}: no such file")
        given[name.strip()] = start
    missing = [name for name in backbones if name not in given]
    if missing:
        raise ValueError(f"--weights names none for {', '.join(missing)}; add {missing[0]}=imagenet or =none")
    return given


def _names(what, text, allowed):
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in allowed:
            import difflib

            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--{what}: {name!r} is not one of {', '.join(allowed)}{hint}")
    if not names:
        raise ValueError(f"--{what} names none; give one or more of {', '.join(allowed)}")
    return names


def _sizes(text):
    if text is None:
        return ()
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2:
        raise ValueError(f"--learning-curve takes films a class, 2 or more, as 10,25,50,100; got {text!r}")
    return tuple(sizes)


def run(recipe, given):
    from training.comparing import matrix

    if given.get("folds") and given.get("split") is None:
        # A preset's split gives way to folds that were asked for.
        recipe = dataclasses.replace(recipe, split=None)
    if not recipe.resume and len(modes := _names("modes", recipe.modes, MODES)) == 1:
        transfer.check_mode(modes[0], given)
    return matrix.run(recipe, given, rows_of)
