"""Sorts films into classes with a multi-scale network whose stages each show what they voted on.

\b
  python -m training.fit multiscale_cam --data DIR --folds 5
      trains on a folder of class folders or a manifest with a `label` column, and measures every film by a
      model that has not seen it
  python -m training.relabel --data DIR --by width --classes 3
      first splits a defect class into size classes, which is what multi-scale networks gain from
  python -m training.fit multiscale_cam --phantoms 800 --epochs 12 --out runs/fillets
  python -m training.fit multiscale_cam --data DIR --init runs/fillets
      starts from a network that has learned bones on generated fish fillets
  python -m training.fit multiscale_cam --findings all --data NIH --image-size 224 --init imagenet
  python -m training.fit multiscale_cam --findings Mass,Nodule --phantoms 1000
      learns findings that may occur together, one sigmoid each: of NIH's folder, or a manifest with a column
      of 0, 1 or nothing (unknown, which adds nothing to the loss) for each; of generated chest films without
      --data. Patients are upright, so --flips is horizontal then, unless given

DenseNet-121 tapped after its dense blocks 2, 3 and 4 (Sedai et al., 2018): class-wise layer relevance weights
combine the stages' votes, and the same weights combine their class activation maps.

Small-data practice, all of it on unless switched off: mirror images and quarter turns, mild exposure and blur
changes, small shifts and changes of scale, balanced classes, AdamW with warm-up and cosine decay, gradients
clipped to norm 1, the weights of the lowest validation loss, early stopping, batch-norm momentum 0.9.
`--preset xception` with `--init` ImageNet weights trains only the heads, which is what a few hundred films
allow best.

Expected of 160 fish-bone patches (GDXray N0002, bone / no bone), 5 folds, 2 seeds, 20 epochs, 2 cores, by
`training.compare multiscale`: DenseNet-121 from random weights 0.784 (folds 0.61 to 0.94; 82 s a fold), the
xception preset 0.962 (folds 0.87 to 1.00), 0.984 with test-time flips.
"""

import dataclasses
from dataclasses import dataclass

from training import augmentation, findings
from training.backbone_options import check_init, parse_taps
from training.classifier import ClassifierOptions, fit_classifier
from training.options import option
from training.task import ClassifierTask

PRESETS = {
    "xception": {
        "backbone": "xception",
        "freeze": True,
        "learning_rate": 3e-3,
        "image_size": 160,
    },
    "smoke": {"epochs": 1, "phantoms": 24, "image_size": 40, "taps": "2", "batch_size": 8},
}
SMALLEST_FILM = 32


@dataclass(frozen=True)
class Recipe(ClassifierOptions):
    epochs: int = option(40, "Passes over the training films.", low=1)
    batch_size: int = option(16, "Films a step, over all devices.", low=1)
    patience: int = option(
        15, "Stop after so many epochs without a lower validation loss; 0 trains all epochs.", low=0
    )
    label_column: str = option("label", "Manifest column with the class of a film.")
    findings: str | None = option(
        None,
        "Findings that may occur together, instead of classes: all, or names of finding columns with commas "
        "between them.",
    )
    backbone: str = option(
        "densenet121",
        "Network.",
        choices=("densenet121", "densenet169", "densenet201", "resnet50", "resnet152", "xception"),
    )
    taps: str = option(
        "3", "How many of the last stages vote, or their names: block2,block3,block4. 1 is the plain network."
    )
    image_size: int = option(100, "Side of the network's input in pixels.", low=1, high=2048)
    constraint: str = option(
        "softmax",
        "How relevance weights stay a convex combination: by a softmax, or by a penalty in the loss.",
        choices=("softmax", "penalty"),
    )
    penalty: float = option(1.0, "Weight of that penalty.", low=0.0)
    init: str | None = option(
        None,
        "Starting weights of the backbone: a run folder, a .keras file, a .weights.h5 file of "
        "keras.applications, or imagenet (downloaded). Random by default.",
    )
    freeze: bool = option(False, "Train only the heads; the backbone keeps its starting weights.")
    warmup: float = option(0.1, "Share of the run in which the rate rises from 0.", low=0.0, high=0.9)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay.", low=0.0, high=1.0)
    batch_norm_momentum: float = option(
        0.9,
        "Of the moving statistics; with few steps an epoch, Keras's 0.99 lags behind.",
        low=0.0,
        high=0.999,
    )
    flips: str = option(
        "dihedral",
        "Augmentation: mirror images and quarter turns, left-right only (for patients), or none.",
        choices=("dihedral", "horizontal", "none"),
    )
    rotation: float = option(0.0, "Augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.05, "Augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    zoom: float = option(0.1, "Augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    brightness: float = option(0.08, "Augmentation: largest shift, share of full range.", low=0.0, high=1.0)
    contrast: float = option(0.2, "Augmentation: largest change, fraction.", low=0.0, high=0.9)
    blur: float = option(0.8, "Augmentation: largest Gaussian blur, pixels.", low=0.0, high=3.0)
    test_time_flips: bool = option(
        False, "Also report the accuracy over the mirror images (and turns) of --flips of every test film."
    )
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def task_of(recipe) -> ClassifierTask:
    from kxray import models

    side, taps = recipe.image_size, parse_taps(recipe.taps)
    models.check_backbone(recipe.backbone, taps, (side, side))
    if recipe.freeze and recipe.init is None:
        raise ValueError("--freeze keeps the backbone's starting weights: give trained ones with --init")
    check_init(recipe.init)
    if recipe.test_time_flips and recipe.flips == "none":
        raise ValueError("--test-time-flips averages over the views of --flips, which are none")
    if recipe.findings is not None and recipe.test_time_flips:
        raise ValueError("--test-time-flips averages class decisions; with --findings there are none")

    def build(spec):
        model = models.build(
            spec.name,
            num_labels=spec.num_labels,
            head="sigmoid" if spec.task == "multilabel" else "softmax",
            image_size=spec.image_size,
            backbone=recipe.backbone,
            taps=taps,
            constraint=recipe.constraint,
            penalty=recipe.penalty,
            batch_norm_momentum=recipe.batch_norm_momentum,
        )
        if recipe.init is not None:
            models.load_backbone_weights(model, recipe.backbone, recipe.init)
        if recipe.freeze:
            models.freeze_backbone(model)
        return model

    def optimizer(steps, model):
        from training.optimizer import warm_adamw

        return warm_adamw(recipe, steps)

    return ClassifierTask(
        name="multiscale_cam",
        model="multiscale_densenet",
        kind="multiclass" if recipe.findings is None else "multilabel",
        label_column=recipe.label_column,
        labels=() if recipe.findings is None else findings.parse(recipe.findings),
        phantom_kind="fillet" if recipe.findings is None else "thorax",
        image_size=(side, side),
        build=build,
        optimizer=optimizer,
        augment=lambda: augmentation.film_layers(recipe),
        min_side=SMALLEST_FILM,
        test_time_flips=recipe.flips if recipe.test_time_flips else "none",
    )


def run(recipe, given):
    if recipe.findings is not None and "flips" not in given and not recipe.resume:
        recipe = dataclasses.replace(recipe, flips="horizontal")
    return fit_classifier(recipe, given, task_of)
